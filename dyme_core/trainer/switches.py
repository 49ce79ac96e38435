"""The switches: how much each prompt of a step memorizes its target and how much it explores. One function each.

A switch gets the step's groups and gives every rollout an advantage, and every prompt's target one (0: no target). The loss
stays GRPO's: a row with advantage A contributes -A times the mean log-probability of its tokens, divided by the B rollouts
of the step (ratio 1, on-policy). W is `Groups.weight`, a target's weight by `memorize_weight`.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dyme_core.trainer.advantages import group_advantages


@dataclass(frozen=True)
class Groups:
    """The input of a switch: P prompts with G rollouts each.

    Attributes:
        rewards: (P, G) total rewards.
        is_correct: (P, G) booleans.
        is_grounded: (P, G) booleans, the checker gave full marks; None where the switch does not ask.
        progress: share of the training steps that are done, in [0, 1).
        weight: W.
        best_reward: total reward of a target.
        mastered: "skip" or "explore", for groups that are all correct.
    """

    rewards: Tensor
    is_correct: Tensor
    progress: float = 0.0
    weight: float = 1.0
    best_reward: float = 3.0
    mastered: str = "skip"
    is_grounded: Tensor | None = None

    @property
    def pass_rate(self) -> Tensor:
        """(P,) share of correct rollouts."""
        return self.is_correct.float().mean(dim=1)

    @property
    def advantages(self) -> Tensor:
        """(P, G), GRPO's."""
        return group_advantages(self.rewards.flatten(), self.rewards.shape[1]).view_as(self.rewards)


@dataclass(frozen=True)
class Decision:
    """The output of a switch.

    Attributes:
        advantages: (P, G), of the rollouts.
        targets: (P,), advantage of each prompt's target; 0 where the prompt has none in this step.
        token_weight: of a target's token, from its probability under the policy; None weighs all tokens 1.
        hold: targets wait until there are this many, and are then memorized together.
    """

    advantages: Tensor
    targets: Tensor
    token_weight: Callable[[Tensor], Tensor] | None = None
    hold: int = 0


def binary(groups: Groups, value: float | None = None) -> Decision:
    """DyME's (SuperRL, arXiv 2506.01096, has the same rule): memorize where no rollout is correct, else explore."""
    return threshold(groups, 0.0)


def threshold(groups: Groups, value: float) -> Decision:
    """HPT's gate (arXiv 2509.04419, eq. of the gated loss): SFT where the pass rate is at most gamma = `value`, else RL.

    L = alpha L_RL + beta L_SFT; (alpha, beta) = (0, 1) if rate <= gamma else (1, 0).
    """
    memorizes = groups.pass_rate <= value
    idle = memorizes | ((groups.pass_rate == 1) & (groups.mastered == "skip"))
    return Decision(torch.where(idle[:, None], 0.0, groups.advantages), groups.weight * memorizes)


def grounded(groups: Groups, value: float | None = None) -> Decision:
    """Ours: a lucky guess is no success. `binary`, but memorize where no rollout is both correct and grounded."""
    memorizes = ~(groups.is_correct & groups.is_grounded).any(dim=1)
    return Decision(torch.where(memorizes[:, None], 0.0, binary(groups).advantages), groups.weight * memorizes)


def explore(groups: Groups, value: float | None = None) -> Decision:
    """Ablation without memorize: `binary` whose all-wrong groups teach nothing."""
    return replace(binary(groups), targets=torch.zeros_like(groups.pass_rate))


def memorize(groups: Groups, value: float | None = None) -> Decision:
    """Ablation without explore: `binary` whose mixed groups teach nothing."""
    return replace(binary(groups), advantages=torch.zeros_like(groups.rewards))


def cosine(groups: Groups, value: float | None = None) -> Decision:
    """Cosine annealing from SFT to RL: L = mu L_SFT + (1 - mu) L_GRPO, mu = (1 + cos(pi t / T)) / 2, for every prompt."""
    mu = (1 + math.cos(math.pi * groups.progress)) / 2
    return Decision((1 - mu) * groups.advantages, torch.full_like(groups.pass_rate, mu * groups.weight))


def budget(groups: Groups, value: float) -> Decision:
    """SFT budget (ReLIFT, arXiv 2506.07527): RL on all groups; targets of all-wrong prompts gather in a buffer, which is
    memorized when it holds `value` of them."""
    return Decision(groups.advantages, groups.weight * (groups.pass_rate == 0), hold=int(value))


def luffy(groups: Groups, value: float) -> Decision:
    """LUFFY (arXiv 2504.14945): the target is one more sample of its group, with the advantage that it earns there.

    Off-policy tokens are shaped by f(p) = p / (p + gamma), gamma = `value`: their gradient is A f'(p) grad p, that is
    A gamma p / (p + gamma)^2 grad log p, so that unlikely tokens are not lost.
    """
    best = torch.full_like(groups.rewards[:, :1], groups.best_reward)
    together = torch.cat([groups.rewards, best], dim=1)
    advantages = group_advantages(together.flatten(), together.shape[1]).view_as(together)
    return Decision(advantages[:, :-1], advantages[:, -1], lambda p: value * p / (p + value) ** 2)


def chord(groups: Groups, value: float) -> Decision:
    """CHORD-phi (arXiv 2508.11408): L = (1 - mu) L_GRPO + mu L_SFT with token weights phi = p (1 - p), mu = `value`."""
    return Decision((1 - value) * groups.advantages, torch.full_like(groups.pass_rate, value * groups.weight),
                    lambda p: p * (1 - p))


def prefix(groups: Groups, value: float) -> Decision:
    """Expert prefix (UFT, arXiv 2505.16984; BREAD, arXiv 2506.17211): rollouts continue a hint, the beginning of the target
    (`hint_share`); GRPO on what was sampled, log-likelihood on the hint (the trainer gives its tokens W / G)."""
    return Decision(groups.advantages, torch.zeros_like(groups.pass_rate))


def hint_share(progress: float, value: float) -> float:
    """Share of a target given as hint: from 1 to 0 along a cosine within the first `value` of the training."""
    return (1 + math.cos(math.pi * min(1.0, progress / value))) / 2


@dataclass(frozen=True)
class Switch:
    """A rule (groups, value) -> Decision, the default of its number (None: it has none), and for rollouts that continue a hint
    (progress, value) -> its share of the target."""

    decide: Callable[[Groups, float], Decision]
    value: float | None = None
    hint: Callable[[float, float], float] | None = None


SWITCHES = {"binary": Switch(binary), "threshold": Switch(threshold, 0.5), "cosine": Switch(cosine),
            "budget": Switch(budget, 8), "luffy": Switch(luffy, 0.1), "chord": Switch(chord, 0.1),
            "prefix": Switch(prefix, 0.5, hint_share), "grounded": Switch(grounded),
            "explore": Switch(explore), "memorize": Switch(memorize)}


def named(name: str, value: float | None = None) -> Switch:
    """The switch called `name`, with its default number or `value`.

    Raises:
        ValueError: for an unknown name, a number for a switch that has none, or one that is not above 0.
    """
    if name not in SWITCHES:
        raise ValueError(f"switch must be one of {tuple(SWITCHES)}: got {name!r}")
    switch = SWITCHES[name]
    if value is not None and (switch.value is None or value <= 0):
        wanted = "no number" if switch.value is None else "a number above 0"
        raise ValueError(f"switch {name!r} takes {wanted}: got switch_value={value!r}")
    return switch if value is None else replace(switch, value=value)
