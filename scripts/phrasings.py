"""A right trace in many wordings: the templates' own, the poster's, tables in words, numbers before their names."""
from __future__ import annotations

import random
import re
from collections.abc import Callable

from dyme_core.data.schema import Fact, Item, write_number
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES

Writer = Callable[[Item, random.Random], str]


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


def _template(index: int) -> Writer:
    return lambda item, rng: DEFAULT_TEMPLATES[index].fill(item)


def _bold(item: Item, rng: random.Random) -> str:
    text = DEFAULT_TEMPLATES[0].fill(item)
    return re.sub(r"\b(locate|extract|Comparing)\b", r"**\1**", text)


def _phrased(pattern: str, glue: str = ", ") -> Writer:
    """Facts entity by entity: `pattern` has {e} the entity, {v} its values as "62 and 36", {n} them with their names."""
    def write(item: Item, rng: random.Random) -> str:
        facts = glue.join(pattern.format(e=entity, v=" and ".join(write_number(fact.value) for fact in facts),
                                         n=" and ".join(f"{fact.attribute} {write_number(fact.value)}" for fact in facts))
                          for entity, facts in _by_entity(item).items())
        return f"{facts[0].upper()}{facts[1:]}. {_working(item, rng)}{_ending(item, rng)}"
    return write


def _poster_list(item: Item, rng: random.Random) -> str:
    """The poster's list: names first, then their values; for one series."""
    if len({fact.attribute for fact in item.facts}) > 1 or len(item.evidence) < 2:
        return _template(1)(item, rng)
    names, values = [fact.entity for fact in item.evidence], [write_number(fact.value) for fact in item.evidence]
    return (f"To answer the question, step 1 is to extract the values for {_listed(names)}: {_listed(values)}, respectively. "
            f"{_working(item, rng)}{_ending(item, rng)}")


def _value_first(item: Item, rng: random.Random) -> str:
    """Series by series, the number before its place: "FAV is 62 in 2010 and 65 in 2012"."""
    names = dict.fromkeys(fact.attribute for fact in item.evidence)
    parts = [f"{name} is " + _listed([f"{write_number(fact.value)} in {fact.entity}" for fact in item.evidence
                                      if fact.attribute == name]) for name in names]
    return f"{'; '.join(parts)}. {_working(item, rng)}{_ending(item, rng)}"


WRITERS: tuple[Writer, ...] = (
    _template(0), _template(1), _bold, _poster_list, _value_first, _phrased("{e}: {n}", "; "),
    _phrased("in {e}, the values are {v}", ". In the same way, "), _phrased("{e} has {n}"), _phrased("{e} = {v}"),
    _phrased("for {e} the chart shows {v}"), _phrased("{e} ({n})"))
