"""DyMETrainer through real TRL steps on a real tiny VLM, real pictures and the real rewards.

Run as a script (torchrun), the file is one rank of the test whose groups span two processes.
"""
from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from dyme_core.data import datasets, prompt_format
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import NO_SUPERVISION, item_of
from dyme_core.models import tiny_onevision
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, RuleRefiner, target_writer
from dyme_core.trainer import batching, grpo_trainer, rewards
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer

G = 4
CHECKER = RuleChecker()
PROCESSOR = tiny_onevision.build_processor(96, 24)
END = PROCESSOR.tokenizer.eos_token_id
FORBIDDEN = PROCESSOR.tokenizer.convert_tokens_to_ids(
    [token for token in tiny_onevision.SPECIAL if token != tiny_onevision.END])
WRONG = "We look at the chart.\n<answer>no idea</answer>"


RECORDS = datasets.mini_records("train", 4, seed=0)
ROWS = [{**record.row, "prompt": prompt_format.messages(record.question), "image": record.image} for record in RECORDS]
refine_all = target_writer(RuleRefiner())


def target_of(row: dict) -> str:
    return refine_all([row])[0]


def settings(folder: Path, **changes) -> DyMEConfig:
    defaults = dict(output_dir=str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=8, num_generations=G,
                    max_completion_length=16, max_steps=1, learning_rate=1e-3, weight_decay=0.0, max_grad_norm=0.0,
                    report_to="none", save_strategy="no", logging_steps=1, shuffle_dataset=False, disable_tqdm=True,
                    gradient_checkpointing=False, seed=0, drop_idle_rows=False)
    return DyMEConfig(**defaults | changes)


class Gradients(TrainerCallback):
    """Keeps the gradients of each step, as the optimiser is about to see them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.steps.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()
                           if parameter.grad is not None})


class Recorder(DyMETrainer):
    """Keeps what was sampled and what the switch decided; samples from a script where it has one.

    Args:
        script: texts, one list per step, one text per rollout of all processes.
    """

    def __init__(self, *args, script: list[list[str]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.script, self.sampled, self.batches, self.refined = script, [], [], []
        refine = self.refine
        self.refine = lambda rows: (self.refined.extend(row["item"] for row in rows), refine(rows))[1]

    def _generate_single_turn(self, prompt_ids, *args):
        if self.script is None:
            self.sampled += (answer := super()._generate_single_turn(prompt_ids, *args))[0]
            return answer
        first = self.accelerator.process_index * len(prompt_ids)
        texts = self.script[self.state.global_step][first: first + len(prompt_ids)]
        return [[*PROCESSOR.tokenizer(text, add_special_tokens=False)["input_ids"], END] for text in texts], None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.batches.append({name: batch[name].tolist() for name in (
            "advantages", "completion_ids", "completion_mask", "num_items_in_batch")})
        return batch


def build(folder: Path, script=None, eval_dataset=None, **changes) -> tuple[Recorder, Gradients]:
    """A trainer on a new model with random weights, its vision tower frozen."""
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0, 96, 24)
    model.model.vision_tower.requires_grad_(False)
    gradients = Gradients()
    trainer = Recorder(model, args=settings(folder, **changes), train_dataset=datasets.to_dataset(RECORDS),
                       eval_dataset=eval_dataset, refiner=RuleRefiner(), processing_class=PROCESSOR, script=script,
                       reward_funcs=rewards.dyme_rewards(CHECKER), callbacks=[gradients])
    return trainer, gradients


def run(*args, **kwargs) -> tuple[Recorder, Gradients]:
    """`build`, then train."""
    trainer, gradients = build(*args, **kwargs)
    trainer.train()
    return trainer, gradients


def logged(trainer: Recorder) -> dict[str, float]:
    return next(entry for entry in trainer.state.log_history if "memorize" in entry)


def relative_error(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    difference = sum((left[name] - right[name]).double().square().sum() for name in left)
    return float((difference / sum(right[name].double().square().sum() for name in right)).sqrt())


def cross_entropy_gradient(model, pairs: list[tuple[dict, str]]) -> dict[str, torch.Tensor]:
    """Gradient of the mean over rows of the mean token loss, each row read alone, by the model's own loss."""
    model.zero_grad()
    for row, target in pairs:
        (mean_token_loss(model, row, target) / len(pairs)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def mean_token_loss(model, row: dict, target: str) -> torch.Tensor:
    text = {"type": "text", "text": row["prompt"][0]["content"]}
    asked = [{"role": "user", "content": [{"type": "image"}, text]}]
    whole = PROCESSOR.apply_chat_template([*asked, {"role": "assistant", "content": target}], tokenize=False)
    question = PROCESSOR.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    inputs = PROCESSOR(images=[row["image"]], text=[whole], return_tensors="pt")
    labels = inputs["input_ids"].clone()
    labels[:, : PROCESSOR(images=[row["image"]], text=[question], return_tensors="pt")["input_ids"].shape[1]] = -100
    return model(**inputs, labels=labels).loss


def test_two_steps_change_every_trainable_parameter_and_no_frozen_one(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, max_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, parameter in trainer.model.named_parameters() if not parameter.equal(before[name])}
    assert changed == {name for name in before if "vision_tower" not in name}
    assert any("vision_tower" in name for name in before)


@pytest.mark.parametrize("weight", ["row", "group"])
@pytest.mark.parametrize("length", ["longer", "shorter"])
def test_a_memorize_only_batch_has_the_cross_entropy_gradient(tmp_path: Path, weight: str, length: str) -> None:
    wrong = WRONG if length == "longer" else WRONG + " and so on" * 40
    trainer, gradients = build(tmp_path, [[wrong] * 2 * G], memorize_weight=weight)
    direct = cross_entropy_gradient(trainer.model, [(row, target_of(row)) for row in ROWS[:2]])
    trainer.train()
    share = 1.0 if weight == "group" else 1 / G  # a row weighs 1 / B, an SFT example 1 / number of prompts
    expected = {name: share * gradient for name, gradient in direct.items()}
    assert relative_error(gradients.steps[0], expected) < 1e-5
    targets = [len(PROCESSOR.tokenizer(target_of(row), add_special_tokens=False)["input_ids"]) + 1 for row in ROWS[:2]]
    rollout = len(PROCESSOR.tokenizer(wrong, add_special_tokens=False)["input_ids"]) + 1
    assert (max(targets) > rollout) == (length == "longer")
    assert trainer.batches[0]["num_items_in_batch"] == sum(targets) + 2 * (G - 1) * rollout


def test_a_target_takes_the_place_of_the_first_rollout_and_of_no_other(tmp_path: Path) -> None:
    script = [[WRONG] * G + [target_of(ROWS[1]), WRONG, WRONG, WRONG]]
    trainer, _ = build(tmp_path, script)
    trainer.train()
    batch = trainer.batches[0]
    texts = [PROCESSOR.tokenizer.decode([token for token, is_kept in zip(ids, mask, strict=True) if is_kept])
             for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]
    assert texts == [f"{text}<end>" for text in [target_of(ROWS[0]), *script[0][1:]]]
    assert trainer.refined == [RECORDS[0].item]
    assert batch["advantages"][:G] == [1, 0, 0, 0] and batch["advantages"][G] > 0 > batch["advantages"][G + 1]


class Pair:
    """A refiner with two targets of each question: the rule refiner's two default templates."""

    def refine_all(self, records):
        return [texts[0] for texts in self.candidates_all(records)]

    def candidates_all(self, records):
        return [[template.fill(item_of(record)) for template in DEFAULT_TEMPLATES] for record in records]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_of_several_right_targets_the_most_probable_one_is_memorized(tmp_path: Path, monkeypatch, is_reversed: bool) -> None:
    trainer, gradients = build(tmp_path, [[WRONG] * 2 * G], memorize_weight="group", likeliest_target=True)
    both = [[write_response(text, row["answer"]) for text in Pair().candidates_all([row])[0][::-1 if is_reversed else 1]]
            for row in ROWS[:2]]
    monkeypatch.setattr(trainer, "candidates", lambda rows: both)
    losses = [[mean_token_loss(trainer.model, row, text).item() for text in texts]
              for row, texts in zip(ROWS[:2], both, strict=True)]
    best = [texts[loss.index(min(loss))] for texts, loss in zip(both, losses, strict=True)]
    expected = cross_entropy_gradient(trainer.model, list(zip(ROWS[:2], best, strict=True)))
    trainer.train()
    assert relative_error(gradients.steps[0], expected) < 1e-5
    row = logged(trainer)
    assert row["target_nll"] == pytest.approx(sum(map(min, losses)) / 2, abs=1e-4)
    assert row["first_target_nll"] == pytest.approx(sum(loss[0] for loss in losses) / 2, abs=1e-4)
    assert row["other_target"] == sum(texts[0] != chosen for texts, chosen in zip(both, best, strict=True)) / 2
    assert row["choose_s"] > 0


def test_the_likeliest_target_is_one_of_the_data_s_own_and_the_refiner_s(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, likeliest_target=True)
    own = {**ROWS[0], "target": "My own words, once more.\n<answer>1</answer>"}
    found = trainer.candidates([own, {**ROWS[1], "supervision": NO_SUPERVISION}])
    assert found[0][0] == own["target"] and [len(texts) for texts in found] == [3, 0]


def test_a_refiner_with_a_single_target_has_no_likeliest_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="likeliest_target needs a refiner that writes several targets"):
        DyMETrainer(tiny_onevision.build_model("svlm", PROCESSOR, 0, 96, 24), rewards.dyme_rewards(CHECKER),
                    settings(tmp_path, likeliest_target=True), datasets.to_dataset(RECORDS), refiner=refine_all,
                    processing_class=PROCESSOR)


def test_a_prompt_without_a_target_teaches_nothing_and_is_counted(tmp_path: Path) -> None:
    trainer, gradients = build(tmp_path, [[WRONG] * 3 * G], per_device_train_batch_size=3 * G)
    calls, write = [], trainer.refine
    trainer.refine = lambda rows: (calls.append(len(rows)), [None, *write(rows)[1:]])[1]
    direct = cross_entropy_gradient(trainer.model, [(row, target_of(row)) for row in ROWS[1:3]])
    trainer.train()
    assert calls == [3], "all prompts of a step are refined in one go"
    batch, log = trainer.batches[0], logged(trainer)
    assert batch["advantages"] == [0] * G + [1, 0, 0, 0] * 2 and (log["memorize"], log["without_target"]) == (3, 1)
    first = PROCESSOR.tokenizer.decode(batch["completion_ids"][0], skip_special_tokens=True)
    assert first.strip() == WRONG, "the rollout stays as it was sampled"
    expected = {name: gradient * 2 / (3 * G) for name, gradient in direct.items()}
    assert relative_error(gradients.steps[0], expected) < 1e-5


def test_the_logged_modes_and_rates_are_those_of_the_rewards(tmp_path: Path) -> None:
    bare = f"<answer>{ROWS[3]['answer']}</answer>"  # right, but without thinking: not correct
    right = [target_of(row) for row in ROWS]
    script = [[WRONG] * G + [right[1], WRONG, WRONG, right[1]] + [right[2]] * G + [bare] * G]
    trainer, _ = build(tmp_path, script, per_device_train_batch_size=4 * G)
    trainer.train()
    log = logged(trainer)
    form, accuracy, thinking = (list(trainer._logs["rewards"][name]) for name in (
        "format_reward", "accuracy_reward", "thinking_reward"))
    counts = [sum(f and a for f, a in zip(form[i: i + G], accuracy[i: i + G], strict=True)) for i in range(0, 4 * G, G)]
    assert counts == [0, 2, G, 0]
    assert (log["memorize"], log["explore"], log["mastered"]) == (2, 1, 1)
    assert log["format"] == pytest.approx(12 / 16) and log["accuracy"] == pytest.approx(10 / 16)
    assert log["correct"] == pytest.approx(6 / 16) and log["thinking"] == pytest.approx(sum(thinking) / 16)
    assert log["zero_variance"] == pytest.approx(3 / 4) and log["truncated"] == 0
    assert trainer.refined == [RECORDS[0].item, RECORDS[3].item]


def test_the_logged_seconds_are_those_of_the_whole_step_and_refining_counts_as_scoring(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, [[WRONG] * 2 * G], per_device_train_batch_size=G, gradient_accumulation_steps=2)
    refine = trainer.refine
    trainer.refine = lambda rows: (time.sleep(0.6), refine(rows))[1]
    trainer.train()
    log = logged(trainer)
    assert log["score_s"] >= 0.6 > log["update_s"]
    assert log["generate_s"] + log["score_s"] + log["update_s"] == pytest.approx(log["step_time"], abs=0.2)


def test_accumulated_micro_batches_have_the_gradient_of_one_batch(tmp_path: Path) -> None:
    script = [[WRONG] * G + [target_of(ROWS[1]), WRONG, WRONG, WRONG]]
    _, whole = run(tmp_path, script)
    _, parts = run(tmp_path, script, per_device_train_batch_size=G, gradient_accumulation_steps=2)
    assert relative_error(parts.steps[0], whole.steps[0]) < 1e-5


def test_evaluation_scores_but_never_switches(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, [[WRONG] * 2 * G], eval_dataset=datasets.to_dataset(RECORDS[:2]), num_generations_eval=2,
                       per_device_eval_batch_size=4)
    assert trainer.evaluate()["eval_memorize"] == 2
    assert trainer.refined == [] and not any(trainer.batches[0]["advantages"])


def test_an_answer_without_thinking_is_correct_where_the_setting_says_so(tmp_path: Path) -> None:
    script = [[f"<answer>{row['answer']}</answer>" for row in ROWS[:2] for _ in range(G)]]
    trainer, _ = build(tmp_path, script, correct_needs_format=False)
    trainer.train()
    assert logged(trainer)["mastered"] == 2 and trainer.refined == []


def test_a_batch_that_teaches_nothing_says_so_and_changes_nothing(tmp_path: Path, caplog) -> None:
    tied = [target_of(ROWS[0])] * G + [target_of(ROWS[1])] * G
    trainer, _ = build(tmp_path, [tied])
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    with caplog.at_level(logging.INFO, logger="dyme_core.trainer.dyme_trainer"):
        trainer.train()
    assert all(parameter.equal(before[name]) for name, parameter in trainer.model.named_parameters())
    assert "step 0: nothing to learn from this batch: in 2 of 2 groups every rollout is correct" in caplog.text


def test_special_tokens_are_never_sampled_even_by_a_policy_that_wants_them(tmp_path: Path) -> None:
    def push(trainer: Recorder) -> set[int]:
        trainer.model.lm_head.register_forward_hook(
            lambda module, inputs, logits: logits.index_add(-1, torch.tensor(FORBIDDEN), torch.full(
                (*logits.shape[:-1], len(FORBIDDEN)), 6.0)))
        batch = [dict(row) for row in ROWS[:2] for _ in range(G)]
        prompt_ids, images, fields = trainer._tokenize_prompts(
            [[{"role": "user", "content": [{"type": "image", "image": row["image"]},
                                           {"type": "text", "text": row["question"]}]}] for row in batch])
        trainer._generate_single_turn(prompt_ids, images, fields, G)
        return {token for ids in trainer.sampled for token in ids}

    free, _ = build(tmp_path)
    free.generation_config.suppress_tokens = free.generation_kwargs["suppress_tokens"] = None
    assert push(free) & set(FORBIDDEN), "the policy does want them"
    assert not push(build(tmp_path)[0]) & set(FORBIDDEN)


def test_rewards_are_the_same_for_strings_and_messages() -> None:
    texts = [target_of(ROWS[0]), WRONG]
    columns = {name: [ROWS[0][name]] * 2 for name in ("answer", "item", "supervision", "question")}
    for reward in rewards.dyme_rewards(CHECKER):
        plain = reward(texts, **columns)
        assert plain == reward([[{"role": "assistant", "content": text}] for text in texts], **columns)
        assert plain[0] == 1.0


@pytest.mark.parametrize(("change", "advice"), [
    ({"loss_type": "dapo"}, "loss_type='grpo': got 'dapo', but dapo, bnpo and dr_grpo weigh a memorize row"),
    ({"temperature": 0.9}, "temperature=1.0: got 0.9, but a temperature T puts 1/T"),
    ({"beta": 0.04}, "beta=0.0: got 0.04, but a reference model pulls"),
    ({"num_iterations": 2}, "num_iterations=1: got 2, but a replaced row has no old log-probs"),
    ({"steps_per_generation": 2}, "steps_per_generation unset: got 2 with gradient_accumulation_steps=1"),
    ({"mask_truncated_completions": True}, "mask_truncated_completions=False: got True, but it would mask targets"),
    ({"scale_rewards": "none"}, "scale_rewards='group': got 'none'"),
    ({"reward_weights": [1.0, 2.0, 1.0]},
     "reward_weights=None: .* the switch sums the rewards itself and would not see TRL's weights"),
    ({"top_entropy_quantile": 0.2}, "top_entropy_quantile=1.0: got 0.2, but it would mask targets"),
    ({"off_policy_mask_threshold": 0.1}, "off_policy_mask_threshold=None: got 0.1, but a replaced row has no sampling"),
    ({"memorize_weight": "column"}, r"memorize_weight must be one of \('row', 'group'\): got 'column'"),
    ({"mastered": "drop"}, r"mastered must be one of \('skip', 'explore'\): got 'drop'"),
    ({"reward_gate": "and"}, r"reward_gate must be one of \('sum', 'gated'\): got 'and'"),
])
def test_a_setting_that_breaks_the_method_is_refused_with_advice(tmp_path: Path, change: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        settings(tmp_path, **change)


MIXED = [[WRONG] * G + [target_of(ROWS[1]), WRONG, WRONG, WRONG]]  # one all-wrong group, one mixed


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("script", [MIXED, [[WRONG] * 2 * G], [[target_of(ROWS[0])] * G + [target_of(ROWS[1])] * G]],
                         ids=["mixed", "all wrong", "all right"])
def test_dropping_idle_rows_changes_neither_loss_nor_gradient(tmp_path: Path, script, accumulate: int) -> None:
    shape = dict(per_device_train_batch_size=2 * G // accumulate, gradient_accumulation_steps=accumulate)
    whole_trainer, whole = run(tmp_path, script, **shape)
    trainer, gradients = run(tmp_path, script, drop_idle_rows=True, **shape)
    num_busy = sum(value != 0 for value in whole_trainer.batches[0]["advantages"])
    wanted = -(-max(1, num_busy) // accumulate) * accumulate
    assert len(trainer.batches[0]["advantages"]) == wanted < 2 * G
    assert logged(trainer)["rows"] == wanted and logged(whole_trainer)["rows"] == 2 * G
    assert logged(trainer)["loss"] == pytest.approx(logged(whole_trainer)["loss"], abs=1e-6)
    if num_busy:
        assert relative_error(gradients.steps[0], whole.steps[0]) < 1e-6
    else:
        assert all((gradient == 0).all() for gradient in gradients.steps[0].values())


@pytest.mark.parametrize("drops", [True, False])
def test_a_row_too_many_for_the_micro_batches_is_not_lost(tmp_path: Path, drops: bool) -> None:
    """Nine rows in two micro-batches: TRL would leave one out."""
    settings = dict(switch="chord", switch_value=0.5, drop_idle_rows=drops)
    # The second group's rewards tie: its target takes an idle row, the first group has none.
    script = [[target_of(ROWS[0]), WRONG, WRONG, WRONG] + [WRONG] * G]
    whole_trainer, whole = run(tmp_path, script, **settings)
    trainer, parts = run(tmp_path, script, per_device_train_batch_size=G, gradient_accumulation_steps=2, **settings)
    num_rows = [len(each.batches[0]["advantages"]) for each in (whole_trainer, trainer)]
    assert num_rows == ([G + 2, G + 2] if drops else [2 * G + 1, 2 * G + 2])
    assert relative_error(parts.steps[0], whole.steps[0]) < 1e-5


@pytest.mark.parametrize("by_prompt", [True, False])
def test_micro_batches_are_dealt_so_that_little_padding_is_left(by_prompt: bool) -> None:
    """Rows of two prompts, shuffled: together by prompt, or by length; pictures and advantages stay with their rows."""
    lengths = [9, 2, 8, 3, 2, 9]
    ids, mask = torch.tensor([[0, 5, 5]] * 3 + [[6, 6, 6]] * 3), torch.tensor([[0, 1, 1]] * 3 + [[1, 1, 1]] * 3)
    whole = {"prompt_ids": ids, "prompt_mask": mask,
             "completion_ids": torch.zeros(6, 9, dtype=torch.long), "completion_mask": torch.zeros(6, 9, dtype=torch.long),
             "advantages": torch.arange(6.0)[:, None].repeat(1, 9), "pixel_values": torch.arange(6.0)[:, None], "number": 7}
    for row, length in enumerate(lengths):
        batching.write_completion(whole, row, [10 + row] * length, pad_id=0)
    shuffled = [batching.take_rows(whole, rows) for rows in ([3, 0, 5], [1, 4, 2])]
    parts = batching.micro_batches(shuffled, 0, by_prompt)
    assert [part["pixel_values"].flatten().tolist() for part in parts] == ([[1, 2, 0], [4, 3, 5]] if by_prompt
                                                                           else [[1, 4, 3], [2, 0, 5]])
    assert [part["completion_ids"].shape[1] for part in parts] == ([9, 9] if by_prompt else [3, 9])
    assert [part["prompt_ids"].shape[1] for part in parts] == ([2, 3] if by_prompt else [3, 3])
    for part in parts:
        assert part["number"] == 7 and part["advantages"].shape == part["completion_ids"].shape
        for place, row in enumerate(part["pixel_values"].flatten().int().tolist()):
            kept = part["completion_mask"][place].bool()
            assert part["completion_ids"][place][kept].tolist() == [10 + row] * lengths[row]
            assert (part["advantages"][place] == row).all() and part["prompt_mask"][place].sum() == mask[row].sum()


def test_dropping_the_longest_rows_cuts_the_weights_of_tokens_with_them() -> None:
    long, short = [7] * 9, [7] * 4
    batch = {"prompt_ids": torch.ones(2, 3, dtype=torch.long), "prompt_mask": torch.ones(2, 3, dtype=torch.long),
             "completion_ids": torch.zeros(2, 9, dtype=torch.long), "completion_mask": torch.zeros(2, 9, dtype=torch.long),
             "advantages": torch.tensor([[0.0] * 9, [1.0] * 4 + [0.0] * 5])}
    for row, ids in enumerate((long, short)):
        batching.write_completion(batch, row, ids, pad_id=0)
    fitted = batching.fit_rows(batch, batching.busy_rows(batch), 1)
    assert fitted["completion_ids"].tolist() == [short] and fitted["advantages"].tolist() == [[1.0] * 4]
    twice = batching.fit_rows(batch, batching.busy_rows(batch), 4)
    assert twice["advantages"].sum(dim=1).tolist() == [0, 4, 0, 0] and twice["advantages"].shape == (4, 9)


def test_a_target_beside_rollouts_that_are_learned_from_is_a_row_of_its_own(tmp_path: Path) -> None:
    """CHORD at mu = 1/2: the gradient is half the rollouts' and half the targets' with token weights p (1 - p)."""
    trainer, gradients = build(tmp_path, MIXED, switch="chord", switch_value=0.5, memorize_weight="group")
    trainer.model.zero_grad()
    pairs = [(row, target_of(row)) for row in ROWS[:2]]
    expected = weighted_gradient(trainer.model, pairs, lambda p: p * (1 - p))
    trainer.train()
    batch = trainer.batches[0]
    assert len(batch["advantages"]) == 2 * G + 1, "the all-wrong group's rewards tie: its first row is idle"
    _, plain = run(tmp_path, MIXED, learning_rate=0.0, switch="explore")
    halves = {name: (plain.steps[0][name] + expected[name]) / 2 for name in expected}
    assert relative_error(gradients.steps[0], halves) < 1e-4


def weighted_gradient(model, pairs: list[tuple[dict, str]], weight) -> dict[str, torch.Tensor]:
    """Gradient of the mean over targets of the mean token loss, each token weighed by a function of its probability."""
    for row, target in pairs:
        text = {"type": "text", "text": row["prompt"][0]["content"]}
        asked = PROCESSOR.apply_chat_template([{"role": "user", "content": [{"type": "image"}, text]}], tokenize=False,
                                              add_generation_prompt=True)
        inputs = PROCESSOR(images=[row["image"]], text=[asked], return_tensors="pt")
        ids = torch.tensor([[*PROCESSOR.tokenizer(target, add_special_tokens=False)["input_ids"], END]])
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        logits = model(**whole).logits[:, -ids.shape[1] - 1: -1]
        log_probs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        (-(weight(log_probs.exp().detach()) * log_probs).mean() / len(pairs)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_the_sft_budget_memorizes_when_enough_hard_prompts_have_gathered(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, [[WRONG] * 2 * G] * 3, max_steps=3, switch="budget", switch_value=4)
    trainer.train()
    assert [len(batch["advantages"]) for batch in trainer.batches] == [2 * G, 2 * G + 4, 2 * G]
    texts = {PROCESSOR.tokenizer.decode([token for token, is_kept in zip(ids, mask, strict=True) if is_kept])
             for ids, mask in zip(trainer.batches[1]["completion_ids"][2 * G:],
                                  trainer.batches[1]["completion_mask"][2 * G:], strict=True)}
    assert texts == {f"{target_of(row)}<end>" for row in ROWS}


def test_rollouts_go_on_from_a_hint_that_is_memorized(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, switch="prefix", switch_value=1.0, max_steps=2, max_completion_length=8)
    trainer.train()
    first, second = (batch["completion_ids"] for batch in trainer.batches)
    for row, target in zip(first, [target_of(row) for row in ROWS[:2] for _ in range(G)], strict=True):
        assert PROCESSOR.tokenizer.decode(row).startswith(target), "at the start the hint is the whole target"
    for row, target in zip(second, [target_of(row) for row in ROWS[2:] for _ in range(G)], strict=True):
        wanted = PROCESSOR.tokenizer(target, add_special_tokens=False)["input_ids"]
        assert row[: round(len(wanted) / 2)] == wanted[: round(len(wanted) / 2)], "half of it half way"
    lengths = [round(len(PROCESSOR.tokenizer(target_of(row), add_special_tokens=False)["input_ids"]) / 2) for row in ROWS[2:]]
    for place, advantages in enumerate(trainer.batches[1]["advantages"]):
        assert advantages[: lengths[place // G]] == [1 / G] * lengths[place // G]


def test_the_probe_measures_targets_and_rollouts_apart_and_leaves_no_trace(tmp_path: Path) -> None:
    trainer, gradients = run(tmp_path, MIXED, probe_every=1)
    _, without = run(tmp_path, MIXED)
    assert all(gradients.steps[0][name].equal(without.steps[0][name]) for name in without.steps[0])
    only_targets, only_rollouts = (run(tmp_path, MIXED, switch=name)[1].steps[0] for name in ("memorize", "explore"))
    flat = [torch.cat([gradient.flatten() for gradient in step.values()]) for step in (only_targets, only_rollouts)]
    log = logged(trainer)
    assert [log["memorize_norm"], log["explore_norm"]] == pytest.approx([each.norm().item() for each in flat], rel=1e-4)
    assert log["cosine"] == pytest.approx(torch.cosine_similarity(*flat, dim=0).item(), abs=1e-4)


def test_checkpointed_activations_give_the_same_gradient(tmp_path: Path) -> None:
    _, kept = run(tmp_path, MIXED)
    _, again = run(tmp_path, MIXED, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False})
    assert relative_error(again.steps[0], kept.steps[0]) < 1e-6


class VLLM:
    """Stands in for TRL's vLLM: writes given rollouts, with log-probs far from the policy's own."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.synced = texts, 0

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        ids = [[*PROCESSOR.tokenizer(text, add_special_tokens=False)["input_ids"], END] for text in self.texts]
        return prompts, ids, [[[-15.0]] * len(row) for row in ids], None


def with_vllm(trainer: Recorder, texts: list[str]) -> list[dict]:
    """Let the stand-in write the rollouts; returns the list of what will go through the loss."""
    seen, loss = [], trainer._compute_loss
    trainer.use_vllm, trainer.vllm_generation = True, VLLM(texts)
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), loss(model, inputs))[1]
    trainer._last_loaded_step = -1  # as TRL sets it where it opens vLLM
    return seen


@pytest.mark.parametrize("mode", ["sequence_mask", "token_truncate"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_rollouts_of_vllm_a_target_has_ratio_one_and_the_cross_entropy_gradient(
        tmp_path: Path, accumulate: int, mode: str) -> None:
    trainer, gradients = build(tmp_path, per_device_train_batch_size=2 * G // accumulate, drop_idle_rows=True,
                               gradient_accumulation_steps=accumulate, vllm_importance_sampling_mode=mode)
    told, seen = [], with_vllm(trainer, [WRONG] * 2 * G)
    trainer.watch = lambda *args: told.append(args)
    direct = cross_entropy_gradient(trainer.model, [(row, target_of(row)) for row in ROWS[:2]])
    trainer.train()
    assert relative_error(gradients.steps[0], {name: gradient / G for name, gradient in direct.items()}) < 1e-5
    stale = {"sampling_per_token_logps", "old_per_token_logps"}
    assert len(seen) == accumulate and not any(stale & set(inputs) for inputs in seen)
    assert all(inputs["importance_sampling_ratio"][inputs["completion_mask"] == 1].eq(1).all() for inputs in seen)
    assert logged(trainer)["memorize"] == 2 and logged(trainer)["clip_ratio/region_mean"] == 0
    assert trainer.vllm_generation.synced == 1 and told == [], "vLLM reports rollouts when all have ended"


@pytest.mark.parametrize(("mode", "ratio"), [("token_truncate", 2.0), ("sequence_mask", 0.0)])
def test_vllm_s_importance_ratio_weighs_rollouts_and_never_targets(tmp_path: Path, mode: str, ratio: float) -> None:
    changes = dict(per_device_train_batch_size=2 * G, drop_idle_rows=True, vllm_importance_sampling_mode=mode,
                   vllm_importance_sampling_clip_max=2.0)  # every token is far more likely than -15 says: above the limit
    _, plain = run(tmp_path / "plain", MIXED, **changes)
    trainer, corrected = build(tmp_path / "corrected", **changes)
    with_vllm(trainer, MIXED[0])
    memorized = cross_entropy_gradient(trainer.model, [(ROWS[0], target_of(ROWS[0]))])
    trainer.train()
    wanted = {name: memorized[name] / (2 * G) + ratio * (gradient - memorized[name] / (2 * G))
              for name, gradient in plain.steps[0].items()}
    assert relative_error(corrected.steps[0], wanted) < 1e-4


def test_a_cache_of_fixed_size_samples_the_same_rollouts_and_only_grows(tmp_path: Path, monkeypatch) -> None:
    eager, _ = run(tmp_path / "eager")
    static, _ = run(tmp_path / "static", cache_implementation="static")
    assert static.sampled == eager.sampled and len(static.sampled) == 2 * G
    assert not static.generation_config.disable_compile and eager.generation_config.disable_compile
    assert static.generation_config.max_cache_len == grpo_trainer.CACHE_STEP
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda *args, **kwargs: ([], None))
    for length, grown in ((grpo_trainer.CACHE_STEP - 16, 1), (grpo_trainer.CACHE_STEP - 15, 2), (9, 2)):
        static._generate_single_turn([[0] * length], None, {}, G)
        assert static.generation_config.max_cache_len == grown * grpo_trainer.CACHE_STEP


def test_a_hint_has_no_log_prob_of_vllm_s(tmp_path: Path) -> None:
    trainer, _ = build(tmp_path, switch="prefix")
    with_vllm(trainer, [WRONG] * 2 * G)
    trainer._hints = [[7, 8]] * 2 * G
    ids, log_probs = DyMETrainer._generate_single_turn(trainer, [[1]] * 2 * G, None, {}, G)
    assert all(row[:2] == [7, 8] and len(row) == len(known) for row, known in zip(ids, log_probs, strict=True))
    assert all(math.isnan(value) for value in log_probs[0][:2]) and set(log_probs[0][2:]) == {-15.0}


SPAN_STEPS = 3


def span_script() -> list[list[str]]:
    """One group of G a step, half of it on each rank: all wrong, mixed, all correct."""
    right = [target_of(row) for row in ROWS]
    return [[WRONG] * G, [WRONG, right[1], WRONG, WRONG], [right[2]] * G]


def span_run(folder: Path, rows_per_rank: int, **changes) -> dict:
    trainer, gradients = build(folder, span_script(), per_device_train_batch_size=rows_per_rank, max_steps=SPAN_STEPS,
                               learning_rate=0.0, **changes)
    trainer.train()
    return {"batches": trainer.batches, "refined": trainer.refined, "gradients": gradients.steps,
            "log": logged(trainer)}


def without_padding(batch: dict) -> list[list[int]]:
    return [[token for token, is_kept in zip(ids, mask, strict=True) if is_kept]
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)]


@pytest.mark.exhaustive
@pytest.mark.promise("alignment", "a group that spans two processes is switched as in one")
def test_a_group_that_spans_two_processes_is_switched_as_in_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               __file__, str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    alone = span_run(tmp_path / "alone", G)
    for step in range(SPAN_STEPS):
        halves, whole = [rank["batches"][step] for rank in ranks], alone["batches"][step]
        assert all(len(half["advantages"]) == G // 2 for half in halves)
        assert halves[0]["advantages"] + halves[1]["advantages"] == whole["advantages"]
        assert without_padding(halves[0]) + without_padding(halves[1]) == without_padding(whole)
        assert {half["num_items_in_batch"] for half in halves} == {whole["num_items_in_batch"]}
    assert alone["batches"][0]["advantages"] == [1, 0, 0, 0]
    assert [rank["refined"] for rank in ranks] == [[RECORDS[0].item], []]
    for step in (0, 1):
        assert relative_error(ranks[0]["gradients"][step], alone["gradients"][step]) < 1e-5
    dropped = [torch.load(tmp_path / f"rank{rank}-dropped.pt", weights_only=True) for rank in (0, 1)]
    assert [len(rank["batches"][0]["advantages"]) for rank in dropped] == [1, 1], "one row stays where all are idle"
    for step in (0, 1):
        assert relative_error(dropped[0]["gradients"][step], alone["gradients"][step]) < 1e-5
    assert {name: ranks[0]["log"][name] for name in ("memorize", "format", "thinking_tokens")} == pytest.approx(
        {name: alone["log"][name] for name in ("memorize", "format", "thinking_tokens")})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for suffix, is_dropped in (("", False), ("-dropped", True)):
        result = span_run(Path(sys.argv[1]) / "ranks", G // 2, drop_idle_rows=is_dropped)
        rank = torch.distributed.get_rank()
        result["gradients"] = [{name.removeprefix("module."): gradient for name, gradient in step.items()}
                               for step in result["gradients"]]
        torch.save(result, Path(sys.argv[1]) / f"rank{rank}{suffix}.pt")
    torch.distributed.destroy_process_group()
