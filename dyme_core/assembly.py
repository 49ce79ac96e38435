"""Rows of a batch in TRL's form: taken, added, filled with a target. Pictures follow their rows, whatever a family calls them.

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
PROMPT, COMPLETION, BOTH = (True, False), (False, True), (True, True)  # what a field is padded for, (left, right)
SPANS = {"prompt_ids": PROMPT, "prompt_mask": PROMPT, "completion_ids": COMPLETION, "completion_mask": COMPLETION,
         "token_type_ids": BOTH, "mm_token_type_ids": BOTH}
IDS = ("prompt_ids", "completion_ids")


def take_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch of these rows, in this order; a row may be taken twice."""
    size = len(batch["prompt_ids"])
    taken = {}
    for name, values in split_pixel_values_by_grid(batch).items():
        if isinstance(values, Tensor) and values.ndim and len(values) == size:
            taken[name] = values[list(rows)]
        elif isinstance(values, list) and len(values) == size:
            taken[name] = [values[row] for row in rows]
        else:
            taken[name] = values
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


def write_completion(batch: Batch, row: int, ids: Sequence[int], pad_id: int) -> None:
    """Put `ids` in place of a row's completion, widening every row of the batch where it is longer."""
    batch.update(_widen(batch, batch["prompt_ids"].shape[1], max(batch["completion_ids"].shape[1], len(ids)), pad_id))
    for name, fill, values in (("completion_ids", pad_id, ids), ("completion_mask", 0, [1] * len(ids))):
        batch[name][row] = fill
        batch[name][row, : len(ids)] = torch.tensor(values, device=batch[name].device)


def drop_idle_rows(batch: Batch, multiple: int = 1) -> Batch:
    """The batch without rows whose advantages are all 0: they add nothing to the loss but cost as much as the others.

    Advantages are scaled by (rows left) / (rows before), so that TRL's mean over rows gives the same loss and gradient. One
    row is kept where all are idle; idle rows fill up to `multiple` (micro-batches of a step must be equally many).
    """
    size = len(batch["advantages"])
    is_idle = (batch["advantages"] == 0).reshape(size, -1).all(dim=1).tolist()
    busy, idle = [row for row in range(size) if not is_idle[row]], [row for row in range(size) if is_idle[row]]
    wanted = -(-max(1, len(busy)) // multiple) * multiple
    if wanted >= size:
        return batch
    kept = sorted(busy + idle[: wanted - len(busy)])
    smaller = take_rows(batch, kept)
    smaller["advantages"] = smaller["advantages"] * (len(kept) / size)
    spare = smaller["completion_ids"].shape[1] - max(1, int(smaller["completion_mask"].sum(dim=1).max()))
    for name, (_, has_completion) in SPANS.items():  # rows that were left out may have been the longest
        if spare and has_completion and name in smaller:
            smaller[name] = smaller[name][:, :-spare]
    return smaller


def _widen(batch: Batch, prompt: int, completion: int, pad_id: int) -> Batch:
    """The batch with prompts and completions padded to these widths."""
    left, right = prompt - batch["prompt_ids"].shape[1], completion - batch["completion_ids"].shape[1]
    return {name: functional.pad(value, (left * SPANS[name][0], right * SPANS[name][1]), value=pad_id if name in IDS else 0)
            if name in SPANS else value for name, value in batch.items()}
