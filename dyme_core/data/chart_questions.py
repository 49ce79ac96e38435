"""Questions on a chart, each with its computed answer, the facts it needs and the steps to the answer.

Eight kinds, after the poster and ChartQA. A kind is one function: (rng, table) -> Item, or None where the table does
not allow it (a tie, one or two series needed). None has so few possible answers that guessing pays: "which" is asked over all
groups, everything else for a number. Questions on two series use both values of a group, the others are asked of
charts with one series: picking one of two series by name is a circuit that the mini model did not learn within its budget
(results/LOG.md). A working is written from left to right: each sign and number follows from the text before it, so that
every token is a small step ("43 - 42 = 1 < 50 - 30 = 20", the poster's form, asks for the sign before the second
difference is known).
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from dyme_core.data.chart_tables import LARGEST_VALUE, Table, facts_of
from dyme_core.data.schema import Item


def _sign(left: int, right: int) -> str:
    return "<" if left < right else ">"


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


def peak(rng: random.Random, table: Table) -> Item | None:
    return _extreme(table, "highest", max)


def lowest(rng: random.Random, table: Table) -> Item | None:
    return _extreme(table, "lowest", min)


def _extreme(table: Table, name: str, best: Callable[[Sequence[int]], int]) -> Item | None:
    if len(table.series) > 1 or table.runs_over_time:
        return None
    [series], [values] = table.series, table.values
    winner = table.groups[values.index(best(values))]
    steps = [(best(values[:place]), values[place]) for place in range(1, len(values))]  # the best so far against the next
    if any(so_far == value for so_far, value in steps):
        return None
    working = ", ".join(f"{so_far} {_sign(so_far, value)} {value}" for so_far, value in steps)
    return _item(table, f"Which has the {name} {series}?", winner, table.groups, working, f"the {name} is {winner}", [series])


def total(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) > 1:
        return None
    [series], (first, second) = table.series, _two_groups(rng, table)
    a, b = table.value(first, series), table.value(second, series)
    return _item(table, f"What is the sum of {series} in {first} and {second}?", a + b, [first, second], f"{a} + {b} = {a + b}",
                 f"the sum is {a + b}")


def margin(rng: random.Random, table: Table) -> Item | None:
    """A comparison of two groups that asks by how much, because yes or no is right half the time."""
    if len(table.series) > 1:
        return None
    [series], pair = table.series, _two_groups(rng, table)
    less, more = sorted(pair, key=lambda group: table.value(group, series))
    low, high = table.value(less, series), table.value(more, series)
    if low == high:
        return None
    return _item(table, f"How much greater is {series} in {more} than in {less}?", high - low, [more, less],
                 f"{high} - {low} = {high - low}", f"the difference is {high - low}")


def count(rng: random.Random, table: Table) -> Item | None:
    """The number is drawn first, then a limit that gives it: all numbers are about equally common."""
    if len(table.series) > 1:
        return None
    [series], [values] = table.series, table.values
    num_above = rng.randrange(1, len(values))
    ordered = sorted(values, reverse=True)
    limits = range(ordered[num_above] + 1, ordered[num_above - 1])
    if not limits:
        return None
    limit = rng.choice(limits)
    working = ", ".join(f"{value} {_sign(value, limit)} {limit}" for value in values)
    return _item(table, f"How many have {series} above {limit}?", num_above, table.groups, working, f"the count is {num_above}",
                 [series])


def difference(rng: random.Random, table: Table) -> Item | None:
    if len(table.series) < 2:
        return None
    group = rng.choice(table.groups)
    high, low = _both(table, group)
    return _item(table, f"What is the difference between {table.series[0]} and {table.series[1]} in {group}?", high - low,
                 [group], f"{high} - {low} = {high - low}", f"the difference is {high - low}")


def gap(rng: random.Random, table: Table) -> Item | None:
    """The poster's question: in which group do the two series lie furthest apart?"""
    if len(table.series) < 2 or table.runs_over_time:
        return None
    gaps, shown = [], []
    for group in table.groups:
        high, low = _both(table, group)
        if gaps and high - low == max(gaps):
            return None
        rival = f" {_sign(high - low, max(gaps))} {max(gaps)}" if gaps else ""  # the greatest so far
        shown.append(f"{high} - {low} = {high - low}{rival}")
        gaps.append(high - low)
    winner = table.groups[gaps.index(max(gaps))]
    return _item(table, f"Which has the greatest gap between {table.series[0]} and {table.series[1]}?", winner, table.groups,
                 ", ".join(shown), f"the greatest gap is in {winner}", table.series)


def _both(table: Table, group: str) -> tuple[int, int]:
    """The two series' values of a group, the higher first."""
    high, low = sorted((table.value(group, series) for series in table.series), reverse=True)
    return high, low


def _two_groups(rng: random.Random, table: Table) -> list[str]:
    """Two groups, left to right."""
    return [table.groups[place] for place in sorted(rng.sample(range(len(table.groups)), 2))]


KINDS: dict[str, Callable[[random.Random, Table], Item | None]] = {
    "lookup": lookup, "peak": peak, "lowest": lowest, "sum": total, "margin": margin, "count": count, "difference": difference,
    "gap": gap}


def draw_question(rng: random.Random, table: Table, kinds: tuple[str, ...] = tuple(KINDS), tries: int = 100
                  ) -> tuple[str, Item]:
    """A random question of one of `kinds` that `table` allows, and its kind.

    Raises:
        ValueError: if none was found in `tries` draws (every kind needs another number of series, or there are only ties).
    """
    for _ in range(tries):
        kind = rng.choice(kinds)
        question = KINDS[kind](rng, table)
        if question is not None:
            return kind, question
    raise ValueError(f"no question of {kinds} can be asked of {table.key!r} with {len(table.series)} series")


def alter(rng: random.Random, table: Table, item: Item, kind: str) -> tuple[Table, Item]:
    """The table with one value that the answer rests on changed so that the answer is another one, and the same question on it.

    Args:
        rng: decides which value, and what it becomes (from 1 to 60 or what the table holds, if more).
        table, item, kind: the question and what it was drawn from.
    """
    most = max(LARGEST_VALUE, *map(max, table.values))
    while True:
        fact = rng.choice(item.evidence)
        other = table.with_value(fact.entity, fact.attribute, rng.randint(1, most))
        asked = _ask(rng, other, item.question, kind)
        if asked is not None and asked.answer != item.answer:
            return other, asked


def _ask(rng: random.Random, table: Table, question: str, kind: str, tries: int = 400) -> Item | None:
    """The question that reads as `question`, drawn until it comes; None where the table does not allow it."""
    found = (KINDS[kind](rng, table) for _ in range(tries))
    return next((item for item in found if item is not None and item.question == question), None)
