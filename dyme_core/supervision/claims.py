"""Which of a picture's facts a text states, rightly or wrongly.

`read_trace` finds the claims of a thinking trace without a model: it walks over names and numbers in order, gives each number
to the entity and series named last ("2010 has FAV 62") or right after it ("62 in 2010"), and pairs lists ("for Latvia,
Portugal and Romania: 3.0, 8.9 and 13.0") by position.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from dyme_core.data.numbers import decimals
from dyme_core.data.schema import Fact
from dyme_core.supervision.arithmetic import check, find_chains, into_signs
from dyme_core.supervision.conclusion import closing_place, conclusion, is_no_claim
from dyme_core.supervision.mentions import Word, ends_sentence, find_words, owners_after


@dataclass(frozen=True)
class Claim:
    """One number a trace states of the picture; `start` and `end` are its place in the text."""

    entity: str | None
    attribute: str | None
    value: float
    start: int
    end: int
    is_right: bool

    def agrees(self, fact: Fact) -> bool:
        """True where the fact is of this entity and series, as far as they are named, and has this value.

        A long decimal (a ratio of 0.483871) may be claimed rounded to two places or more.
        """
        places = decimals(self.value)
        is_value = fact.value == self.value or 2 <= places < decimals(fact.value) and round(fact.value, places) == self.value
        return is_value and self.entity in (None, fact.entity) and self.attribute in (None, fact.attribute)


@dataclass(frozen=True)
class Reading:
    """A trace as read: its claims, whether its arithmetic holds, where the first working starts, its conclusion."""

    claims: tuple[Claim, ...]
    is_arithmetic_right: bool
    working_start: int | None
    conclusion: str

    @property
    def groundedness(self) -> float:
        """Share of the claims that are right, 0 where nothing is claimed."""
        return sum(claim.is_right for claim in self.claims) / len(self.claims) if self.claims else 0.0


def read_trace(text: str, facts: tuple[Fact, ...], question: str = "") -> Reading:
    """Find what `text` claims of the picture that `facts` describes.

    Working ("62 - 36 = 26", in signs or words) is computed again and its numbers are no claims; the number, name, yes or no
    that the text ends on is its conclusion. A claim is right where a fact of its entity (and series, where one is named)
    has its value; several bare values of one entity stand in the legend's order. A number that belongs to a name which
    neither facts nor `question` know is a wrong claim of that name.
    """
    text = into_signs(text)
    attributes = {fact.attribute.lower(): fact.attribute for fact in facts if fact.attribute}
    words = find_words(text, {fact.entity.lower(): fact.entity for fact in facts if fact.entity}, attributes, question)
    chains = find_chains(text, [(word.start, word.end) for word in words if word.kind != "number"])
    is_right, results = check(chains, {fact.value for fact in facts})
    owned, closing = owners_after(words, text), closing_place(words, text, results)
    taken = {id(name) for names in owned.values() for name in names}
    reader = _Reader(facts, attributes)
    at = 0
    for place, word in enumerate(words):
        if ends_sentence(text, at, word.start):
            reader.end_sentence()
        at = word.end
        if word.kind != "number":
            reader.name(word, is_taken=id(word) in taken)
        elif place != closing and not is_no_claim(words, place, text, chains, results):
            reader.number(word, owned.get(place, []))
    reader.flush()
    working = min((chain.start for chain in chains), default=None)
    return Reading(tuple(reader.claims), is_right, working, conclusion(words, text, chains))


@dataclass
class _Reader:
    """Walks over the words and gives each number its entity and series.

    Attributes:
        entities: the name, or list of names, before the number; those of an earlier sentence (`is_old`) hold until others
            are named.
        series: named since the last number; they go on to the next entity where they came before the first (`leads`).
        run: claims since the last entity that are not judged yet.
    """

    facts: tuple[Fact, ...]
    attributes: dict[str, str]
    claims: list[Claim] = field(default_factory=list)
    entities: list[str] = field(default_factory=list)
    series: list[str] = field(default_factory=list)
    run: list[Claim] = field(default_factory=list)
    is_old: bool = False
    leads: bool = False
    is_taken: bool = False  # a number has taken the series named last

    def name(self, word: Word, is_taken: bool = False) -> None:
        """An entity, stranger or series; one that is taken belongs only to the number before it."""
        if is_taken:
            return
        is_series = word.kind == "attribute" or word.name.lower() in self.attributes and not self.series
        if is_series:
            self._name_series(word.name)
            return
        if self.run:
            self.flush()
            self.entities = []
            self.series = self.series if self.leads else []
        self.entities = [*self.entities, word.name] if word.is_listed and not self.is_old else [word.name]
        self.is_old = False

    def _name_series(self, name: str) -> None:
        if self.is_taken or not self.series:
            self.leads = not self.entities or self.is_old
            self.series, self.is_taken = [], False
        if name not in self.series:
            self.series.append(name)

    def number(self, word: Word, owners: list[Word]) -> None:
        """A claim, of the names that own it or else of those named before."""
        claim = Claim(None, self.series[-1] if len(self.series) == 1 else None, word.value, word.start, word.end, False)
        self.is_taken = True
        for owner in owners:
            claim = replace(claim, **{"attribute" if owner.kind == "attribute" else "entity": owner.name})
        if claim.entity is None:
            self.run.append(claim)
        else:
            self.claims.append(replace(claim, is_right=any(map(claim.agrees, self.facts))))

    def end_sentence(self) -> None:
        self.flush()
        self.series, self.is_old, self.leads, self.is_taken = [], True, False, False

    def flush(self) -> None:
        """Judge the numbers since the last entity."""
        if len(self.series) > 1 and len(self.series) == len(self.run):
            self.run = [replace(claim, attribute=name) for claim, name in zip(self.run, self.series, strict=True)]
        is_list = len(self.entities) > 1 and len(self.entities) == len(self.run)
        owners = self.entities if is_list else [self.entities[-1] if self.entities else None] * len(self.run)
        unused = list(self.facts)
        counts = Counter(owners)
        for owner, claim in zip(owners, self.run, strict=True):
            self.claims.append(_judge(replace(claim, entity=owner), unused, is_bare=counts[owner] > 1))
        self.run = []


def _judge(claim: Claim, unused: list[Fact], is_bare: bool) -> Claim:
    """Compare with the facts that are not claimed yet, and remove the one that this claim is about."""
    candidates = [fact for fact in unused
                  if claim.entity in (None, fact.entity) and claim.attribute in (None, fact.attribute)]
    if is_bare and claim.entity and claim.attribute is None:
        candidates = candidates[:1]  # several bare values of one entity stand in the legend's order
    match = next(filter(claim.agrees, candidates), None)
    if candidates and claim.entity is not None:
        unused.remove(match or candidates[0])
    return replace(claim, is_right=match is not None)
