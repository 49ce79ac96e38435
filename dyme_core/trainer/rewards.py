"""The three rewards of a rollout (format, accuracy, thinking) as TRL reward functions.

R = format + accuracy + thinking, each in [0, 1]. Rewards know the format contract (`prompt_format`) and nothing of
supervision: the thinking reward is built around whatever checker it is given.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from dyme_core.data import prompt_format
from dyme_core.data.metrics import accuracy_reward
from dyme_core.data.prompt_format import Completion, completion_text

TRL_COLUMNS = ("prompts", "completion_ids", "environments")  # what TRL passes beside the data set's own columns


class Checker(Protocol):
    """Anything that scores thinking texts against their data records."""

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """Return scores in [0, 1], in order; NaN or an error where no score can be had (never None, never 0 for a failure)."""


def format_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Give 1.0 to each completion with the answer flag exactly once and thinking before it, else 0.0."""
    return [float(prompt_format.is_well_formed(completion_text(completion))) for completion in completions]


class ThinkingReward:
    """TRL reward function: the checker's score of each well-formed completion's thinking, 0.0 for the others.

    The checker is not asked about a malformed completion: it has no thinking that leads to an answer. A score of NaN (not
    asked, or a judge that was skipped) is no reward of 0: `advantages.total_rewards` makes it neutral inside its group. What
    the checker raises is passed on.

    Args:
        checker: is asked about all completions of a batch at once.
        group_size: G, to ask only about groups whose scores can teach something, the mixed ones; a group that this
            process holds a part of counts as mixed. None asks about every well-formed completion: right for a checker that
            costs nothing, and where thinking is to be measured.
        mastered: as for the switch; "explore" asks about groups that are all correct, too.
        correct_needs_format: as for the switch.
        accuracy: the accuracy reward that is trained with, as it decides which groups are mixed.
        on_all_wrong: given the record of each all-wrong prompt before the checker is asked, so that targets can be under way
            meanwhile; more than once where `watch` is used.
    """

    __name__ = "thinking_reward"  # TRL names its metrics by it

    def __init__(self, checker: Checker, *, group_size: int | None = None, mastered: str = "skip",
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
        asked = self._asked(texts, records)
        scores = [math.nan if prompt_format.is_well_formed(text) else 0.0 for text in texts]
        found = self.checker.score_all([prompt_format.split_response(texts[place])[0] for place in asked],
                                       [records[place] for place in asked]) if asked else []
        for place, score in zip(asked, found, strict=True):
            scores[place] = _checked(score, records[place])
        return scores

    def watch(self, texts: Sequence[str | None], records: Sequence[dict[str, Any]]) -> None:
        """Start on what is certain to be asked about while rollouts are still being written (DyMETrainer's `watch`).

        Args:
            texts: of every rollout of the batch, None for one that has not ended.
            records: the data record of each. The checker must have `prefetch`, with the arguments of `score_all`, that starts
                on traces and returns at once, also where it is told of one again.
        """
        asked = self._asked(texts, records)
        self.checker.prefetch([prompt_format.split_response(texts[place])[0] for place in asked],
                              [records[place] for place in asked])

    def _asked(self, texts: Sequence[str | None], records: Sequence[dict[str, Any]]) -> list[int]:
        """Places of the well-formed completions whose group's thinking is certain to be scored, whatever those that have not
        ended (None) turn out to be; tells the hook of the groups that are all wrong."""
        is_formed = [text is not None and prompt_format.is_well_formed(text) for text in texts]
        if self.group_size is None:
            return [place for place, formed in enumerate(is_formed) if formed]
        asked, all_wrong = [], []
        for _, places in groupby(range(len(texts)), key=lambda place: records[place]["item"]):
            group = list(places)
            ended = [place for place in group if texts[place] is not None]
            columns = {name: [records[place][name] for place in ended] for name in records[group[0]]}
            right = self.accuracy([texts[place] for place in ended], **columns)
            num_correct = sum(score > 0.5 and (is_formed[place] or not self.correct_needs_format)
                              for place, score in zip(ended, right, strict=True))
            num_wrong, is_whole = len(ended) - num_correct, len(group) == self.group_size
            if is_whole and num_wrong == self.group_size:
                all_wrong.append(records[group[0]])
            if not is_whole or num_correct and (num_wrong or self.mastered == "explore"):
                asked += [place for place in ended if is_formed[place]]
        if all_wrong and self.on_all_wrong is not None:
            self.on_all_wrong(all_wrong)
        return asked


def reward_functions(checker: Checker, accuracy: Callable[..., list[float]] = accuracy_reward, **options: Any
                     ) -> list[Callable[..., list[float]]]:
    """Give the three reward functions of DyME in the order [format, accuracy, thinking].

    Args:
        checker: scores the thinking.
        accuracy: the task's (`metrics.accuracy_of`); ChartQA's, tolerance 0, by default.
        options: as for ThinkingReward.
    """
    return [format_reward, accuracy, ThinkingReward(checker, accuracy=accuracy, **options)]


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
