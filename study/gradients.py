"""Gradients of one policy under two losses: cross-entropy on a target (SFT), and TRL's GRPO loss on the same target.

The GRPO side is TRL's own `compute_loss` on a batch in its own form, so that notebook 01 measures what training computes. The
SFT side is torch's cross-entropy, row by row.
"""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin
from trl import GRPOConfig, GRPOTrainer

from dyme_core.data.datasets import to_dataset
from dyme_core.data.schema import Record
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.processors import target_ids
from dyme_core.trainer.rewards import format_reward

Gradient = dict[str, Tensor]  # by parameter name; frozen parameters have none
GROUPS = {"embed_tokens": "embedding", "projector": "projector", "image_newline": "projector", "self_attn": "attention",
          "mlp": "mlp", "norm": "norm"}  # part of a parameter's name -> its group


def grpo_trainer(model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record], **settings: Any
                 ) -> GRPOTrainer:
    """TRL's own trainer around `model` (no rollout is made, no step taken); `settings` are GRPOConfig's."""
    with tempfile.TemporaryDirectory() as folder:
        defaults = dict(output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, report_to="none",
                        beta=0.0, loss_type="grpo", per_device_train_batch_size=8, num_generations=8,
                        max_completion_length=64, gradient_checkpointing=False)
        trainer = GRPOTrainer(model, reward_funcs=format_reward, args=GRPOConfig(**defaults | settings),
                              train_dataset=to_dataset(records), processing_class=processor)
    trainer.current_gradient_accumulation_steps = 1  # Trainer sets it when it trains
    return trainer


def batch_of(processor: ProcessorMixin, records: Sequence[Record], texts: Sequence[str], dtype: torch.dtype
             ) -> dict[str, Any]:
    """A batch in TRL's form of rollouts: `texts` with the end token are the completions of `records`.

    Returns:
        prompt_ids (B, P) padded left, completion_ids (B, C) padded right, their masks, pictures in `dtype`, and
        num_items_in_batch (0-d, tokens of all completions).
    """
    inputs = prompt_inputs(processor, records)
    ids = [torch.tensor(target_ids(processor, text)) for text in texts]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"prompt_ids": inputs["input_ids"], "prompt_mask": inputs["attention_mask"], "completion_mask": mask,
            "completion_ids": pad_sequence(ids, batch_first=True, padding_value=processor.tokenizer.pad_token_id),
            "pixel_values": inputs["pixel_values"].to(dtype), "image_sizes": inputs["image_sizes"],
            "num_images": [1] * len(ids), "num_items_in_batch": mask.sum()}


def grpo_gradient(trainer: GRPOTrainer, batch: dict[str, Any], advantages: Tensor, log_ratio: Tensor | None = None
                  ) -> Gradient:
    """Gradient of TRL's loss.

    Args:
        batch: from `batch_of`.
        advantages: (B,).
        log_ratio: log p_theta / p_old, () or (B, C); None is on-policy, as DyME trains (ratio exactly 1).
    """
    batch = {**batch, "advantages": advantages}
    if log_ratio is not None:
        batch["old_per_token_logps"] = token_log_probs(trainer, batch) - log_ratio
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return _gradient(trainer.model)


def token_log_probs(trainer: GRPOTrainer, batch: dict[str, Any]) -> Tensor:
    """(B, C) log-probabilities of the completions' tokens, as TRL computes them, without gradient."""
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
    pictures = {name: batch[name] for name in ("pixel_values", "image_sizes", "num_images")}
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, batch["completion_ids"].shape[1],
                                                          **pictures)[0]


def sft_gradient(model: PreTrainedModel, batch: dict[str, Any]) -> Gradient:
    """Gradient of the cross-entropy of each target (mean over its tokens, then over rows), each row read alone.

    Only the padding left of a prompt is kept: rotary tables are 32-bit in any precision, so a row read at other
    positions differs by 1e-8. (Neither is transformers' `labels=` used: it rounds the logits to 32 bits.)
    """
    model.zero_grad()
    width, num_rows = batch["prompt_ids"].shape[1], len(batch["prompt_ids"])
    for row in range(num_rows):
        wanted = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        logits = model(input_ids=torch.cat([batch["prompt_ids"][row], wanted])[None],
                       attention_mask=torch.cat([batch["prompt_mask"][row], torch.ones_like(wanted)])[None],
                       pixel_values=batch["pixel_values"][row: row + 1],
                       image_sizes=batch["image_sizes"][row: row + 1]).logits
        (functional.cross_entropy(logits[0, width - 1: -1], wanted) / num_rows).backward()
    return _gradient(model)


def compare(gradient: Gradient, reference: Gradient) -> pd.DataFrame:
    """How far `gradient` is from `reference`, one line per parameter group and one for "all".

    Returns:
        columns group, relative_error (|g - r| / |r|), cosine, scale (the a that brings a r nearest to g), norm |g|.
    """
    names = {"all": list(reference)}
    for name in reference:
        names.setdefault(next(group for part, group in GROUPS.items() if part in name), []).append(name)
    return pd.DataFrame([{"group": group, **_distance(_flat(gradient, members), _flat(reference, members))}
                         for group, members in names.items()])


def _distance(left: Tensor, right: Tensor) -> dict[str, float]:
    product, norm = left @ right, left.norm()
    return {"relative_error": float((left - right).norm() / right.norm()), "scale": float(product / (right @ right)),
            "cosine": float(product / (norm * right.norm())) if norm else 0.0, "norm": float(norm)}


def _flat(gradient: Gradient, names: list[str]) -> Tensor:
    return torch.cat([gradient[name].double().flatten() for name in names])


def _gradient(model: PreTrainedModel) -> Gradient:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
