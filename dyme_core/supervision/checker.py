"""The visual checker: it scores a thinking trace against the picture's facts.

A back end is anything with the methods of `VisualChecker`; training asks for whole batches. The rule checker here needs no
model and is deterministic; `llm.judge` asks a language model.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dyme_core.data.numbers import same_answer
from dyme_core.data.schema import Item, item_of, write_facts
from dyme_core.supervision.claims import Reading, read_trace

SCORES = {"low": 0.0, "medium": 0.5, "high": 1.0}  # the rubric's three grades


@dataclass(frozen=True)
class Judgement:
    """A rating with its reasons; `reading` marks the claims, so that figures can show what is wrong."""

    rating: str
    reasons: tuple[str, ...]
    reading: Reading

    @property
    def score(self) -> float:
        return SCORES[self.rating]


class VisualChecker(Protocol):
    """Scores the thinking of a rollout against the visual facts."""

    def judge(self, thinking: str, item: Item) -> Judgement: ...

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """A score in {0, 0.5, 1} per trace, in order; NaN for a score that is missing (a failure is never 0)."""


class RuleChecker:
    """The deterministic checker.

    high: every fact of the evidence is claimed rightly, nothing wrongly, before the working; the arithmetic holds and the
    trace closes on the answer. low: no right claim, or more claims wrong than right. medium: everything between.
    """

    def judge(self, thinking: str, item: Item) -> Judgement:
        reading = read_trace(thinking, item.facts, item.question)
        right = sum(claim.is_right and claim.entity is not None for claim in reading.claims)
        wrong = sum(not claim.is_right for claim in reading.claims)
        reasons = tuple(_faults(reading, item, right, wrong))
        rating = "low" if right == 0 or wrong > right else "medium" if reasons else "high"
        return Judgement(rating, reasons, reading)

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """Score each trace against its data record (what the thinking reward asks for)."""
        return [self.judge(thinking, item_of(record)).score for thinking, record in zip(thinkings, records, strict=True)]


def _faults(reading: Reading, item: Item, right: int, wrong: int) -> Iterator[str]:
    if not right:
        yield "names no fact of the picture"
    if wrong:
        yield f"{wrong} of {len(reading.claims)} claims are wrong"
    said = {(claim.entity, claim.value) for claim in reading.claims if claim.is_right}
    missing = [fact for fact in item.evidence if (fact.entity, fact.value) not in said]
    if missing:
        yield f"leaves out {write_facts(tuple(missing))}"
    if not reading.is_arithmetic_right:
        yield "the arithmetic does not hold"
    if reading.working_start is not None and any(c.start > reading.working_start for c in reading.claims if not c.is_right):
        yield "claims after the working"
    if not same_answer(reading.conclusion, item.answer):
        yield f"closes on {reading.conclusion or 'nothing'!r}, not on the answer {item.answer!r}"
