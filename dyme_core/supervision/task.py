"""What a question asks for (its kind, the facts that it rests on), and what the workings of a trace do of it.

The kinds are those of the contract in docs/method.md. They follow from the question's words, the answer and the facts, so that
they also hold for a data set that gives no kind.
"""
from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from dyme_core.data.numbers import decimals, read_quantity
from dyme_core.data.schema import Fact, Item
from dyme_core.supervision.arithmetic import Side, Term, Working, holds

Form = dict[float, float]  # size of a number -> how often it is added
_ABOVE = r"(?:above|over|more than|greater than|higher than|larger than|exceed\w*|at least)"
_BELOW = r"(?:below|under|less than|lower than|smaller than|fewer than|at most)"
_LIMIT = re.compile(rf"\b(?:(?P<above>{_ABOVE})|(?P<below>{_BELOW}))\s[^\d]{{0,12}}(?P<limit>-?\d[\d,]*(?:\.\d+)?)", re.I)
RANK = re.compile(r"\b(?:high|low|great|small|larg|bigg|few|long|short|wid|tall|narrow|strong|weak)(?:er|est)\b"
                  r"|\b(?:most|least|more|less|max\w*|min\w*|peak|main|top|best|worst)\b", re.I)
_GAP = re.compile(r"\b(?:gap|difference|divergen\w+|apart|distance|spread|margin)\b", re.I)
_WORDS = {  # looked for in this order
    "mean": r"\b(?:average|mean)\b", "ratio": r"\b(?:ratio|divided|times)\b",
    "sum": r"\b(?:sum|total|combined|together|altogether|add(?:ed|ing)?|in all)\b",
    "difference": r"\b(?:difference|gap|divergence|exceeds?|than|changed?|increased?|decreased?|rise|rose|drop\w*|grow\w*|grew"
                  r"|decline\w*|margin|leads?|apart|distance|spread)\b"}


@dataclass(frozen=True)
class Task:
    """What has to be stated and worked out.

    Attributes:
        kind: "lookup", "sum", "mean", "difference", "ratio", "gap", "peak", "compare", "count" or "other".
        evidence: the facts that the answer rests on; where the data set does not say, those that the question names, else all.
        measure: lower-case name -> the number by which it is compared (a value; for a gap the difference of its two values).
        sign: ">" where the answer has the largest measure or counts what is above the limit, "<" for the smallest or below.
        limit: of a count, or of a comparison with a number.
    """

    kind: str
    evidence: tuple[Fact, ...]
    measure: dict[str, float] = field(default_factory=dict)
    sign: str = ""
    limit: float | None = None

    @functools.cached_property
    def values(self) -> list[float]:
        return [fact.value for fact in self.evidence]

    @functools.cached_property
    def counted(self) -> set[float]:
        """The values on the asked side of the limit."""
        return {value for value in self.values if (value > self.limit if self.sign == ">" else value < self.limit)}

    @functools.cached_property
    def wanted(self) -> list[Form]:
        """The sums that a working must come to: one, or for a gap one for each group."""
        if self.kind in ("sum", "mean"):
            return [form_of(self.values, [1 / (len(self.values) if self.kind == "mean" else 1)] * len(self.values))]
        if self.kind == "difference":
            return [form_of(self.values, (1, -1))]
        if self.kind == "gap":
            return [form_of(values, (1, -1)) for values in _by_entity(self.evidence).values()]
        return []


def form_of(values: Iterable[float], times: Iterable[float]) -> Form:
    form: Form = {}
    for value, count in zip(values, times, strict=True):
        form[abs(value)] = form.get(abs(value), 0.0) + (count if value >= 0 else -count)
    return form


def _by_entity(facts: Iterable[Fact]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for fact in facts:
        groups.setdefault(fact.entity.lower(), []).append(fact.value)
    return groups


@functools.lru_cache(maxsize=1024)  # the rollouts of a prompt share it
def task_of(item: Item) -> Task:
    """The task of a question."""
    evidence = item.evidence or _named(item)
    answer, number = item.answer.lower(), read_quantity(item.answer)
    limit = _LIMIT.search(item.question)
    bound = float(limit["limit"].replace(",", "")) if limit else None
    measure = {name: values[0] for name, values in (_by_entity(evidence) | _by_series(evidence)).items() if len(values) == 1}
    if answer in ("yes", "no"):
        is_pair = len(evidence) == 2 or len(evidence) == 1 and limit
        return Task("compare", evidence, measure, limit=bound if len(evidence) == 1 else None) if is_pair else \
            Task("other", item.evidence, measure)
    if answer in {name.lower() for fact in item.facts for name in (fact.entity, fact.attribute) if name}:
        return _of_name(item, answer, evidence, measure)
    if number is None:
        return Task("other", item.evidence, measure)
    return _of_number(item, number.value, evidence, measure, limit, bound)


def _of_name(item: Item, answer: str, evidence: tuple[Fact, ...], measure: dict[str, float]) -> Task:
    """"Which ...": the name with the largest or smallest measure, or the one that a value belongs to."""
    groups = _by_entity(evidence)
    is_gap = bool(_GAP.search(item.question)) and all(len(values) == 2 for values in groups.values())
    if is_gap:
        measure = {name: round(abs(first - second), 6) for name, (first, second) in groups.items()}
    if not is_gap and not RANK.search(item.question):
        own = tuple(fact for fact in evidence if answer in (fact.entity.lower(), fact.attribute.lower()))
        return Task("lookup", own or evidence, measure)
    if answer not in measure or measure[answer] not in (max(measure.values()), min(measure.values())):
        return Task("other", item.evidence, measure)
    return Task("gap" if is_gap else "peak", evidence, measure, ">" if measure[answer] == max(measure.values()) else "<")


def _of_number(item: Item, answer: float, evidence: tuple[Fact, ...], measure: dict[str, float], limit: re.Match | None,
               bound: float | None) -> Task:
    """"What is the sum ...": the kind whose words stand in the question and whose result is the answer."""
    values = [fact.value for fact in evidence]
    if limit and re.search(r"\bhow many\b|\bnumber of\b|\bcount\b", item.question, re.I):
        task = Task("count", evidence, measure, ">" if limit["above"] else "<", bound)
        if sum(value in task.counted for value in values) == answer:
            return task
    if len(evidence) == 1 and values == [answer]:
        return Task("lookup", evidence, measure)
    results = {"sum": [sum(values)], "mean": [sum(values) / len(values)] if values else []}
    if len(values) == 2:
        (a, b) = values
        results["difference"], results["ratio"] = [a - b, b - a], [x / y for x, y in ((a, b), (b, a)) if y]
    fitting = [kind for kind in results if any(_rounds_to(result, answer) for result in results[kind])]
    asked = [kind for kind, words in _WORDS.items() if re.search(words, item.question, re.I)]
    kind = next((kind for kind in asked if kind in fitting), None)
    if kind is None and item.evidence and fitting and len(values) > 1:
        kind = fitting[0]
    if kind is None and len(values) > 1 and answer in (max(values), min(values)) and RANK.search(item.question):
        return Task("peak", evidence, measure, ">" if answer == max(values) else "<")
    holding = tuple(fact for fact in evidence if fact.value == answer)
    if kind is None and not asked and holding and not re.search("median|second|third", item.question, re.I):
        return Task("lookup", holding, measure)
    return Task(kind, evidence, measure) if kind else Task("other", item.evidence, measure)


def _rounds_to(result: float, answer: float) -> bool:
    return abs(result - answer) <= max(1e-9, 0.5 * 10.0 ** -decimals(answer) * (decimals(answer) > 0) + 1e-9)


def _by_series(facts: Iterable[Fact]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for fact in facts:
        if fact.attribute:
            groups.setdefault(fact.attribute.lower(), []).append(fact.value)
    return groups


def _named(item: Item) -> tuple[Fact, ...]:
    """The facts whose entity the question names, and series, where it names one; all where it names none."""
    def asked(names: Iterable[str]) -> set[str]:
        return {name for name in names if name and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", item.question, re.I)}
    entities, series = asked(fact.entity for fact in item.facts), asked(fact.attribute for fact in item.facts)
    chosen = tuple(fact for fact in item.facts if (not entities or fact.entity in entities)
                   and (not series or fact.attribute in series))
    return chosen or item.facts


class Steps:
    """What the workings of a trace come to, followed one after the other.

    Attributes:
        faults: why a working does not count.
        reached: the sums that were worked out, in terms of the facts' values.
        printed: the results.
        results: size of each result -> the sum that it is.
        pairs: compared values, with "<", ">", "=".
        asked: numbers of the question.
    """

    def __init__(self, task: Task, item: Item) -> None:
        self.task, self.item = task, item
        self.asked = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", item.question)}
        self.faults: list[str] = []
        self.reached: list[Form] = []
        self.printed: set[float] = set()
        self.results: dict[float, Form] = {}
        self.pairs: list[tuple[float, str, float]] = []
        self.last: tuple[float, Form] | None = None  # the latest result

    def add_total(self) -> None:
        """The sum of all values, with which an average begins, is known."""
        self._add(sum(self.task.values), self.task.wanted[0], len(self.task.values))

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
            values = self.task.values
            if not set(values) <= self.stated or side.does == "-" and len(values) != 2:
                return None
            values = sorted(values, reverse=side.does == "-")
            form = form_of(values, (1, -1) if side.does == "-" else [1] * len(values))
        elif side.does == "/":
            if self.last is None or not side.factors[0]:
                return None
            (value, form), by = self.last, side.factors[0]
            return Side(value / by, {key: count / by for key, count in form.items()}, (), side.factors, "/")
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

    def follow(self, working: Working, stated: Set[float]) -> None:
        """Take in what a working comes to, or why it does not count; `stated` are the values rightly claimed before it."""
        self.stated = stated
        if not working.relations:
            self.faults.append("a working has no result")
        for left, relation, right in working.pairs:
            first = self._resolved(left, working)
            if right.does == "q" and first is not None and relation in "<>":
                others = [value for value in self.task.values if value != first.value]
                self.pairs += [(first.value, relation, other) for other in others]
                if not all(first.value > other if relation == ">" else first.value < other for other in others):
                    self.faults.append("a comparison does not hold")
                continue
            second = self._resolved(right, working)
            if first is None or second is None:
                self.faults.append("a working cannot be followed")
            elif not holds(first, relation, second, bool(set(first.operators) & set("*/"))):
                self.faults.append("the arithmetic does not hold")
            else:
                self._count(first, relation, second, working)

    def _count(self, left: Side, relation: str, right: Side, working: Working) -> None:
        if relation != "=":
            self.pairs.append((left.value, relation, right.value))
            is_other = self.task.kind == "count" and self.task.limit not in (left.value, right.value)
            if is_other or not self._may_compare(left, right):
                self.faults.append("makes a comparison that the question does not ask for")
        elif all(side.is_plain for side in working.sides):
            if self.task.values.count(right.value) < (1 if right.value == self.task.limit else 2):  # two bars may be equal
                self.faults.append("a working says nothing")
        is_again = relation == "=" and len(right.form) == 1 and right.factors and right.factors == left.factors
        if is_again:
            self._add(*right.form, left.form, right.factors[0])
        for side in (left,) if is_again else (left, right):
            if not side.is_plain:
                form = self._expanded(side.form)
                if not self._belongs(side, form):
                    self.faults.append("a working does not belong to the question")
                self.reached.append(form)
        if relation == "=" and not left.is_plain:
            self.pairs += self._compared(left.form)
            self._add(right.value, left.form)
            self.printed.add(right.value)

    def _compared(self, form: Form) -> list[tuple[float, str, float]]:
        """The two values of a difference, which compares them, too: "45 is 8 more than 37"."""
        values = self.task.values if self.task.kind in ("compare", "peak") and len(form) == 2 else []
        return [(first, ">" if first > second else "<", second) for first in values for second in values
                if first != second and same_form(form, form_of((first, second), (1, -1)))]

    def _add(self, result: float, form: Form, times: float = 1.0) -> None:
        """Remember that `result` is this sum, so many times."""
        form = {key: count * times for key, count in self._expanded(form).items()}
        self.last = result, form
        self.results.setdefault(abs(result), {key: -count if result < 0 else count for key, count in form.items()})

    def _may_compare(self, left: Side, right: Side) -> bool:
        """True for two results or two values of the picture; of a gap's values only for those of one group."""
        shared = self._comparable(left) & self._comparable(right)
        groups = [set(values) for values in _by_entity(self.task.evidence).values()]
        return "result" in shared or "value" in shared and (self.task.kind != "gap" or {left.value, right.value} in groups)

    def _comparable(self, side: Side) -> set[str]:
        """What a side may be compared as: a value of the picture, or a result."""
        if not side.is_plain:
            return {"result"}
        is_value = side.value in self.task.values or side.value == self.task.limit
        is_result = abs(side.value) in self.results or self.task.kind == "gap" and side.value in self.task.measure.values()
        return {name for name, holds in (("value", is_value), ("result", is_result)) if holds}

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
            return all(key in self.asked or key in self.results or key in map(abs, self.stated) for key in form)
        if kind == "ratio":
            [(key, count)] = list(form.items()) if len(form) == 1 else [(math.nan, 1.0)]
            return side.operators == "/" and {key, round(1 / abs(count), 6)} == {abs(value) for value in task.values}
        if kind == "sum":
            return set(side.operators) <= set("+-") and all(same(count, wanted[0].get(key, 0.0)) for key, count in form.items())
        if kind == "mean":
            scales = (1, 1 / len(task.values))  # the average, or a sum on the way
            return any(all(same(count * scale, wanted[0].get(key, 0.0)) for key, count in form.items()) for scale in scales)
        return bool(self._compared(form)) or any(same_form(form, each) or same_form(form, each, -1) for each in wanted)


def same(first: float, second: float) -> bool:
    """True for equal numbers, but for the error of floating-point sums."""
    return abs(first - second) <= 1e-9 * max(1.0, abs(first), abs(second))


def same_form(first: Form, second: Form, sign: int = 1) -> bool:
    """True where two sums are the same, or with `sign` -1 opposite; 51 - 51 is not 42 - 42."""
    if not any(first.values()) and not any(second.values()):
        return first.keys() == second.keys()
    return all(same(first.get(key, 0.0), sign * second.get(key, 0.0)) for key in first.keys() | second.keys())


def beaten(best: float, pairs: Iterable[tuple[float, str, float]], sign: str) -> set[float]:
    """The values that a chain of comparisons sets below `best` (above it for "<")."""
    lesser: dict[float, set[float]] = {}
    for left, relation, right in pairs:
        if relation in "<>":
            over, under = (left, right) if relation == sign else (right, left)
            lesser.setdefault(over, set()).add(under)
    found: set[float] = set()
    new = {best}
    while new:
        new = {value for over in new for value in lesser.get(over, ())} - found
        found |= new
    return found
