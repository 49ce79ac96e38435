"""Rewards, facts, targets and pictures stay with their rollouts, however rows are shuffled, dropped, added or dealt again."""
from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dyme_core.data import datasets, schema
from dyme_core.data.metrics import accuracy_reward
from dyme_core.models import loading, tiny_onevision
from dyme_core.models.engine import share_prefixes
from dyme_core.trainer import batching
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import format_reward

PROCESSOR = tiny_onevision.build_processor(48, 24)
PAD, NUM_RECORDS = 0, 6
RECORDS = [schema.Record(f"item{number}", f"What is the value of {number}?", str(number), "lookup", "test", "train",
                         Image.new("RGB", (96, 48), (40 * number,) * 3)) for number in range(NUM_RECORDS)]


@st.composite
def batches(draw) -> batching.Batch:
    """A batch whose every field says of which row it is; pictures as LLaVA-OneVision has them, or of Qwen2.5-VL's kind."""
    size = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(1, 5), min_size=size, max_size=size))
    busy = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    ones, zeros = torch.ones(size, 3, dtype=torch.long), torch.zeros(size, 5, dtype=torch.long)
    batch = {"prompt_ids": torch.arange(1, size + 1)[:, None] * ones, "prompt_mask": ones,
             "completion_ids": zeros.clone(), "completion_mask": zeros.clone(),
             "advantages": torch.tensor([float(row + 1) * is_busy for row, is_busy in enumerate(busy)]), "number": 7}
    for row, length in enumerate(lengths):
        batching.write_completion(batch, row, [row + 1] * length, PAD)
    if draw(st.booleans()):
        batch["pixel_values"] = torch.arange(1.0, size + 1)[:, None, None].repeat(1, 2, 4)
        batch["image_sizes"] = torch.arange(1, size + 1)[:, None].repeat(1, 2)
    else:  # patches of all rows in one tensor, as many a row as its grid says
        grids = torch.tensor([[1, row % 2 + 1, 2] for row in range(size)])
        batch["image_grid_thw"], batch["num_images"] = grids, [1] * size
        batch["pixel_values"] = torch.cat([torch.full((int(grid.prod()), 4), row + 1.0) for row, grid in enumerate(grids)])
    return batch


def owners(batch: batching.Batch) -> list[int]:
    """The row that every field of each row names; fails where two of them disagree."""
    found = []
    for row in range(len(batch["prompt_ids"])):
        one = batching.take_rows(batch, [row])
        names = {int(value) for name in ("prompt_ids", "completion_ids", "pixel_values") for value in one[name].flatten()
                 if value != PAD}
        names |= {int(value) for value in one["advantages"].flatten() if value}
        names |= {int(value) for value in one.get("image_sizes", torch.zeros(0)).flatten()}
        assert len(names) == 1, names
        assert (one["completion_mask"].bool() == (one["completion_ids"] != PAD)).all()
        [name] = names
        if "image_grid_thw" in one:
            assert one["image_grid_thw"].tolist() == [[1, (name - 1) % 2 + 1, 2]]
        found.append(name)
    return found


@pytest.mark.promise("alignment", "every field of a row stays with it under any shuffling, dropping, filling up and dealing")
@settings(max_examples=200, deadline=None)
@given(batch=batches(), parts=st.integers(1, 4), seed=st.integers(0, 10**6), by_prompt=st.booleans(), drops=st.booleans())
def test_what_belongs_to_a_row_stays_with_it(batch, parts: int, seed: int, by_prompt: bool, drops: bool) -> None:
    size = len(batch["prompt_ids"])
    busy = [row + 1 for row in batching.busy_rows(batch)]
    needed = batching.busy_rows(batch) if drops else list(range(size))
    fitted = batching.fit_rows(batch, needed, -(-max(1, len(needed)) // parts) * parts)
    order = random.Random(seed).sample(range(len(fitted["prompt_ids"])), len(fitted["prompt_ids"]))
    share = len(order) // parts
    shuffled = [batching.take_rows(fitted, order[first: first + share]) for first in range(0, len(order), share)]
    dealt = batching.micro_batches(shuffled, PAD, by_prompt)
    assert [len(part["prompt_ids"]) for part in dealt] == [share] * parts
    named = [name for part in dealt for name in owners(part)]
    weighed = [float(value) for part in dealt for value in part["advantages"]]
    assert sorted(name for name, weight in zip(named, weighed, strict=True) if weight) == busy, "each that teaches once"
    assert owners(batching.join(dealt, PAD)) == named and all(part["number"] == 7 for part in dealt)


class Labelled(DyMETrainer):
    """Rollouts that name their item, every second one right; keeps the micro-batches of the update."""

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, prompt_ids, *args):
        texts = [f"See {row['item']} here now{' now' * (place % 3)}.\n<answer>"
                 f"{row['answer'] if place % 2 and int(row['answer']) % 2 else 'no'}</answer>"
                 for place, row in enumerate(self.rows)]
        return [[*PROCESSOR.tokenizer(text, add_special_tokens=False)["input_ids"], PROCESSOR.tokenizer.eos_token_id]
                for text in texts], None

    def _compute_loss(self, model, inputs):
        self.seen = [*getattr(self, "seen", []), inputs]
        return super()._compute_loss(model, inputs)


def train(folder: Path, size: int, prompts: int, accumulation: int, drops: bool, shares: bool) -> Labelled:
    torch.set_num_threads(1)
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0, 48, 24)
    loading.freeze_vision(model)
    if shares:
        share_prefixes(model)

    def thinking(completions, item, answer, question, **columns):
        texts = [completion[0]["content"] for completion in completions]
        assert all(f"See {name} " in text and f"value of {number}?" in asked for text, name, number, asked in
                   zip(texts, item, answer, question, strict=True)), "a rollout is scored by another's record"
        return [int(number) / 10 for number in answer]

    def refine(rows):
        return [f"Target of {row['item']} is this.\n<answer>{row['answer']}</answer>" for row in rows]

    arguments = DyMEConfig(str(folder), per_device_train_batch_size=size * prompts // accumulation, num_generations=size,
                           gradient_accumulation_steps=accumulation, max_completion_length=48, max_steps=2, learning_rate=0.0,
                           use_cpu=True, bf16=False, report_to="none", save_strategy="no", logging_steps=1, seed=size,
                           disable_tqdm=True, gradient_checkpointing=False, drop_idle_rows=drops)
    trainer = Labelled(model, args=arguments, train_dataset=datasets.to_dataset(RECORDS), processing_class=PROCESSOR,
                       refiner=refine, reward_funcs=[format_reward, accuracy_reward, thinking])
    trainer.train()
    return trainer


@pytest.mark.promise("alignment", "prompt, picture, record, rollout and target of a row are one item's in the update")
@pytest.mark.parametrize(("size", "prompts", "accumulation", "drops", "shares"), [
    (2, 1, 1, True, True), (2, 3, 1, True, False), (3, 2, 2, True, True), (4, 2, 4, False, True), (4, 3, 2, True, False),
    (2, 4, 4, False, False)])
def test_what_the_update_sees_of_a_row_is_of_one_item(tmp_path: Path, size, prompts, accumulation, drops, shares) -> None:
    trainer = train(tmp_path, size, prompts, accumulation, drops, shares)
    assert len(trainer.seen) == 2 * accumulation
    num_targets = 0
    for batch in trainer.seen:
        asked = PROCESSOR.tokenizer.batch_decode(batch["prompt_ids"])
        said = PROCESSOR.tokenizer.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        for row, (prompt, text) in enumerate(zip(asked, said, strict=True)):
            number = int(prompt.split("value of ")[1].split("?")[0])
            assert f"item{number} " in text
            picture = (batch["pixel_values"][row].mean() + 1) / 2 * 255  # the processor's mean and deviation are 0.5
            assert picture.item() == pytest.approx(40 * number, abs=0.6)
            num_targets += "Target of" in text
    assert num_targets > 0 or size * prompts == 2


@pytest.mark.promise("alignment", "no permutation of rows changes a gradient")
@pytest.mark.parametrize("shares", [True, False])
def test_no_permutation_of_rows_changes_the_gradient(tmp_path: Path, shares: bool) -> None:
    trainer = train(tmp_path, 4, 3, 1, False, shares)
    batch, parameters = trainer.seen[0], [weight for weight in trainer.model.parameters() if weight.requires_grad]

    def gradient(rows: list[int]) -> torch.Tensor:
        grads = torch.autograd.grad(trainer._compute_loss(trainer.model, batching.take_rows(batch, rows)), parameters)
        return torch.cat([each.flatten() for each in grads])

    rows = list(range(len(batch["prompt_ids"])))
    wanted = gradient(rows)
    assert wanted.norm() > 0
    for seed in range(3):
        shuffled = random.Random(seed).sample(rows, len(rows))
        assert (gradient(shuffled) - wanted).norm() < 1e-5 * wanted.norm()
