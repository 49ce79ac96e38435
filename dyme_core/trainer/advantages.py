"""What the switches decide from, on plain tensors: total rewards, advantages, the mode of each group.

The rollouts of a prompt are adjacent rows; G is their number, B a multiple of G.
"""
from __future__ import annotations

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
    """The mode of each group: MEMORIZE where no rollout is correct, MASTERED where all are, else EXPLORE.

    Args:
        is_correct: (B,) booleans.
        group_size: G.
    Returns:
        (B / G,) integers.
    """
    num_correct = _grouped(is_correct, group_size).sum(dim=1)
    modes = torch.full_like(num_correct, EXPLORE)
    modes[num_correct == 0] = MEMORIZE
    modes[num_correct == group_size] = MASTERED
    return modes


def total_rewards(rewards: Tensor, gate: str, group_size: int, thinking_weight: float = 1.0) -> Tensor:
    """Sum (format, accuracy, thinking); gate "gated" gives 0 where the format fails, "sum" adds all (the public code).

    Args:
        rewards: (B, 3) in [0, 1], in that order; NaN is a score that is not known (a judge that was skipped or not asked).
        gate: "sum" or "gated".
        group_size: G.
        thinking_weight: of the third column.
    Returns:
        (B,) in [0, 2 + thinking_weight].
    """
    total = (fill_unknown(rewards, group_size) * rewards.new_tensor([1.0, 1.0, thinking_weight])).sum(dim=1)
    return torch.where(rewards[:, 0] > 0.5, total, torch.zeros_like(total)) if gate == "gated" else total


def fill_unknown(rewards: Tensor, group_size: int) -> Tensor:
    """Put the mean of its group's known scores in place of each NaN, 0 where the group has none.

    A 0 would be a bad mark. The group's mean neither lifts nor lowers a rollout against the others: what it then gains or
    loses comes from its other rewards alone.

    Args:
        rewards: (B, F), one column per reward.
        group_size: G.
    """
    groups = _grouped(rewards, group_size)
    means = groups.nanmean(dim=1, keepdim=True).nan_to_num(0.0)
    return torch.where(groups.isnan(), means, groups).reshape(rewards.shape)


def _grouped(rows: Tensor, group_size: int) -> Tensor:
    if group_size < 2 or rows.shape[0] % group_size:
        raise ValueError(f"batch must hold whole groups of at least 2: got {rows.shape[0]} rollouts for "
                         f"group_size={group_size}; use a multiple of {group_size}")
    return rows.reshape(-1, group_size, *rows.shape[1:])
