"""ChartQA to records, from its own layout or from the hub (HuggingFaceM4/ChartQA).

Its own layout: png/, <split>_human.json, <split>_augmented.json with rows {imgname, query, label}, tables/ where there are any.
A gold table gives the picture's facts; the steps to an answer are not known. The hub's columns (its card): image, query, label
(a list of one), human_or_machine (0, 1); it has no tables.
"""
from __future__ import annotations

import csv
from pathlib import Path

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks.rows import SPLITS, Row, list_of, picture_of, read_json, read_rows, text_of
from dyme_core.data.benchmarks.tabular import table_facts
from dyme_core.data.schema import NO_SUPERVISION, DataError, Record, known

KINDS = ("human", "augmented")
COLUMNS = ("image", "query", "label", "human_or_machine")
SOURCE = "ChartQA (Masry et al. 2022)"


def chartqa_records(source: Path | str, split: str = "test", bad: BadRows | None = None) -> list[Record]:
    """Read the questions of one split; from files human before augmented, each in the order of its file.

    Args:
        source: a folder that holds png/ and <split>_human.json or <split>_augmented.json or both, where tables/<image>.csv
            gives facts; or a hub id, or a folder in the hub's layout.
        split: ChartQA's name, "test", "val" or "train".
        bad: collects the rows that are refused; None raises.
    Raises:
        DataError: naming the row, where a file is missing or a row lacks its picture, question or answer.
    """
    bad, folder = bad or BadRows(), Path(source)
    files = {kind: Path(source) / f"{split}_{kind}.json" for kind in KINDS}
    if any(file.is_file() for file in files.values()):
        return [record for kind, file in files.items() if file.is_file() for record in bad.records(
            read_json(file), lambda row, number, kind=kind: _file_record(folder, split, kind, number - 1, row))]
    rows = read_rows(source, split, COLUMNS, [file.name for file in files.values()])
    return bad.records(rows, lambda row, number: _hub_record(split, number - 1, row))


def _file_record(folder: Path, split: str, kind: str, place: int, row: Row) -> Record:
    item = f"{split}_{kind}-{place:05d}"
    name = Path(text_of(row, "imgname", item)).name  # the name alone: a row must not reach outside the folder
    image = picture_of(name, item, folder / "png")
    table = folder / "tables" / f"{Path(name).stem}.csv"
    try:
        supervision = known(table_facts(table)) if table.is_file() else NO_SUPERVISION
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError.of(item, f"a table in tables/{table.name}", error, "restore it, or remove it") from error
    return Record(item, text_of(row, "query", item), text_of(row, "label", item), kind, SOURCE, SPLITS.get(split, split), image,
                  supervision, f"chartqa {Path(name).stem}")


def _hub_record(split: str, place: int, row: Row) -> Record:
    if row["human_or_machine"] not in (0, 1):
        raise DataError.of(f"{split}-{place:05d}", "human_or_machine 0 or 1", repr(row["human_or_machine"]), "correct the row")
    kind = KINDS[row["human_or_machine"]]
    item = f"{split}_{kind}-{place:05d}"
    answer = text_of({"label": list_of(row, "label", item)[0]}, "label", item)
    return Record(item, text_of(row, "query", item), answer, kind, SOURCE, SPLITS.get(split, split),
                  picture_of(row["image"], item))
