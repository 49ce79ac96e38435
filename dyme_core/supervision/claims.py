"""What a trace states: claims of the picture's facts, workings, statements on the answer, and what cannot be counted on.

`read_trace` reads without a model: it walks over names and numbers in order, gives each number to the entity and series named
last ("2010 has FAV 62") or right after it ("62 in 2010"), and pairs lists ("for Latvia, Portugal and Romania: 3.0, 8.9 and
13.0") by position.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace

from dyme_core.data.numbers import decimals
from dyme_core.data.schema import Fact, write_number
from dyme_core.supervision.arithmetic import Side, Working, find_workings, holds
from dyme_core.supervision.conclusion import Statement, find_statements
from dyme_core.supervision.mentions import Chart, Token, chart_of, read_words


@dataclass(frozen=True)
class Claim:
    """One number a trace states of the picture; `start` and `end` are its place in the text.

    Attributes:
        entity, attribute: as far as they are named.
        is_right: a fact of this entity and series has this value, and no "not" stands in the sentence.
    """

    entity: str | None
    attribute: str | None
    value: float
    start: int
    end: int
    is_right: bool = False

    def agrees(self, fact: Fact) -> bool:
        """True where the fact is of this entity and series, as far as they are named, and has this value.

        A long decimal (a ratio of 0.483871) may be claimed rounded to two places or more.
        """
        places = decimals(self.value)
        is_value = fact.value == self.value or 2 <= places < decimals(fact.value) and round(fact.value, places) == self.value
        return is_value and self.entity in (None, fact.entity) and self.attribute in (None, fact.attribute)


@dataclass(frozen=True)
class Reading:
    """A trace as read.

    Attributes:
        claims: what it states of the picture.
        workings: its sums, differences and comparisons, in order.
        statements: what it says of the answer, in order.
        is_arithmetic_right: every working in numbers holds, and uses values of the picture and earlier results only.
        doubts: what keeps the trace from being plain: denied, doubted, asked or unknown words.
        conclusion: the number, name, yes or no that it ends on.
    """

    claims: tuple[Claim, ...]
    workings: tuple[Working, ...]
    statements: tuple[Statement, ...]
    is_arithmetic_right: bool
    doubts: tuple[str, ...]
    conclusion: str

    @property
    def groundedness(self) -> float:
        """Share of the claims that are right, 0 where nothing is claimed."""
        return sum(claim.is_right for claim in self.claims) / len(self.claims) if self.claims else 0.0

    @property
    def working_start(self) -> int | None:
        return min((working.start for working in self.workings), default=None)


def read_trace(text: str, facts: tuple[Fact, ...], question: str = "", answer: str = "") -> Reading:
    """Find what `text` claims of the picture that `facts` describes, what it works out, and what it concludes on.

    Numbers of a working ("62 - 36 = 26", in signs or words) are no claims, except those that stand with their name. A claim is
    right where a fact of its entity (and series, where one is named) has its value; several bare values of one entity stand in
    the legend's order. A number that belongs to a name which neither facts nor `question` know is a wrong claim of that name.
    """
    chart = chart_of(facts, question, answer)
    reader = _Reader(facts, default=_only_entity(chart))
    workings: list[Working] = []
    statements: list[Statement] = []
    doubts: list[str] = []
    results: set[float] = set()
    sentence, said = [], []
    for sentence in read_words(text, chart):
        entity, first = reader.entities[-1] if reader.entities else None, len(reader.claims)
        found, used = find_workings(sentence, entity)
        workings += found
        results.update(abs(working.sides[-1].value or 0.0) for working in found if "=" in working.relations)
        reader.read(sentence, used, results)
        reader.claims += [claim for working in found for claim in _claims_in(working, facts)]
        rest = [token for place, token in enumerate(sentence) if place not in used]
        for start, end in _denied(sentence, used):
            reader.claims[first:] = [replace(claim, is_right=claim.is_right and not start <= claim.start < end)
                                     for claim in reader.claims[first:]]
        said = find_statements(sentence, used, reader.owned, entity) + _results(found)
        statements += sorted(said, key=lambda statement: statement.start)
        doubts += _doubts(rest, said, text)
    if _breaks_off("".join(token.kind for token in sentence), bool(said)):
        doubts.append("breaks off before its conclusion")
    if _STUTTER.search(text):
        doubts.append("repeats a word")
    shown = chart.numbers | {abs(said.value) for said in statements if said.noun and said.value is not None}
    return Reading(tuple(reader.claims), tuple(workings), tuple(statements), are_right(workings, shown), tuple(doubts),
                   _conclusion(statements, text))


_STUTTER = re.compile(r"\b([^\W\d]{1,40})(?:\s{1,3}\1\b){2}")


def _breaks_off(shape: str, is_said: bool) -> bool:
    """True where the last sentence leads to a conclusion and has none: "..., the sum is", "Therefore, the answer"."""
    return bool(re.search("[ASDMXN][iI=:]+$", shape) or not is_said and re.search("[ASDMXNv].*[iI=:A]$|^[iI=:A]+$|^v", shape))


def _denied(sentence: Sequence[Token], used: Set[int]) -> list[tuple[int, int]]:
    """Where the clauses with a "not" start and end in the text."""
    shape = "".join("_" if place in used else token.kind for place, token in enumerate(sentence))
    return [(sentence[match.start()].start, sentence[match.end() - 1].end) for match in re.finditer(r"[^,zv]*![^,zv]*", shape)]


def _only_entity(chart: Chart) -> str | None:
    """The one entity that the question names, where the chart has several series: "women have 33" needs no more."""
    if len({fact.attribute for fact in chart.facts}) < 2:
        return None
    named = {token.name for sentence in read_words(chart.question + " ", replace(chart, question="")) for token in sentence
             if token.kind == "e"}
    return named.pop() if len(named) == 1 else None


def _claims_in(working: Working, facts: tuple[Fact, ...]) -> list[Claim]:
    """The numbers of a working that stand with their name: "94 (March) + 37 in June". A result that stands so is no claim."""
    claims = []
    is_pair = len({fact.attribute for fact in facts}) > 1
    operands = [side for place, side in enumerate(working.sides)
                if not (side.is_plain and place and working.relations[place - 1] == "=") or not is_pair and _leads(side)]
    for side in operands:
        entity = next((name.name for each in (side, working.sides[-1]) for term in each.terms for name in term.owners
                       if name.kind == "e"), None)
        is_group = is_pair and "-" in side.operators  # "2010: 62 - 36"
        for term in side.terms:
            names = {name.kind: name.name for name in term.owners}
            if term.value is not None and (names or is_group and entity):
                owner = entity if is_group and entity else working.entity if is_pair and "a" in names else None
                claim = Claim(names.get("e", owner), names.get("a"), term.value, term.start, term.end)
                claims.append(replace(claim, is_right=any(map(claim.agrees, facts))))
    return claims


def _leads(side: Side) -> bool:
    """True where an entity stands right before a number: "= Kenya 9"."""
    return any(name.kind == "e" and name.start < term.start for term in side.terms for name in term.owners)


def _results(workings: Sequence[Working]) -> list[Statement]:
    """What workings end on: "94 + 37 = 131"."""
    terms = [(working, working.sides[-1].terms[-1]) for working in workings if working.relations[-1:] == ("=",)]
    return [Statement("result", "", term.start, term.end, term.value, working.entity) for working, term in terms]


_DOUBTS = {"!": "denies", "~": "doubts or takes back", "?": "asks", "|": "leaves open", "us": "unknown words"}


def _doubts(rest: Sequence[Token], said: Sequence[Statement], text: str) -> list[str]:
    """Words of a sentence that keep it from being plain; one stray unknown word is let pass where nothing is stated."""
    doubts = []
    if not {token.kind for token in rest} & set("neo!~?|us-+*/<>"):
        return doubts
    shape = "".join(token.kind for token in rest)
    if re.search("nn|[iI=]{3}|ee|e[iI=]+e[iI=:(]*n|ng$|[-+*/<>]|e[iIp:=]?n[pP]e|^[vAiIGX:,pP]*o[iIvAGX]*$", shape):
        doubts.append("a sentence that cannot be read")
    for kinds, reason in _DOUBTS.items():
        words = [text[token.start: token.end] for token in rest if token.kind in kinds]
        is_stray = kinds == "us" and len(words) == 1 and not said and _num_words(text, rest[0].start) > 3
        if words and not is_stray:
            doubts.append(f"{reason}: {', '.join(map(repr, words[:3]))}")
    return doubts


def _num_words(text: str, place: int) -> int:
    """Words of the sentence at a place."""
    start = max(text.rfind(end, 0, place) for end in ".;!?\n") + 1
    return len(re.match(r"[^.;!?\n]{0,400}", text[start:]).group().split())


def _conclusion(statements: Sequence[Statement], text: str) -> str:
    """What the last sentence that states something says of the answer; a result or a fact only where it says nothing else."""
    said = [statement for statement in statements if statement.kind != "mention"]
    if not said:
        return ""
    start = max(text.rfind(end, 0, said[-1].start) for end in (". ", "\n", "; ", "! ", "? "))
    last = [statement for statement in said if statement.start > start]
    ranked = [statement for statement in last if statement.kind not in ("result", "fact")] or last
    return ranked[-1].text if ranked[-1].value is None else write_number(ranked[-1].value)


def are_right(workings: Sequence[Working], shown: frozenset[float]) -> bool:
    """True where every working in numbers holds, and every operand is shown, an earlier result or a factor that counts."""
    known, is_rounded = set(shown), False
    for working in workings:
        for left, relation, right in working.pairs:
            is_rounded |= bool(set(left.operators + right.operators + left.does) & set("*/"))
            if None not in (left.value, right.value) and not holds(left, relation, right, is_rounded):
                return False
        if not all(abs(term.value) in known for side in working.sides if not side.is_plain for term in side.terms
                   if term.value is not None):
            return False
        known.update(abs(right.value) for _, relation, right in working.pairs if relation == "=" and right.value is not None)
    return True


@dataclass
class _Reader:
    """Walks over the words and gives each number its entity and series.

    Attributes:
        default: the entity of a series that is named without one.
        entities: the name, or list of names, before the number; those of an earlier sentence (`is_old`) hold until others
            are named.
        series: named since the last number; they go on to the next entity where they came before the first (`leads`).
        run: claims since the last entity that are not judged yet.
        owned: places in the sentence of names and numbers that make a claim.
    """

    facts: tuple[Fact, ...]
    default: str | None = None
    claims: list[Claim] = field(default_factory=list)
    entities: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    run: list[Claim] = field(default_factory=list)
    owned: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)  # places of names that no number has taken yet
    is_old: bool = False
    leads: bool = False
    is_taken: bool = False  # a number has taken the series named last

    def read(self, sentence: Sequence[Token], used: Set[int], results: Set[float]) -> None:
        """Take the claims of one sentence; `used` are the places that workings take up."""
        shape = "".join("_" if place in used else token.kind for place, token in enumerate(sentence))
        after = owners_after(shape)
        taken = {place for places in after.values() for place in places}
        self.owned, self.waiting = set(), []
        for place, token in enumerate(sentence):
            if shape[place] in "eas":
                if place not in taken:
                    self.name(token, place, is_listed=bool(re.search(r"[eas][,&(]{1,2}$", shape[:place])))
            elif shape[place] == "n":
                owners = [(other, sentence[other]) for other in after.get(place, ())]
                if owners or self.is_claim(token, shape, place, results):
                    self.number(token, place, owners)
        self.flush()
        self.series, self.is_old, self.leads, self.is_taken = [], True, False, False

    def is_claim(self, token: Token, shape: str, place: int, results: Set[float]) -> bool:
        """False for bounds, retold results and answers ("the sum of A and B is 9"): numbers that say nothing of the picture."""
        before = shape[:place]
        agrees = bool(self.entities) and any(map(Claim(self.entities[-1], None, token.value, 0, 0).agrees, self.facts))
        is_bound = before[-1:] in tuple("lgh<>BP") or re.match("D|[GL](?!a?h)", shape[place + 1:])  # "above 50", "26 apart"
        if is_bound or not re.search("[eas]", before) and not (
                agrees and shape.count("n") > 1 and not re.search("[ASDMXN]", before)):
            return False
        if re.search(r"(?:v[^eas]*|A[iI:=]*[pt]?|[DMT][eapPb,&]*[iI:=]*[pt]?)$", before):
            return False
        is_answer = re.search(r"[SXNG][eapPb,&]*[iI:=]*[pt]?$", before)
        return agrees and not re.search("[,&][eas][iI]?$", before) or not is_answer and abs(token.value) not in results

    def name(self, token: Token, place: int, is_listed: bool) -> None:
        if token.kind == "a" or token.name in {fact.attribute for fact in self.facts} and not self.series:
            self._name_series(token.name)
            self.waiting.append(place)
            return
        if self.run:
            self.flush()
            self.entities, self.waiting = [], []
            self.series = self.series if self.leads else []
        self.entities = [*self.entities, token.name] if is_listed and not self.is_old else [token.name]
        self.is_old = False
        self.waiting.append(place)

    def _name_series(self, name: str) -> None:
        if self.is_taken or not self.series:
            self.leads = not self.entities or self.is_old
            self.series, self.is_taken = [], False
        if name not in self.series:
            self.series.append(name)

    def number(self, token: Token, place: int, owners: Sequence[tuple[int, Token]]) -> None:
        """A claim, of the names that own it or else of those named before."""
        claim = Claim(None, self.series[-1] if len(self.series) == 1 else None, token.value, token.start, token.end)
        self.is_taken = True
        for _, owner in owners:
            claim = replace(claim, **{"attribute" if owner.kind == "a" else "entity": owner.name})
        self.owned.update((place, *(other for other, _ in owners), *self.waiting))
        if claim.entity is None:
            self.run.append(claim)
        else:
            self.claims.append(replace(claim, is_right=any(map(claim.agrees, self.facts))))

    def flush(self) -> None:
        """Judge the numbers since the last entity."""
        if not self.run:
            return
        if len(self.series) > 1 and len(self.series) == len(self.run):
            self.run = [replace(claim, attribute=name) for claim, name in zip(self.run, self.series, strict=True)]
        is_list = len(self.entities) > 1 and len(self.entities) == len(self.run)
        last = self.entities[-1] if self.entities else None
        owners = self.entities if is_list else [last or (self.default if claim.attribute else None) for claim in self.run]
        unused = list(self.facts)
        counts = Counter(owners)
        for owner, claim in zip(owners, self.run, strict=True):
            self.claims.append(_judge(replace(claim, entity=owner), self.facts, unused, is_bare=counts[owner] > 1))
        self.run = []


def _judge(claim: Claim, facts: tuple[Fact, ...], unused: list[Fact], is_bare: bool) -> Claim:
    """Compare with the facts that are not claimed yet, and remove the one that this claim is about."""
    candidates = [fact for fact in unused
                  if claim.entity in (None, fact.entity) and claim.attribute in (None, fact.attribute)]
    if is_bare and claim.entity and claim.attribute is None:
        candidates = candidates[:1]  # several bare values of one entity stand in the legend's order
    match = next(filter(claim.agrees, candidates), None)
    if candidates and claim.entity is not None:
        unused.remove(match or candidates[0])
    is_again = claim.entity is not None and claim.attribute is not None and any(map(claim.agrees, facts))
    return replace(claim, is_right=match is not None or is_again)


_RUN = re.compile(r"n(?:[,&]+n)*(?:[pP]|\(|(?=[ea](?![ea]?[(:]?[iI=]?n))|(?:I|i(?=a))(?=[ea](?![(:]?[iI=]?n)))(?=[eas])")
_OWNERS = re.compile(r"[eas](?:[,&]+[eas])*")


def owners_after(shape: str) -> dict[int, list[int]]:
    """Places of numbers -> places of the names that follow and own them.

    "62 in 2010", "33 women", "62 for FAV in 2010", and lists: "3, 9 and 13 for A, B and C", "62 and 36 in 2010".
    """
    owned: dict[int, list[int]] = {}
    for match in _RUN.finditer(shape):
        run = [place for place in range(*match.span()) if shape[place] == "n"]
        listed = _OWNERS.match(shape, match.end())
        names = [place for place in range(*listed.span()) if shape[place] in "eas"]
        if len(run) > 1 and len(names) == len(run) and len({shape[name] for name in names}) == 1:
            owned |= {place: [name] for place, name in zip(run, names, strict=True)}
        elif len(run) > 1 and not re.search(r"[es][^eas]*$", shape[: run[0]]) and shape[names[0]] in "es":
            owned |= {place: names[:1] for place in run}
        else:
            more = re.match(r"[eas][pP]([eas])", shape[names[0]:])
            is_chained = more and more[1] != shape[names[0]]
            owned[run[-1]] = [names[0], names[0] + 2] if is_chained else names[:1]
    return owned
