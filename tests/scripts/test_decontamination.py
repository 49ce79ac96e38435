"""Rows shared with held-out sets: each planted kind is found, nothing else is."""
from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dyme_core.data import datasets
from dyme_core.data.benchmarks import sources
from dyme_core.data.schema import Record
from scripts.decontamination import Overlap, decontaminate

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real rows are not at {SHARED}")
LONG = "Tom buys three red apples for two dollars each and then he gives one of them to his sister Ann"


@pytest.fixture(scope="module")
def train() -> list[Record]:
    return datasets.mini_records("train", 100, 0)


@pytest.fixture(scope="module")
def held_out() -> list[Record]:
    return datasets.mini_records("test", 100, 0)


def text(item: str, question: str) -> Record:
    return Record(item, question, "1", "text", "own", "train", None)


def saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=60)
    return Image.open(buffer).convert("RGB")


SAVED = (saved_again, lambda image: image.resize((224, 224)), lambda image: image.crop((1, 1, *image.size)),
         lambda image: image.resize((image.width * 83 // 100, image.height * 83 // 100)))


def test_two_hundred_mini_questions_share_nothing(train, held_out) -> None:
    assert decontaminate(train, held_out) == []


def test_the_same_picture_is_found_whatever_is_asked(train, held_out) -> None:
    planted = replace(train[7], item="planted", question="What is this?", image=datasets.png_bytes(held_out[3].image))
    overlaps = decontaminate([*train, planted], held_out)
    assert overlaps == [Overlap("planted", held_out[3].item, "same picture")]


def test_the_same_question_on_the_same_picture_is_said(train, held_out) -> None:
    planted = replace(held_out[3], item="planted", question=f"  {held_out[3].question.upper()} ")
    assert decontaminate([planted], held_out) == [Overlap("planted", held_out[3].item, "same picture and question")]


def test_a_file_asked_about_twice_is_found_twice(held_out, tmp_path: Path) -> None:
    held_out[5].image.save(tmp_path / "a.png")
    asked = [replace(held_out[0], item=name, question=name, image=tmp_path / "a.png") for name in ("a", "b")]
    assert [(overlap.item, overlap.other) for overlap in decontaminate(asked, held_out)] == [
        ("a", held_out[5].item), ("b", held_out[5].item)]


@needs_shared
def test_real_charts_saved_again_are_found_and_no_other() -> None:
    records = {record.image: record for record in sources.load("chartqa", SHARED / "chartqa", "test")}
    charts = [replace(record, image=record.load_image()) for record in list(records.values())[:16]]
    again = [replace(record, item=f"again-{record.item}", image=SAVED[place % len(SAVED)](record.image))
             for place, record in enumerate(charts)]
    assert decontaminate(again, charts) == [
        Overlap(f"again-{record.item}", record.item, "near-same picture and question") for record in charts]


def test_the_same_text_is_found_whatever_its_spelling_and_length() -> None:
    mine = [text("short", "How many  APPLES, Tom?"), text("other", "How many pears, Tom?")]
    assert decontaminate(mine, [text("held", "how many apples tom")]) == [Overlap("short", "held", "same question")]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not() -> None:
    words = LONG.split()
    thirteen, twelve = " ".join(words[2:15]), " ".join(words[2:14])
    mine = [text("thirteen", f"Yesterday {thirteen} today"), text("twelve", f"Yesterday {twelve} today")]
    assert decontaminate(mine, [text("held", LONG)]) == [Overlap("thirteen", "held", "13 words in a row")]


def test_texts_of_questions_with_pictures_are_compared_where_asked_for(train, held_out) -> None:
    mine, theirs = replace(train[0], question=LONG), replace(held_out[0], question=f"{LONG} ?")
    assert decontaminate([mine], [theirs]) == decontaminate([text("bare", LONG)], [theirs]) == []
    assert decontaminate([mine], [theirs], compare_texts=True) == [Overlap(mine.item, theirs.item, "same question")]


@needs_shared
def test_real_gsm8k_shares_nothing_and_what_is_planted_is_found() -> None:
    train, test = (sources.load("gsm8k", SHARED / "gsm8k", split) for split in ("train", "test"))
    assert decontaminate(train, test) == []
    planted = replace(train[0], item="planted", question=f"Listen. {test[50].question} Thank you.")
    assert decontaminate([*train, planted], test) == [Overlap("planted", test[50].item, "13 words in a row")]


def test_nothing_to_compare_shares_nothing(train) -> None:
    assert decontaminate(train[:2], [text("held", LONG)]) == decontaminate([], train[:2]) == []
