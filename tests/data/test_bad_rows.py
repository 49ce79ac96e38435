"""Bad rows of every data set: each is refused with its name, what was expected, what came and a remedy."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from hostile import CONTROL, FILES, HUGE, ITEMS, NOTHING, ROWS, SPECIAL, WRONG, assert_says, catch, folder_of, read, with_text

from dyme_core.data.bad_rows import MAX_CHARS, BadRows
from dyme_core.data.schema import DataError

RIGHT = {  # Geo170K's mark of the picture, MathVerse's questions that stand in the picture, A-OKVQA's list of answers
    ("geo170k", "question", "<image>"), ("mathverse", "question", "null"), ("mathverse", "question", "empty"),
    ("mathverse", "question", "blank"), ("aokvqa", "answer", "list")}
TEXTS = [(name, where, label, value) for name in ROWS for where in ("question", "answer")
         for label, value in (NOTHING | WRONG | HUGE | CONTROL | SPECIAL).items() if (name, where, label) not in RIGHT]


@pytest.mark.promise("bad input", "no text that is missing, of a wrong type, too long or holds control characters or special "
                                  "tokens is learned from, whatever the data set")
@pytest.mark.parametrize(("name", "where", "label", "value"), TEXTS, ids=[" ".join(case[:3]) for case in TEXTS])
def test_a_text_that_is_no_plain_text_is_refused(name: str, where: str, label: str, value: Any, tmp_path: Path) -> None:
    folder_of(name, [with_text(name, where, value)], tmp_path)
    assert_says(catch(lambda: read(name, tmp_path), DataError), ITEMS[name])


@pytest.mark.parametrize("name", ROWS)
def test_the_row_that_the_cases_spoil_is_taken(name: str, tmp_path: Path) -> None:
    [record] = read(name, folder_of(name, [ROWS[name]], tmp_path))
    assert record.item.startswith(ITEMS[name]) and record.answer


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    *(("own", {"facts": [{"entity": "May", "value": value}]}, "number as value") for value in
      (float("nan"), float("inf"), -float("inf"), 1e16, -1e300, 10**400, True, None, "45", [45])),
    *(("own", {"facts": [{"entity": text, "value": 4}]}, "facts without") for text in ("a\0", "<|im_end|>", "x\x1b[0m")),
    *(("own", {"facts": facts}, "facts") for facts in ("May 45", {"May": 45}, 45, [45], [None], [[]], [{}])),
    *(("own", {"trace": trace}, "trace") for trace in (
        "too short", 5, ["We see that May is taller"], {"a": "b"}, "We see <image> May is taller", "We see that May </s> so",
        "We see that May \0 is taller", "word " * 5000, "<answer>May</answer> is what we see here")),
    *(("own", {"id": item}, "id") for item in (None, "", "../x", "a/b", "a b", ".hidden", "a\nb", "x" * 129, ["a"], True,
                                               "$(id)", "é", float("nan"), "-rf", "a;b", "a\0b")),
    *(("own", {"split": split}, "split") for split in ("dev", "", None, 3, ["train"], "Train")),
    *(("own", {name: value}, name) for name in ("kind", "source", "table_key") for value in (
        ["x"], {"a": 1}, None, "a | b", "<script>alert(1)</script>", "a\nb", "x" * 301, "`id`")),
    *(("own", {"supervision": value}, "supervision") for value in (
        "none", [], 3, {"labels": "x"}, {"labels": [1]}, {"working": 3}, {"conclusion": []}, {"scoring": []}, {"fact": []},
        {"trace": 5})),
    *(("own", {name: "x"}, name) for name in ("Question", "img", "answers", "__class__", "fact")),
    *(("aokvqa", {"correct_choice_idx": value}, "correct_choice_idx") for value in (2, -1, True, None, "1", 0.5, [])),
    *(("aokvqa", {"choices": value}, "choices") for value in (None, [], "food", "[", "(" * 400, "__import__('os')", 3)),
    *(("aokvqa", {"image_id": value}, "image_id") for value in (None, "x", -1, 1.5, "../1", [], True)),
    *(("aokvqa", {"question_id": value}, "id") for value in ("../../x", "a b", "/etc", "a\0")),
    ("aokvqa", {"rationales": 5}, "rationales"), ("aokvqa", {"rationales": ["<|im_end|> is here"]}, "trace"),
    *(("slake", {"answer_type": value}, "answer_type") for value in ("OTHER", None, 3, [])),
    *(("slake", {"q_lang": value}, "q_lang") for value in (None, "", [], True)),
    *(("mathverse", {"question_type": value}, "question_type") for value in ("open", None, [])),
    *(("mathverse", {"sample_index": value}, "an id of" if value else "sample_index") for value in ("a/b", "", "a b")),
    ("mathverse", {"problem_version": "a|b"}, "kind"), ("mathverse", {"problem_index": None}, "problem_index"),
    *(("geo170k", {"conversations": value}, "conversations" if value != [{}] else "turn of 'human'") for value in
      (None, [], "x", [{}], 5)),
    *(("gsm8k", {"answer": value}, "ends in '#### '") for value in ("six", "6 ####", "####"))]


@pytest.mark.promise("bad input", "a field of a wrong name, type or range is refused with the row, what was expected and a "
                                  "remedy")
@pytest.mark.parametrize(("name", "change", "said"), FIELDS, ids=[f"{name} {change}"[:60] for name, change, _ in FIELDS])
def test_a_field_that_is_wrong_is_refused(name: str, change: dict, said: str, tmp_path: Path) -> None:
    folder_of(name, [ROWS[name] | change], tmp_path)
    assert_says(catch(lambda: read(name, tmp_path), DataError), said)


GOOD = json.dumps({"question": "Which?", "answer": "May"}).encode()
LINES = {"no JSON": b"{'question': 1}", "cut off": b'{"question": "Wh', "a list": b"[1, 2]", "a number": b"7", "a text": b'"x"',
         "null": b"null", "no UTF-8": b'{"question": "\xff\xfe"}', "UTF-16": '{"a": 1}'.encode("utf-16"),
         "nested too deep": b"[" * 100_000, "objects nested too deep": b'{"a":' * 100_000, "digits": b'{"a": ' + b"9" * 5000,
         "a key twice": b'{"question": "a", "question": "b", "answer": "c"}', "two objects": b"{} {}", "NUL": b"\0" * 9,
         "a comma too many": b'{"question": "Which?",}', "a merge mark": b"<<<<<<< ours", "a pickle": b"\x80\x04K\x01."}


@pytest.mark.promise("bad input", "a file that holds no rows is refused with its name and line")
@pytest.mark.parametrize("fault", LINES)
def test_a_line_that_is_no_row_is_refused_with_its_number(fault: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(GOOD + b"\n\n" + LINES[fault] + b"\n")
    assert_says(catch(lambda: read("own", tmp_path), DataError), "line 3 of data.jsonl")
    (tmp_path / "data.jsonl").write_bytes(b"\n".join([GOOD, GOOD, LINES[fault]]))
    bad = BadRows("skip")
    assert [record.item for record in read("own", tmp_path, bad)] == ["row-1", "row-2"] and bad.summary()["count"] == 1


@pytest.mark.parametrize("fault", [fault for fault in LINES if fault != "two objects"])
@pytest.mark.parametrize("name", ["chartqa", "slake"])
def test_a_file_that_is_no_list_of_rows_is_refused(name: str, fault: str, tmp_path: Path) -> None:
    folder_of(name, [ROWS[name]], tmp_path)
    (tmp_path / FILES[name]).write_bytes(LINES[fault])
    assert_says(catch(lambda: read(name, tmp_path), DataError), FILES[name])


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"}", b"}\r\n"), b"\r\n" + GOOD + b"\r\n\r\n"])
def test_a_byte_order_mark_and_line_ends_of_any_kind_are_no_fault(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    assert read("own", tmp_path)[0].answer == "May"


PARQUET = {"other columns": {"prompt": ["x"], "answer": ["#### 1"]}, "a list": {"question": [["x"]], "answer": ["#### 1"]},
           "null": {"question": [None], "answer": ["#### 1"]}, "an object": {"question": [{"a": 1}], "answer": ["#### 1"]},
           "truth": {"question": [True], "answer": ["#### 1"]}, "NaN": {"question": [float("nan")], "answer": ["#### 1"]},
           "cut off": None, "no parquet": None}


@pytest.mark.parametrize("fault", PARQUET)
def test_a_parquet_file_of_other_columns_or_types_is_refused(fault: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "main" / "train.parquet"
    file.parent.mkdir()
    datasets.Dataset.from_dict(PARQUET[fault] or {"question": ["x"], "answer": ["#### 1"]}).to_parquet(file)
    if PARQUET[fault] is None:
        file.write_bytes(file.read_bytes()[:60] if fault == "cut off" else b"no parquet" * 9)
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n"
                                        "    path: main/train.parquet\n---\n")
    error = catch(lambda: read("gsm8k", tmp_path), DataError)
    assert "expected" in str(error) and "got" in str(error)
    assert str(tmp_path) in str(error) or "gsm8k_train-00000" in str(error)


def test_a_table_that_cannot_be_read_names_its_row(tmp_path: Path) -> None:
    folder_of("chartqa", [ROWS["chartqa"]], tmp_path)
    (tmp_path / "tables").mkdir()
    for content in (b"a,b\n\xff\xfe,1", b"a,b\nMay," + b'"' + b"9" * 200_000 + b'"'):
        (tmp_path / "tables" / "1.csv").write_bytes(content)
        assert_says(catch(lambda: read("chartqa", tmp_path), DataError), "train_human-00000", "tables/1.csv")


@pytest.mark.parametrize("name", ["own", "aokvqa", "mathverse"])
def test_an_id_that_stands_twice_is_refused(name: str, tmp_path: Path) -> None:
    folder_of(name, [ROWS[name], ROWS[name] | {"question": "Another one?"}], tmp_path)
    assert_says(catch(lambda: read(name, tmp_path), DataError), ITEMS[name], "row 2 has it again")


def test_the_limit_of_a_text_is_the_stated_one(tmp_path: Path) -> None:
    row = ROWS["own"] | {"question": "x" * MAX_CHARS}
    assert read("own", folder_of("own", [row], tmp_path))[0].question == row["question"]
    folder_of("own", [row | {"question": "x" * (MAX_CHARS + 1)}], tmp_path)
    assert_says(catch(lambda: read("own", tmp_path), DataError), f"at most {MAX_CHARS} characters", f"got {MAX_CHARS + 1}")
