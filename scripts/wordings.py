"""Right traces in random wordings on random charts, and the same with one thing changed, which must cost the full score.

`python -m scripts.wordings 100000` counts what slips through and stores it in traces/properties.json.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dyme_core.data.schema import Fact, Item, write_number
from dyme_core.supervision.checker import RuleChecker

AXES = (
    ("2008", "2010", "2012", "2015", "2019"),
    ("March", "April", "May", "June", "July"),
    ("Kenya", "Nepal", "Peru", "Ghana", "Chad"),
    ("Q1", "Q2", "Q3", "Q4"),
    ("GHA", "KEN", "UGA", "PER", "BOL"),
    ("Fossil Fuels", "Nuclear Energy", "Renewables", "Hydro"),
    ("Very satisfied", "Rather satisfied", "Not satisfied", "Undecided"),
)
SERIES = (("good", "bad"), ("FAV", "UNF"), ("women", "men"), ("Exports", "Imports"), ("2001", "2002"))
SINGLE = ("rain", "Coal", "FAV", "visitors", "Revenue")
KINDS = ("lookup", "sum", "mean", "difference", "gap", "peak", "low", "compare", "count", "which")
CHANGES = (
    "value",
    "entity",
    "polarity",
    "operation",
    "result",
    "relation",
    "conclusion",
    "hedge",
    "second verdict",
    "left out",
)


@dataclass(frozen=True)
class Draft:
    """A trace before it is worded: facts, steps (operands, sign, result), compared pairs, the ones counted, the answer."""

    kind: str
    facts: tuple[Fact, ...]
    steps: tuple[tuple[tuple[float, ...], str, float], ...] = ()
    pairs: tuple[tuple[float, str, float], ...] = ()
    counted: tuple[str, ...] = ()
    limit: float = 0.0
    answer: str = ""
    first: str = ""  # "Yes" and "No" are said of this entity
    denies: str = ""  # "fact", "step" or "verdict"
    hedges: str = ""
    before: str = ""  # a verdict before the facts


def draw(rng: random.Random) -> tuple[Item, Draft]:
    """A question on a random chart, and the draft of its right trace."""
    while True:
        drawn = _draw(rng, rng.choice(KINDS))
        if drawn:
            return drawn


def _values(rng: random.Random, count: int) -> list[float]:
    style = rng.choice(("whole", "whole", "decimal", "large", "negative"))
    low, high, places = {
        "whole": (11, 99, 0),
        "decimal": (11, 999, 1),
        "large": (1001, 20000, 0),
        "negative": (-90, 90, 1),
    }[style]
    values = [number / 10**places for number in rng.sample(range(low, high + 1), count)]
    return [float(value) for value in values if value]


def _draw(rng: random.Random, kind: str) -> tuple[Item, Draft] | None:
    axis = list(rng.choice(AXES))[: rng.randint(3, 4)]
    is_pair = kind in ("gap", "difference") and (kind == "gap" or rng.random() < 0.5)
    series = rng.choice(SERIES) if is_pair else (rng.choice(SINGLE),)
    if set(series) & set(axis) or {"2001"} & set(series) and axis[0] == "2008":
        return None
    values = _values(rng, len(axis) * len(series))
    if any(str(int(value)) in axis or str(int(value)) in series for value in values):
        return None
    if len(values) < len(axis) * len(series) or len({abs(value) for value in values}) < len(values):
        return None
    facts = tuple(
        Fact(entity, name, values[place * len(series) + number], "")
        for place, entity in enumerate(axis)
        for number, name in enumerate(series)
    )
    chosen = rng.sample(axis, 2 if kind != "mean" else rng.randint(2, 3))
    chosen.sort(key=axis.index)
    name = series[0]
    of = {fact.entity: fact for fact in facts}
    if kind == "lookup":
        fact = of[chosen[0]]
        return (
            Item(f"What is the value of {name} in {fact.entity}?", write_number(fact.value), facts, (fact,)),
            Draft(kind, (fact,), answer=write_number(fact.value)),
        )
    if kind in ("sum", "mean"):
        picked = tuple(of[entity] for entity in chosen)
        numbers = tuple(fact.value for fact in picked)
        total = round(sum(numbers), 6)
        result = total if kind == "sum" else round(total / len(numbers), 6)
        if round(result, 2) != result or result == 0:
            return None
        what = "sum" if kind == "sum" else "average"
        question = f"What is the {what} of {name} in {_list(chosen)}?"
        return (
            Item(question, write_number(result), facts, picked),
            Draft(kind, picked, ((numbers, "+" if kind == "sum" else "m", result),), answer=write_number(result)),
        )
    if kind == "difference":
        picked = (
            tuple(fact for fact in facts if fact.entity == chosen[0])
            if is_pair
            else tuple(of[entity] for entity in chosen)
        )
        high, low = sorted((fact.value for fact in picked), reverse=True)
        result = round(high - low, 6)
        names = (picked[0].attribute, picked[1].attribute) if is_pair else (picked[0].entity, picked[1].entity)
        place = chosen[0] if is_pair else name
        question = f"What is the difference between {names[0]} and {names[1]} in {place}?"
        return (
            Item(question, write_number(result), facts, picked),
            Draft(kind, picked, (((high, low), "-", result),), answer=write_number(result)),
        )
    if kind == "gap":
        picked = tuple(fact for fact in facts if fact.entity in chosen)
        pairs = [sorted((fact.value for fact in picked if fact.entity == entity), reverse=True) for entity in chosen]
        gaps = [round(high - low, 6) for high, low in pairs]
        if gaps[0] == gaps[1]:
            return None
        answer = chosen[0] if gaps[0] > gaps[1] else chosen[1]
        return (
            Item(
                f"Which has the greater gap between {series[0]} and {series[1]}, {chosen[0]} or {chosen[1]}?",
                answer,
                facts,
                picked,
            ),
            Draft(
                kind,
                picked,
                tuple((tuple(pair), "-", gap) for pair, gap in zip(pairs, gaps, strict=True)),
                ((gaps[0], "<" if gaps[0] < gaps[1] else ">", gaps[1]),),
                answer=answer,
            ),
        )
    if kind in ("peak", "low", "which"):
        picked = facts if kind != "which" else tuple(of[entity] for entity in chosen)
        best = (min if kind == "low" else max)(picked, key=lambda fact: fact.value)
        sign = "<" if kind == "low" else ">"
        word = {"peak": "highest", "low": "lowest", "which": "greater"}[kind]
        question = (
            f"Which has the {word} {name}?"
            if kind != "which"
            else f"Which has the greater {name}, {chosen[0]} or {chosen[1]}?"
        )
        return (
            Item(question, best.entity, facts, picked),
            Draft(
                kind,
                picked,
                pairs=tuple((best.value, sign, fact.value) for fact in picked if fact != best),
                answer=best.entity,
            ),
        )
    if kind == "compare":
        rng.shuffle(chosen)
        a, b = of[chosen[0]], of[chosen[1]]
        return (
            Item(
                f"Is {name} in {a.entity} greater than in {b.entity}?",
                "Yes" if a.value > b.value else "No",
                facts,
                (a, b),
            ),
            Draft(
                kind,
                (a, b),
                pairs=((a.value, ">" if a.value > b.value else "<", b.value),),
                answer="Yes" if a.value > b.value else "No",
                first=a.entity,
            ),
        )
    ordered = sorted(fact.value for fact in facts)
    cut = rng.randrange(1, len(ordered))
    limit = float(round((ordered[cut - 1] + ordered[cut]) / 2))
    above = [fact for fact in facts if fact.value > limit]
    if limit in ordered or not 0 < len(above) < len(facts) or limit <= 0:
        return None
    return (
        Item(f"How many have {name} above {write_number(limit)}?", str(len(above)), facts, facts),
        Draft(
            "count",
            facts,
            pairs=tuple((fact.value, ">" if fact.value > limit else "<", limit) for fact in facts),
            counted=tuple(fact.entity for fact in above),
            limit=limit,
            answer=str(len(above)),
        ),
    )


def _list(parts: list[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]


def word(item: Item, draft: Draft, rng: random.Random) -> str:
    """The trace in words, one of many hundred wordings; the same `rng` words a changed draft alike."""
    num = _number_style(rng, draft)
    facts, steps, close = _facts(item, draft, rng, num), _steps(draft, rng, num), _close(draft, rng)
    opening = rng.choice(
        (
            "",
            "",
            "",
            "Let us read the chart. ",
            "To answer the question, we first look at the chart. ",
            "First, read the values. ",
        )
    )
    before = f"The answer is {draft.before}. " if draft.before else ""
    glue = rng.choice((" ", " ", "\n"))
    return before + opening + glue.join(part for part in (facts, steps, close) if part)


def _number_style(rng: random.Random, draft: Draft):
    style = rng.choice(("plain", "plain", "comma"))

    def number(value: float) -> str:
        return f"{value:,.6f}".rstrip("0").rstrip(".") if style == "comma" else write_number(value)

    return number


def _facts(item: Item, draft: Draft, rng: random.Random, num) -> str:
    is_pair = len({fact.attribute for fact in item.facts}) > 1
    groups = (
        [(entity, list(found)) for entity, found in itertools.groupby(draft.facts, lambda fact: fact.entity)]
        if is_pair
        else [(fact.entity, [fact]) for fact in draft.facts]
    )
    names = [entity for entity, _ in groups]
    hedge = {"fact": rng.choice(("maybe ", "perhaps ", "possibly "))}.get(draft.hedges, "")
    no = draft.denies == "fact"
    has = rng.choice(("has", "shows", "reaches", "stands at", "is at", "recorded"))
    denied = (
        {
            "has": "does not have",
            "shows": "does not show",
            "reaches": "never reaches",
            "stands at": "does not stand at",
            "is at": "is not at",
            "recorded": "has not recorded",
        }[has]
        if no
        else has
    )
    style = rng.randrange(8)
    parts = []
    for place, (entity, found) in enumerate(groups):
        verb, maybe = (denied, hedge) if place == 0 else (has, "")
        values = [num(fact.value) for fact in found]
        if is_pair:
            named = _list([f"{fact.attribute} {num(fact.value)}" for fact in found])
            parts.append(
                (
                    f"{entity} {verb} {maybe}{_list(values)}",
                    f"in {entity}, "
                    + _list(
                        [
                            f"{fact.attribute} {'is not' if no and place == 0 else 'is'} {maybe}{num(fact.value)}"
                            for fact in found
                        ]
                    ),
                    f"{entity} {'does not show' if no and place == 0 else 'shows'} {maybe}"
                    + _list([f"{num(f.value)} for {f.attribute}" for f in found]),
                    f"for {entity} we {'do not ' if no and place == 0 else ''}read {maybe}{named}",
                )[style % 4]
            )
        else:
            [value] = values
            parts.append(
                (
                    f"{entity} {verb} {maybe}{value}",
                    f"the value of {entity} {'is not' if no and place == 0 else 'is'} {maybe}{value}",
                    f"{entity}'s value {'is not' if no and place == 0 else 'is'} {maybe}{value}",
                    f"we {'do not ' if no and place == 0 else ''}see {maybe}{value} in {entity}",
                    f"in {entity} it {'is not' if no and place == 0 else 'is'} {maybe}{value}",
                    f"{entity} {verb} {maybe}{value}",
                )[style % 6]
            )
    if style == 6 and not is_pair and not no and not hedge and len(parts) > 1:
        text = f"The values for {_list(names)} are {_list([num(fact.value) for fact in draft.facts])}, respectively."
    elif style == 7 and not no and not hedge:
        text = (
            "\n".join(
                f"- {entity}: "
                + ", ".join(f"{fact.attribute + ' ' if is_pair else ''}{num(fact.value)}" for fact in found)
                for entity, found in groups
            )
            + "\n"
        )
    elif rng.random() < 0.3:
        text = " ".join(
            part[0].upper() + part[1:] + "." if not part.startswith(tuple(names)) else part + "." for part in parts
        )
    else:
        text = _list(parts) + "."
    return text[0].upper() + text[1:] if text.startswith(("we ", "in ", "the ", "for ")) else text


def _steps(draft: Draft, rng: random.Random, num) -> str:
    no, maybe = draft.denies == "step", "maybe " if draft.hedges == "step" else ""

    def signed(value: float) -> str:
        return num(value) if value >= 0 else f"({num(value)})"

    spoken = rng.random() < 0.4
    texts = []
    for numbers, sign, result in draft.steps:
        joined = _list([num(number) for number in numbers])
        equals = rng.choice((" = ", " equals ", " gives ", " is ", " makes ")) if spoken else " = "
        if no:
            equals = " does not equal "
        if sign == "m":
            added = " + ".join(signed(number) for number in numbers)
            total = round(sum(numbers), 6)
            options = [
                f"({added}) / {len(numbers)}{equals}{maybe}{num(result)}",
                f"{added} = {num(total)}, and {num(total)} / {len(numbers)}{equals}{maybe}{num(result)}",
                f"the mean of {joined}{' is not ' if no else ' is '}{maybe}{num(result)}",
            ]
        elif sign == "+":
            word = " plus " if spoken else " + "
            options = [
                word.join(signed(number) for number in numbers) + f"{equals}{maybe}{num(result)}",
                f"the sum of {joined}{' is not ' if no else ' is '}{maybe}{num(result)}",
                f"adding {joined}{' never' if no else ''} gives {maybe}{num(result)}",
            ]
        else:
            word = " minus " if spoken else " - "
            options = [
                f"{signed(numbers[0])}{word}{signed(numbers[1])}{equals}{maybe}{num(result)}",
                f"subtracting {num(numbers[1])} from {num(numbers[0])}{' never' if no else ''} gives {maybe}{num(result)}",
                f"{num(numbers[0])} is {'not ' if no else ''}{maybe}{num(result)} more than {num(numbers[1])}",
            ]
        texts.append(rng.choice(options))
    if draft.pairs and (
        draft.kind not in ("peak", "low")
        or rng.random() < 0.7
        or no
        or draft.pairs[0][1] != ("<" if draft.kind == "low" else ">")
    ):
        words = {
            "<": rng.choice((" is less than ", " is below ", " is lower than ")),
            ">": rng.choice((" is greater than ", " exceeds ", " is above ")),
        }
        if draft.counted and rng.random() < 0.4 and not no and not maybe:
            texts.append(
                f"{rng.choice(('only ', ''))}{_list(list(draft.counted))} "
                f"{'are' if len(draft.counted) > 1 else 'is'} above {num(draft.limit)}"
            )
        else:
            for place, (left, sign, right) in enumerate(draft.pairs):
                shown = words[sign] if spoken else f" {sign} "
                if no and place == 0:
                    shown = {"<": " is not less than ", ">": " is not greater than "}[sign]
                texts.append(f"{num(left)}{shown}{maybe if place == 0 else ''}{num(right)}")
    elif draft.pairs:
        texts.append(
            f"{num(draft.pairs[0][0])} is {maybe}the {'smallest' if draft.kind == 'low' else 'largest'} of these"
        )
    if not texts:
        return ""
    text = rng.choice((", ", " and ", ". ")).join(texts) if len(texts) < 3 else ", ".join(texts)
    text = (
        rng.choice(
            (
                "",
                "",
                "Comparing: "
                if draft.kind in ("peak", "low", "gap", "compare", "count", "which")
                else "The calculation: ",
                "Now ",
                "Step 2: ",
            )
        )
        + text
        + "."
    )
    return text


def _close(draft: Draft, rng: random.Random) -> str:
    answer = draft.answer
    noun = {
        "lookup": "value",
        "sum": "sum",
        "mean": "average",
        "difference": "difference",
        "gap": "greater gap",
        "peak": "highest",
        "low": "lowest",
        "compare": "answer",
        "count": "count",
        "which": "greater",
    }[draft.kind]
    verb = "is not" if draft.denies == "verdict" else "may be" if draft.hedges == "verdict" else "is"
    options = [
        f"Therefore, the answer {verb} {answer}.",
        f"The answer {verb} {answer}.",
        f"Hence the {noun} {verb} {'in ' if draft.kind == 'gap' else ''}{answer}.",
        f"So the {noun} {verb} {'in ' if draft.kind == 'gap' else ''}{answer}.",
    ]
    if verb == "is":
        options += [f"Thus, {answer.lower() if draft.kind == 'compare' else answer}.", f"Answer: {answer}."]
    return rng.choice(options)


def change(item: Item, draft: Draft, what: str, rng: random.Random) -> Draft | None:
    """The draft with one thing changed; None where that cannot be, or would still be right."""
    values = {fact.value for fact in item.facts}

    def other(value: float) -> float:
        return next(
            new
            for new in iter(lambda: round(value + rng.choice((-11, -1, 1, 2, 10, 100)), 6), None)
            if new not in values and new
        )

    if what == "value":
        place = rng.randrange(len(draft.facts))
        changed = replace(
            draft.facts[place], value=rng.choice((other(draft.facts[place].value), -draft.facts[place].value))
        )
        return replace(draft, facts=draft.facts[:place] + (changed,) + draft.facts[place + 1 :])
    if what == "entity":
        place = rng.randrange(len(draft.facts))
        fact = draft.facts[place]
        names = [each.entity for each in item.facts if each.entity != fact.entity]
        if len({each.attribute for each in item.facts}) > 1:  # both values move: no fact of the old entity is left
            new = rng.choice(names)
            return (
                replace(
                    draft,
                    facts=tuple(
                        replace(each, entity=new) if each.entity == fact.entity else each for each in draft.facts
                    ),
                )
                if not any(each.entity == new for each in draft.facts)
                else None
            )
        return replace(
            draft,
            facts=draft.facts[:place]
            + (replace(fact, entity=rng.choice([*names, "Bhutan", "Oslo"])),)
            + draft.facts[place + 1 :],
        )
    if what == "polarity":
        return replace(
            draft, denies=rng.choice(("fact", "step", "verdict") if draft.steps or draft.pairs else ("fact", "verdict"))
        )
    if what == "hedge":
        return replace(draft, hedges=rng.choice(("fact", "verdict")))
    if what == "left out":
        return replace(draft, facts=draft.facts[1:]) if len(draft.facts) > 1 else None
    if what == "operation" and draft.steps:

        def turned(step):
            numbers, sign, _ = step
            if sign == "-":
                return numbers, "+", round(sum(numbers), 6)
            return numbers[:2], "-", round(numbers[0] - numbers[1], 6)

        return replace(draft, steps=tuple(turned(step) for step in draft.steps), pairs=())
    if what == "operation" and draft.pairs:
        return replace(draft, pairs=(), counted=())
    if what == "result" and draft.steps:
        place = rng.randrange(len(draft.steps))
        numbers, sign, result = draft.steps[place]
        return replace(draft, steps=draft.steps[:place] + ((numbers, sign, other(result)),) + draft.steps[place + 1 :])
    if what == "relation" and draft.pairs and not draft.counted:
        left, sign, right = draft.pairs[0]
        return replace(draft, pairs=((left, {"<": ">", ">": "<"}[sign], right), *draft.pairs[1:]))
    if what == "relation" and draft.counted:
        return replace(
            draft,
            counted=draft.counted[1:] or (next(f.entity for f in item.facts if f.entity not in draft.counted),),
            pairs=tuple(
                (left, "<", right)
                if place == 0 and sign == ">"
                else (left, ">", right)
                if place == 0
                else (left, sign, right)
                for place, (left, sign, right) in enumerate(draft.pairs)
            ),
        )
    if what in ("conclusion", "second verdict"):
        if draft.answer in ("Yes", "No"):
            wrong = {"Yes": "No", "No": "Yes"}[draft.answer]
        elif draft.kind in ("gap", "peak", "low", "which"):
            wrong = rng.choice([fact.entity for fact in draft.facts if fact.entity != draft.answer])
        else:
            wrong = write_number(other(float(draft.answer)))
        return replace(draft, **{"answer" if what == "conclusion" else "before": wrong})
    return None


def cases(num: int, seed: int = 0) -> Iterator[tuple[str, str, Item, str]]:
    """`num` cases: what was changed ("right" for nothing; one case in eleven), the question's kind, the item, the trace."""
    rng = random.Random(f"wordings {seed}")
    while num:
        item, draft = draw(rng)
        words = rng.random()
        for what in ("right", *CHANGES):
            changed = draft if what == "right" else change(item, draft, what, rng)
            if changed and num:
                num -= 1
                yield what, draft.kind, item, word(item, changed, random.Random(words))


def count(num: int, seed: int = 0) -> list[dict]:
    """Rows of change, num (cases), high (rated high), share."""
    checker, totals, high = RuleChecker(), Counter(), Counter()
    for what, _, item, text in cases(num, seed):
        totals[what] += 1
        high[what] += checker.judge(text, item).rating == "high"
    return [
        {"change": what, "num": totals[what], "high": high[what], "share": round(high[what] / totals[what], 6)}
        for what in totals
    ]


if __name__ == "__main__":
    rows = count(int(sys.argv[1]), seed=1)
    (Path(__file__).parent / "traces" / "properties.json").write_text(json.dumps(rows, indent=1) + "\n")
