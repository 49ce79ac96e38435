"""What published data sets hold: repeats, empty answers and rationales, pictures of odd names. They are taken as they are."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hostile import FILES, ITEMS, PICTURES, ROWS, assert_says, catch, folder_of, read, with_text
from PIL import Image

from dyme_core import load_dataset
from dyme_core.data import datasets
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import sources
from dyme_core.data.schema import DataError, Record
from dyme_core.models import tiny_onevision
from dyme_core.pipeline.preflight import preflight, without_shared_rows

TRAINED = tuple(name for name in ROWS if name != "mathverse")  # which has no training split
OTHER = {"geo170k": "9", "gsm8k": "7", "aokvqa": ["bowl"]}


def train_records(name: str, folder: Path, bad: BadRows | None = None) -> list[Record]:
    return datasets.load_records(name, str(folder), "train", bad, **({"images": str(folder)} if name == "aokvqa"
                                                                     else {}))


def renamed(name: str, row: dict) -> dict:
    """The row with another id, where it has one."""
    return row | ({"id": "b"} if name == "own" else {"question_id": "b"} if name == "aokvqa" else {})


@pytest.mark.promise("bad input",
                     "rows that a data set repeats with the same answer are left out of training and counted")
@pytest.mark.parametrize("policy", ["raise", "skip"])
@pytest.mark.parametrize("name", TRAINED)
def test_exact_repeats_are_left_out_and_counted(name: str, policy: str, tmp_path: Path, caplog) -> None:
    folder_of(name, [ROWS[name], ROWS[name], renamed(name, ROWS[name])], tmp_path)
    bad = BadRows(policy)
    assert len(train_records(name, tmp_path, bad)) == 1
    assert bad.summary() == {"count": 0, "first": [], "repeats": 2} and "2 repeated ones" in caplog.text
    assert len(load_dataset(name if name != "own" else tmp_path, source=tmp_path if name != "own" else "",
                            **({"images": tmp_path} if name == "aokvqa" else {}))) == 1


@pytest.mark.parametrize("name", TRAINED)
def test_a_repeat_with_another_answer_is_a_bad_row(name: str, tmp_path: Path) -> None:
    other = renamed(name, with_text(name, "answer", OTHER.get(name, "June")))
    folder_of(name, [ROWS[name], other], tmp_path)
    error = catch(lambda: train_records(name, tmp_path), DataError)
    assert_says(error, "same picture and question", "b" if name in ("own", "aokvqa") else ITEMS[name])
    bad = BadRows("skip")
    assert len(train_records(name, tmp_path, bad)) == 1 and (len(bad.reasons), len(bad.repeats)) == (1, 0)


def test_the_same_question_on_the_same_pixels_is_a_repeat_whatever_the_file_is_called(tmp_path: Path) -> None:
    rows = [ROWS["slake"] | {"img_name": name, "question": question} for name, question in (
        ("1.png", "Which organ?"), ("2/source.PNG", "which organ? "), ("3.png", "Which organ?"), ("2/source.PNG",
            "Which plane?"))]
    folder = folder_of("slake", rows, tmp_path)
    (folder / "imgs" / "2").mkdir()
    shutil.copy(folder / "imgs" / "1.png", folder / "imgs" / "2" / "source.PNG")
    Image.new("RGB", (20, 10), "red").save(folder / "imgs" / "3.png")
    kept = train_records("slake", folder)
    assert [record.item for record in kept] == ["slake_train-00000", "slake_train-00002", "slake_train-00003"]


def test_a_split_that_is_measured_on_keeps_its_repeats_and_a_row_of_the_same_id_comes_once(tmp_path: Path) -> None:
    shutil.move(folder_of("chartqa", [ROWS["chartqa"]] * 2, tmp_path) / FILES["chartqa"], tmp_path / "test_human.json")
    assert len(datasets.load_records("chartqa", str(tmp_path), "test")) == 2, "the official figure is over all rows"
    bad = BadRows()
    assert len(read("mathverse", folder_of("mathverse", [ROWS["mathverse"]] * 2, tmp_path / "m"),
                    bad)) == 1 == len(bad.repeats)


def test_preflight_takes_repeats_and_refuses_two_answers_to_one_question() -> None:
    processor = tiny_onevision.build_processor()
    model = tiny_onevision.build_model("svlm", processor, seed=0)
    first, second = (Record(item, "How many?", answer, "lookup", "own", "train", Image.new("RGB", (96, 96)))
                     for item, answer in (("a", "3"), ("b", "4")))
    again = Record("c", "how many? ", "3", "lookup", "own", "train", first.image)
    report = preflight([first, again], processor, model, rollouts=1, max_new_tokens=8,
                       refine=lambda rows: [None] * len(rows))
    assert report.num_records == 2
    with pytest.raises(DataError, match="item 'b'.*same picture and question.*'4'"):
        preflight([first, second], processor, model, rollouts=1, refine=lambda rows: [None] * len(rows))


def test_a_picture_that_cannot_be_read_is_no_repeat(tmp_path: Path) -> None:
    folder = folder_of("slake", [ROWS["slake"], ROWS["slake"]], tmp_path)
    (folder / "imgs" / "1.png").write_bytes(b"no picture")
    assert len(train_records("slake", folder)) == 2, "it is named where the picture is used"


def test_aokvqas_empty_answers_and_rationales_are_passed_over_and_its_validation_pictures_are_cocos_val(tmp_path: Path) -> None:
    row = ROWS["aokvqa"] | {"direct_answers": ["", "", " ", "pipe", "bowl", "pipe"], "rationales": ["", " ",
        "It has a bowl of wood."]}
    folder_of("aokvqa", [], tmp_path)
    (tmp_path / "aokvqa_v1p0_val.json").write_text(json.dumps([row]))
    (tmp_path / PICTURES["aokvqa"]).rename(tmp_path / "val2017")
    for split in ("validation", "val"):
        [record] = sources.load("aokvqa", tmp_path, split, images=tmp_path)
        assert (record.answer, record.split) == ("pipe", "validation") and record.load_image().size == (20, 10)


@pytest.mark.parametrize("name", ["1.PNG", "1.JPG", "1.jpeg", "1.webp", "1", "1.png.jpg", "chart 1 (a).png", "ä.png"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_pictures_name_says_nothing_of_its_format(name: str, kind: str, tmp_path: Path) -> None:
    folder = folder_of("chartqa", [ROWS["chartqa"] | {"imgname": name}], tmp_path)
    Image.new("RGB", (20, 10), "#00aa00").save(folder / "png" / name, kind)
    [record] = read("chartqa", folder)
    assert datasets.to_dataset([record])[0]["image"].size == (20, 10)


@pytest.mark.parametrize("name", ["slake", "geo170k", "mathverse", "chartqa", "aokvqa"])
def test_an_option_that_a_reader_has_not_is_named(name: str, tmp_path: Path) -> None:
    folder_of(name, [ROWS[name]], tmp_path)
    with pytest.raises(DataError, match=rf"reader of {name} has \(images.*got languag; rename"):
        sources.load(name, tmp_path, "train" if name != "mathverse" else "test", languag="en")


def test_training_rows_whose_picture_is_measured_on_are_left_out_where_bad_rows_are(tmp_path: Path) -> None:
    """A drawing of Geo170K may be one of MathVerse."""
    rows = [ROWS["geo170k"] | {"image": f"{number}.png"} for number in (1, 2, 3)]
    folder = folder_of("geo170k", rows, tmp_path / "geo170k")
    for number, colour in ((2, "red"), (3, "blue")):
        Image.new("RGB", (20, 10), colour).save(folder / "images" / f"{number}.png")
    train, test = read("geo170k", folder), read("mathverse", folder_of("mathverse", [ROWS["mathverse"]],
        tmp_path / "mathverse"))
    bad = BadRows("skip")
    assert without_shared_rows(train, test, bad) == train[1:]
    [reason] = bad.reasons
    assert "geo170k_qa_tuning-000000" in reason and "picture shared with the test split" in reason and test[0].item in reason
    assert without_shared_rows(train, test, BadRows()) == train, "the preflight itself stops there"
    with pytest.raises(DataError, match="at most 50%"):
        without_shared_rows(train[:1], test, BadRows("skip"))
