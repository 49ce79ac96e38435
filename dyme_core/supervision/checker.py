"""The visual checker: it scores a thinking trace against the picture's facts.

A back end is anything with the methods of `VisualChecker`; training asks for whole batches. The rule checker here needs no
model and is deterministic; `llm.judge` asks a language model. Its contract stands in docs/method.md.
"""
from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dyme_core.data.numbers import read_quantity, same_answer
from dyme_core.data.schema import Item, item_of, write_facts
from dyme_core.supervision.arithmetic import Side, Term, Working, holds
from dyme_core.supervision.claims import Reading, read_trace
from dyme_core.supervision.conclusion import Statement
from dyme_core.supervision.task import Form, Task, form_of, task_of

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
        self.asked = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", item.question)}
        self.results: dict[float, Form] = {}  # size of each result so far -> the sum that it is
        self.printed: set[float] = set()  # the results with their signs
        self.last: tuple[float, Form] | None = None  # the latest of them
        self.reached: list[Form] = []
        self.pairs: list[tuple[float, str, float]] = []  # compared values
        self.odd_workings: list[str] = []
        for working in reading.workings:
            if task.kind == "mean" and any(said.start < working.start and said.noun == "S" and said.value is not None
                                           and _same(said.value, sum(task.values)) for said in reading.statements):
                self._add(sum(task.values), task.wanted[0], len(task.values))  # "their sum is 24.9", before "24.9 / 3 = 8.3"
            self._follow(working)

    def faults(self, right: int, wrong: int) -> Iterator[str]:
        reading = self.reading
        if not right:
            yield "names no fact of the picture"
        if wrong:
            yield f"{wrong} of {len(reading.claims)} claims are wrong"
        if missing := self._missing():
            yield f"leaves out {write_facts(missing)}"
        if self.odd_workings:
            yield self.odd_workings[0] if reading.is_arithmetic_right else "the arithmetic does not hold"
        if not self._is_reasoned():
            yield f"does not show its work: {_NEEDED[self.task.kind]}"
        if reading.workings and any(claim.start > reading.working_start for claim in reading.claims if not claim.is_right):
            yield "claims after the working"
        for statement in reading.statements:
            if not self._is_true(statement):
                yield f"says {statement.text or statement.value!r} ({statement.kind}), which does not agree with the facts and the answer"
        if not same_answer(reading.conclusion, self.item.answer):
            yield f"closes on {reading.conclusion or 'nothing'!r}, not on the answer {self.item.answer!r}"
        yield from reading.doubts

    def _missing(self) -> tuple:
        said = {(claim.entity, claim.value) for claim in self.reading.claims if claim.is_right}
        return tuple(fact for fact in self.task.evidence if (fact.entity, fact.value) not in said)

    # workings

    def _value(self, term: Term, entity: str | None) -> float | None:
        """The number of a term, or the one by which its name is compared."""
        if term.value is not None:
            return term.value
        names = {name.kind: name.name for name in term.owners}
        if "a" in names:
            found = [fact.value for fact in self.item.facts if fact.attribute == names["a"]
                     and fact.entity == names.get("e", entity or fact.entity)]
            if len(found) == 1:
                return found[0]
        return next((self.task.measure.get(name.lower()) for name in names.values()), None)

    def _resolved(self, side: Side, working: Working) -> Side | None:
        """The side with numbers in place of names and of words that refer back; None where that cannot be told."""
        if side.does in "q<q>" and side.does:
            [value] = [self._value(term, working.entity) for term in side.terms] or [None]
            others = [other for other in self._rivals(working) if other != value]
            if value is None or len(others) != 1:
                return None
            form = form_of((value, others[0]), (1, -1) if side.does == "q>" else (-1, 1))
        elif side.does in ("+", "-"):
            stated = {claim.value for claim in self.reading.claims if claim.is_right and claim.start < working.start}
            values = self.task.values
            if not set(values) <= stated or side.does == "-" and len(values) != 2:
                return None
            values = sorted(values, reverse=side.does == "-")
            form = form_of(values, (1, -1) if side.does == "-" else [1] * len(values))
        elif side.does == "/":
            if self.last is None or not side.factors[0]:
                return None
            value, form = self.last
            return Side(value / side.factors[0], {key: count / side.factors[0] for key, count in form.items()}, (), side.factors, "/")
        elif side.value is None:
            values = [self._value(term, working.entity) for term in side.terms]
            if None in values or not values:
                return None
            if side.is_plain:
                return Side(values[0], form_of(values[:1], (1,)), side.terms)
            form = form_of(values, (1, -1))
        else:
            return side
        return Side(sum(key * count for key, count in form.items()), form, side.terms, side.factors, "+")

    def _rivals(self, working: Working) -> list[float]:
        """The values that a name is compared with: of the entity in question, or of all that is compared."""
        own = [fact.value for fact in self.task.evidence if fact.entity == working.entity]
        return own if self.task.kind == "gap" and len(own) == 2 else self.task.values

    def _follow(self, working: Working) -> None:
        """Take in what a working comes to, or why it does not count."""
        if not working.relations:
            self.odd_workings.append("a working has no result")
        for left, relation, right in working.pairs:
            first = self._resolved(left, working)
            if right.does == "q" and first is not None and relation in "<>":
                others = [value for value in self.task.values if value != first.value]
                self.pairs += [(first.value, relation, other) for other in others]
                if not all(first.value > other if relation == ">" else first.value < other for other in others):
                    self.odd_workings.append("a comparison does not hold")
                continue
            second = self._resolved(right, working)
            if first is None or second is None:
                self.odd_workings.append("a working cannot be followed")
            elif not holds(first, relation, second, bool(set(first.operators) & set("*/"))):
                self.odd_workings.append("the arithmetic does not hold")
            else:
                self._count(first, relation, second)

    def _count(self, left: Side, relation: str, right: Side) -> None:
        if relation != "=":
            self.pairs.append((left.value, relation, right.value))
            is_other = self.task.kind == "count" and self.task.limit not in (left.value, right.value)
            if is_other or not all(self._may_compare(side.value) for side in (left, right) if side.is_plain):
                self.odd_workings.append("makes a comparison that the question does not ask for")
        elif left.is_plain and right.is_plain and right.value != self.task.limit and self.task.values.count(right.value) < 2:
            self.odd_workings.append("a working says nothing")
        is_again = relation == "=" and len(right.form) == 1 and right.factors and right.factors == left.factors  # "= 24.9 / 3"
        if is_again:
            self._add(*right.form, left.form, right.factors[0])
        for side in (left,) if is_again else (left, right):
            if not side.is_plain:
                form = self._expanded(side.form)
                if not self._belongs(side, form):
                    self.odd_workings.append("a working does not belong to the question")
                self.reached.append(form)
        if relation == "=" and not left.is_plain:
            self._add(right.value, left.form)
            self.printed.add(right.value)

    def _add(self, result: float, form: Form, times: float = 1.0) -> None:
        """Remember that `result` is this sum, so many times."""
        form = {key: count * times for key, count in self._expanded(form).items()}
        self.last = result, form
        self.results.setdefault(abs(result), {key: -count if result < 0 else count for key, count in form.items()})

    def _may_compare(self, value: float) -> bool:
        return value in self.task.values or abs(value) in self.results or value in self.task.measure.values() \
            or value == self.task.limit

    def _expanded(self, form: Form) -> Form:
        """The form with earlier results in terms of the facts that they are made of."""
        expanded: Form = {}
        known = {abs(value) for value in self.task.values}
        for key, count in form.items():
            inner = self.results.get(key) if key not in known else None
            for part, times in (inner or {key: 1.0}).items():
                expanded[part] = expanded.get(part, 0.0) + count * times
        return expanded

    def _belongs(self, side: Side, form: Form) -> bool:
        """True where a sum, difference or quotient is one that the question asks for, or a step on the way."""
        task, kind, wanted = self.task, self.task.kind, self.task.wanted
        if kind == "other":
            stated = {abs(claim.value) for claim in self.reading.claims if claim.is_right} | self.asked
            return all(key in stated for key in form)
        if kind == "ratio":
            [(key, count)] = list(form.items()) if len(form) == 1 else [(math.nan, 1.0)]
            return side.operators == "/" and {key, round(1 / abs(count), 6)} == {abs(value) for value in task.values}
        if kind == "sum":
            return set(side.operators) <= set("+-") and all(_same(count, wanted[0].get(key, 0.0)) for key, count in form.items())
        if kind == "mean":
            num = len(task.values)
            return any(all(_same(count * scale, wanted[0].get(key, 0.0)) for key, count in form.items()) for scale in (1, 1 / num))
        return any(_same_form(form, each) or _same_form(form, each, -1) for each in wanted)

    def _is_reasoned(self) -> bool:
        """True where the trace does what the question needs."""
        task, statements = self.task, self.reading.statements
        if task.kind == "lookup":
            return True
        if task.kind in ("sum", "mean", "difference"):
            return any(_same_form(form, task.wanted[0]) or task.kind == "difference" and _same_form(form, task.wanted[0], -1)
                       for form in self.reached)
        if task.kind == "ratio":
            return any(_same(self.answer.value, result) for result in self.printed)
        if task.kind == "gap":
            gaps = {(statement.entity or "").lower() for statement in statements if statement.kind == "gap"
                    and statement.value == task.measure.get((statement.entity or "").lower())}
            gaps |= set(task.measure) if self.gaps == list(task.measure.values()) else set()
            return all(name in gaps or any(_same_form(form, wanted) or _same_form(form, wanted, -1) for form in self.reached)
                       for name, wanted in zip(task.measure, task.wanted, strict=True))
        if task.kind == "compare":
            wanted = {*task.values, task.limit} - {None}
            return any({left, right} == wanted for left, _, right in self.pairs) or task.limit is None and any(
                said.kind in ("most", "least") and (said.value in wanted or said.text.lower() in task.measure) for said in statements)
        if task.kind == "count":
            above = {left for left, sign, right in self.pairs if right == task.limit and sign == task.sign}
            below = {right for left, sign, right in self.pairs if left == task.limit and sign in "<>" and sign != task.sign}
            return above | below == task.counted
        if task.kind == "peak":
            extremes = {statement.value for statement in statements if statement.kind in ("most", "least")}
            best = task.measure.get(self.item.answer.lower(), self.answer and self.answer.value)
            return best in extremes or _beaten(best, self.pairs, task.sign) >= set(task.values) - {best}
        if self.answer is None:
            return bool(self.pairs or self.results)
        return any(_same(self.answer.value, result) for result in self.printed)

    def _is_true(self, said: Statement) -> bool:
        """True where a statement agrees with the facts and the answer, or says nothing on it."""
        task, answer = self.task, self.item.answer.lower()
        name = said.text.lower()
        if said.kind in ("seen", "result", "fact"):
            return True
        if said.kind == "mention":
            return name in self.item.question.lower() or any(name in (fact.entity.lower(), fact.attribute.lower()) for fact in task.evidence)
        if said.kind in ("most", "least") and said.value is None:
            return self._is_extreme(name, said.kind)
        if said.kind in ("most", "least"):
            pick = max if said.kind == "most" else min
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
            return task.kind != "count" or said.value in (total, num, total - num)
        if said.kind == "number":
            return self._is_answer(said.value) or not (said.is_led and task.kind in ("peak", "gap", "compare", "lookup", "count")) and (
                said.value in self.printed or said.noun == "S" and task.kind == "mean" or not said.is_led and said.value in self.asked)
        if name in ("yes", "no"):
            return name == answer
        if task.kind == "count":
            return task.measure.get(name) in task.counted
        return name == answer or task.kind in ("sum", "mean", "difference", "ratio", "compare") and not said.is_led

    @functools.cached_property
    def gaps(self) -> list[float | None]:
        return [statement.value for statement in self.reading.statements if statement.kind == "gaps"]

    def _may_be_called(self, said: Statement) -> bool:
        """True where a number is called a sum, difference or average and the question asks for it, or it is a step on the way."""
        kinds = {"S": ("sum", "mean", "count", "other"), "D": ("difference", "gap", "other"), "M": ("mean", "other")}[said.noun]
        is_step = self.task.kind == "mean" and said.noun == "S" and _same(said.value, sum(self.task.values))
        return (self.task.kind in kinds or _NOUNS[said.noun].search(self.item.question) is not None) and (
            self.task.kind != "mean" or said.noun != "S" or is_step)

    def _is_answer(self, value: float) -> bool:
        return bool(self.answer) and _same(value, self.answer.value)

    def _is_extreme(self, name: str, kind: str) -> bool:
        task = self.task
        if name not in task.measure:
            return task.kind not in ("gap", "peak") or name not in {fact.entity.lower() for fact in self.item.facts}
        if task.kind == "count":
            return (task.measure[name] in task.counted) == ((kind == "most") == (task.sign == ">"))
        return task.measure[name] == (max if kind == "most" else min)(task.measure.values())


_NOUNS = {"S": re.compile("sum|total|combined|together", re.I), "D": re.compile("differ|gap|diverg|margin|spread|apart|distance", re.I),
          "M": re.compile("average|mean", re.I)}
_NEEDED = {"lookup": "nothing", "sum": "the addition", "mean": "the average", "difference": "the subtraction",
           "ratio": "the division", "gap": "a difference for each", "compare": "the comparison", "count": "which ones count",
           "peak": "what the winner is compared with", "other": "a working that ends in the answer"}


def _same(first: float, second: float) -> bool:
    return abs(first - second) <= 1e-9 * max(1.0, abs(first), abs(second))


def _same_form(first: Form, second: Form, sign: int = 1) -> bool:
    return all(_same(first.get(key, 0.0), sign * second.get(key, 0.0)) for key in first.keys() | second.keys())


def _beaten(best: float, pairs: Sequence[tuple[float, str, float]], sign: str) -> set[float]:
    """The values that a chain of comparisons sets below `best` (above it for "<")."""
    lesser: dict[float, set[float]] = {}
    for left, relation, right in pairs:
        if relation in "<>":
            over, under = (left, right) if relation == sign else (right, left)
            lesser.setdefault(over, set()).add(under)
    found, new = set(), {best}
    while new:
        new = {value for over in new for value in lesser.get(over, ())} - found
        found |= new
    return found
