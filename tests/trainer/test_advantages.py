"""Rewards, advantages and modes on plain tensors, against groups worked by hand."""
from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from dyme_core.trainer import advantages as objective
from dyme_core.trainer.advantages import EXPLORE, MASTERED, MEMORIZE

YES, NO = True, False


def step_of(matrix: torch.Tensor) -> objective.StepRewards:
    """Rows of format, accuracy, thinking."""
    return objective.StepRewards.of(matrix, ["format", "accuracy", "thinking"])


def close(left: torch.Tensor, right: list[float]) -> bool:
    return torch.allclose(left, tensor(right, dtype=left.dtype), atol=1e-6)


def test_advantages_are_distance_from_the_mean_in_unbiased_standard_deviations() -> None:
    # Mean 1.5; squared distances 2.25 + .25 + .25 + 2.25 = 5; unbiased variance 5 / 3.
    deviation = math.sqrt(5 / 3)
    expected = [distance / (deviation + 1e-4) for distance in (-1.5, -0.5, 0.5, 1.5)]
    assert close(objective.group_advantages(tensor([0.0, 1.0, 2.0, 3.0]), 4), expected)


def test_a_group_knows_nothing_of_its_neighbours() -> None:
    # [0, 2]: mean 1, deviation sqrt 2. [3, 3]: flat. The same pair alone has the same advantages.
    step = 1 / (math.sqrt(2) + 1e-4)
    assert close(objective.group_advantages(tensor([0.0, 2.0, 3.0, 3.0]), 2), [-step, step, 0.0, 0.0])


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.9, 1.7])
@pytest.mark.parametrize("group_size", [3, 6, 8])
def test_equal_rewards_give_exactly_zero_whatever_the_mean_rounds_to(reward: float, group_size: int) -> None:
    assert (objective.group_advantages(torch.full((group_size,), reward), group_size) == 0).all()


def test_there_are_equal_rewards_whose_mean_rounds_away_from_them() -> None:
    """Else the test above would prove nothing: without the guard this group would get an advantage."""
    rewards = torch.full((1, 3), 1.7)
    assert (rewards - rewards.mean(dim=1, keepdim=True)).abs().max() > 0


@pytest.mark.parametrize(("is_correct", "mode"), [([NO, NO, NO, NO], MEMORIZE), ([NO, NO, YES, NO], EXPLORE),
                                                  ([YES, YES, YES, NO], EXPLORE), ([YES, YES, YES, YES], MASTERED)])
def test_the_number_of_correct_rollouts_decides_the_mode(is_correct: list[bool], mode: int) -> None:
    assert objective.group_modes(tensor(is_correct), 4).tolist() == [mode]


def test_the_gate_drops_what_has_no_format() -> None:
    rewards = tensor([[1.0, 1.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])  # format, accuracy, thinking
    assert step_of(rewards).total(3).tolist() == [2.5, 1.0, 0.0]
    assert step_of(rewards).total(3, "gated").tolist() == [2.5, 0.0, 0.0]
    assert step_of(rewards).total(3, thinking_weight=0.0).tolist() == [2.0, 1.0, 0.0]


def test_more_than_half_of_a_reward_makes_a_rollout_correct() -> None:
    """A-OKVQA scores an answer in thirds."""
    step = step_of(tensor([[1.0, 1 / 3, 0.0], [1.0, 0.5, 1.0], [1.0, 2 / 3, 0.0], [0.5, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert step.is_correct().tolist() == [False, False, True, False, False]
    assert step.is_correct(needs_format=False).tolist() == [False, False, True, True, True]


def test_an_unknown_score_is_the_mean_of_its_own_groups_known_ones() -> None:
    # Known thinking scores 1, 0.5 and 0 (malformed): mean 0.5. The second group's 1 must not leak into the first.
    rewards = tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, math.nan],
                      [1.0, 0.0, 1.0], [1.0, 0.0, math.nan], [1.0, 1.0, math.nan], [1.0, 0.0, 1.0]])
    assert step_of(rewards).total(4).tolist() == [3.0, 1.5, 0.0, 2.5, 2.0, 2.0, 3.0, 2.0]
    assert objective.fill_unknown(rewards, 4)[3].tolist() == [1.0, 1.0, 0.5] and rewards[3, 2].isnan()


def test_an_unknown_score_moves_its_rollout_by_nothing_but_its_other_rewards() -> None:
    # All equal but for thinking 1, 0 and unknown: the unknown one stands exactly at the mean.
    advantages = objective.group_advantages(step_of(tensor([[1.0, 0, 1], [1.0, 0, 0], [1.0, 0, math.nan]])).total(3), 3)
    assert advantages[2] == 0 and advantages[0] == -advantages[1] > 0


def test_where_no_score_is_known_thinking_makes_no_difference() -> None:
    rewards = tensor([[1.0, 1.0, math.nan], [1.0, 0.0, math.nan], [0.0, 0.0, math.nan]])
    assert step_of(rewards).total(3).tolist() == [2.0, 1.0, 0.0]


def test_any_rewards_are_summed_and_only_thinking_is_weighted() -> None:
    matrix = tensor([[0.25, 1.0, 1.0, 2.0], [0.5, 0.0, 0.0, math.nan]])
    step = objective.StepRewards.of(matrix, ["other", "thinking", "accuracy", "other"])
    assert step.total(2, thinking_weight=0.5).tolist() == [3.75, 2.5], "the unknown score is its group's 2"
    assert step.total(2, "gated").tolist() == step.total(2).tolist(), "no format reward, nothing to gate by"
    assert step.is_correct().tolist() == [True, False] and step.best(thinking_weight=0.5) == 3.5


@pytest.mark.parametrize(("rows", "group_size"), [(6, 4), (3, 1)])
def test_a_batch_of_broken_groups_is_refused_with_advice(rows: int, group_size: int) -> None:
    wanted = (f"whole groups of at least 2: got {rows} rollouts for group_size={group_size}; "
              f"use a multiple of {group_size}")
    with pytest.raises(ValueError, match=wanted):
        objective.group_advantages(torch.zeros(rows), group_size)
    with pytest.raises(ValueError, match=wanted):
        objective.group_modes(torch.zeros(rows, dtype=torch.bool), group_size)
