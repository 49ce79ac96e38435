"""The visual checker: it scores a thinking trace against the picture's facts.

A back end is anything with the methods of `VisualChecker`; training asks for whole batches. The rule checker here needs no
model and is deterministic; `llm.judge` asks a language model. Its contract stands in docs/method.md.
"""
from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dyme_core.data.numbers import read_quantity, same_answer
from dyme_core.data.schema import Item, item_of, write_facts
from dyme_core.supervision.claims import Reading, read_trace
from dyme_core.supervision.conclusion import Statement
from dyme_core.supervision.task import RANK, Form, Steps, Task, beaten, same, same_form, task_of

SCORES = {"low": 0.0, "medium": 0.5, "high": 1.0}  # the rubric's three grades


@dataclass(frozen=True)
class Judgement:
    """A rating with its reasons; `reading` marks the claims, so that figures can show what is wrong."""

    rating: str
    reasons: tuple[str, ...]
    reading: Reading

    @property
    def score(self) -> float:
        return SCORES[self.rating]


class VisualChecker(Protocol):
    """Scores the thinking of a rollout against the visual facts."""

    def judge(self, thinking: str, item: Item) -> Judgement: ...

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """A score in {0, 0.5, 1} per trace, in order; NaN for a score that is missing (a failure is never 0)."""


class RuleChecker:
    """The deterministic checker.

    high: every fact that the answer needs is claimed and nothing wrongly; the reasoning that the question needs is done with
    them and holds; all that is said of the answer agrees with it, and the trace ends on it; nothing is doubted or unknown.
    low: no right claim, or more claims wrong than right. medium: everything between.
    """

    def judge(self, thinking: str, item: Item) -> Judgement:
        reading = read_trace(thinking, item.facts, item.question, item.answer)
        right = sum(claim.is_right and claim.entity is not None for claim in reading.claims)
        wrong = sum(not claim.is_right for claim in reading.claims)
        reasons = tuple(_Check(reading, item, task_of(item)).faults(right, wrong))
        rating = "low" if right == 0 or wrong > right else "medium" if reasons else "high"
        return Judgement(rating, reasons, reading)

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """Score each trace against its data record (what the thinking reward asks for)."""
        return [self.judge(thinking, item_of(record)).score for thinking, record in zip(thinkings, records, strict=True)]


class _Check:
    """What keeps one trace from full marks."""

    def __init__(self, reading: Reading, item: Item, task: Task) -> None:
        self.reading, self.item, self.task = reading, item, task
        self.answer = read_quantity(item.answer)
        self.steps = Steps(task, item)
        for working in reading.workings:
            if task.kind == "mean" and any(said.start < working.start and said.noun == "S" and self._is_total(said.value)
                                           for said in reading.statements):
                self.steps.add_total()  # "their sum is 24.9", before "24.9 / 3 = 8.3"
            stated = {claim.value for claim in reading.claims if claim.is_right and claim.start < working.start}
            self.steps.follow(working, stated)

    def faults(self, right: int, wrong: int) -> Iterator[str]:
        reading = self.reading
        if not right:
            yield "names no fact of the picture"
        if wrong:
            yield f"{wrong} of {len(reading.claims)} claims are wrong"
        if missing := self._missing():
            yield f"leaves out {write_facts(missing)}"
        if self.steps.faults:
            yield self.steps.faults[0] if reading.is_arithmetic_right else "the arithmetic does not hold"
        if not self._is_reasoned():
            yield f"does not show its work: {_NEEDED[self.task.kind]}"
        if reading.workings and any(claim.start > reading.working_start for claim in reading.claims if not claim.is_right):
            yield "claims after the working"
        for statement in reading.statements:
            if not self._is_true(statement):
                yield f"says {statement.text or statement.value!r} ({statement.kind}), which is not so"
        if not same_answer(reading.conclusion, self.item.answer):
            yield f"closes on {reading.conclusion or 'nothing'!r}, not on the answer {self.item.answer!r}"
        yield from reading.doubts

    def _missing(self) -> tuple:
        said = {(claim.entity, claim.value) for claim in self.reading.claims if claim.is_right}
        return tuple(fact for fact in self.task.evidence if (fact.entity, fact.value) not in said)

    def _is_reasoned(self) -> bool:
        """True where the trace does what the question needs."""
        task, statements = self.task, self.reading.statements
        if task.kind == "lookup":
            return True
        if task.kind in ("sum", "mean", "difference"):
            return self._has_reached(task.wanted[0])
        if task.kind == "ratio":
            return any(same(self.answer.value, result) for result in self.steps.printed)
        if task.kind == "gap":
            gaps = {(statement.entity or "").lower() for statement in statements if statement.kind == "gap"
                    and statement.value == task.measure.get((statement.entity or "").lower())}
            gaps |= set(task.measure) if self.gaps == list(task.measure.values()) else set()
            return all(name in gaps or self._has_reached(form) for name, form in zip(task.measure, task.wanted, strict=True))
        if task.kind == "compare":
            wanted = {*task.values, task.limit} - {None}
            is_said = any(said.kind in ("most", "least") and (said.value in wanted or said.text.lower() in task.measure)
                          for said in statements)  # "45 is larger", "May has more"
            return task.limit is None and is_said or any({left, right} == wanted for left, _, right in self.steps.pairs)
        if task.kind == "count":
            return self._counts_each()
        if task.kind == "peak":
            extremes = {statement.value for statement in statements if statement.kind in ("most", "least")}
            best = task.measure.get(self.item.answer.lower(), self.answer and self.answer.value)
            return best in extremes or beaten(best, self.steps.pairs, task.sign) >= set(task.values) - {best}
        if self.answer is None:
            return bool(self.steps.pairs or self.steps.results)
        return any(same(self.answer.value, result) for result in self.steps.printed)

    def _counts_each(self) -> bool:
        """True where each value that counts is compared with the limit as often as the picture shows it, or twice as often."""
        task, turned = self.task, {"<": ">", ">": "<"}[self.task.sign]
        said = Counter(left if sign == task.sign else right for left, sign, right in self.steps.pairs
                       if (sign, right) == (task.sign, task.limit) or (left, sign) == (task.limit, turned))
        shown = Counter(value for value in task.values if value in task.counted)
        times = {said[value] / shown[value] for value in shown}
        return said.keys() == shown.keys() and len(times) == 1 and min(times) >= 1

    def _has_reached(self, wanted: Form) -> bool:
        signs = (1, -1) if self.task.kind in ("difference", "gap") else (1,)
        return any(same_form(form, wanted, sign) for form in self.steps.reached for sign in signs)

    def _is_true(self, said: Statement) -> bool:
        """True where a statement agrees with the facts and the answer, or says nothing on it."""
        task, answer = self.task, self.item.answer.lower()
        name = said.text.lower()
        if said.kind in ("result", "fact"):
            return True
        if said.kind in ("mention", "seen"):
            needed = {each.lower() for fact in task.evidence for each in (fact.entity, fact.attribute)}
            return name in self.item.question.lower() or name in needed
        if said.kind in ("most", "least") and said.value is None:
            return name not in ("yes", "no") and self._is_extreme(name, said.kind)
        if said.kind in ("most", "least"):
            pick = max if said.kind == "most" else min
            if task.kind == "lookup" and not RANK.search(self.item.question):  # no comparison is asked for: of the whole chart
                return said.value == pick(fact.value for fact in self.item.facts)
            return said.value == pick(task.values) or bool(task.measure) and said.value == pick(task.measure.values())
        if said.kind == "gaps":
            return task.kind == "gap" and self.gaps == list(task.measure.values())
        if said.noun and said.kind in ("gap", "number") and not self._may_be_called(said):
            return False
        if said.kind == "gap":
            own = task.measure.get((said.entity or "").lower()) if task.kind == "gap" else None
            return said.value == own if own is not None else self._is_answer(said.value)
        if said.kind == "count":
            total, num = len(task.values), self.answer.value if self.answer else 0
            if task.kind != "count":
                return said.value <= max(2, len(self.item.facts))
            return said.value == num or not said.is_led and said.value in (total, total - num)
        if said.kind == "number":
            is_step = said.noun == "S" and task.kind == "mean"  # its value is checked above
            is_known = said.value in self.steps.printed or said.value in self.steps.asked
            return self._is_answer(said.value) or is_step or is_known and not said.is_led
        if name in ("yes", "no"):
            return name == answer
        if task.kind == "count":
            return task.measure.get(name) in task.counted
        return name == answer or task.kind in ("sum", "mean", "difference", "ratio", "compare") and not said.is_led

    @functools.cached_property
    def gaps(self) -> list[float | None]:
        return [statement.value for statement in self.reading.statements if statement.kind == "gaps"]

    def _may_be_called(self, said: Statement) -> bool:
        """True where what a number is called, a sum, difference or average, is asked for or a step on the way."""
        kinds = {"S": ("sum", "count", "other"), "D": ("difference", "gap", "other"), "M": ("mean", "other")}[said.noun]
        if self.task.kind == "mean" and said.noun == "S":
            return self._is_total(said.value)
        return self.task.kind in kinds or bool(_NOUNS[said.noun].search(self.item.question))

    def _is_total(self, value: float | None) -> bool:
        return value is not None and same(value, sum(self.task.values))

    def _is_answer(self, value: float) -> bool:
        return bool(self.answer) and same(value, self.answer.value)

    def _is_extreme(self, name: str, kind: str) -> bool:
        task = self.task
        if name not in task.measure:
            return task.kind not in ("gap", "peak") or name not in {fact.entity.lower() for fact in self.item.facts}
        if task.kind == "count":
            return (task.measure[name] in task.counted) == ((kind == "most") == (task.sign == ">"))
        return task.measure[name] == (max if kind == "most" else min)(task.measure.values())


_NOUNS = {"S": re.compile("sum|total|combined|together|count", re.I),
          "D": re.compile("differ|gap|diverg|margin|spread|apart|distance", re.I),
          "M": re.compile("average|mean", re.I)}
_NEEDED = {"lookup": "nothing", "sum": "the addition", "mean": "the average", "difference": "the subtraction",
           "ratio": "the division", "gap": "a difference for each", "compare": "the comparison", "count": "which ones count",
           "peak": "what the winner is compared with", "other": "a working that ends in the answer"}
