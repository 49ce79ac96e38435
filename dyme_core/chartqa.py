"""ChartQA in its own layout -> records: png/, <split>_human.json, <split>_augmented.json, tables/ where there are any.

Rows are {imgname, query, label}. A gold table gives the picture's facts; the steps to an answer are not known.
"""
from __future__ import annotations

import json
from pathlib import Path

from dyme_core.data import NO_SUPERVISION, DataError, Record
from dyme_core.facts import facts_to_rows
from dyme_core.tabular import table_facts

KINDS = ("human", "augmented")
FIELDS = ("imgname", "query", "label")
SOURCE = "ChartQA (Masry et al. 2022)"


def chartqa_records(folder: Path, split: str = "test") -> list[Record]:
    """Read the questions of one split, human before augmented, in the order of the files.

    Args:
        folder: holds png/ and <split>_human.json or <split>_augmented.json or both; tables/<image>.csv gives facts.
        split: ChartQA's name, "test", "val" or "train".
    Raises:
        DataError: naming the file and row, where a file is missing or a row lacks its picture, question or answer.
    """
    folder = Path(folder)
    files = [(kind, folder / f"{split}_{kind}.json") for kind in KINDS if (folder / f"{split}_{kind}.json").is_file()]
    if not files:
        raise DataError(f"{folder} must hold {split}_human.json or {split}_augmented.json beside png/: found neither; "
                        "give the folder of ChartQA's own layout")
    records = []
    for kind, file in files:
        rows = json.loads(file.read_text(encoding="utf-8"))
        records += [_record(folder, split, kind, place, row) for place, row in enumerate(rows)]
    return records


def _record(folder: Path, split: str, kind: str, place: int, row: dict) -> Record:
    item, where = f"{split}_{kind}-{place:05d}", f"row {place} of {split}_{kind}.json"
    for name in FIELDS:
        if not str(row.get(name) or "").strip():
            raise DataError.of(item, f"a {name!r} in {where}", repr(row.get(name)), "fill it in or remove the row")
    image = folder / "png" / Path(row["imgname"]).name  # the name alone: a row must not reach outside the folder
    if not image.is_file():
        raise DataError.of(item, f"the picture {image} of {where}", "no such file", "restore it or remove the row")
    table = folder / "tables" / f"{image.stem}.csv"
    supervision = NO_SUPERVISION
    if table.is_file():
        supervision = json.dumps({"facts": facts_to_rows(table_facts(table)), "evidence": []})
    return Record(item, str(row["query"]).strip(), str(row["label"]).strip(), kind, SOURCE,
                  {"val": "validation"}.get(split, split), image, supervision, f"chartqa {image.stem}")
