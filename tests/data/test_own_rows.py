"""Your own data: what loads, what is refused and how, and that written records load back."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from dyme_core.data import datasets, schema
from dyme_core.data.benchmarks.own import own_records
from dyme_core.data.schema import DataError, Fact, item_of
from dyme_core.supervision.refiner import RuleRefiner, TraceRefiner, target_writer

GOOD = {"question": "Which is taller?", "answer": "May", "image": "charts/1.png"}
FACTS = [{"entity": "May", "attribute": "rain", "value": 45, "unit": "mm"}, {"entity": "June", "value": 3.5}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "charts").mkdir()
    Image.new("RGB", (20, 10), "#ff0000").save(tmp_path / "charts" / "1.png")
    return tmp_path


def write(folder: Path, *rows: dict) -> Path:
    (folder / "data.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    return folder


def test_the_shortest_row_is_enough(folder: Path) -> None:
    [record] = own_records(write(folder, GOOD))
    assert (record.item, record.question, record.answer, record.split) == ("row-1", "Which is taller?", "May", "train")
    assert (record.kind, record.source, record.supervision) == ("own", "own", schema.NO_SUPERVISION)
    assert record.load_image().size == (20, 10)


def test_a_row_may_say_everything(folder: Path) -> None:
    row = GOOD | {"id": "rain.may-2", "split": "test", "kind": "compare", "source": "weather office", "facts": FACTS,
                  "trace": "May has 45 and June has 3.5."}
    [record] = own_records(write(folder, row, GOOD), "test")
    assert (record.item, record.kind, record.source) == ("rain.may-2", "compare", "weather office")
    assert item_of(record.row).facts == (Fact("May", "rain", 45.0, "mm"), Fact("June", "", 3.5))
    assert TraceRefiner().refine_all([record.row]) == ["May has 45 and June has 3.5."]


def test_a_question_of_text_alone_has_no_image_and_an_answer_may_be_a_number(folder: Path) -> None:
    [record] = own_records(write(folder, {"question": "2 + 3?", "answer": 5}) / "data.jsonl")
    assert (record.image, record.answer) == (None, "5")


@pytest.mark.parametrize(("change", "reason"), [
    ({"question": " "}, "'question', got ' '"), ({"answer": None}, "'answer'"), ({"answer": True},
        "'answer', got True"),
    ({"answer": ["May"]}, "'answer'"), ({"answer": "<answer>May</answer>"}, "without its tag"),
    ({"image": "charts/2.png"}, "2.png.*no such file"), ({"image": "../1.png"}, "inside its folder"),
    ({"image": {"bytes": "x"}}, "a picture"), ({"fact": []}, "'fact'; rename"), ({"id": "a/b"}, "letters, digits"),
    ({"id": ".."}, "letters, digits"), ({"split": "dev"}, "train, validation, test, unseen, altered, got 'dev'"),
    ({"facts": "May 45"}, "list in the field 'facts'"),
    ({"facts": [{"entity": "May"}]}, "number as value, .*got {'entity': 'May'}"),
    ({"facts": [{"entity": "May", "value": "45"}]}, "number as value"), ({"facts": [{"entity": "", "value": 4}]},
        "an entity"),
    ({"facts": [{"entity": "May", "value": float("nan")}]}, "number as value"),
    ({"facts": [{"entity": "May", "value": 4, "color": "red"}]}, "no field but entity"),
    ({"trace": "May is tallest"}, "at least 4 words"),
    ({"trace": "We see that <answer>May</answer> is right"}, "without <answer>"),
    ({"supervision": {"facts": [{"entity": "May"}]}}, "number as value"), ({"supervision": "none"}, "an object"),
    ({"supervision": {"trace": "May"}}, "at least 4 words"),
    ({"supervision": {}, "trace": "May is the taller one"}, "keep one of them")])
def test_a_faulty_row_is_named_by_its_number_and_id(folder: Path, change: dict, reason: str) -> None:
    with pytest.raises(DataError, match=rf"(row-2|{change.get('id', 'row-2')}) \(row 2\).*{reason}"):
        own_records(write(folder, GOOD, GOOD | change))


def test_an_id_comes_once(folder: Path) -> None:
    with pytest.raises(DataError, match="item 'a'.*row 2 has it again"):
        own_records(write(folder, GOOD | {"id": "a"}, GOOD | {"id": "a", "answer": "June"}))


def test_a_split_without_rows_is_said(folder: Path) -> None:
    with pytest.raises(DataError, match=r"split 'test', got \['train'\]"):
        own_records(write(folder, GOOD), "test")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder with data.jsonl"):
        own_records(tmp_path / "nowhere")


def test_written_records_load_back(tmp_path: Path) -> None:
    mine = [*datasets.mini_records("train", 7, 0), *datasets.mini_records("test", 7, 0)]
    mine.append(replace(mine[0], item="bare", image=None))
    datasets.write_jsonl(mine, tmp_path)
    again = [*own_records(tmp_path, "train"), *own_records(tmp_path, "test")]
    assert {replace(record, image=None) for record in again} == {replace(record, image=None) for record in mine}
    pictures = {record.item: record for record in again}
    assert pictures["bare"].image is None
    assert all(pictures[record.item].load_image().tobytes() == record.image.tobytes() for record in mine[:-1])
    write = target_writer(RuleRefiner())
    assert write([record.row for record in again[:7]]) == write([record.row for record in mine[:7]])


def test_names_of_a_fact_may_be_numbers_even_0_and_no_attribute_or_unit_is_none(folder: Path) -> None:
    facts = [{"entity": 0, "attribute": 0, "value": 4, "unit": 0}, {"entity": 2010, "attribute": None, "value": 5,
                                                                    "unit": None}]
    [record] = own_records(write(folder, GOOD | {"facts": facts}))
    assert item_of(record.row).facts == (Fact("0", "0", 4.0, "0"), Fact("2010", "", 5.0))
    mine = Dataset.from_list([{"prompt": "Which?", "answer": "May", "facts": facts[1:]}])
    assert item_of(datasets.with_defaults(mine)[0]).facts == (Fact("2010", "", 5.0),)


@pytest.mark.parametrize("answer", [None, float("nan"), ["May"]])
def test_an_answer_that_is_none_is_not_learned_as_a_word(answer: object) -> None:
    with pytest.raises(DataError, match="row-0.*'answer'"):
        datasets.with_defaults(Dataset.from_list([{"prompt": "Which?", "answer": answer}]))


def test_answers_of_a_data_set_that_are_numbers_or_truth_values_become_text() -> None:
    for answer, text in ((5, "5"), (0, "0"), (2.5, "2.5"), (True, "True")):
        assert datasets.with_defaults(Dataset.from_list([{"prompt": "Which?", "answer": answer}]))[0]["answer"] == text
