"""Traces as a teacher writes them, right and in varied words, by a declared grammar: what a large model's data set has.

A trace states facts in one of eight ways, works in one of five and closes in one of six (`WRITINGS`, `_working`, `_ending`).
The words are the mini tokenizer's; most of these sentences are improbable under the bases, which is the point: the refiner's
template is not among them.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from dyme_core.data.schema import Fact, Item, Record, item_of, write_number, write_supervision

Writer = Callable[[Item, random.Random], str]


def with_teacher_traces(records: Sequence[Record], wordings: int) -> list[Record]:
    """The records, each with a trace of its own (`Item.trace`), which is then what methods memorize.

    Args:
        records: mini records of the training split.
        wordings: ways of stating facts that the teacher uses, the first of WRITINGS; a record's depends on its id alone.
    Raises:
        ValueError: for a number that WRITINGS does not have.
    """
    if not 1 <= wordings <= len(WRITINGS):
        raise ValueError(f"wordings must be from 1 to {len(WRITINGS)}: got {wordings}")
    return [replace(record, supervision=write_supervision(replace(item, trace=_trace(record.item, item, wordings))))
            for record in records for item in [item_of(record.row)]]


def _trace(name: str, item: Item, wordings: int) -> str:
    rng = random.Random(f"teacher {name}")
    texts = list(filter(None, [write(item, rng) for write in WRITINGS[:wordings]]))
    return rng.choice(texts or [_phrased("{e} has {v}")(item, rng)])


def _ending(item: Item, rng: random.Random) -> str:
    forms = ("Therefore, {c}.", "So {c}.", "Thus, {c}.", "The answer is {a}.", "Hence the answer is **{a}**.",
             "This shows {c}.")
    return rng.choice(forms).format(c=item.conclusion, a=item.answer)


def _working(item: Item, rng: random.Random) -> str:
    """The working as a sentence, in signs or in words; "" for a look-up."""
    if not item.working:
        return ""
    spoken = item.working
    for sign, words in ((" + ", " plus "), (" = ", " equals "), (" > ", " is greater than "), (" < ", " is less than ")):
        spoken = spoken.replace(sign, words)
    spoken = spoken.replace(" - ", " minus ")
    forms = ["Step 2 is to compute {w}. ", "Comparing {w}. ", "Now {w}. ", "The calculation: {w}. ", "We get {s}. "]
    return rng.choice(forms).format(w=item.working, s=spoken)


def _by_entity(item: Item) -> dict[str, list[Fact]]:
    groups: dict[str, list[Fact]] = {}
    for fact in item.evidence:
        groups.setdefault(fact.entity, []).append(fact)
    return groups


def _listed(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def _phrased(pattern: str, glue: str = ", ") -> Writer:
    """Facts entity by entity: `pattern` has {e} the entity, {v} its values as "62 and 36", {n} them with their names."""
    def write(item: Item, rng: random.Random) -> str:
        facts = glue.join(pattern.format(e=entity, v=" and ".join(write_number(fact.value) for fact in facts),
                                         n=" and ".join(f"{fact.attribute} {write_number(fact.value)}" for fact in facts))
                          for entity, facts in _by_entity(item).items())
        return f"{facts[0].upper()}{facts[1:]}. {_working(item, rng)}{_ending(item, rng)}"
    return write


def _poster_list(item: Item, rng: random.Random) -> str:
    """The poster's list: names first, then their values; "" for two series and for a single value."""
    if len({fact.attribute for fact in item.facts}) > 1 or len(item.evidence) < 2:
        return ""
    names, values = [fact.entity for fact in item.evidence], [write_number(fact.value) for fact in item.evidence]
    return (f"To answer the question, step 1 is to extract the values for {_listed(names)}: {_listed(values)}, respectively. "
            f"{_working(item, rng)}{_ending(item, rng)}")


def _value_first(item: Item, rng: random.Random) -> str:
    """Series by series, the number before its place: "FAV is 62 in 2010 and 65 in 2012"."""
    names = dict.fromkeys(fact.attribute for fact in item.evidence)
    parts = [f"{name} is " + _listed([f"{write_number(fact.value)} in {fact.entity}" for fact in item.evidence
                                      if fact.attribute == name]) for name in names]
    return f"{'; '.join(parts)}. {_working(item, rng)}{_ending(item, rng)}"


WRITINGS: tuple[Writer, ...] = (
    _poster_list, _value_first, _phrased("{e}: {n}", "; "), _phrased("in {e}, the values are {v}", ". In the same way, "),
    _phrased("{e} has {n}"), _phrased("{e} = {v}"), _phrased("for {e} the chart shows {v}"), _phrased("{e} ({n})"))
