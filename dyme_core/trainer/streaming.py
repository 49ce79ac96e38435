"""Rollouts reported as they end, while others of the batch are still being written, so that judges can start on them."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList


class Watcher(StoppingCriteria):
    """Stops nothing: `generate` calls a stopping criterion after every token.

    Args:
        report: called with the rollouts that have just ended: token ids, end token included, by their row in the batch. Each
            is reported once; one that the length limit cuts never is.
        end_tokens: ids that end a rollout.
    """

    def __init__(self, report: Callable[[dict[int, list[int]]], None], end_tokens: Sequence[int]) -> None:
        self.report, self.end_tokens = report, torch.tensor(sorted(end_tokens))
        self._start: int | None = None  # where the rollouts begin, after their prompts
        self._ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._start is None:
            self._start = input_ids.shape[1] - 1
        is_end = torch.isin(input_ids[:, -1].cpu(), self.end_tokens).nonzero().flatten().tolist()
        new = [row for row in is_end if row not in self._ended]  # padding may be an end token
        self._ended.update(new)
        if new:
            self.report({row: input_ids[row, self._start:].tolist() for row in new})
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def watching(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Within the block `model.generate` calls the watcher; it samples the same tokens."""
    plain, is_own = model.generate, "generate" in vars(model)
    model.generate = partial(plain, stopping_criteria=StoppingCriteriaList([watcher]))
    try:
        yield
    finally:
        if is_own:
            model.generate = plain
        else:
            del model.generate
