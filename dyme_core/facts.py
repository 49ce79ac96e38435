"""Visual facts: what can be read from a chart, and which of it a text states, rightly or wrongly.

A fact is (entity, attribute, value, unit). `read_trace` finds the claims of a thinking trace without a model: it walks over
names and numbers in order, gives each number to the entity and attribute named last, and pairs lists ("for Latvia,
Portugal and Romania: 3.0, 8.9 and 13.0") by position.
"""
from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from dyme_core.charts import Table

_NUMBER = r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_OPERATORS = "-+*/=<>"  # the minus first: these stand inside a character class
_LEVELS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
           "/": lambda a, b: a / b if b else float("nan")}


@dataclass(frozen=True)
class Fact:
    """One value that the picture shows, e.g. Fact("2010", "FAV", 62.0, "percent")."""

    entity: str
    attribute: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class Claim:
    """One number a trace states of the picture; `start` and `end` are its place in the text."""

    entity: str | None
    attribute: str | None
    value: float
    start: int
    end: int
    is_right: bool


@dataclass(frozen=True)
class Reading:
    """What a trace says: its claims, whether its arithmetic holds, where the first working starts, its last statement."""

    claims: tuple[Claim, ...]
    is_arithmetic_right: bool
    working_start: int | None
    conclusion: str

    @property
    def groundedness(self) -> float:
        """Share of the claims that are right, 0 where nothing is claimed."""
        return sum(claim.is_right for claim in self.claims) / len(self.claims) if self.claims else 0.0


def facts_of(table: Table) -> tuple[Fact, ...]:
    """All facts of a chart, group by group."""
    return tuple(Fact(group, series, float(table.value(group, series)), table.unit)
                 for group in table.groups for series in table.series)


def facts_to_rows(facts: tuple[Fact, ...]) -> list[dict]:
    """Facts as plain rows (JSON, data sets); `facts_from_rows` reads them back."""
    return [asdict(fact) for fact in facts]


def facts_from_rows(rows: list[dict]) -> tuple[Fact, ...]:
    return tuple(Fact(str(row["entity"]), str(row["attribute"]), float(row["value"]), row.get("unit") or "") for row in rows)


def write_number(value: float) -> str:
    """62.0 -> "62", 8.90 -> "8.9": one spelling a value."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def write_facts(facts: tuple[Fact, ...]) -> str:
    """Facts as the poster's trace states them: "2010 has 62 and 36, 2012 has 65 and 35", values in the legend's order."""
    by_entity: dict[str, list[str]] = {}
    for fact in facts:
        by_entity.setdefault(fact.entity, []).append(write_number(fact.value))
    return ", ".join(f"{entity} has {' and '.join(values)}" for entity, values in by_entity.items())


def _names(facts: tuple[Fact, ...]) -> re.Pattern:
    names = sorted({f.entity for f in facts} | {f.attribute for f in facts if f.attribute}, key=len, reverse=True)
    alternatives = "|".join(re.escape(name) for name in names) or r"(?!)"
    return re.compile(rf"(?<!\w)(?P<name>{alternatives})(?!\w)|(?<![\w.])(?<!step )(?P<number>{_NUMBER})(?![\w])"
                      rf"|(?P<operator>[{_OPERATORS}])", re.IGNORECASE)


def read_trace(text: str, facts: tuple[Fact, ...]) -> Reading:
    """Find what `text` claims of the picture that `facts` describes.

    Numbers beside an operator are working, not claims, but an operand must be a fact or an earlier result; the last number
    after "is" is the conclusion. A claim is right where a fact of its entity (and attribute, where one is named) has its
    value; every fact can be claimed once under a bare entity.
    """
    text = text.replace("**", "  ")  # Markdown bold is no multiplication; two spaces keep every place
    entities = {fact.entity.lower(): fact.entity for fact in facts}
    attributes = {fact.attribute.lower(): fact.attribute for fact in facts if fact.attribute}
    marks = list(_names(facts).finditer(text))
    conclusion_at = _conclusion_index(marks, text)
    claims: list[Claim] = []
    waiting: list[str] = []  # entities named since the last number
    run: list[Claim] = []  # numbers since the last entity
    attribute, working = None, []
    for index, mark in enumerate(marks):
        name = (mark["name"] or "").lower()
        if name in attributes and not (name in entities and attribute):
            attribute = attributes[name]
        elif name:
            if run:
                claims += _pair(waiting, run, facts)
                waiting, run, attribute = [], [], None
            waiting.append(entities[name])
        elif mark["number"] and _is_working(marks, index, text):
            working.append(mark)
        elif mark["number"] and index != conclusion_at:
            run.append(Claim(None, attribute, _to_float(mark["number"]), mark.start(), mark.end(), False))
    claims += _pair(waiting, run, facts)
    is_right = _check_working(text, facts)
    last = next((m.group() for m in reversed(marks) if not m["operator"]), "")
    verdict = re.search(r"\b(yes|no)\b\W*$", text, re.IGNORECASE)
    return Reading(tuple(claims), is_right, working[0].start() if working else None, verdict[1] if verdict else last)


def _to_float(number: str) -> float:
    return float(number.replace(",", ""))


def _conclusion_index(marks: list[re.Match], text: str) -> int | None:
    """Index of the last number, where it closes the text and "is" or "approximately" leads to it."""
    if not marks or not marks[-1]["number"] or not re.fullmatch(r"[%\W]*", text[marks[-1].end():]):
        return None
    return len(marks) - 1 if re.search(r"\b(is|equals|approximately|about|of)\s*$", text[: marks[-1].start()]) else None


def _is_working(marks: list[re.Match], index: int, text: str) -> bool:
    """True where an operator stands right beside the number (brackets do not count as distance)."""
    for neighbour in (index - 1, index + 1):
        if 0 <= neighbour < len(marks) and marks[neighbour]["operator"]:
            first, second = sorted((marks[neighbour], marks[index]), key=lambda mark: mark.start())
            if re.fullmatch(r"[\s()%$]*", text[first.end(): second.start()]):
                return True
    return False


def _pair(entities: list[str], run: list[Claim], facts: tuple[Fact, ...]) -> list[Claim]:
    """Give each number of a run its entity, and compare it with the facts."""
    owners = entities if len(entities) > 1 and len(entities) == len(run) else [entities[-1] if entities else None] * len(run)
    unused = list(facts)
    judged = []
    for owner, claim in zip(owners, run, strict=True):
        candidates = [fact for fact in unused if owner in (None, fact.entity) and claim.attribute in (None, fact.attribute)]
        if owner and claim.attribute is None and owners.count(owner) > 1:
            candidates = candidates[:1]  # several bare values of one entity stand in the legend's order
        match = next((fact for fact in candidates if fact.value == claim.value), None)
        if candidates and owner is not None:
            unused.remove(match or candidates[0])
        judged.append(Claim(owner, claim.attribute, claim.value, claim.start, claim.end, match is not None))
    return judged


def _check_working(text: str, facts: tuple[Fact, ...]) -> bool:
    """Recompute every "a op b = c" and every "a < b"; operands must be facts, earlier results or small counts."""
    flat = text.replace("(", "").replace(")", "")
    known = {fact.value for fact in facts}
    is_right = True
    for chain in re.findall(rf"(?:{_NUMBER})(?:\s*[{_OPERATORS}]\s*(?:{_NUMBER}))+", flat):
        parts = re.split(r"\s*([=<>])\s*", chain)
        sides, relations = parts[::2], parts[1::2]
        values = [_evaluate(side) for side in sides]
        for place, relation in enumerate(relations):
            left, right = values[place], values[place + 1]
            holds = {"=": abs(left - right) <= 0.05 * max(1.0, abs(right)) / 10, "<": left < right, ">": left > right}
            # "26 < 65 - 35 = 30" chains: "=" and "<" both compare neighbouring sides
            is_right &= holds[relation]
            if relation == "=":
                known.add(right)
        operands = [_to_float(n) for side in sides if re.search(r"[+*/-]", side) for n in re.findall(_NUMBER, side)]
        is_right &= all(value in known or value <= 10 for value in operands)
    return bool(is_right)


def _evaluate(side: str) -> float:
    """Value of "a op b op c", left to right (sums come before one division in a bracketed mean)."""
    numbers, operators = re.findall(_NUMBER, side), re.findall(r"[+*/-]", side)
    total = _to_float(numbers[0])
    for operator, number in zip(operators, numbers[1:], strict=False):
        total = _LEVELS[operator](total, _to_float(number))
    return total
