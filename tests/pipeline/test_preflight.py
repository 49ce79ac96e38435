"""The preflight finds each fault of a data set before step 0, and names its row."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextProcessor

from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import DataError, Record
from dyme_core.models import tiny_onevision
from dyme_core.pipeline.preflight import preflight
from dyme_core.supervision.refiner import RuleRefiner, target_writer

RECORDS = 28


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return mini_records("train", RECORDS, seed=0)


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return tiny_onevision.build_processor()


@pytest.fixture(scope="module")
def model(processor) -> torch.nn.Module:
    return tiny_onevision.build_model("svlm", processor, seed=0)


@pytest.fixture(scope="module")
def check(processor, model) -> Callable:
    def run(records: list[Record], **settings):
        return preflight(records, processor, model, **({"rollouts": 0} | settings))
    return run


def spoilt(records: list[Record], place: int = 5, **changes) -> list[Record]:
    return [replace(record, **changes) if number == place else record for number, record in enumerate(records)]


def test_a_sound_data_set_passes_and_is_measured(records, processor, model) -> None:
    state = torch.get_rng_state()
    report = preflight(records, processor, model, others=mini_records("test", 14, seed=0), rollouts=16)
    assert torch.equal(torch.get_rng_state(), state), "a preflight must not change the training run's random numbers"
    assert (report.num_records, report.num_images, report.rollouts) == (RECORDS, RECORDS, 16)
    assert report.image_tokens == (52, 52)  # 16 of the base view, 4 rows of 8 and a newline of the tiles
    assert report.format_rate == 0.0  # random weights
    assert records[0].question in report.prompt and report.prompt.count("<image>") == 1
    assert report.target == target_writer(RuleRefiner())([records[0].row])[0]
    assert f"longest_tokens: {report.longest_tokens}" in str(report)


def test_the_longest_sample_is_counted_as_the_model_reads_it(records, processor, check) -> None:
    changed = spoilt(records, question=records[5].question + 12 * " Really and truly?")
    report, record = check(changed), changed[5]
    assert report.longest_item == record.item
    asked = report.prompt.replace(records[0].question, record.question)
    ids = processor(images=record.image, text=asked, add_special_tokens=False)["input_ids"][0]
    target = processor.tokenizer(target_writer(RuleRefiner())([record.row])[0])["input_ids"]
    assert report.longest_tokens == len(ids) + len(target) + 1


@pytest.mark.parametrize(("changes", "reason"), [
    ({"question": " "}, "non-empty question"),
    ({"answer": ""}, "non-empty answer"),
    ({"question": "What is <image> here?"}, "<image>"),
    ({"item": "train-0-00002"}, "unique"),
    ({"image": Path("/nowhere/at/all.png")}, "all.png"),
    ({"image": Image.new("RGB", (0, 9))}, r"\(0, 9\)"),
    ({"answer": "1"}, "target that passes the checker"),
])
def test_a_faulty_row_is_refused_by_name(records, check, changes: dict, reason: str) -> None:
    with pytest.raises(DataError, match=rf"item '{changes.get('item', 'train-0-00005')}'.*{reason}"):
        check(spoilt(records, **changes))


def test_the_same_question_on_the_same_picture_twice_is_refused(records, check) -> None:
    copy = records[3].image.copy()
    with pytest.raises(DataError, match="train-0-00005.*train-0-00003"):
        check(spoilt(records, image=copy, question=f" {records[3].question.upper()}"))


def test_two_questions_on_one_picture_are_allowed(records, check) -> None:
    assert check(spoilt(records, image=records[3].image.copy())).num_images == RECORDS - 1


@pytest.mark.parametrize(("shared", "what"), [("image", "picture"), ("table_key", "table")])
def test_a_picture_or_table_of_another_split_is_leakage(records, check, shared: str, what: str) -> None:
    others = mini_records("test", 3, seed=0)
    leaked = spoilt(others, 1, **{shared: getattr(records[5], shared)})
    with pytest.raises(DataError, match=f"train-0-00005.*no {what}.*test split.*test-0-00001"):
        check(records, others=leaked)
    assert check(records, others=others).num_records == RECORDS


@pytest.mark.parametrize(("sizes", "got"), [((96, 16), "each of the 114 image tokens .* got 52 features"),
                                            ((48, 24), "got an error")])
def test_a_processor_that_does_not_fit_the_model_is_refused(records, model, sizes: tuple[int, int], got: str) -> None:
    with pytest.raises(DataError, match=f"train-0-00000.*{got}"):
        preflight(records, tiny_onevision.build_processor(*sizes), model, rollouts=0)


def test_a_target_longer_than_a_rollout_is_refused(records, check) -> None:
    with pytest.raises(DataError, match="at most 12 tokens"):
        check(records, max_new_tokens=12)


def test_a_question_longer_than_the_context_is_refused(records, check) -> None:
    with pytest.raises(DataError, match="train-0-00005.*1024 tokens"):
        check(spoilt(records, question=f"{records[5].question} " * 120))


def test_fewer_than_no_rollouts_are_refused(records, check) -> None:
    with pytest.raises(ValueError, match="rollouts must be at least 0: got -1"):
        check(records, rollouts=-1)


def test_an_empty_training_set_is_refused(check) -> None:
    with pytest.raises(DataError, match="empty"):
        check([])


def test_a_thousand_records_take_seconds(processor, model) -> None:
    many = mini_records("train", 1000, seed=3)
    start = time.process_time()
    preflight(many, processor, model, rollouts=0)
    assert time.process_time() - start < 5
