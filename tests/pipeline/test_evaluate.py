"""Evaluation: greedy decoding, one row per question, the scores of docs/evaluation.md, the command line."""
from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlavaNextProcessor

from dyme_core.data import datasets, prompt_format
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import NO_SUPERVISION, Record, item_of, write_facts
from dyme_core.models import generation, loading, processors, tiny_onevision
from dyme_core.models.generation import Decoded
from dyme_core.pipeline import evaluate
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from study import cli

CHARTQA = Path(__file__).resolve().parents[3] / "shared" / "data" / "chartqa"
RUN = {"run": "svlm-base-s0", "method": "base", "variant": "", "model": "svlm", "seed": 0, "step": 0}
COLUMNS = ["run", "method", "variant", "model", "seed", "step", "split", "item", "kind", "source", "question", "target",
           "prediction", "answer", "has_format", "strict", "relaxed", "year_exact", "correct", "thinking",
           "groundedness", "wrong_facts", "num_thinking_tokens", "num_tokens", "is_truncated"]


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return mini_records("test", 9, seed=0)


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return tiny_onevision.build_processor()


@pytest.fixture(scope="module")
def model(processor) -> torch.nn.Module:
    return tiny_onevision.build_model("svlm", processor, seed=0).eval()


def score(monkeypatch, processor, record: Record, text: str) -> dict:
    """The row of one record for which the model would have said `text`."""
    monkeypatch.setattr(evaluate, "decode", lambda *args, **settings: [Decoded(text, 9, False)])
    [row] = evaluate.evaluate(None, processor, [record], run_columns=RUN)
    return row


def test_captions_are_asked_for_instead_of_the_questions_and_must_be_the_facts_exactly(records, monkeypatch) -> None:
    asked = []

    def describe(model, processor, records, instruction) -> list[Decoded]:
        asked.extend(prompt_format.question_text(record.question, instruction) for record in records)
        texts = [f"{write_facts(item_of(record.row).facts)}." for record in records]
        return [Decoded(text if place % 3 else text[:-1], 9, False) for place, text in enumerate(texts)]

    monkeypatch.setattr(generation, "decode", describe)
    assert generation.caption_match(None, None, records) == pytest.approx(6 / 9)
    assert set(asked) == {"Describe the chart."}


def test_a_batch_decodes_as_a_greedy_loop_over_each_record_alone(records, processor, model) -> None:
    forbidden = processors.suppressed_ids(model, processor)
    together = generation.decode(model, processor, records[:4], batch_size=3, max_new_tokens=6)
    for record, response in zip(records, together, strict=False):
        inputs = generation.prompt_inputs(processor, [record])
        ids, said = inputs.pop("input_ids"), []
        inputs.pop("attention_mask")
        for _ in range(6):
            logits = model(input_ids=ids, **inputs).logits[0, -1].detach()
            logits[forbidden] = -torch.inf
            said.append(int(logits.argmax()))
            ids = torch.cat([ids, torch.tensor([[said[-1]]])], dim=1)
        assert response.text == processor.tokenizer.decode(said, skip_special_tokens=True)
        assert (response.num_tokens, response.is_truncated) == (6, processor.tokenizer.eos_token_id not in said)


def test_a_response_ends_at_the_end_token_which_is_counted(processor) -> None:
    tokenizer = processor.tokenizer
    ids = tokenizer("Yes <answer>Yes</answer>")["input_ids"]
    ends = [tokenizer.eos_token_id]
    padded = [*ids, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.pad_token_id]
    assert generation._read(tokenizer, padded, ends) == Decoded("Yes <answer>Yes</answer>", len(ids) + 1, False)
    assert generation._read(tokenizer, ids, ends).is_truncated


def test_special_tokens_are_never_sampled(monkeypatch, records, processor, model) -> None:
    image, said = processor.tokenizer.image_token_id, []
    monkeypatch.setattr(generation, "_read", lambda tokenizer, ids, ends: said.extend(ids) or Decoded("", 0, False))
    kept = model.lm_head.weight.data[image].clone()
    try:
        model.lm_head.weight.data[image] = 50 * kept.sign()  # the token now wins about every second time
        inputs = generation.prompt_inputs(processor, records)
        free = model.generate(**inputs, max_new_tokens=8, do_sample=False)[:, inputs["input_ids"].shape[1]:]
        generation.decode(model, processor, records, max_new_tokens=8, seed=0)
    finally:
        model.lm_head.weight.data[image] = kept
    assert image in free.flatten().tolist()
    assert len(said) == 8 * len(records)
    after_the_end = {processor.tokenizer.pad_token_id}
    assert not set(said) & set(processors.suppressed_ids(model, processor)) - after_the_end


def test_sampling_repeats_with_its_seed_and_leaves_training_mode(records, processor, model) -> None:
    model.train()
    first, again, other = (generation.decode(model, processor, records[:2], max_new_tokens=6, seed=seed)
                           for seed in (1, 1, 2))
    assert first == again != other
    assert model.training
    model.eval()


def test_a_row_has_the_columns_of_the_contract(records, processor, model) -> None:
    rows = evaluate.evaluate(model, processor, records[:2], max_new_tokens=4, run_columns=RUN)
    assert sorted(rows[0]) == sorted(COLUMNS)
    assert [row["item"] for row in rows] == ["test-0-00000", "test-0-00001"]
    assert rows[0]["split"] == "test" and rows[0]["is_truncated"] == 1 and rows[0]["num_tokens"] == 4


def test_a_data_set_is_evaluated_as_the_records_that_it_was_made_of(records, processor, model) -> None:
    wanted = evaluate.evaluate(model, processor, records[:2], max_new_tokens=4)
    rows = evaluate.evaluate(model, processor, datasets.to_dataset(records[:2]), max_new_tokens=4)
    assert rows == [row | {"split": "", "source": ""} for row in wanted]
    prompts = datasets.to_dataset(records[:2]).select_columns(["prompt", "image", "answer"])
    asked = evaluate.evaluate(model, processor, prompts, max_new_tokens=4)
    assert [row["prediction"] for row in asked] == [row["prediction"] for row in wanted], "a prompt is asked as it is"
    with pytest.raises(ValueError, match="columns answer, and question or prompt: got"):
        evaluate.evaluate(model, processor, prompts.remove_columns("answer"))


@pytest.mark.parametrize("size", [{"batch_size": 0}, {"batch_size": -1}, {"max_new_tokens": 0}])
def test_sizes_below_one_and_no_questions_are_refused(records, processor, model, size: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(size))} must be at least 1: got"):
        evaluate.evaluate(model, processor, records, **size)
    with pytest.raises(ValueError, match="expected questions to answer, got none"):
        evaluate.evaluate(model, processor, [])


def test_a_refined_target_scores_full_marks(monkeypatch, records, processor) -> None:
    for record in records:
        target = target_writer(RuleRefiner())([record.row])[0]
        row = score(monkeypatch, processor, record, target)
        assert [row[name] for name in ("has_format", "strict", "relaxed", "year_exact", "correct")] == [1] * 5
        assert (row["thinking"], row["groundedness"], row["wrong_facts"]) == (1.0, 1.0, [])
        thinking, _ = prompt_format.split_response(target)
        assert row["num_thinking_tokens"] == len(re.findall(r"\w+|[^\w\s]", thinking)), "each word, number or sign is a token"


def test_a_right_answer_without_thinking_is_strict_but_not_correct(monkeypatch, records, processor) -> None:
    row = score(monkeypatch, processor, records[0], f"<answer>{records[0].answer}</answer>")
    assert (row["strict"], row["has_format"], row["correct"], row["num_thinking_tokens"]) == (1, 0, 0, 0)


def test_wrong_facts_are_listed_as_the_trace_writes_them(monkeypatch, records, processor) -> None:
    target = target_writer(RuleRefiner())([records[0].row])[0]  # a look-up: "... X has S v. Therefore, the value is v."
    value = records[0].answer
    row = score(monkeypatch, processor, records[0], target.replace(f" {value}. Therefore", " 97. Therefore"))
    assert row["wrong_facts"] == ["97"] and row["groundedness"] == 0.0 and row["thinking"] == 0.0
    assert row["correct"] == 1  # the pseudo thinking trace of the poster: right answer, wrong fact


def test_without_facts_the_checker_columns_are_empty(monkeypatch, records, processor) -> None:
    record = replace(records[0], supervision=NO_SUPERVISION, answer="2010")
    row = score(monkeypatch, processor, record, "I see it in the chart.\n<answer>2008</answer>")
    assert (row["thinking"], row["groundedness"], row["wrong_facts"]) == (None, None, None)
    assert (row["relaxed"], row["strict"], row["year_exact"], row["correct"]) == (1, 0, 0, 0)
    assert evaluate.summarise([row])["thinking"] is None


def test_means_are_over_the_rows_that_have_a_measure() -> None:
    rows = [dict.fromkeys(evaluate.MEASURES, value) | {"kind": "human"} for value in (1, 0)]
    rows.append(dict.fromkeys(evaluate.MEASURES, 1) | {"kind": "augmented", "thinking": None})
    scores = evaluate.scores_by_kind(rows)
    assert list(scores) == ["human", "augmented", "overall"]
    assert (scores["human"]["relaxed"], scores["overall"]["relaxed"]) == (0.5, pytest.approx(2 / 3))
    assert (scores["overall"]["thinking"], scores["overall"]["num_items"]) == (0.5, 3)
    assert scores["augmented"]["thinking"] is None


def test_a_limit_keeps_kinds_in_equal_numbers() -> None:
    records = datasets.load_records("mini", "", "test")
    assert [record.kind for record in datasets.limited(records, 8)] == list(KINDS)
    assert datasets.limited(records, None) == records
    for limit in (0, -3):
        with pytest.raises(ValueError, match=f"limit must be a number of questions, at least 1: got {limit}"):
            datasets.limited(records, limit)
    with pytest.raises(ValueError, match="expected one of the data sets chartqa, .*got 'somewhere'"):
        datasets.load_records("somewhere", "", "test")
    with pytest.raises(ValueError, match=r"expected a split that chartqa has \(train, validation, test\): got 'unseen'"):
        datasets.load_records("chartqa", "folder", "unseen")
    with pytest.raises(ValueError, match="'chartqa' needs a source"):
        datasets.load_records("chartqa", "", "test")


def test_the_command_leaves_a_folder_that_says_what_was_asked(processor, model, tmp_path: Path, capsys) -> None:
    loading.save_policy(model, processor, tmp_path / "some-model")
    with pytest.raises(SystemExit, match="0"):
        cli.main(["evaluate", "--model", str(tmp_path / "some-model"), "--data", "mini", "--split", "validation",
                  "--limit", "3", "--out", str(tmp_path / "out"), "--max-new-tokens", "4"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["split"] for row in rows] == ["validation"] * 3 and rows[0]["run"] == "some-model"
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["scores"]["overall"]["num_items"] == 3 and made["prompt"] == prompt_format.question_text("{question}")
    assert {"commit", "versions", "cpu"} <= set(made) and (made["data"], made["split"]) == ("mini", "validation")
    assert (tmp_path / "out" / "scores.txt").read_text() == capsys.readouterr().out


@pytest.mark.skipif(not CHARTQA.is_dir(), reason=f"real ChartQA questions are not at {CHARTQA}")
def test_the_command_scores_real_chartqa_questions(processor, model, tmp_path: Path, capsys) -> None:
    folder, out = tmp_path / "svlm-sft-s3", tmp_path / "out"
    loading.save_policy(model, processor, folder)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["evaluate", "--model", str(folder), "--data", "chartqa", "--source", str(CHARTQA), "--limit", "5",
                  "--out", str(out), "--max-new-tokens", "4"])
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["kind"] for row in rows] == ["human"] * 3 + ["augmented"] * 2
    assert rows[0]["run"] == "svlm-sft-s3"
    shown = capsys.readouterr().out
    for word in ("human", "augmented", "overall", "relaxed", "strict", "year_exact", "prompt:", "answer:"):
        assert word in shown
