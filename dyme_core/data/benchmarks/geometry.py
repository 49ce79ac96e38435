"""Geo170K (to train on) and MathVerse (to measure on) to records: geometry with a drawing, choices or a value.

Geo170K: qa_tuning.json and images/, or the hub (Luckyjhg/Geo170K; split qa_tuning), rows {image, conversations}, where `image`
is a path in the hub's images.zip. MathVerse: testmini.json and images/, or the hub (AI4Math/MathVerse; a config is called as
its split), rows {sample_index, problem_index, problem_version, question, image, answer, question_type, question_for_eval, ...}.
"""
from __future__ import annotations

import logging
import re
from pathlib import Path

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks.rows import SPLITS, Row, list_of, picture_of, read_rows, text_of
from dyme_core.data.schema import DataError, Record, known

logger = logging.getLogger(__name__)
GEO170K = "Geo170K (Gao et al. 2023)"
MATHVERSE = "MathVerse (Zhang et al. 2024)"
MATHVERSE_COLUMNS = ("sample_index", "problem_index", "problem_version", "question", "image", "answer", "question_type")
QUESTION_TYPES = ("multi-choice", "free-form")
VISION_ONLY = "Solve the problem in the picture."  # version "Vision Only" has no text: the question is part of the picture

_ASKED = re.compile(r"\A.*?\bQuestion:\s*", re.DOTALL)  # before it stands how to answer
_ANSWER = re.compile(r"\s*(?:\b(?:so|therefore|thus|hence),? )?\b(?:the )?(?:(?:correct|final|right) )?answer(?: is|:)\s*"
                     r"(?:option )?([^\n]+?)\.?\s*\Z", re.IGNORECASE)
_CHOICE = re.compile(r"^\s*([A-H])\s*[:.．、]\s*(.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-H])\)?(?:[:.\s].*)?", re.DOTALL)


def geo170k_records(source: Path | str, split: str = "qa_tuning", images: Path | str | None = None,
                    bad: BadRows | None = None) -> list[Record]:
    """Read question and solution of each row. A solution without a readable answer at its end is left out; the log says how
    many.

    Args:
        source: a folder that holds <split>.json, a hub id, or a folder in the hub's layout.
        split: "qa_tuning"; "alignment" holds descriptions, not answers.
        images: the unpacked images.zip; images/ in `source` by default.
        bad: collects the rows that are refused; None raises.
    Returns:
        records whose trace is the solution before the answer.
    Raises:
        DataError: naming the row, or where no row is left.
    """
    rows = read_rows(source, split, ("image", "conversations"), [f"{split}.json"])
    folder = _folder(source, images)
    left_out: list[Row] = []
    records = (bad or BadRows()).records(rows, lambda row, number: _geo170k_record(
        row, f"geo170k_{split}-{number - 1:06d}", split, folder, left_out))
    if not records:
        raise DataError(f"{source}, split {split!r}: expected solutions that close on 'Answer: ...', got none in {len(rows)} "
                        "rows; read the split qa_tuning")
    if left_out:
        logger.warning("%s: %d of %d solutions close on no readable answer and are left out", source, len(left_out), len(rows))
    return records


def mathverse_records(source: Path | str, split: str = "testmini", images: Path | str | None = None,
                      bad: BadRows | None = None) -> list[Record]:
    """Read the problems, each in its versions.

    Args:
        source: a folder that holds <split>.json, a hub id, or a folder in the hub's layout.
        split: "testmini" (five versions with a picture) or "testmini_text_only" (none has one).
        images: the unpacked images.zip; images/ in `source` by default.
        bad: collects the rows that are refused; None raises.
    Returns:
        records whose kind is the version, and whose scoring has question_type and choices {letter: text}.
    Raises:
        DataError: naming the row.
    """
    rows = read_rows(source, split, MATHVERSE_COLUMNS, [f"{split}.json"], split)
    folder = _folder(source, images)
    return (bad or BadRows()).records(rows, lambda row, number: _mathverse_record(row, number - 1, split, folder))


def _folder(source: Path | str, images: Path | str | None) -> Path | str | None:
    return images or (Path(source) / "images" if (Path(source) / "images").is_dir() else None)


def _geo170k_record(row: Row, item: str, split: str, folder: Path | str | None, left_out: list[Row]) -> Record | None:
    turns = [turn for turn in list_of(row, "conversations", item) if isinstance(turn, dict)]
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise DataError.of(item, "a turn of 'human' and one of 'gpt'", repr(turns)[:80], "correct it or remove the row")
    asked, solution = (text_of(turn, "value", item) for turn in turns[:2])
    closing = _ANSWER.search(solution)
    if closing is None:
        return left_out.append(row)
    question = _ASKED.sub("", asked.replace("<image>", "").strip())
    choices = read_choices(question)
    answer, letter = closing[1].strip(), _LETTER.fullmatch(closing[1].strip())
    if choices and (letter is None or letter[1] not in choices):
        return left_out.append(row)
    kind = QUESTION_TYPES[0] if choices else QUESTION_TYPES[1]
    return Record(item, question, letter[1] if choices else answer, kind, GEO170K, SPLITS.get(split, split),
                  picture_of(row.get("image"), item, folder),
                  known(trace=solution[: closing.start()].strip(), question_type=kind, choices=choices))


def _mathverse_record(row: Row, place: int, split: str, folder: Path | str | None) -> Record:
    item = f"mathverse_{split}-{text_of(row, 'sample_index', f'row {place} of {split}')}"
    question_type = text_of(row, "question_type", item)
    if question_type not in QUESTION_TYPES:
        raise DataError.of(item, f"question_type {' or '.join(QUESTION_TYPES)}", repr(question_type), "correct it")
    whole = str(row.get("question_for_eval") or row.get("question") or "")  # the picture's own text, in version "Vision Only"
    is_bare = row.get("question") is None or row["question"] == "" or str(row["question"]).isspace()
    question = VISION_ONLY if is_bare else text_of(row, "question", item)
    if question_type == QUESTION_TYPES[0] and question == VISION_ONLY:
        question += " Answer with the letter of the right choice."
    image = None if split == "testmini_text_only" else picture_of(row.get("image"), item, folder)
    return Record(item, question, text_of(row, "answer", item), text_of(row, "problem_version", item), MATHVERSE,
                  SPLITS.get(split, split), image, known(question_type=question_type, choices=read_choices(whole)),
                  f"mathverse {text_of(row, 'problem_index', item)}")


def read_choices(question: str) -> dict[str, str]:
    """The choices {letter: text} after "Choices:", one per line; {} where there are none."""
    _, mark, behind = question.partition("Choices:")
    return dict(_CHOICE.findall(behind)) if mark else {}
