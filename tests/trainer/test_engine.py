"""The engine under TRL's own trainers: the same losses and weights as without it, with fewer tokens computed."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer

from dyme_core.data import datasets
from dyme_core.data.schema import item_of
from dyme_core.models import loading, processors
from dyme_core.supervision.refiner import RuleRefiner

BASE = Path(__file__).resolve().parents[2] / "bases" / "svlm-s0"
RECORDS = datasets.mini_records("train", 4, seed=0)
SHARED = dict(max_steps=2, learning_rate=0.05, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant", use_cpu=True,
              bf16=False, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1, seed=0,
              per_device_train_batch_size=8, gradient_checkpointing=False, dataloader_pin_memory=False)
WORDS = ["Yes, we look at it.", "So.", "the value of 5 is greater", "No"]  # as long as different rollouts are


def scripted(trainer: type) -> type:
    """The trainer with rollouts from a script."""
    class Scripted(trainer):
        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            tokenizer = self.processing_class.tokenizer
            ids = [[*tokenizer(WORDS[place % len(WORDS)])["input_ids"], tokenizer.eos_token_id]
                   for place in range(len(prompt_ids))]
            return (ids, None) if trainer is GRPOTrainer else ids

        def _get_per_token_logps_and_entropies(self, *args, batch_num_images=None, **kwargs):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)  # RLOO of TRL 1.14 hands it on and takes it not
    return Scripted


def length(completions, **columns) -> list[float]:
    return [float(len(str(completion))) for completion in completions]


def make(method: str, engine: bool, folder: Path):
    model, processor = loading.load_policy(BASE, engine=engine)
    if method == "sft":
        rows = datasets.sft_dataset(RECORDS, lambda rows: [RuleRefiner().refine(item_of(row)) for row in rows])
        several = rows.select([place // 4 for place in range(16)])  # four targets of each picture
        several = several.map(lambda row, place: {"completion": [{"role": "assistant", "content": WORDS[place % 4]}]},
                              with_indices=True)
        return SFTTrainer(model, args=SFTConfig(str(folder), max_length=None, loss_type="nll", **SHARED), train_dataset=several,
                          processing_class=processor)
    settings = dict(num_generations=4, max_completion_length=16, beta=0.0, **SHARED,
                    generation_kwargs={"suppress_tokens": processors.suppressed_ids(model, processor)})
    trainer, config = (GRPOTrainer, GRPOConfig) if method == "grpo" else (RLOOTrainer, RLOOConfig)
    return scripted(trainer)(model, reward_funcs=[length], args=config(str(folder), **settings),
                             train_dataset=datasets.to_dataset(RECORDS), processing_class=processor)


@pytest.mark.parametrize("method", ["grpo", "rloo", "sft"])
def test_losses_and_weights_are_those_without_it(method: str, tmp_path: Path) -> None:
    made = []
    for engine in (False, True):
        trainer, seen = make(method, engine, tmp_path), []
        trainer.model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0].shape[:2].numel()))
        start = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        trainer.train()
        end = torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()])
        made.append(([entry["loss"] for entry in trainer.state.log_history if "loss" in entry], end - start, sum(seen)))
    (losses, change, tokens), (with_it, its_change, fewer) = made
    assert with_it == pytest.approx(losses, rel=1e-4, abs=1e-6) and fewer < 0.7 * tokens
    assert change.norm() > 0 and (its_change - change).norm() < 1e-3 * change.norm()
