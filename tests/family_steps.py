"""A step of DyMETrainer on a tiny checkpoint of any family, and its expected result."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import torch
from tiny_families import PREPROCESSOR
from torch.nn import functional
from transformers import TrainerCallback

from dyme_core.data import prompt_format, schema
from dyme_core.data.datasets import mini_records, to_dataset
from dyme_core.models import generation, processors
from dyme_core.pipeline import evaluate
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from dyme_core.trainer import rewards
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer

G = 4
WRONG = "We look.\n<answer>no idea</answer>"
refine = target_writer(RuleRefiner())


def records_for(family: str) -> list[schema.Record]:
    """Two questions: on charts, or for the text model the same without them."""
    records = mini_records("train", 2, seed=0)
    return records if family in PREPROCESSOR else [replace(record, image=None) for record in records]


def dataset_for(family: str) -> datasets.Dataset:
    records = records_for(family)
    if family in PREPROCESSOR:
        return to_dataset(records)
    return datasets.Dataset.from_list([{**record.row, "prompt": prompt_format.messages(record.question)} for record in records])


class Scripted(DyMETrainer):
    """Rollouts are given texts, or sampled where there are none; what went through the update is kept."""

    def __init__(self, *args, script: list[str] | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.script, self.advantages, self.keys, self.sampled = script, [], set(), []

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.script is None:
            self.sampled, log_probs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
            return self.sampled, log_probs
        return [[*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]
                for text in self.script], None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.advantages.append(batch["advantages"].tolist())
        self.keys |= batch.keys()
        return batch


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        self.found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def step(folder: Path, family: str, policy, processor, script: list[str] | None, max_completion_length: int = 200
         ) -> tuple[Scripted, Gradients]:
    """One step on two groups of G rollouts."""
    settings = DyMEConfig(str(folder), use_cpu=True, bf16=False, per_device_train_batch_size=2 * G, num_generations=G,
                          max_steps=1, max_completion_length=max_completion_length, learning_rate=1e-2, weight_decay=0.0,
                          max_grad_norm=0.0, report_to="none", save_strategy="no", logging_steps=1, shuffle_dataset=False,
                          disable_tqdm=True, gradient_checkpointing=False, drop_idle_rows=False, seed=0)
    gradients = Gradients()
    trainer = Scripted(policy, args=settings, train_dataset=dataset_for(family), processing_class=processor, script=script,
                       refiner=RuleRefiner(), reward_funcs=rewards.dyme_rewards(RuleChecker()), callbacks=[gradients])
    trainer.train()
    return trainer, gradients


def answers(policy, processor, family: str) -> list[str]:
    rows = evaluate.evaluate(policy, processor, records_for(family), max_new_tokens=12)
    return [row["prediction"] for row in rows]


def cross_entropy_gradient(policy, processor, family: str) -> dict[str, torch.Tensor]:
    """Of the mean cross entropy of each target's tokens, each read alone, weighed as a row of the step's batch."""
    tokenizer = processors.tokenizer_of(processor)
    for record in records_for(family):
        inputs = generation.prompt_inputs(processor, [record])
        ids = [*tokenizer(refine([record.row])[0], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        added = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
                 "mm_token_type_ids": torch.zeros(1, len(ids), dtype=torch.long)}
        whole = {name: torch.cat([value, added[name]], dim=1) if name in added else value for name, value in inputs.items()}
        logits = policy(**whole).logits[0, -len(ids) - 1: -1]
        (functional.cross_entropy(logits, torch.tensor(ids)) / (2 * G)).backward()  # a row weighs 1 / B
    wanted = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    policy.zero_grad()
    return wanted


def relative_error(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    assert found.keys() == wanted.keys()
    error = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((error / sum(each.square().sum() for each in wanted.values())).sqrt())
