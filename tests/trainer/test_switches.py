"""Every switch on groups worked by hand."""
from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from dyme_core.trainer import switches
from dyme_core.trainer.advantages import group_advantages
from dyme_core.trainer.switches import SWITCHES, Groups, named

YES, NO = True, False
STEP = 1 / (math.sqrt(2) + 1e-4)  # advantage of the better of two rollouts, 2 apart: mean in the middle, deviation sqrt 2
REWARDS, IS_CORRECT = tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 3.0]]), tensor([[NO, NO], [NO, YES], [YES, YES]])
IS_GROUNDED = tensor([[YES, NO], [YES, NO], [NO, YES]])  # of the mixed group, the wrong rollout: its right one was a guess
NEAR = 0.5 / (math.sqrt(0.5) + 1e-4)  # the same, 1 apart


def groups(**changes) -> Groups:
    return Groups(**{"rewards": REWARDS, "is_correct": IS_CORRECT, "weight": 2.0, "is_grounded": IS_GROUNDED} | changes)


def close(left: torch.Tensor, right: list) -> bool:
    return torch.allclose(left, tensor(right, dtype=left.dtype), atol=1e-6)


def test_binary_memorizes_where_none_is_correct_explores_where_some_are_and_skips_the_mastered() -> None:
    decision = SWITCHES["binary"].decide(groups(), None)
    assert close(decision.advantages, [[0, 0], [-STEP, STEP], [0, 0]]) and decision.targets.tolist() == [2, 0, 0]


def test_mastered_groups_are_explored_where_the_setting_says_so() -> None:
    decision = SWITCHES["binary"].decide(groups(mastered="explore"), None)
    assert close(decision.advantages, [[0, 0], [-STEP, STEP], [-NEAR, NEAR]]) and decision.targets.tolist() == [2, 0, 0]


@pytest.mark.parametrize(("gamma", "targets"), [(0.25, [2, 0, 0]), (0.5, [2, 2, 0]), (0.75, [2, 2, 0])])
def test_hpts_gate_memorizes_up_to_its_pass_rate(gamma: float, targets: list[int]) -> None:
    decision = SWITCHES["threshold"].decide(groups(), gamma)
    assert decision.targets.tolist() == targets
    assert [bool(row.any()) for row in decision.advantages] == [False, targets[1] == 0, False]


def test_a_lucky_guess_is_no_success_for_the_grounded_switch() -> None:
    decision = SWITCHES["grounded"].decide(groups(), None)
    assert decision.targets.tolist() == [2, 2, 0] and not decision.advantages.any(), "the last group is mastered"
    honest = SWITCHES["grounded"].decide(groups(is_grounded=IS_CORRECT), None)
    assert honest.targets.tolist() == [2, 0, 0] and close(honest.advantages, [[0, 0], [-STEP, STEP], [0, 0]])


def test_the_ablations_leave_out_one_side_of_the_binary_switch_each() -> None:
    whole = SWITCHES["binary"].decide(groups(), None)
    without_memorize, without_explore = (SWITCHES[name].decide(groups(), None) for name in ("explore", "memorize"))
    assert without_memorize.advantages.equal(whole.advantages) and not without_memorize.targets.any()
    assert without_explore.targets.equal(whole.targets) and not without_explore.advantages.any()


@pytest.mark.parametrize(("progress", "mu"), [(0.0, 1.0), (0.5, 0.5), (2 / 3, 0.25)])
def test_cosine_annealing_goes_from_targets_to_rollouts(progress: float, mu: float) -> None:
    decision = SWITCHES["cosine"].decide(groups(progress=progress), None)
    assert close(decision.targets, [2 * mu] * 3)
    assert close(decision.advantages, [[(1 - mu) * NEAR, (mu - 1) * NEAR], [(mu - 1) * STEP, (1 - mu) * STEP],
                                       [(mu - 1) * NEAR, (1 - mu) * NEAR]])


def test_the_sft_budget_explores_everything_and_holds_the_targets_of_hard_prompts() -> None:
    decision = SWITCHES["budget"].decide(groups(), 8.0)
    assert decision.hold == 8 and decision.targets.tolist() == [2, 0, 0]
    assert close(decision.advantages, [[NEAR, -NEAR], [-STEP, STEP], [-NEAR, NEAR]])


def test_luffy_standardises_the_target_with_its_group_and_shapes_its_tokens() -> None:
    decision = SWITCHES["luffy"].decide(groups(), 0.1)
    together = group_advantages(tensor([1.0, 0.0, 3.0]), 3)
    assert close(decision.advantages[0], together[:2].tolist()) and close(decision.targets[:1], together[2:].tolist())
    probability = tensor([0.01, 0.1, 0.9], requires_grad=True)
    shaped = (probability / (probability + 0.1)).sum()  # f(p); its gradient by log p is p f'(p)
    by_log = torch.autograd.grad(shaped, probability)[0] * probability
    assert torch.allclose(decision.token_weight(probability.detach()), by_log.detach())


def test_chord_mixes_both_losses_and_weighs_tokens_by_p_times_one_minus_p() -> None:
    decision = SWITCHES["chord"].decide(groups(), 0.25)
    assert close(decision.targets, [0.5] * 3) and close(decision.advantages[1], [-0.75 * STEP, 0.75 * STEP])
    assert close(decision.token_weight(tensor([0.0, 0.5, 0.9, 1.0])), [0, 0.25, 0.09, 0])


def test_hints_shrink_along_a_cosine_and_end() -> None:
    shares = [switches.hint_share(progress, 0.5) for progress in (0, 0.125, 0.25, 0.375, 0.5, 0.9)]
    assert shares[0] == 1 and shares[2] == pytest.approx(0.5) and shares[4:] == [0, 0]
    assert shares == sorted(shares, reverse=True)
    decision = SWITCHES["prefix"].decide(groups(), 0.5)
    assert not decision.targets.any() and close(decision.advantages[0], [NEAR, -NEAR])


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_leaves_its_inputs_alone_and_keeps_every_number_finite(name: str) -> None:
    before = REWARDS.clone(), IS_CORRECT.clone()
    decision = named(name).decide(groups(progress=0.3), named(name).value)
    assert REWARDS.equal(before[0]) and IS_CORRECT.equal(before[1])
    assert decision.advantages.shape == (3, 2) and decision.targets.shape == (3,)
    assert decision.advantages.isfinite().all() and decision.targets.isfinite().all()


@pytest.mark.parametrize(("name", "value", "advice"), [
    ("coin", None, "switch must be one of .*'binary'.*: got 'coin'"), ("binary", 0.5, "'binary' takes no number: got"),
    ("chord", 0.0, "'chord' takes a number above 0: got switch_value=0.0")])
def test_a_wrong_switch_is_refused_with_advice(name: str, value: float | None, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        named(name, value)
