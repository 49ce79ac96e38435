"""The mini charts' questions in plain English: real names in place of the picture's codes, and a teacher who writes sentences.

For a model that was taught English. The picture still shows the codes ("NPL", "FAV"), three letters each.
"""
from __future__ import annotations

import calendar
import itertools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from dyme_core.data.chart_tables import COUNTRIES, MONTHS, SITES, SOURCES, Table
from dyme_core.data.schema import Fact, Item, write_number

NAMES = {**COUNTRIES, **SITES, **SOURCES, **dict(zip(MONTHS, calendar.month_name[1:], strict=True)),
         "FAV": "Favorable", "UNF": "Unfavorable", "YES": "Support", "NOT": "Opposition", "MEN": "Men", "WOM": "Women",
         "OLD": "Seniors", "NEW": "Newcomers", "MAX": "Maximum", "MIN": "Minimum"}
# {m} what is measured, {g} and {gs} "country" and "countries", {a} and {b} two groups, {n} a limit, {s} and {t} both series.
QUESTIONS = {
    "lookup": ("What is the {m} in {a}?", "How high is the {m} in {a}?", "What does the chart show for the {m} in {a}?"),
    "peak": ("Which {g} has the highest {m}?", "In which {g} is the {m} highest?"),
    "lowest": ("Which {g} has the lowest {m}?", "In which {g} is the {m} lowest?"),
    "sum": ("What is the sum of the {m} in {a} and {b}?", "How much is the {m} in {a} and {b} together?"),
    "margin": ("How much higher is the {m} in {a} than in {b}?", "By how much does the {m} in {a} exceed that in {b}?"),
    "count": ("In how many {gs} is the {m} above {n}?", "How many {gs} have a {m} above {n}?"),
    "difference": ("What is the difference between {s} and {t} in {a}?", "How far apart are {s} and {t} in {a}?"),
    "gap": ("Which {g} has the greatest gap between {s} and {t}?", "In which {g} do {s} and {t} lie furthest apart?")}
# The teacher's sentences. {l} what has to be located first, {w} the working, {c} the conclusion.
OPENINGS = (
    "To answer this question, we look carefully at the chart and find the values that matter here.",
    "Let us take this step by step, starting with what the figure shows.",
    "The question asks about {l}, so the first thing to do is to find {l} in the figure.",
    "Looking at the chart, we can see several values, and the question asks about the following ones.",
    "First, I will locate {l} in the chart and then read the numbers that are printed beside the marks.",
    "In order to solve this problem, we begin by reading the relevant numbers directly from the picture.",
    "This question can be answered by carefully reading the chart and then looking at the numbers one after the other.",
    "Before giving an answer, we go back to the picture and collect the facts that the question needs.")
# How a value is stated: where an answer rests on up to three groups, and where it rests on more. {e} the group, {v} its values.
FEW = ("for {e}, the chart clearly shows {v}", "looking at {e}, we can read {v}", "{e} stands at {v}",
       "as for {e}, the figure gives {v}", "the mark for {e} shows {v}")
MANY = ("{e} has {v}", "{e} shows {v}", "{e} is at {v}")
GLUES = (", and ", "; ", ". In the same way, ", ". Similarly, ", ". After that, ")  # between the groups; of MANY always ", "
MIDDLES = (
    "Now that we have read the values, we can find what the question asks for.",
    "With these numbers in front of us, the next step is to use them.",
    "Having collected the values, we can now compare them carefully.",
    "These are all the numbers that are needed, and the rest is simple arithmetic.",
    "The next thing to do is to use these values in order to reach the answer.")
WORKINGS = ("This gives {w}.", "The calculation is {w}.", "Working it out, we get {w}.", "So we have {w}.")
ENDINGS = ("Therefore, {c}.", "From this we can see that {c}.", "So, based on the chart, {c}.", "As a result, {c}.",
           "As we can see, {c}.")


def in_english(rng: random.Random, item: Item, kind: str, table: Table) -> Item:
    """The item with real names, and its question in one of the wordings of QUESTIONS.

    Args:
        rng: chooses the wording.
        item, kind, table: the question in codes, its kind, and the chart that it is asked of.
    """
    asked = [name_of(group) for group in dict.fromkeys(fact.entity for fact in item.evidence)]
    series, noun = [name_of(name) for name in table.series], _noun(table.groups[0])
    limit = re.search(r"above (\d+)", item.question)
    question = rng.choice(QUESTIONS[kind]).format(
        m=_measure(table.source, table.series[0]), g=noun, gs=f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s",
        a=asked[0], b=asked[min(1, len(asked) - 1)], n=limit and limit[1], s=series[0], t=series[-1])
    return replace(item, question=question, answer=name_of(item.answer), facts=in_names(item.facts),
                   evidence=in_names(item.evidence), labels=tuple(map(name_of, item.labels)),
                   conclusion=re.sub(r"\b[A-Z]{3}\b", lambda code: name_of(code[0]), item.conclusion))


def english_trace(item: Item, name: str) -> str:
    """The thinking that a teacher writes for `item`: right, in long sentences that are drawn anew for each.

    Args:
        item: as `in_english` gives it.
        name: of the record; it draws the sentences.
    """
    rng = random.Random(f"teacher {name}")
    parts = [rng.choice(OPENINGS), _stated(rng, item.evidence)]
    if item.working:
        parts += [rng.choice(MIDDLES), rng.choice(WORKINGS)]
    return " ".join([*parts, rng.choice(ENDINGS)]).format(l=" and ".join(item.labels), w=item.working, c=item.conclusion)


def _stated(rng: random.Random, facts: Sequence[Fact]) -> str:
    """Sentences that state the values, group by group."""
    groups = [(entity, list(own)) for entity, own in itertools.groupby(facts, lambda fact: fact.entity)]
    is_few, has_names = len(groups) <= 3, rng.random() < 0.5
    patterns = rng.sample(FEW if is_few else MANY, 2)
    text = ""
    for place, (entity, own) in enumerate(groups):
        values = " and ".join(f"{fact.attribute} {write_number(fact.value)}" if has_names and is_few and len(own) > 1 else
                              write_number(fact.value) for fact in own)
        glue = (rng.choice(GLUES) if is_few else ", ") if text else ""
        text += glue + patterns[place % 2].format(e=entity, v=values)
    return f"{text[0].upper()}{text[1:]}."


def _measure(source: str, series: str) -> str:
    """What a chart with one series shows, as "life expectancy of Nepal"."""
    if "gapminder" in source:
        return f"life expectancy of {name_of(series)}" if series in COUNTRIES else f"{series} life expectancy"
    if "barley" in source:
        return f"{series} barley yield"
    if "electricity" in source:
        return f"electricity from {name_of(series)}"
    return f"{name_of(series).lower()} temperature" if "temperatures" in source else f"share of {name_of(series)}"


def _noun(group: str) -> str:
    return "year" if group.isdigit() else "month" if group in MONTHS else "country" if group in COUNTRIES else "site"


def name_of(code: str) -> str:
    """The real name of a code; what is none, such as a year, stays."""
    return NAMES.get(code, code)


def in_names(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """The facts with real names in place of codes."""
    return tuple(replace(fact, entity=name_of(fact.entity), attribute=name_of(fact.attribute)) for fact in facts)
