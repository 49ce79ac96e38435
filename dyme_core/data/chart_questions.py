"""Questions on a chart, each with its computed answer, the facts it needs and the steps to the answer.

Seven kinds, after the poster and ChartQA. A kind is one function: (rng, table) -> Question, or None where the table does
not allow it (a tie, one or two series needed). Questions on two series use both values of a group, the others are asked of
charts with one series: picking one of two series by name is a circuit that the mini model did not learn within its budget
(results/LOG.md). A working is written from left to right: each sign and number follows from the text before it, so that
every token is a small step ("43 - 42 = 1 < 50 - 30 = 20", the poster's form, asks for the sign before the second
difference is known).
"""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dyme_core.data.chart_tables import Table
from dyme_core.data.schema import Fact


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: name of the question kind.
        text: as a user asks it.
        answer: the one right answer.
        evidence: the facts I_c that the answer rests on, in reading order.
        labels: what has to be located first.
        working: arithmetic or comparison on the evidence, e.g. "62 - 36 = 26"; empty for a look-up.
        conclusion: the closing statement, e.g. "the difference is 26".
    """

    kind: str
    text: str
    answer: str
    evidence: tuple[Fact, ...]
    labels: tuple[str, ...]
    working: str
    conclusion: str


def _sign(left: int, right: int) -> str:
    return "<" if left < right else ">" if left > right else "="


def _fact(table: Table, group: str, series: str) -> Fact:
    return Fact(group, series, float(table.value(group, series)), table.unit)


def lookup(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) > 1:
        return None
    group, [series] = rng.choice(table.groups), table.series
    value = str(table.value(group, series))
    return Question("lookup", f"What is the value of {series} in {group}?", value, (_fact(table, group, series),), (group,),
                    "", f"the value is {value}")


def gap(rng: random.Random, table: Table) -> Question | None:
    """The poster's question: in which of two groups do the two series lie further apart?"""
    if len(table.series) < 2:
        return None
    pair = tuple(sorted(rng.sample(range(len(table.groups)), 2)))
    first, second = (table.groups[place] for place in pair)
    gaps, shown = [], []
    for group in (first, second):
        high, low = sorted((table.value(group, series) for series in table.series), reverse=True)
        gaps.append(high - low)
        shown.append(f"{high} - {low} = {high - low}")
    if gaps[0] == gaps[1]:
        return None
    winner = first if gaps[0] > gaps[1] else second
    evidence = tuple(_fact(table, group, series) for group in (first, second) for series in table.series)
    return Question("gap", f"Which has the greater gap between {table.series[0]} and {table.series[1]}, {first} or {second}?",
                    winner, evidence, (first, second), f"{shown[0]}, {shown[1]}, {gaps[0]} {_sign(*gaps)} {gaps[1]}",
                    f"the greater gap is in {winner}")


def peak(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) > 1:
        return None
    [series] = table.series
    values = [table.value(group, series) for group in table.groups]
    if values.count(max(values)) > 1:
        return None
    winner = table.groups[values.index(max(values))]
    steps = [(max(values[:place]), values[place]) for place in range(1, len(values))]  # the highest so far against the next
    evidence = tuple(_fact(table, group, series) for group in table.groups)
    return Question("peak", f"Which has the highest {series}?", winner, evidence, (series,),
                    ", ".join(f"{highest} {_sign(highest, value)} {value}" for highest, value in steps),
                    f"the highest is {winner}")


def total(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) > 1:
        return None
    [series] = table.series
    first, second = (table.groups[place] for place in sorted(rng.sample(range(len(table.groups)), 2)))
    a, b = table.value(first, series), table.value(second, series)
    return Question("sum", f"What is the sum of {series} in {first} and {second}?", str(a + b),
                    (_fact(table, first, series), _fact(table, second, series)), (first, second), f"{a} + {b} = {a + b}",
                    f"the sum is {a + b}")


def difference(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) < 2:
        return None
    group = rng.choice(table.groups)
    high, low = sorted((table.value(group, series) for series in table.series), reverse=True)
    return Question("difference", f"What is the difference between {table.series[0]} and {table.series[1]} in {group}?",
                    str(high - low), tuple(_fact(table, group, series) for series in table.series), (group,),
                    f"{high} - {low} = {high - low}", f"the difference is {high - low}")


def count(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) > 1:
        return None
    [series] = table.series
    values = [table.value(group, series) for group in table.groups]
    limit = 5 * rng.randint(1, max(1, max(values) // 5))
    num_above = sum(value > limit for value in values)
    if not 0 < num_above < len(values):
        return None
    working = ", ".join(f"{value} {_sign(value, limit)} {limit}" for value in values)
    evidence = tuple(_fact(table, group, series) for group in table.groups)
    return Question("count", f"How many have {series} above {limit}?", str(num_above), evidence, (series,), working,
                    f"the count is {num_above}")


def compare(rng: random.Random, table: Table) -> Question | None:
    if len(table.series) > 1:
        return None
    [series] = table.series
    first, second = rng.sample(table.groups, 2)
    a, b = table.value(first, series), table.value(second, series)
    if a == b:
        return None
    answer = "Yes" if a > b else "No"
    return Question("compare", f"Is {series} in {first} greater than in {second}?", answer,
                    (_fact(table, first, series), _fact(table, second, series)), (first, second),
                    f"{a} {_sign(a, b)} {b}", f"the answer is {answer}")


KINDS: dict[str, Callable[[random.Random, Table], Question | None]] = {
    "lookup": lookup, "gap": gap, "peak": peak, "sum": total, "difference": difference, "count": count, "compare": compare}


def draw_question(rng: random.Random, table: Table, kinds: tuple[str, ...] = tuple(KINDS), tries: int = 100) -> Question:
    """A random question of one of `kinds` that `table` allows.

    Raises:
        ValueError: if none was found in `tries` draws (every kind needs another number of series, or there are only ties).
    """
    for _ in range(tries):
        question = KINDS[rng.choice(kinds)](rng, table)
        if question is not None:
            return question
    raise ValueError(f"no question of {kinds} can be asked of {table.key!r} with {len(table.series)} series")
