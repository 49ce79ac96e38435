"""Scores of an answer, and the three rewards of a rollout (format, accuracy, thinking) as TRL reward functions.

R = format + accuracy + thinking, each in [0, 1]. Rewards know the format contract (`prompts`) and nothing of
supervision: the thinking reward is built around whatever checker it is given.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dyme_core import prompts

RELAXED_TOLERANCE = 0.05  # ChartQA's common rule, used in evaluation
STRICT_TOLERANCE = 0.0  # public code: trains with 0 and evaluates with 5 %
YEARS = range(1800, 2101)  # a target written as one of these integers is a year
TRL_COLUMNS = ("prompts", "completion_ids", "environments")  # what TRL passes beside the data set's own columns

Completion = str | Sequence[Mapping[str, Any]]

_NUMBER_WITH_UNIT = re.compile(r"([-+]?)([$€£¥]?)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?%?)\s*([a-z][a-z /]*)?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class Checker(Protocol):
    """Anything that scores a thinking text against a data record."""

    def score(self, thinking: str, record: dict[str, Any]) -> float:
        """Return a score in [0, 1]; raise where no score can be had (never None, never 0 for a failure)."""


def relaxed_accuracy(prediction: str, target: str, tolerance: float = RELAXED_TOLERANCE) -> float:
    """Score one answer by ChartQA's common rule (EVALUATION.md): 1.0 correct, 0.0 not.

    Args:
        prediction: the parsed answer; `x%` reads as x / 100, commas and units do not parse.
        target: the data set's answer.
        tolerance: allowed |p - t| / |t|; with 0 numbers must be equal ("26" equals "26.0").
    Returns:
        1.0 or 0.0. Numbers are compared where both parse and the target is not 0, else stripped strings, case aside.
    """
    prediction, target = prediction.strip(), target.strip()
    number, wanted = _to_float(prediction), _to_float(target)
    if number is not None and wanted:
        return float(abs(number - wanted) / abs(wanted) <= tolerance)
    return float(prediction.lower() == target.lower())


def strict_accuracy(prediction: str, target: str) -> float:
    """Score by the common rule with tolerance 0 (the accuracy that is trained on)."""
    return relaxed_accuracy(prediction, target, STRICT_TOLERANCE)


def year_exact_accuracy(prediction: str, target: str) -> float:
    """Score by the common rule, but with tolerance 0 where the target is a year (2008 is not 2010)."""
    return relaxed_accuracy(prediction, target, STRICT_TOLERANCE if _is_year(target) else RELAXED_TOLERANCE)


def lenient_accuracy(prediction: str, target: str, tolerance: float = RELAXED_TOLERANCE) -> float:
    """Score as the common rule does, but forgive thousands commas, currency, a trailing dot and a unit on one side.

    Never to be given as the common rule's figure. Two different units never match ("5 million" is not "5 thousand").
    """
    if relaxed_accuracy(prediction, target, tolerance):
        return 1.0
    number, unit, wanted, wanted_unit = *_parse_lenient(prediction), *_parse_lenient(target)
    if unit and wanted_unit and unit != wanted_unit:
        return 0.0
    return relaxed_accuracy(number, wanted, tolerance)


def score_answer(prediction: str | None, target: str) -> dict[str, int]:
    """Score one answer by the three rules that are always reported together.

    Returns:
        {"relaxed", "strict", "year_exact"}, each 0 or 1; all 0 where no answer could be parsed (None).
    """
    rules = {"relaxed": relaxed_accuracy, "strict": strict_accuracy, "year_exact": year_exact_accuracy}
    return {name: 0 if prediction is None else int(rule(prediction, target)) for name, rule in rules.items()}


def completion_text(completion: Completion) -> str:
    """Give the text of a completion: a plain string (Unsloth) or messages (TRL), whose content may be parts."""
    if isinstance(completion, str):
        return completion
    contents = (message["content"] for message in completion)
    return "".join(content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
                   for content in contents)


def format_reward(completions: Sequence[Completion], **kwargs: Any) -> list[float]:
    """Give 1.0 to each completion with the answer flag exactly once and thinking before it, else 0.0."""
    return [float(prompts.is_well_formed(completion_text(completion))) for completion in completions]


def accuracy_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """Give 1.0 to each completion whose parsed answer equals the target strictly, else 0.0 (also where none is parsed).

    Args:
        completions: one per rollout.
        answer: the data column of targets, repeated by TRL to one per rollout.
    """
    return [float(score_answer(prompts.split_response(completion_text(completion))[1], target)["strict"])
            for completion, target in zip(completions, answer, strict=True)]


class ThinkingReward:
    """TRL reward function: the checker's score of each well-formed completion's thinking, 0.0 for the others.

    The checker is not asked about a malformed completion: it has no thinking that leads to an answer. What the checker
    raises is passed on, for a failed judge must never become a reward of 0.
    """

    __name__ = "thinking_reward"  # TRL names its metrics by it

    def __init__(self, checker: Checker) -> None:
        self.checker = checker

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        """Score the completions; every data column given as a list with one value per completion joins the record."""
        records = _records(columns, len(completions))
        return [self._score(completion_text(completion), record)
                for completion, record in zip(completions, records, strict=True)]

    def _score(self, text: str, record: dict[str, Any]) -> float:
        if not prompts.is_well_formed(text):
            return 0.0
        score = self.checker.score(prompts.split_response(text)[0], record)
        if score is None or not 0.0 <= score <= 1.0:
            raise ValueError(f"checker must score in [0, 1]: got {score!r} for {record.get('item', record)!r}")
        return float(score)


def reward_functions(checker: Checker) -> list[Callable[..., list[float]]]:
    """Give the three reward functions of DyME in the order [format, accuracy, thinking]."""
    return [format_reward, accuracy_reward, ThinkingReward(checker)]


def _records(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Turn TRL's columns into one record per completion; what TRL adds beside the data columns is left out."""
    lists = {name: values for name, values in columns.items()
             if isinstance(values, list) and len(values) == count and name not in TRL_COLUMNS}
    return [{name: values[index] for name, values in lists.items()} for index in range(count)]


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _is_year(target: str) -> bool:
    text = target.strip()
    return len(text) == 4 and text.isdecimal() and int(text) in YEARS


def _parse_lenient(text: str) -> tuple[str, str]:
    """Split a text into (number or cleaned text, unit or '')."""
    text = _THOUSANDS_COMMA.sub("", text.strip().rstrip(".").strip().lower())
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    sign, currency, number, unit = match.groups()
    return sign + number, currency + (unit or "").strip()
