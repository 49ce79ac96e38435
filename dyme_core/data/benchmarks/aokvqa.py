"""A-OKVQA to records: questions on COCO pictures, each with four choices, ten free answers and up to three rationales.

Official files: aokvqa_v1p0_<split>.json, pictures COCO 2017's (train2017/, val2017/). On the hub (HuggingFaceM4/A-OKVQA) there
are the same fields with `image` in place of `image_id`, and the free answers are the literal of a list. The answers of the test
split are not public.
"""
from __future__ import annotations

from collections import Counter
from pathlib import Path

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks.rows import SPLITS, Row, list_of, picture_of, read_rows, text_of
from dyme_core.data.schema import DataError, Record, known

COLUMNS = ("image", "question_id", "question", "choices", "correct_choice_idx", "direct_answers", "difficult_direct_answer",
           "rationales")
OFFICIAL = {"validation": "val"}  # in the names of its files and of COCO's folders
SOURCE = "A-OKVQA (Schwenk et al. 2022)"


def aokvqa_records(source: Path | str, split: str, images: Path | str | None = None, with_choices: bool = False,
                   bad: BadRows | None = None) -> list[Record]:
    """Read the questions of one split.

    Args:
        source: a folder that holds aokvqa_v1p0_<split>.json, a hub id, or a folder in the hub's layout.
        split: "train" or "validation" ("val" in the names of the official files).
        images: COCO's folder, for the official files: <split>2017/<image id in 12 digits>.jpg.
        with_choices: asks with the choices, lettered, and the answer is the right one (kind "choice"). Otherwise (kind
            "direct") the answer is the one that most of the ten gave, the first of several.
        bad: collects the rows that are refused; None raises.
    Returns:
        records whose trace is the longest rationale, and whose scoring has direct_answers, difficult_direct_answer,
        choices and correct_choice_idx, as `metrics` reads them.
    Raises:
        DataError: naming the row.
    """
    rows = read_rows(source, split, COLUMNS, [f"aokvqa_v1p0_{OFFICIAL.get(split, split)}.json"])
    return (bad or BadRows()).records(rows, lambda row, number: _record(row, split, number - 1, images, with_choices))


def _record(row: Row, split: str, place: int, images: Path | str | None, with_choices: bool) -> Record:
    item = text_of(row, "question_id", f"row {place} of {split}")
    question, choices = text_of(row, "question", item), [str(choice) for choice in list_of(row, "choices", item)]
    answers, right = [str(answer) for answer in list_of(row, "direct_answers", item)], row.get("correct_choice_idx")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise DataError.of(item, f"correct_choice_idx among the {len(choices)} choices", repr(right), "correct it")
    if with_choices:
        lettered = "".join(f"\n{chr(ord('A') + number)}: {choice}" for number, choice in enumerate(choices))
        question = f"{question}\nChoices:{lettered}"
    is_file, image = "image" not in row, row.get("image")
    if is_file:
        number = text_of(row, "image_id", item)
        if not number.isdecimal():
            raise DataError.of(item, "an image_id of digits", repr(number), "correct it")
        image = f"{split}2017/{int(number):012d}.jpg"
    answer = choices[right] if with_choices else Counter(answers).most_common(1)[0][0]
    told = list_of(row, "rationales", item) if row.get("rationales") else []
    trace = max((str(text).strip() for text in told), key=len, default="")
    scoring = {"direct_answers": answers, "difficult_direct_answer": bool(row.get("difficult_direct_answer")),
               "choices": choices, "correct_choice_idx": right}
    return Record(item, question, answer, "choice" if with_choices else "direct", SOURCE, SPLITS.get(split, split),
                  picture_of(image, item, images), known(trace=trace, **scoring), f"coco {row['image_id']}" if is_file else "")
