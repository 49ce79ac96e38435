"""Rewards by role, their sums, advantages and the mode of each group, on plain tensors: the input of the switches.

The rollouts of a prompt are adjacent rows; G is their number, B a multiple of G.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORIZE, EXPLORE, MASTERED = 0, 1, 2
STD_EPSILON = 1e-4  # as in TRL


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Standardise rewards inside each group of rollouts (GRPO; DyME's explore mode).

    Args:
        rewards: (B,) total reward in [0, 3]; the rollouts of one prompt are adjacent.
        group_size: G, rollouts per prompt.
    Returns:
        (B,) advantages (R - mean) / (unbiased std + 1e-4), unitless; exactly 0 where all rewards of a group are equal.
    Raises:
        ValueError: if B is not a multiple of G, or G < 2.
    """
    groups = _grouped(rewards, group_size)
    spread = groups.std(dim=1, keepdim=True)
    centred = groups - groups.mean(dim=1, keepdim=True)
    is_flat = (groups == groups[:, :1]).all(dim=1, keepdim=True)  # rounding of the mean must not become a gradient
    return torch.where(is_flat, torch.zeros_like(centred), centred / (spread + STD_EPSILON)).reshape(-1)


def group_modes(is_correct: Tensor, group_size: int) -> Tensor:
    """(B / G,) the mode of each group, from (B,) booleans: none correct MEMORIZE, all MASTERED, else EXPLORE."""
    num_correct = _grouped(is_correct, group_size).sum(dim=1)
    modes = torch.full_like(num_correct, EXPLORE)
    modes[num_correct == 0] = MEMORIZE
    modes[num_correct == group_size] = MASTERED
    return modes


@dataclass(frozen=True)
class StepRewards:
    """The rewards of a step's rollouts, by role.

    Each is (B,), the rollouts of a prompt adjacent. NaN is a missing score (a judge that was skipped or not asked).

    Attributes:
        accuracy: above 0.5 where the rollout is correct.
        format: above 0.5 where it is well formed; None where no reward says so.
        thinking: the checker's; None where no reward scores thinking.
        others: further rewards, added as they are.
    """

    accuracy: Tensor
    format: Tensor | None = None
    thinking: Tensor | None = None
    others: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, matrix: Tensor, roles: Sequence[str]) -> StepRewards:
        """From TRL's (B, F) matrix and the role of each of its columns (`rewards.roles_of`)."""
        by_role = dict(zip(roles, matrix.unbind(dim=1), strict=True))
        others = tuple(matrix[:, place] for place, role in enumerate(roles) if role == "other")
        return cls(by_role["accuracy"], by_role.get("format"), by_role.get("thinking"), others)

    def is_correct(self, needs_format: bool = True) -> Tensor:
        """(B,) booleans; with `needs_format` a rollout that fails the format reward is not correct."""
        is_right = self.accuracy > 0.5
        return is_right & (self.format > 0.5) if needs_format and self.format is not None else is_right

    def total(self, group_size: int, gate: str = "sum", thinking_weight: float = 1.0) -> Tensor:
        """(B,) sums of all rewards, thinking weighted; gate "gated" gives 0 where the format fails, "sum" ignores that."""
        given = [reward for reward in (self.format, self.accuracy, self.thinking, *self.others) if reward is not None]
        weights = [thinking_weight if reward is self.thinking else 1.0 for reward in given]
        matrix = fill_unknown(torch.stack(given, dim=1), group_size)
        total = (matrix * matrix.new_tensor(weights)).sum(dim=1)
        return total if gate == "sum" or self.format is None else torch.where(self.format > 0.5, total, 0.0)

    def best(self, thinking_weight: float = 1.0) -> float:
        """The total of a rollout for which every reward is 1: that of a target."""
        return 1.0 + (self.format is not None) + (0.0 if self.thinking is None else thinking_weight) + len(self.others)


def fill_unknown(rewards: Tensor, group_size: int) -> Tensor:
    """(B, F) rewards with the mean of its group's known scores in place of each NaN, 0 where the group has none.

    A 0 would be a bad mark. The group's mean neither lifts nor lowers a rollout against the others: only its other rewards
    then count.
    """
    groups = _grouped(rewards, group_size)
    means = groups.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    return torch.where(groups.isnan(), means, groups).reshape(rewards.shape)


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or rows.shape[0] % group_size:
        raise ValueError(f"batch must hold whole groups of at least 2: got {rows.shape[0]} rollouts for "
                         f"group_size={group_size}; use a multiple of {group_size}")
    return rows.reshape(-1, group_size, *rows.shape[1:])
