"""Rollouts told of as they end, while others of the batch are still being written: so that judges can start on them."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList


class Watcher(StoppingCriteria):
    """Stops nothing; a criterion is what `generate` calls after every token.

    Args:
        tell: called whenever rollouts have ended, with the token ids of every row of the batch, end token included; None for
            a row that is still being written. Rows that the length limit cuts are never told of.
        end_tokens: ids that end a rollout.
    """

    def __init__(self, tell: Callable[[list[list[int] | None]], None], end_tokens: Sequence[int]) -> None:
        self.tell, self.end_tokens = tell, torch.tensor(sorted(end_tokens))
        self._start = 0
        self._ended: list[list[int] | None] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self._ended:
            self._start, self._ended = input_ids.shape[1] - 1, [None] * len(input_ids)
        is_end = torch.isin(input_ids[:, -1].cpu(), self.end_tokens).tolist()
        new = [row for row, ends in enumerate(is_end) if ends and self._ended[row] is None]  # padding may be an end token
        for row in new:
            self._ended[row] = input_ids[row, self._start:].tolist()
        if new:
            self.tell(list(self._ended))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def watching(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """While the block runs, `model.generate` takes the watcher along; what it samples stays the same."""
    plain, is_own = model.generate, "generate" in vars(model)
    model.generate = partial(plain, stopping_criteria=StoppingCriteriaList([watcher]))
    try:
        yield
    finally:
        if is_own:
            model.generate = plain
        else:
            del model.generate
