"""The rewards of a rollout as TRL reward functions: format, accuracy and thinking, each in [0, 1], and the role of each
reward that a user gives.

The thinking reward knows the format contract (`prompt_format`) and is built around any checker.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from dyme_core.data import prompt_format
from dyme_core.data.metrics import accuracy_reward
from dyme_core.data.prompt_format import Completion, completion_text
from dyme_core.supervision.checker import VisualChecker

TRL_COLUMNS = ("prompts", "completion_ids", "environments")  # passed by TRL beside the data set's own columns


def format_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Give 1.0 to each completion with the answer flag exactly once and thinking before it, else 0.0."""
    return [float(prompt_format.is_well_formed(completion_text(completion))) for completion in completions]


format_reward.role = "format"


class ThinkingReward:
    """TRL reward function: the checker's score of each well-formed completion's thinking, 0.0 for the others.

    The checker is not asked about a malformed completion: it has no thinking that leads to an answer. A score of NaN (not
    asked, or a judge that was skipped) is no reward of 0: `advantages.fill_unknown` makes it neutral inside its group. Errors
    of the checker are passed on.

    Args:
        checker: is asked about all completions of a batch at once.
        group_size: G, to ask only about groups whose scores can teach something, the mixed ones; a group of which this process
            holds only a part counts as mixed. None asks about every well-formed completion: right for a checker that costs
            nothing, and where thinking is to be measured.
        mastered: as for the switch; "explore" asks about groups that are all correct, too.
        correct_needs_format: as for the switch.
        accuracy: the accuracy reward of the training; it decides which groups are mixed.
        on_all_wrong: given the record of each all-wrong prompt before the checker is asked, so that targets can be under way
            meanwhile; more than once where `watch` is used.
    """

    __name__ = "thinking_reward"  # TRL names its metrics by it
    role = "thinking"

    def __init__(self, checker: VisualChecker, *, group_size: int | None = None, mastered: str = "skip",
                 correct_needs_format: bool = True, on_all_wrong: Callable[[list[dict[str, Any]]], None] | None = None,
                 accuracy: Callable[..., list[float]] = accuracy_reward) -> None:
        self.checker, self.group_size, self.mastered = checker, group_size, mastered
        self.correct_needs_format, self.on_all_wrong, self.accuracy = correct_needs_format, on_all_wrong, accuracy

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Score the completions; every data column given as a list with one value per completion joins the record.

        Raises:
            ValueError: for a score outside [0, 1], and for a checker that does not give one score per trace.
        """
        texts, records = [completion_text(completion) for completion in completions], _records(columns, len(completions))
        scores = [math.nan if prompt_format.is_well_formed(text) else 0.0 for text in texts]
        asked = _Groups(self, records).end(dict(enumerate(texts)))
        found = self.checker.score_all(list(asked.values()), [records[place] for place in asked]) if asked else []
        for place, score in zip(asked, found, strict=True):
            scores[place] = _checked(score, records[place])
        return scores

    def watch(self, records: Sequence[dict[str, Any]]) -> Callable[[dict[int, str]], None]:
        """Start on thinking that is certain to be rated, while a batch of rollouts is still being written.

        Args:
            records: the data record of every rollout of the batch. The checker must have `prefetch`, with the arguments of
                `score_all`, that starts on traces and returns at once.
        Returns:
            a function that takes the texts of rollouts that have just ended, by their place in the batch; each once.
        """
        groups = _Groups(self, records)

        def end(texts: dict[int, str]) -> None:
            if asked := groups.end(texts):
                self.checker.prefetch(list(asked.values()), [records[place] for place in asked])

        return end


@dataclass(eq=False)
class _Group:
    """The rollouts of one prompt in this process: how many of those that have ended are correct and wrong, and the thinking,
    by place, for which no rating was requested yet."""

    size: int
    num_correct: int = 0
    num_wrong: int = 0
    waiting: dict[int, str] = field(default_factory=dict)


class _Groups:
    """The groups of a batch whose rollouts end one after another, and the thinking that is certain to be rated."""

    def __init__(self, reward: ThinkingReward, records: Sequence[dict[str, Any]]) -> None:
        self.reward, self.records, self.group_of = reward, records, []
        if reward.group_size is not None:
            for _, same in groupby(record["item"] for record in records):
                size = len(list(same))
                self.group_of += [_Group(size)] * size

    def end(self, texts: dict[int, str]) -> dict[int, str]:
        """Take the texts of rollouts that have ended, by place: each is parsed and scored once, here.

        Returns:
            the thinking, by place, that will be scored whatever the other rollouts are: all of a group that is now known to be
            mixed. The hook gets the records of prompts that are now known to be all wrong.
        """
        thinking = {place: prompt_format.split_response(text)[0] for place, text in texts.items()
                    if prompt_format.is_well_formed(text)}
        if self.reward.group_size is None:
            return thinking
        certain, all_wrong = {}, []
        for group, places in groupby(sorted(texts), key=self.group_of.__getitem__):
            ended = list(places)
            self._count(group, ended, texts, thinking)
            is_whole = group.size == self.reward.group_size
            if is_whole and group.num_wrong == group.size:
                all_wrong.append(self.records[ended[0]])
            if not is_whole or group.num_correct and (group.num_wrong or self.reward.mastered == "explore"):
                certain |= group.waiting
                group.waiting = {}
        if all_wrong and self.reward.on_all_wrong is not None:
            self.reward.on_all_wrong(all_wrong)
        return certain

    def _count(self, group: _Group, ended: list[int], texts: dict[int, str], thinking: dict[int, str]) -> None:
        columns = {name: [self.records[place][name] for place in ended] for name in self.records[ended[0]]}
        right = self.reward.accuracy([texts[place] for place in ended], **columns)
        num_correct = sum(score > 0.5 and (place in thinking or not self.reward.correct_needs_format)
                          for place, score in zip(ended, right, strict=True))
        group.num_correct += num_correct
        group.num_wrong += len(ended) - num_correct
        group.waiting |= {place: thinking[place] for place in ended if place in thinking}


def dyme_rewards(checker: VisualChecker, accuracy: Callable[..., list[float]] = accuracy_reward, **options: Any
                 ) -> list[Callable[..., list[float]]]:
    """Give the three reward functions of DyME in the order [format, accuracy, thinking].

    Args:
        checker: scores the thinking.
        accuracy: the task's (`metrics.accuracy_of`); ChartQA's, tolerance 0, by default.
        options: as for ThinkingReward.
    """
    return [format_reward, accuracy, ThinkingReward(checker, accuracy=accuracy, **options)]


def roles_of(functions: Sequence[Any], names: Sequence[str], correct_reward: str | None = None) -> list[str]:
    """What each reward function scores: "format", "accuracy" (exactly one: it says which rollouts are correct), "thinking" or
    "other". A function says so in its attribute `role`, as ours do; the accuracy that a ThinkingReward knows is ours, too.

    Args:
        functions: any TRL takes.
        names: TRL's names of them.
        correct_reward: name of the function that says what is correct; None: our accuracy reward where there is one, else the
            first function that scores neither format nor thinking.
    Raises:
        ValueError: if there is no function of that name, or none that could say what is correct.
    """
    accuracies = [function.accuracy for function in functions if isinstance(function, ThinkingReward)]
    roles = ["accuracy" if function in accuracies else getattr(function, "role", "other") for function in functions]
    if correct_reward is not None and correct_reward not in names:
        raise ValueError(f"correct_reward must name one of the reward functions {list(names)}: got {correct_reward!r}")
    candidates = [roles.index(role) for role in ("accuracy", "other") if role in roles]
    if correct_reward is None and not candidates:
        raise ValueError(f"a reward function must say which rollouts are correct: got {list(names)}; add one that scores "
                         "answers, or name one of these as correct_reward")
    correct = candidates[0] if correct_reward is None else names.index(correct_reward)
    roles = ["other" if role == "accuracy" else role for role in roles]
    roles[correct] = "accuracy"
    return [role if roles.index(role) == place else "other" for place, role in enumerate(roles)]  # one function a role


def _checked(score: float | None, record: dict[str, Any]) -> float:
    if score is None or not (math.isnan(score) or 0.0 <= score <= 1.0):
        raise ValueError(f"checker must score in [0, 1], or NaN for a score it has not: got {score!r} for "
                         f"{record.get('item', record)!r}")
    return float(score)


def _records(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Turn TRL's columns into one record per completion; what TRL adds beside the data columns is left out."""
    lists = {name: values for name, values in columns.items()
             if isinstance(values, list) and len(values) == count and name not in TRL_COLUMNS}
    return [{name: values[index] for name, values in lists.items()} for index in range(count)]
