"""Questions on a chart, each with its computed answer, the facts it needs and the steps to the answer.

Seven kinds, after the poster and ChartQA. A kind is one function: (rng, table) -> Item, or None where the table does
not allow it (a tie, one or two series needed). Questions on two series use both values of a group, the others are asked of
charts with one series: picking one of two series by name is a circuit that the mini model did not learn within its budget
(results/LOG.md). A working is written from left to right: each sign and number follows from the text before it, so that
every token is a small step ("43 - 42 = 1 < 50 - 30 = 20", the poster's form, asks for the sign before the second
difference is known).
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dyme_core.data.chart_tables import Table, facts_of
from dyme_core.data.schema import Item


def _sign(left: int, right: int) -> str:
    return "<" if left < right else ">" if left > right else "="


def _item(table: Table, question: str, answer: object, groups: Sequence[str], working: str, conclusion: str,
          labels: Sequence[str] = ()) -> Item:
    """The item of a question that uses all values of `groups`, which are located first, unless `labels` are."""
    facts = facts_of(table)
    evidence = tuple(fact for group in groups for fact in facts if fact.entity == group)
    return Item(question, str(answer), facts, evidence, tuple(labels or groups), working, conclusion)


def lookup(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    group, [series] = rng.choice(table.groups), table.series
    value = table.value(group, series)
    return _item(table, f"What is the value of {series} in {group}?", value, [group], "", f"the value is {value}")


def gap(rng: random.Random, table: Table) -> Item | None:
    """The poster's question: in which of two groups do the two series lie further apart?"""
    if len(table.series) < 2:
        return None
    first, second = pair = _two_groups(rng, table)
    gaps, shown = [], []
    for group in pair:
        high, low = sorted((table.value(group, series) for series in table.series), reverse=True)
        gaps.append(high - low)
        shown.append(f"{high} - {low} = {high - low}")
    if gaps[0] == gaps[1]:
        return None
    winner = first if gaps[0] > gaps[1] else second
    return _item(table, f"Which has the greater gap between {table.series[0]} and {table.series[1]}, {first} or {second}?",
                 winner, pair, f"{shown[0]}, {shown[1]}, {gaps[0]} {_sign(*gaps)} {gaps[1]}", f"the greater gap is in {winner}")


def peak(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    [series], [values] = table.series, table.values
    if values.count(max(values)) > 1:
        return None
    winner = table.groups[values.index(max(values))]
    steps = [(max(values[:place]), values[place]) for place in range(1, len(values))]  # the highest so far against the next
    working = ", ".join(f"{highest} {_sign(highest, value)} {value}" for highest, value in steps)
    return _item(table, f"Which has the highest {series}?", winner, table.groups, working, f"the highest is {winner}", [series])


def total(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    [series], (first, second) = table.series, _two_groups(rng, table)
    a, b = table.value(first, series), table.value(second, series)
    return _item(table, f"What is the sum of {series} in {first} and {second}?", a + b, [first, second], f"{a} + {b} = {a + b}",
                 f"the sum is {a + b}")


def difference(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) < 2:
        return None
    group = rng.choice(table.groups)
    high, low = sorted((table.value(group, series) for series in table.series), reverse=True)
    return _item(table, f"What is the difference between {table.series[0]} and {table.series[1]} in {group}?", high - low,
                 [group], f"{high} - {low} = {high - low}", f"the difference is {high - low}")


def count(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    [series], [values] = table.series, table.values
    limit = 5 * rng.randint(1, max(1, max(values) // 5))
    num_above = sum(value > limit for value in values)
    if not 0 < num_above < len(values):
        return None
    working = ", ".join(f"{value} {_sign(value, limit)} {limit}" for value in values)
    return _item(table, f"How many have {series} above {limit}?", num_above, table.groups, working, f"the count is {num_above}",
                 [series])


def compare(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    [series], (first, second) = table.series, rng.sample(table.groups, 2)
    a, b = table.value(first, series), table.value(second, series)
    if a == b:
        return None
    answer = "Yes" if a > b else "No"
    return _item(table, f"Is {series} in {first} greater than in {second}?", answer, [first, second], f"{a} {_sign(a, b)} {b}",
                 f"the answer is {answer}")


def _two_groups(rng: random.Random, table: Table) -> list[str]:
    """Two groups, left to right."""
    return [table.groups[place] for place in sorted(rng.sample(range(len(table.groups)), 2))]


KINDS: dict[str, Callable[[random.Random, Table], Item | None]] = {
    "lookup": lookup, "gap": gap, "peak": peak, "sum": total, "difference": difference, "count": count, "compare": compare}


def draw_question(rng: random.Random, table: Table, kinds: tuple[str, ...] = tuple(KINDS), tries: int = 100) -> Item:
    """A random question of one of `kinds` that `table` allows.

    Raises:
        ValueError: if none was found in `tries` draws (every kind needs another number of series, or there are only ties).
    """
    for _ in range(tries):
        question = KINDS[rng.choice(kinds)](rng, table)
        if question is not None:
            return question
    raise ValueError(f"no question of {kinds} can be asked of {table.key!r} with {len(table.series)} series")
