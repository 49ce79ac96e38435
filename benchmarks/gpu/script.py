"""Training with rollouts from a script, so that two devices, processes or engines go through exactly the same steps."""
from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback

from dyme_core.data import datasets
from dyme_core.data.schema import Record
from dyme_core.models import loading
from dyme_core.models.engine import with_engine
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards

BASE = Path(__file__).resolve().parents[2] / "bases" / "svlm-s0"
G, PROMPTS = 4, 2
WRONG = "We look at the chart.\n<answer>no idea</answer>"
target = target_writer(RuleRefiner())
Script = Callable[[dict[str, Any], int], str]  # (data row, place in its group) -> the text of a rollout


def all_wrong(row: dict[str, Any], place: int) -> str:
    """Every group memorizes."""
    return WRONG


def by_turns(row: dict[str, Any], place: int) -> str:
    """Groups memorize, explore (one rollout is right) or are mastered, by the number of their item."""
    kind = int(row["item"].rsplit("-", 1)[1]) % 3
    return target([row])[0] if kind == 2 or (kind == 1 and place == 1) else WRONG


def rollouts(trainer: DyMETrainer, script: Script, count: int) -> list[list[int]]:
    """The token ids of the script's rollouts for the batch of a trainer's process, `count` rows."""
    first, tokenizer = trainer.accelerator.process_index * count, trainer._tokenizer
    texts = [script(row, (first + place) % trainer.num_generations) for place, row in enumerate(trainer._asked)]
    return [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts]


class Scripted(DyMETrainer):
    """Rollouts are the script's; what the optimiser is given is kept: gradients of the first step, norms of all."""

    def __init__(self, *args: Any, script: Script, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.script = script

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        return rollouts(self, self.script, len(prompt_ids)), None


class Gradients(TrainerCallback):
    """Keeps the first step's gradients, as the optimiser is about to see them."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        if not self.first:
            self.first = {name: weight.grad.float().cpu().clone() for name, weight in model.named_parameters()
                          if weight.grad is not None}


def policy(device: torch.device, *, savings: bool = True, attention: str = "sdpa") -> tuple[Any, Any]:
    """The mini base and its processor, with or without the engine (which shares prefixes under sdpa alone)."""
    model, processor = loading.load_policy(BASE, engine=False)
    model.set_attn_implementation(attention)
    return (with_engine(model, processor) if savings else model).to(device), processor


def records(count: int = PROMPTS) -> list[Record]:
    return datasets.mini_records("train", count, seed=0)


def train(model: Any, processor: Any, script: Script, steps: int, rows: Sequence[Record] | None = None, **changes: Any
          ) -> tuple[list[dict[str, float]], Gradients]:
    """Train `model` in place; returns the log of every step and the first step's gradients.

    Args:
        changes: of DyMEConfig; the learning rate is 1e-3, without a schedule.
    """
    gradients = Gradients()
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(output_dir=folder, use_cpu=model.device.type == "cpu", bf16=False, max_steps=steps, num_generations=G,
                        per_device_train_batch_size=PROMPTS * G, max_completion_length=152, learning_rate=1e-3,
                        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, report_to="none",
                        save_strategy="no", logging_steps=1, shuffle_dataset=False, disable_tqdm=True, seed=0,
                        gradient_checkpointing=False, dataloader_pin_memory=False)
        trainer = Scripted(model, args=DyMEConfig(**settings | changes), script=script, refiner=RuleRefiner(),
                           train_dataset=datasets.to_dataset(rows or records(max(PROMPTS * steps, 6))),
                           processing_class=processor, reward_funcs=dyme_rewards(RuleChecker()), callbacks=[gradients])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], gradients


def relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """|found - wanted| / |wanted| over all tensors; infinite where their names differ."""
    if found.keys() != wanted.keys():
        return math.inf
    error = sum(float((found[name].cpu().double() - wanted[name].cpu().double()).square().sum()) for name in wanted)
    size = sum(float(wanted[name].double().square().sum()) for name in wanted)
    return math.sqrt(error / size) if size else math.inf


def weights(model: Any) -> dict[str, Tensor]:
    """The trained weights, on the CPU."""
    return {name: weight.detach().float().cpu().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def largest_difference(found: list[dict[str, float]], wanted: list[dict[str, float]], name: str) -> float:
    """Of a logged number, relative, over all steps; infinite where the steps differ in number."""
    if len(found) != len(wanted):
        return math.inf
    return max(abs(left[name] - right[name]) / max(abs(right[name]), 1e-12)
               for left, right in zip(found, wanted, strict=True))
