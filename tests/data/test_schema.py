"""Records: the mini splits, how TRL's trainers see them, the written training set, ChartQA's layout."""
from __future__ import annotations

import hashlib
import io
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlavaNextProcessor
from trl import SFTConfig, SFTTrainer

from dyme_core.config import SPLITS
from dyme_core.data import chart_tables, datasets, prompt_format, schema
from dyme_core.data.benchmarks import sources
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.schema import item_of
from dyme_core.models import generation, processors, tiny_onevision
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from dyme_core.trainer import batching

CHARTQA = Path(__file__).resolve().parents[3] / "shared" / "data" / "chartqa"
needs_chartqa = pytest.mark.skipif(not CHARTQA.is_dir(), reason=f"real ChartQA questions are not at {CHARTQA}")


@pytest.fixture(scope="module")
def splits() -> dict[str, list[schema.Record]]:
    return {split: datasets.mini_records(split, 160, seed=0) for split in SPLITS}


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return tiny_onevision.build_processor()


def test_the_same_seed_draws_the_same_records_and_a_larger_count_only_adds(splits) -> None:
    random.seed(99)  # the global generator must not matter
    again = datasets.mini_records("train", 20, seed=0)
    for first, second in zip(splits["train"], again, strict=False):
        assert first.image.tobytes() == second.image.tobytes()
        assert replace(first, image=None) == replace(second, image=None)
    other = datasets.mini_records("train", 20, seed=1)
    assert not {record.question + record.table_key for record in other} & {r.question + r.table_key for r in again}


def test_kinds_are_balanced_and_ids_and_questions_unique(splits) -> None:
    for split, records in splits.items():
        assert Counter(record.kind for record in records) == dict.fromkeys(KINDS, 20)
        assert len({record.item for record in records}) == 160
        assert len({(record.table_key, record.question) for record in records}) == 160
        assert {record.split for record in records} == {split}
    assert splits["test"][3].item == "test-0-00003"


def test_a_question_is_never_asked_twice_on_one_table_even_where_tables_are_few() -> None:
    records = datasets.mini_records("train", 1600, seed=0, real_share=1.0)
    assert len({record.table_key for record in records}) < 1550  # tables come again, so the rule is put to use
    assert len({(record.table_key, record.question) for record in records}) == 1600


def test_no_two_splits_share_a_table_and_only_unseen_has_the_unseen_values(splits) -> None:
    keys = {split: {record.table_key for record in records} for split, records in splits.items()}
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    for split, records in splits.items():
        values = {fact.value for record in records for fact in item_of(record.row).facts}
        low, high = chart_tables.UNSEEN_VALUES if split == "unseen" else (1, chart_tables.LARGEST_VALUE)
        assert low <= min(values) and max(values) <= high


def test_every_record_carries_facts_and_a_target_that_the_checker_rates_high(splits) -> None:
    write = target_writer(RuleRefiner())
    for record in sum(splits.values(), []):
        item, target = item_of(record.row), write([record.row])[0]
        assert set(item.evidence) <= set(item.facts)
        assert prompt_format.is_well_formed(target)
        thinking, answer = prompt_format.split_response(target)
        assert (answer, RuleChecker().judge(thinking, item).score) == (record.answer, 1.0)


def test_real_share_decides_where_tables_come_from() -> None:
    assert {record.source for record in datasets.mini_records("train", 14, 0, real_share=0.0)} == {"generated"}
    assert "generated" not in {record.source for record in datasets.mini_records("train", 14, 0, real_share=1.0)}


@pytest.mark.parametrize("left_out", [("gap", "count"), ["gap", "count"]])
def test_kinds_can_be_left_out_and_the_others_take_their_turns(left_out) -> None:
    records = datasets.mini_records("train", 18, 0, left_out_kinds=left_out)
    kinds = ("lookup", "peak", "lowest", "sum", "margin", "difference")
    assert Counter(record.kind for record in records) == dict.fromkeys(kinds, 3)


@pytest.mark.parametrize("left_out", [("gaps",), tuple(KINDS), "gap"])
def test_left_out_kinds_must_be_known_and_leave_one(left_out) -> None:
    with pytest.raises(ValueError, match="lookup, peak, lowest, sum, margin, count, difference, gap"):
        datasets.mini_records("train", 7, 0, left_out_kinds=left_out)


def test_without_left_out_kinds_the_records_stay_the_same(splits) -> None:
    digest = hashlib.sha256()
    for record in sum(splits.values(), []):
        digest.update(f"{record!r} {record.supervision}".encode() + record.image.tobytes())
    assert digest.hexdigest()[:16] == "de5da4b03f8c32fa"


def test_the_grpo_data_set_asks_the_question_and_carries_the_reward_columns(splits) -> None:
    records = splits["train"][:3]
    row = datasets.to_dataset(records)[2]
    assert row["prompt"] == [{"role": "user", "content": f"{records[2].question} {prompt_format.THINK_INSTRUCTION}"}]
    assert row["image"].tobytes() == records[2].image.tobytes()
    assert {name: row[name] for name in schema.COLUMNS} == records[2].row


def test_sft_trains_on_exactly_the_ids_that_dyme_memorizes(splits, processor, tmp_path: Path) -> None:
    records, write = splits["train"][:4], target_writer(RuleRefiner())
    settings = SFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, report_to=[], use_cpu=True,
                         max_length=None, bf16=False, gradient_checkpointing=False)
    trainer = SFTTrainer(tiny_onevision.build_model("svlm", processor, seed=0), args=settings, processing_class=processor,
                         train_dataset=datasets.sft_dataset(records, write))
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(4)])
    for place, record in enumerate(records):
        rollout = {name: torch.ones(1, 1, dtype=torch.long) for name in ("prompt_ids", "completion_ids", "completion_mask")}
        ids = processors.target_ids(processor, write([record.row])[0])
        batching.write_completion(rollout, 0, ids, processor.tokenizer.pad_token_id)
        target = rollout["completion_ids"][0].tolist()
        prompt = generation.prompt_inputs(processor, [record])["input_ids"][0].tolist()
        assert batch["input_ids"][place][batch["attention_mask"][place] == 1].tolist() == prompt + target
        assert batch["labels"][place][batch["labels"][place] != -100].tolist() == target
        assert target[-1] == processor.tokenizer.eos_token_id
    assert torch.isfinite(trainer.compute_loss(trainer.model, batch))


def test_the_written_training_set_can_be_read_back(splits, tmp_path: Path) -> None:
    path = datasets.write_jsonl(splits["train"][:2], tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["item"] for row in rows] == ["train-0-00000", "train-0-00001"]
    record = splits["train"][1]
    assert (rows[1]["question"], rows[1]["answer"]) == (record.question, record.answer)
    assert rows[1]["supervision"] == json.loads(record.supervision)
    assert Image.open(tmp_path / rows[1]["image"]).tobytes() == record.image.tobytes()


def test_the_data_card_counts_splits_kinds_and_sources_and_names_licences(splits) -> None:
    card = datasets.data_card(splits["train"] + splits["unseen"])
    assert "| train | 160 |" in card and "| lookup | 20 | 20 |" in card
    sources = Counter(record.source for record in splits["train"])
    assert f"| generated | {sources['generated']} |" in card
    assert "gapminder.org" in card and "vega_datasets" in card and "ChartQA" not in card


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_picture_that_cannot_be_read_is_refused_with_its_row(splits, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(schema.DataError, match="train-0-00000.*broken.png"):
        replace(splits["train"][0], image=path).load_image()


def test_a_cut_off_picture_is_refused(splits, tmp_path: Path) -> None:
    record = splits["train"][0]
    (tmp_path / "half.png").write_bytes(datasets.png_bytes(record.image)[:120])
    with pytest.raises(schema.DataError, match="half.png"):
        replace(record, image=tmp_path / "half.png").load_image()


def test_questions_without_pictures_have_no_image_column(splits) -> None:
    bare = [replace(record, image=None) for record in splits["train"][:2]]
    assert datasets.to_dataset(bare).column_names == ["prompt", *schema.COLUMNS]
    assert datasets.sft_dataset(bare, target_writer(RuleRefiner())).column_names == ["prompt", "completion",
                                                                                          *schema.COLUMNS]


@pytest.mark.parametrize("make",
                         [datasets.to_dataset, lambda records: datasets.sft_dataset(records, lambda rows: ["t"] * len(rows))])
def test_questions_with_and_without_pictures_do_not_mix(splits, make) -> None:
    first, second = splits["train"][:2]
    with pytest.raises(schema.DataError, match="train-0-00001.*picture"):
        make([first, replace(second, image=None)])


def test_a_question_without_a_picture_has_none_to_load(splits) -> None:
    with pytest.raises(schema.DataError, match="train-0-00000.*text alone"):
        replace(splits["train"][0], image=None).load_image()


def test_pictures_in_memory_in_bytes_and_in_files_are_the_same_to_a_data_set(splits, tmp_path: Path) -> None:
    record = splits["train"][0]
    stored = datasets.png_bytes(record.image)
    (tmp_path / "a.png").write_bytes(stored)
    rows = datasets.to_dataset([record, replace(record, image=stored), replace(record, image=tmp_path / "a.png")])
    assert {row["image"].tobytes() for row in rows} == {record.image.tobytes()}
    assert replace(record, image=stored).load_image().tobytes() == record.image.tobytes()
    with pytest.raises(schema.DataError, match="train-0-00000.*120 bytes"):
        replace(record, image=stored[:120]).load_image()


def test_what_is_known_is_written_and_nothing_known_is_no_supervision() -> None:
    assert schema.known() == schema.NO_SUPERVISION
    assert json.loads(schema.known(trace="First this .", choices=["a"])) == {
        "facts": [], "evidence": [], "trace": "First this .", "scoring": {"choices": ["a"]}}


def chartqa_folder(folder: Path, **row: object) -> Path:
    """ChartQA's layout with one question, `row` replacing its fields."""
    (folder / "png").mkdir()
    Image.new("RGBA", (20, 10), "#ff0000").save(folder / "png" / "7.png")
    rows = [{"imgname": "7.png", "query": "How many?", "label": "3"} | row]
    (folder / "test_human.json").write_text(json.dumps(rows))
    return folder


def test_chartqa_rows_become_records(tmp_path: Path) -> None:
    [record] = sources.load("chartqa", chartqa_folder(tmp_path), "test")
    assert (record.item, record.question, record.answer, record.kind) == ("test_human-00000", "How many?", "3", "human")
    assert record.load_image().mode == "RGB"
    assert item_of(record.row).facts == ()


@pytest.mark.parametrize(("row", "reason"), [({"imgname": "8.png"}, "8.png"), ({"query": " "}, "query"),
                                             ({"label": None}, "label"), ({"imgname": "../../7.jpg"}, "png/7.jpg")])
def test_a_faulty_chartqa_row_is_named(tmp_path: Path, row: dict, reason: str) -> None:
    with pytest.raises(schema.DataError, match=rf"test_human-00000.*{reason}"):
        sources.load("chartqa", chartqa_folder(tmp_path, **row), "test")


def test_a_folder_without_chartqa_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(schema.DataError, match="test_human.json or test_augmented.json"):
        sources.load("chartqa", tmp_path, "test")


@needs_chartqa
def test_real_chartqa_is_read_whole() -> None:
    records = sources.load("chartqa", CHARTQA, "test")
    assert Counter(record.kind for record in records) == {
        kind: len(json.loads((CHARTQA / f"test_{kind}.json").read_text())) for kind in ("human", "augmented")}
    assert records[0].answer == "28.6"
    assert sum(bool(item_of(record.row).facts) for record in records) > 0
    assert all(min(record.load_image().size) > 0 for record in records[:20])
    row = datasets.to_dataset(records[:2])[0]
    assert row["image"].mode == "RGB" and io.BytesIO(datasets.png_bytes(row["image"])).read(4) == b"\x89PNG"
