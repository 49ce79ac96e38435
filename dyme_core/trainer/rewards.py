"""The rewards of a rollout as TRL reward functions: format, accuracy and thinking, each in [0, 1], and the role of each
reward that a user gives."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
        mastered, correct_needs_format: as for DyMEConfig; "explore" asks about groups that are all correct, too.
        accuracy: the accuracy reward of the training; it decides which groups are mixed.
        on_all_wrong: given the record of each all-wrong prompt before the checker is asked, so that targets can be under way
            meanwhile; more than once where `watch` is used.
    """

    __name__ = "thinking_reward"  # TRL names its metrics by it
    role = "thinking"

    def __init__(self, checker: VisualChecker, *, group_size: int | None = None, mastered: str = "skip",
                 correct_needs_format: bool = True, accuracy: Callable[..., list[float]] = accuracy_reward,
                 on_all_wrong: Callable[[list[dict[str, Any]]], None] = lambda records: None) -> None:
        self.checker, self.group_size, self.mastered = checker, group_size, mastered
        self.correct_needs_format, self.accuracy, self.on_all_wrong = correct_needs_format, accuracy, on_all_wrong

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Score the completions; every data column given as a list with one value per completion joins the record.

        Raises:
            ValueError: for a score outside [0, 1], and for a checker that does not give one score per trace.
        """
        texts, records = [completion_text(completion) for completion in completions], _records(columns, len(completions))
        scores = [math.nan if prompt_format.is_well_formed(text) else 0.0 for text in texts]
        asked = _Rollouts(self, records).end(dict(enumerate(texts)))
        found = self.checker.score_all(list(asked.values()), [records[place] for place in asked]) if asked else []
        for place, score in zip(asked, found, strict=True):
            if score is None or not (math.isnan(score) or 0.0 <= score <= 1.0):
                raise ValueError(f"checker must score in [0, 1], or NaN for a score it has not: got {score!r} for "
                                 f"{records[place].get('item', records[place])!r}")
            scores[place] = float(score)
        return scores

    def watch(self, records: Sequence[dict[str, Any]]) -> Callable[[dict[int, str]], None]:
        """Start on thinking that is certain to be rated, while the rollouts of these records are still being written: with the
        checker's `prefetch`, which takes the arguments of `score_all`, starts and returns at once.

        Returns:
            a function that takes the texts of rollouts that have just ended, by their place in the batch; each once.
        """
        rollouts = _Rollouts(self, records)

        def end(texts: dict[int, str]) -> None:
            if asked := rollouts.end(texts):
                self.checker.prefetch(list(asked.values()), [records[place] for place in asked])

        return end


class _Rollouts:
    """The rollouts of a batch, which end one after another, and the thinking that is certain to be rated; all by place."""

    def __init__(self, reward: ThinkingReward, records: Sequence[dict[str, Any]]) -> None:
        self.reward, self.records = reward, records
        self.is_correct: dict[int, bool] = {}  # of those that have ended
        self.waiting: dict[int, str] = {}  # thinking for which no rating was requested yet
        self.group_of: list[range] = []
        for _, same in groupby(records, key=lambda record: record.get("item")):
            size = len(list(same))
            self.group_of += [range(len(self.group_of), len(self.group_of) + size)] * size

    def end(self, texts: dict[int, str]) -> dict[int, str]:
        """Take the texts of rollouts that have ended; each is parsed and scored once, here.

        Returns:
            the thinking that will be scored whatever the other rollouts are: all of a group that is now known to be mixed. The
            hook gets the records of prompts that are now known to be all wrong.
        """
        reward = self.reward
        thinking = {place: prompt_format.split_response(text)[0] for place, text in texts.items()
                    if prompt_format.is_well_formed(text)}
        if reward.group_size is None:
            return thinking
        self.waiting |= thinking
        columns = {name: [self.records[place][name] for place in texts] for name in self.records[0]}
        for place, score in zip(texts, reward.accuracy(list(texts.values()), **columns), strict=True):
            self.is_correct[place] = score > 0.5 and (place in thinking or not reward.correct_needs_format)
        certain, all_wrong = {}, []
        for group in dict.fromkeys(self.group_of[place] for place in sorted(texts)):
            known = [self.is_correct[place] for place in group if place in self.is_correct]
            is_whole = len(group) == reward.group_size
            if is_whole and len(known) == len(group) and not any(known):
                all_wrong.append(self.records[group[0]])
            if not is_whole or any(known) and (reward.mastered == "explore" or not all(known)):
                certain |= {place: self.waiting.pop(place) for place in group if place in self.waiting}
        if all_wrong:
            reward.on_all_wrong(all_wrong)
        return certain


def dyme_rewards(checker: VisualChecker, accuracy: Callable[..., list[float]] = accuracy_reward, **options: Any
                 ) -> list[Callable[..., list[float]]]:
    """Give the three reward functions of DyME in the order [format, accuracy, thinking]: `accuracy` is the task's
    (`metrics.accuracy_of`), ChartQA's with tolerance 0 by default; `options` are ThinkingReward's."""
    return [format_reward, accuracy, ThinkingReward(checker, accuracy=accuracy, **options)]


def check_functions(functions: Any) -> None:
    """Refuse what TRL takes for a reward and cannot call: a tuple of functions, a checker.

    Raises:
        TypeError: with what to write instead.
    """
    for function in functions if isinstance(functions, list) else [functions]:
        if not (function is None or isinstance(function, str) or callable(function)):
            raise TypeError(f"reward_funcs must be a function or a list of functions: got {type(function).__name__}; write a "
                            "list, and dyme_rewards(checker) in place of a checker")


def roles_of(functions: Sequence[Any], names: Sequence[str], correct_reward: str | None = None) -> list[str]:
    """What each reward function scores: "format", "accuracy", "thinking" or "other"; only "other" may occur twice.

    A function says so in its attribute `role`, as ours do; the accuracy that a ThinkingReward knows is ours, too. The one of
    role "accuracy" says which rollouts are correct: the function named `correct_reward`, else our accuracy, else the first that
    scores neither format nor thinking.

    Raises:
        ValueError: if there is no function of that name, or none that could say what is correct.
    """
    own = [function.accuracy for function in functions if isinstance(function, ThinkingReward)]
    roles = ["accuracy" if function in own else getattr(function, "role", "other") for function in functions]
    known = [roles.index(role) for role in ("accuracy", "other") if role in roles]
    if correct_reward is not None:
        if correct_reward not in names:
            raise ValueError(f"correct_reward must name one of the reward functions {list(names)}: got {correct_reward!r}")
        known = [names.index(correct_reward)]
    if not known:
        raise ValueError(f"a reward function must say which rollouts are correct: got {list(names)}; add one that scores "
                         "answers, or name one of these as correct_reward")
    roles = ["other" if role == "accuracy" else role for role in roles]
    roles[known[0]] = "accuracy"
    return [role if roles.index(role) == place else "other" for place, role in enumerate(roles)]


def _records(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Turn TRL's columns into one record per completion; what TRL adds beside the data columns is left out."""
    lists = {name: values for name, values in columns.items()
             if isinstance(values, list) and len(values) == count and name not in TRL_COLUMNS}
    return [{name: values[index] for name, values in lists.items()} for index in range(count)]
