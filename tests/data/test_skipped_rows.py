"""Rows that are left out on request: logged and counted, never most of them; and rows that only the preflight refuses."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import ROWS, assert_says, catch, folder_of, read, with_text
from PIL import Image

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.data.bad_rows import SHOWN, BadRows
from dyme_core.data.benchmarks.own import own_records
from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import DataError
from dyme_core.models import tiny_onevision
from dyme_core.pipeline import evaluate, preflight, train
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from study import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.promise("bad input",
                     "with --on-bad-row skip bad rows are left out, logged and counted; the good ones are read")
@pytest.mark.parametrize("name", ROWS)
def test_bad_rows_are_left_out_logged_and_counted(name: str, tmp_path: Path, caplog) -> None:
    good = [ROWS[name] | ({"id": f"r{n}"} if name == "own" else {"question_id": f"r{n}"} if name == "aokvqa" else
                          {"sample_index": f"{n}"} if name == "mathverse" else {}) for n in range(4)]
    rows = [good[0], with_text(name, "answer", "x <|im_end|>"), *good[1:], with_text(name, "answer", None)]
    folder_of(name, rows, tmp_path)
    bad = BadRows("skip")
    assert len(read(name, tmp_path, bad)) == 4
    told = bad.summary()
    assert told["count"] == len(told["first"]) == 2 and "'<|im_end|>'" in told["first"][0]
    assert sum(line.startswith("left out: item") for line in caplog.messages) == 2 and "2 bad rows" in caplog.text
    with pytest.raises(DataError):
        read(name, tmp_path)


def test_a_data_set_that_is_mostly_bad_is_refused_even_where_bad_rows_are_left_out(tmp_path: Path) -> None:
    rows = [{"question": "Which?", "answer": "May", "id": f"r{n}"} for n in range(4)]
    folder_of("own", [*rows[:2], {"question": "Which?"}, {"answer": 3}], tmp_path)
    assert len(read("own", tmp_path, BadRows("skip"))) == 2, "half of them is allowed"
    folder_of("own", [rows[0], {"question": "Which?"}, {"answer": 3}], tmp_path)
    error = catch(lambda: read("own", tmp_path, BadRows("skip")), DataError)
    assert_says(error, "at most 50% of the rows", "2 of 3", "row-3")


def test_a_bad_row_that_is_read_for_each_split_counts_once_and_only_the_first_are_shown(tmp_path: Path, caplog) -> None:
    good = [{"question": "Which?", "answer": "May", "id": f"r{n}", "split": "train" if n % 2 else "test"}
            for n in range(20)]
    folder_of("own", [*good, *({"question": "Which?"} for _ in range(12))], tmp_path)
    bad = BadRows("skip")
    assert [len(own_records(tmp_path, split, bad)) for split in ("train", "test")] == [10, 10]
    assert (bad.summary()["count"], len(bad.summary()["first"])) == (12, SHOWN)
    assert sum(line.startswith("left out") for line in caplog.messages) == SHOWN


def test_rows_that_only_the_model_can_refuse_are_left_out_too(tmp_path: Path) -> None:
    processor, bad = tiny_onevision.build_processor(), BadRows("skip")
    records = mini_records("train", 7, 0)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    spoilt = {1: {"image": tmp_path / "broken.png"}, 3: {"question": f"What {processor.tokenizer.pad_token} is it?"},
              5: {"answer": "1"}}
    changed = [replace(record, **spoilt.get(place, {})) for place, record in enumerate(records)]
    write = target_writer(RuleRefiner())
    kept = preflight.without_bad_rows(changed, processor, bad, write, 152)
    assert kept == [record for place, record in enumerate(records) if place not in spoilt]
    assert [reason.split("'")[1] for reason in bad.summary()["first"]] == [records[place].item for place in spoilt]
    assert preflight.without_bad_rows(changed, processor, BadRows(), write, 152) == changed, "the preflight itself stops there"
    with pytest.raises(DataError, match="at most 50%"):
        preflight.without_bad_rows(changed, processor, BadRows("skip"), write, 5)


def chartqa_of(folder: Path) -> Path:
    """A row of train and one of val are bad; each split repeats a row, as ChartQA's test split does."""
    folder_of("chartqa", [], folder)
    for shade, split in enumerate(("train", "val", "test")):
        Image.new("RGB", (20, 10), (shade, 0, 0)).save(folder / "png" / f"{split}.png")
        rows = [{"imgname": f"{split}.png", "query": f"How many {split} {n}?", "label": "3"} for n in range(6)]
        rows[2]["query"] += "" if split == "test" else " <image>"
        rows += rows[:1]
        (folder / f"{split}_human.json").write_text(json.dumps(rows))
    return folder


def test_a_profile_says_what_becomes_of_bad_rows(tmp_path: Path) -> None:
    chartqa_of(tmp_path)
    settings = {"data": config.DataSource("chartqa", str(tmp_path), ("validation",))}
    profile = config.load_profile("smoke", **settings)
    with pytest.raises(DataError, match="train_human-00002.*special tokens"):
        datasets.of_profile(profile, "train", 0)
    bad = BadRows(config.load_profile("smoke", **settings, **{"data.on_bad_row": "skip"}).data.on_bad_row)
    assert [len(datasets.of_profile(profile, split, 0, bad)) for split in ("train", "validation")] == [5, 6]
    assert (bad.summary()["count"], bad.summary()["repeats"]) == (2, 1)


def test_a_run_counts_in_its_manifest_what_was_left_out(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "svlm-s0").symlink_to(ROOT / "bases" / "svlm-s0")
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    folder = chartqa_of(tmp_path / "chartqa")
    settings = {"data": config.DataSource("chartqa", str(folder), ("validation",), "skip")}
    run = train.Run(config.load_profile("smoke", **settings), "base")
    told = train.execute(run, ("validation",), keep_policy=False)["skipped_rows"]
    assert (told["count"], told["repeats"]) == (2, 1)
    assert "train_human-00002" in told["first"][0] and "val_human-00002" in told["first"][1]
    stored = json.loads((tmp_path / "results" / "local" / "smoke" / "runs" / f"{run.name}.json").read_text())
    assert stored["skipped_rows"] == told
    assert stored["results"]["validation"]["num_items"] == 6, "a published split is scored whole"
    evaluate.evaluate_saved(str(ROOT / "bases" / "svlm-s0"), "chartqa", tmp_path / "out", source=str(folder),
                            split="validation", max_new_tokens=4, on_bad_row="skip")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped_rows"]["count"] == 1


def test_the_command_lines_know_on_bad_row(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(train, "execute", lambda run, *rest, **options: seen.append(run.profile.data.on_bad_row))
    command = ["train", "--profile", "smoke", "--method", "base"]
    for more in ([], ["--on-bad-row", "skip"], ["--on-bad-row", "skip", "--set", "training.steps=2"]):
        with pytest.raises(SystemExit, match="0"):
            cli.main([*command, *more])
    assert seen == ["raise", "skip", "skip"]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*command, "--on-bad-row", "ignore"])
