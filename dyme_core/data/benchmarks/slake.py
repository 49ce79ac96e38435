"""SLAKE to records: medical pictures with questions in English and Chinese, closed (yes or no, a choice) and open.

Official files: train.json, validate.json (validation.json in the hub's repository), test.json with rows {img_name, question,
answer, q_lang, answer_type, ...}, pictures in imgs/. On the hub (BoKelvin/SLAKE) the rows have the same fields; the pictures
lie there as imgs.zip, beside the rows.
"""
from __future__ import annotations

from pathlib import Path

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks.rows import SPLITS, Row, picture_of, read_rows, text_of
from dyme_core.data.schema import DataError, Record

COLUMNS = ("img_name", "question", "answer", "answer_type", "q_lang")
KINDS = {"OPEN": "open", "CLOSED": "closed"}
SOURCE = "SLAKE (Liu et al. 2021)"


def slake_records(source: Path | str, split: str, images: Path | str | None = None, language: str = "en",
                  bad: BadRows | None = None) -> list[Record]:
    """Read the questions of one split in one language.

    Args:
        source: a folder that holds the split's JSON file, a hub id, or a folder in the hub's layout.
        split: "train", "validation" or "test".
        images: the folder imgs/; the one in `source` by default.
        language: "en" or "zh".
        bad: collects the rows that are refused; None raises.
    Returns:
        records of kind "open" or "closed".
    Raises:
        DataError: naming the row, or where no question is in that language.
    """
    files = [f"{split}.json", *(["validate.json"] if split == "validation" else [])]
    rows = read_rows(source, split, COLUMNS, files)
    folder = images or (Path(source) / "imgs" if (Path(source) / "imgs").is_dir() else None)
    records = (bad or BadRows()).records(
        rows, lambda row, number: _record(row, f"slake_{split}-{number - 1:05d}", split, folder, language))
    if not records:
        raise DataError(f"{source}, split {split!r}: expected questions with q_lang {language!r}, got only "
                        f"{sorted({str(row.get('q_lang')) for row in rows})}; name one of these")
    return records


def _record(row: Row, item: str, split: str, folder: Path | str | None, language: str) -> Record | None:
    if text_of(row, "q_lang", item) != language:
        return None
    kind = KINDS.get(text_of(row, "answer_type", item).upper())
    if kind is None:
        raise DataError.of(item, "answer_type OPEN or CLOSED", repr(row["answer_type"]), "correct it or remove the row")
    name = text_of(row, "img_name", item)
    return Record(item, text_of(row, "question", item), text_of(row, "answer", item), kind, SOURCE, SPLITS.get(split, split),
                  picture_of(name, item, folder), table_key=f"slake {name}")
