"""The public data sets: the fields of a row, and the record that it makes.

Each reader takes a row, as its official file or the hub has it, and its `Place`. It gives None for a row that holds no question
for us, and raises a DataError that names the row for one that cannot be used. `sources.KNOWN` has their files and hub ids.
"""
from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme_core.data.benchmarks.rows import Row, list_of, picture_of, text_of
from dyme_core.data.benchmarks.tabular import table_facts
from dyme_core.data.schema import NO_SUPERVISION, DataError, Record, known

SPLITS = {"val": "validation", "testmini": "test", "testmini_text_only": "test", "qa_tuning": "train"}  # theirs to ours
OFFICIAL = {"validation": "val"}  # A-OKVQA's and COCO's name of a split of the hub
QUESTION_TYPES = ("multi-choice", "free-form")  # MathVerse's names
VISION_ONLY = "Solve the problem in the picture."  # MathVerse's version "Vision Only" shows the question in the picture

_CALCULATOR_NOTE = re.compile(r"<<[^<>]*>>")
_ASKED = re.compile(r"\A.*?\bQuestion:\s*", re.DOTALL)  # before it stands how to answer
_ANSWER = re.compile(r"\s*(?:\b(?:so|therefore|thus|hence),? )?\b(?:the )?(?:(?:correct|final|right) )?answer(?: is|:)\s*"
                     r"(?:option )?([^\n]+?)\.?\s*\Z", re.IGNORECASE)
_CHOICE = re.compile(r"^\s*([A-H])\s*[:.．、]\s*(.*?)\s*$", re.MULTILINE)
_LETTER = re.compile(r"\(?([A-H])\)?(?:[:.\s].*)?", re.DOTALL)


@dataclass(frozen=True)
class Place:
    """Where a row stands, and what its reader is asked for.

    Attributes:
        name: the data set's, which starts the ids of rows that have none.
        citation: the data set with authors and year, `Record.source`.
        split: as the data set calls it.
        number: of the row in its file, from 0.
        folder: of the data set's files; None for the hub.
        file: name of the row's file; "" for the hub.
        images: folder of its pictures; None where there is none.
        options: of the reader.
    """

    name: str
    citation: str
    split: str
    number: int
    folder: Path | None
    file: str
    images: Path | str | None
    options: Mapping[str, Any]

    def item(self, digits: int = 5) -> str:
        return f"{self.name}_{self.split}-{self.number:0{digits}d}"

    def record(self, item: str, question: str, answer: str, kind: str, image: bytes | Path | None,
               supervision: str = NO_SUPERVISION, table_key: str = "") -> Record:
        return Record(item, question, answer, kind, self.citation, SPLITS.get(self.split, self.split), image, supervision,
                      table_key)


def chartqa(row: Row, place: Place) -> Record:
    """A question of kind "human" or "augmented".

    Official rows: {imgname, query, label}; the picture lies in png/, and where tables/<picture>.csv is there, it gives the
    facts. The hub's: {image, query, label (a list of one), human_or_machine (0, 1)}; it has no tables.
    """
    machine = int("_augmented" in place.file) if place.file else row["human_or_machine"]
    if machine not in (0, 1):
        raise DataError.of(f"{place.split}-{place.number:05d}", "human_or_machine 0 or 1", repr(machine), "correct the row")
    kind = ("human", "augmented")[machine]
    item = f"{place.split}_{kind}-{place.number:05d}"
    question = text_of(row, "query", item)
    if not place.file:
        answer = text_of({"label": list_of(row, "label", item)[0]}, "label", item)
        return place.record(item, question, answer, kind, picture_of(row["image"], item))
    name = Path(text_of(row, "imgname", item)).name  # the name alone: a row must not reach outside the folder
    image, table = picture_of(name, item, place.images), place.folder / "tables" / f"{Path(name).stem}.csv"
    try:
        supervision = known(table_facts(table)) if table.is_file() else NO_SUPERVISION
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError.of(item, f"a table in tables/{table.name}", error, "restore it, or remove it") from error
    return place.record(item, question, text_of(row, "label", item), kind, image, supervision, f"chartqa {Path(name).stem}")


def aokvqa(row: Row, place: Place) -> Record:
    """A question on a COCO picture with four choices, ten free answers and up to three rationales, the longest its trace.

    Official rows name the picture by image_id: it lies in COCO's folder at <split>2017/<image_id in 12 digits>.jpg. The hub's
    have `image`, and the free answers as the literal of a list. The answers of the test split are not public.

    With the option `with_choices` the question ends in its lettered choices and the answer is the right one (kind "choice").
    Otherwise it is the one that most of the ten gave, the first of several (kind "direct").
    """
    item = text_of(row, "question_id", f"row {place.number} of {place.split}")
    question, choices = text_of(row, "question", item), [str(choice) for choice in list_of(row, "choices", item)]
    answers, right = [str(answer) for answer in list_of(row, "direct_answers", item)], row.get("correct_choice_idx")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise DataError.of(item, f"correct_choice_idx among the {len(choices)} choices", repr(right), "correct it")
    kind, answer = "direct", Counter(text for text in answers if text.strip()).most_common(1)
    answer = answer[0][0] if answer else ""
    if place.options.get("with_choices"):
        kind, answer = "choice", choices[right]
        question += "\nChoices:" + "".join(f"\n{chr(ord('A') + number)}: {choice}" for number, choice in enumerate(choices))
    key, image = "", row.get("image")
    if "image" not in row:
        number = text_of(row, "image_id", item)
        if not number.isdecimal():
            raise DataError.of(item, "an image_id of digits", repr(number), "correct it")
        key, image = f"coco {number}", f"{OFFICIAL.get(place.split, place.split)}2017/{int(number):012d}.jpg"
    told = list_of(row, "rationales", item) if row.get("rationales") else []
    trace = max((str(text).strip() for text in told), key=len, default="")
    scoring = {"direct_answers": answers, "difficult_direct_answer": bool(row.get("difficult_direct_answer")),
               "choices": choices, "correct_choice_idx": right}
    return place.record(item, question, answer, kind, picture_of(image, item, place.images), known(trace=trace, **scoring), key)


def gsm8k(row: Row, place: Place) -> Record:
    """A word problem without a picture, rows {question, answer}: a solution, its trace without calculator notes such as
    <<2*3=6>>, then "#### " and the number."""
    item = place.item()
    solution = text_of(row, "answer", item)
    steps, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise DataError.of(item, "a solution that ends in '#### ' and its number", repr(solution[-40:]), "correct it")
    return place.record(item, text_of(row, "question", item), answer.strip(), "text", None,
                        known(trace=_CALCULATOR_NOTE.sub("", steps).strip()))


def slake(row: Row, place: Place) -> Record | None:
    """A question on a medical picture in imgs/, kind "open" or "closed" (yes or no, a choice), in the option's `language`.

    Rows {img_name, question, answer, q_lang, answer_type, ...}, on the hub too, where imgs.zip lies beside them.
    """
    item = place.item()
    if text_of(row, "q_lang", item) != place.options["language"]:
        return None
    kind = text_of(row, "answer_type", item).lower()
    if kind not in ("open", "closed"):
        raise DataError.of(item, "answer_type OPEN or CLOSED", repr(row["answer_type"]), "correct it or remove the row")
    name = text_of(row, "img_name", item)
    return place.record(item, text_of(row, "question", item), text_of(row, "answer", item), kind,
                        picture_of(name, item, place.images), table_key=f"slake {name}")


def geo170k(row: Row, place: Place) -> Record | None:
    """A geometry problem with a drawing, rows {image, conversations}: `image` is a path in the hub's images.zip. The trace is
    the solution before its answer; None for a solution that closes on no readable answer."""
    item = place.item(6)
    turns = [turn for turn in list_of(row, "conversations", item) if isinstance(turn, dict)]
    if [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
        raise DataError.of(item, "a turn of 'human' and one of 'gpt'", repr(turns)[:80], "correct it or remove the row")
    asked, solution = (text_of(turn, "value", item) for turn in turns[:2])
    closing = _ANSWER.search(solution)
    question = _ASKED.sub("", asked.replace("<image>", "").strip())
    choices, answer = read_choices(question), closing[1].strip() if closing else ""
    if choices:
        letter = _LETTER.fullmatch(answer)
        answer = letter[1] if letter and letter[1] in choices else ""
    if not answer:
        return None
    kind = QUESTION_TYPES[0 if choices else 1]
    return place.record(item, question, answer, kind, picture_of(row.get("image"), item, place.images),
                        known(trace=solution[: closing.start()].strip(), question_type=kind, choices=choices))


def mathverse(row: Row, place: Place) -> Record:
    """A geometry problem in one of its versions (the kind), to measure on.

    Rows {sample_index, problem_index, problem_version, question, image, answer, question_type, question_for_eval, ...}; those
    of the split testmini_text_only are asked without a picture.
    """
    item = f"{place.name}_{place.split}-{text_of(row, 'sample_index', f'row {place.number} of {place.split}')}"
    question_type = text_of(row, "question_type", item)
    if question_type not in QUESTION_TYPES:
        raise DataError.of(item, f"question_type {' or '.join(QUESTION_TYPES)}", repr(question_type), "correct it")
    whole = str(row.get("question_for_eval") or row.get("question") or "")  # what the picture of "Vision Only" shows
    is_bare = row.get("question") is None or row["question"] == "" or str(row["question"]).isspace()
    question = VISION_ONLY if is_bare else text_of(row, "question", item)
    if question_type == QUESTION_TYPES[0] and question == VISION_ONLY:
        question += " Answer with the letter of the right choice."
    image = None if place.split == "testmini_text_only" else picture_of(row.get("image"), item, place.images)
    return place.record(item, question, text_of(row, "answer", item), text_of(row, "problem_version", item), image,
                        known(question_type=question_type, choices=read_choices(whole)),
                        f"mathverse {text_of(row, 'problem_index', item)}")


def read_choices(question: str) -> dict[str, str]:
    """The choices {letter: text} after "Choices:", one per line; {} where there are none."""
    _, mark, behind = question.partition("Choices:")
    return dict(_CHOICE.findall(behind)) if mark else {}
