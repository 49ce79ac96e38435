"""Rows of a batch in TRL's form: taken, added, filled with a target. Pictures follow their rows, in every family.

A batch is a dict of tensors and lists of B rows each (prompt_ids padded left, completion_ids padded right, their masks,
advantages (B,) or (B, C), pictures), and of numbers.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from trl.trainer.utils import split_pixel_values_by_grid, unsplit_pixel_values_by_grid

Batch = dict[str, Any]
PROMPT, COMPLETION, BOTH = (True, False), (False, True), (True, True)  # padding of a field, (left, right)
SPANS = {"prompt_ids": PROMPT, "prompt_mask": PROMPT, "completion_ids": COMPLETION, "completion_mask": COMPLETION,
         "importance_sampling_ratio": COMPLETION, "token_type_ids": BOTH, "mm_token_type_ids": BOTH}
IDS = ("prompt_ids", "completion_ids")


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch of these rows, in this order; a row may be taken twice."""
    size, taken = len(batch["prompt_ids"]), dict(split_pixel_values_by_grid(batch))
    for name, values in taken.items():
        if isinstance(values, Tensor) and values.ndim and len(values) == size:
            taken[name] = values[list(rows)]
        elif isinstance(values, list) and len(values) == size:
            taken[name] = [values[row] for row in rows]
    return unsplit_pixel_values_by_grid(taken)


def join(batches: Sequence[Batch], pad_id: int) -> Batch:
    """One batch with the rows of several, prompts and completions padded to the longest; numbers are the first batch's."""
    widths = [max(batch[name].shape[1] for batch in batches) for name in IDS]
    parts = [split_pixel_values_by_grid(_widen(batch, *widths, pad_id)) for batch in batches]
    joined = dict(parts[0])
    for name, first in parts[0].items():
        if isinstance(first, list):
            joined[name] = [row for part in parts for row in part[name]]
        elif isinstance(first, Tensor) and first.ndim:
            joined[name] = torch.cat([part[name] for part in parts])
    return unsplit_pixel_values_by_grid(joined)


def with_own_log_probs(batch: Batch) -> Batch:
    """The batch without log-probs of the rollouts, which targets lack: TRL then takes those of the step itself, which are the
    same, one step following each generation. vLLM's importance ratios stay, (B, C) also where they are a row's."""
    kept = {name: value for name, value in batch.items() if name not in ("old_per_token_logps", "sampling_per_token_logps")}
    if (ratio := kept.get("importance_sampling_ratio")) is not None:
        kept["importance_sampling_ratio"] = ratio.repeat(1, batch["completion_ids"].shape[1] // ratio.shape[1])
    return kept


def write_completion(batch: Batch, row: int, ids: Sequence[int], pad_id: int) -> None:
    """Put `ids` in place of a row's completion, widening every row of the batch where it is longer; no engine sampled them, so
    that their importance ratios (`with_own_log_probs`) are 1."""
    batch.update(_widen(batch, batch["prompt_ids"].shape[1], max(batch["completion_ids"].shape[1], len(ids)), pad_id))
    new = {"completion_ids": torch.tensor(ids), "completion_mask": 1, "importance_sampling_ratio": 1}
    for name in new.keys() & batch.keys():
        batch[name][row] = pad_id if name in IDS else 0
        batch[name][row, : len(ids)] = new[name]


def spread_advantages(batch: Batch) -> Tensor:
    """The batch's advantages, from now on (B, C): each token has its row's."""
    batch["advantages"] = batch["advantages"][:, None].repeat(1, batch["completion_ids"].shape[1])
    return batch["advantages"]


def busy_rows(batch: Batch) -> list[int]:
    """The rows whose advantages are not all 0; the others add nothing to the loss but cost as much."""
    return (batch["advantages"] != 0).reshape(len(batch["advantages"]), -1).any(dim=1).nonzero().flatten().tolist()


def fit_rows(batch: Batch, needed: Sequence[int], size: int) -> Batch:
    """The batch with `size` rows: the needed ones, then others, then copies of the first, both with advantage 0."""
    others = sorted(set(range(len(batch["advantages"]))) - set(needed))[: size - len(needed)]
    copies = [0] * (size - len(needed) - len(others))
    if len(needed) + len(others) == len(batch["advantages"]) and not copies:
        return batch
    fitted = take_rows(batch, sorted([*needed, *others]) + copies)
    fitted["advantages"][len(needed) + len(others):] = 0.0
    return _trim(fitted)


def micro_batches(parts: Sequence[Batch], pad_id: int, by_prompt: bool) -> list[Batch]:
    """The rows of a step's micro-batches dealt again, as many to each, so that little padding goes through the model.

    Args:
        parts: in any order; no sum over the step depends on it.
        by_prompt: keep the rows of a prompt together, for a model that shares prefixes and leaves padding out
            (`engine.share_prefixes`); else rows of similar length, each micro-batch cut to its longest.
    """
    whole = join(parts, pad_id)
    prompts, lengths = whole["prompt_ids"].tolist(), (whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)).tolist()
    order = sorted(range(len(lengths)), key=lambda row: (prompts[row] if by_prompt else 0, lengths[row]))
    size = len(order) // len(parts)
    return [_trim(take_rows(whole, order[first: first + size])) for first in range(0, len(order), size)]


def _trim(batch: Batch) -> Batch:
    """The batch without columns that are padding in every row (rows that were left out may have been the longest)."""
    left, right = (batch[f"{part}_ids"].shape[1] - max(1, int(batch[f"{part}_mask"].sum(dim=1).max()))
                   for part in ("prompt", "completion"))
    cut = {name: batch[name][:, left * has_prompt: batch[name].shape[1] - right * has_completion]
           for name, (has_prompt, has_completion) in SPANS.items() if name in batch}
    if batch["advantages"].ndim == 2:
        cut["advantages"] = batch["advantages"][:, : batch["advantages"].shape[1] - right]
    return {**batch, **cut}


def _widen(batch: Batch, prompt: int, completion: int, pad_id: int) -> Batch:
    """The batch with prompts and completions padded to these widths."""
    left, right = prompt - batch["prompt_ids"].shape[1], completion - batch["completion_ids"].shape[1]
    return {name: functional.pad(value, (left * SPANS[name][0], right * SPANS[name][1]), value=pad_id if name in IDS else 0)
            if name in SPANS else value for name, value in batch.items()}
