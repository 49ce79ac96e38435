"""What a question asks for: its kind, the facts that it rests on, and what follows from them.

The kinds are those of the contract in docs/method.md. They follow from the question's words, the answer and the facts, so that
they also hold for a data set that gives no kind.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dyme_core.data.numbers import decimals, read_quantity
from dyme_core.data.schema import Fact, Item

Form = dict[float, float]  # size of a number -> how often it is added
_ABOVE = r"(?:above|over|more than|greater than|higher than|larger than|exceed\w*|at least)"
_BELOW = r"(?:below|under|less than|lower than|smaller than|fewer than|at most)"
_LIMIT = re.compile(rf"\b(?:(?P<above>{_ABOVE})|(?P<below>{_BELOW}))\s[^\d]{{0,12}}(?P<limit>-?\d[\d,]*(?:\.\d+)?)", re.I)
_RANK = re.compile(r"\b(?:high|low|great|small|larg|bigg|few|long|short|wid|tall|narrow|strong|weak)(?:er|est)\b|\b(?:most|least|more|less|max\w*|min\w*"
                   r"|peak|main|top|best|worst)\b", re.I)
_GAP = re.compile(r"\b(?:gap|difference|divergen\w+|apart|distance|spread|margin)\b", re.I)
_WORDS = {  # looked for in this order
    "mean": r"\b(?:average|mean)\b", "ratio": r"\b(?:ratio|divided|times)\b",
    "sum": r"\b(?:sum|total|combined|together|altogether|add(?:ed|ing)?|in all)\b",
    "difference": r"\b(?:difference|gap|divergence|exceeds?|than|changed?|increased?|decreased?|rise|rose|drop\w*|grow\w*|grew|decline\w*"
                  r"|margin|leads?)\b"}


@dataclass(frozen=True)
class Task:
    """What has to be stated and worked out.

    Attributes:
        kind: "lookup", "sum", "mean", "difference", "ratio", "gap", "peak", "compare", "count" or "other".
        evidence: the facts that the answer rests on; where the data set does not say, those that the question names, else all.
        is_given: the data set says which.
        measure: lower-case name -> the number by which it is compared (a value; for a gap the difference of its two values).
        sign: ">" where the answer has the largest measure or counts what is above the limit, "<" for the smallest or below.
        limit: of a count, or of a comparison with a number.
    """

    kind: str
    evidence: tuple[Fact, ...]
    is_given: bool
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
    given, answer, number = bool(item.evidence), item.answer.lower(), read_quantity(item.answer)
    limit = _LIMIT.search(item.question)
    bound = float(limit["limit"].replace(",", "")) if limit else None
    measure = {name: values[0] for name, values in (_by_entity(evidence) | _by_series(evidence)).items() if len(values) == 1}
    if answer in ("yes", "no"):
        is_pair = len(evidence) == 2 or len(evidence) == 1 and limit
        return Task("compare", evidence, given, measure, limit=bound if len(evidence) == 1 else None) if is_pair else \
            Task("other", item.evidence, given, measure)
    if answer in {name.lower() for fact in item.facts for name in (fact.entity, fact.attribute) if name}:
        return _of_name(item, answer, evidence, measure)
    if number is None:
        return Task("other", item.evidence, given, measure)
    return _of_number(item, number.value, evidence, measure, limit, bound)


def _of_name(item: Item, answer: str, evidence: tuple[Fact, ...], measure: dict[str, float]) -> Task:
    """"Which ...": the name with the largest or smallest measure, or the one that a value belongs to."""
    given, groups = bool(item.evidence), _by_entity(evidence)
    is_gap = bool(_GAP.search(item.question)) and all(len(values) == 2 for values in groups.values())
    if is_gap:
        measure = {name: abs(first - second) for name, (first, second) in groups.items()}
    if not is_gap and not _RANK.search(item.question):
        return Task("lookup", tuple(fact for fact in evidence if answer in (fact.entity.lower(), fact.attribute.lower())) or evidence,
                    given, measure)
    if answer not in measure or measure[answer] not in (max(measure.values()), min(measure.values())):
        return Task("other", item.evidence, given, measure)
    return Task("gap" if is_gap else "peak", evidence, given, measure, ">" if measure[answer] == max(measure.values()) else "<")


def _of_number(item: Item, answer: float, evidence: tuple[Fact, ...], measure: dict[str, float], limit: re.Match | None,
               bound: float | None) -> Task:
    """"What is the sum ...": the kind whose words stand in the question and whose result is the answer."""
    given, values = bool(item.evidence), [fact.value for fact in evidence]
    if limit and re.search(r"\bhow many\b|\bnumber of\b|\bcount\b", item.question, re.I):
        task = Task("count", evidence, given, measure, ">" if limit["above"] else "<", bound)
        if sum(value in task.counted for value in values) == answer:
            return task
    if len(evidence) == 1 and values == [answer]:
        return Task("lookup", evidence, given, measure)
    results = {"sum": [sum(values)], "mean": [sum(values) / len(values)] if values else []}
    if len(values) == 2:
        (a, b) = values
        results["difference"], results["ratio"] = [a - b, b - a], [x / y for x, y in ((a, b), (b, a)) if y]
    fitting = [kind for kind in results if any(_rounds_to(result, answer) for result in results[kind])]
    asked = [kind for kind, words in _WORDS.items() if re.search(words, item.question, re.I)]
    kind = next((kind for kind in asked if kind in fitting), None) or (fitting[0] if given and fitting and len(values) > 1 else None)
    if kind is None and len(values) > 1 and answer in (max(values), min(values)) and _RANK.search(item.question):
        return Task("peak", evidence, given, measure, ">" if answer == max(values) else "<")
    holding = tuple(fact for fact in evidence if fact.value == answer)
    if kind is None and not asked and holding and not re.search("median|second|third", item.question, re.I):
        return Task("lookup", holding, given, measure)
    return Task(kind, evidence, given, measure) if kind else Task("other", item.evidence, given, measure)


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
    entities, series = (asked(names) for names in zip(*((fact.entity, fact.attribute) for fact in item.facts))) if item.facts else ((), ())
    chosen = tuple(fact for fact in item.facts if (not entities or fact.entity in entities)
                   and (not series or fact.attribute in series))
    return chosen or item.facts
