"""Worse supervision on purpose: targets of lower quality, and facts that an extraction misread.

Quality concerns the text of a target. Corruption concerns the facts of a picture that checker and refiner work from. Both are
rules: nothing is drawn at training time, and held-out records are never touched.
"""
from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dyme_core.config import QUALITIES
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.chart_tables import LARGEST_VALUE, Table
from dyme_core.data.schema import Fact, Item, Record, item_of, write_supervision
from dyme_core.supervision.refiner import FIRST_TEMPLATE, RuleRefiner

# The poster's pseudo thinking, in words of the mini tokenizer; it states no value except a numeric answer.
LOW_TEMPLATE = "First, we locate {labels} in the chart. Then, we extract the values. Comparing the values, {conclusion}."
LARGEST_SLIP = 10  # a misread value is at most this far from the true one
TRIES = 10_000  # the average misreading that fits the question takes 11, of a comparison 29


@dataclass
class GradedRefiner:
    """The rule refiner, made to write targets of a given quality.

    high: the rule refiner's own.
    medium: facts and conclusion without the working, and without the last of several facts. (The rule checker does not need
        the working: a target that lacks only that would be rated "high".) A look-up has one fact and no working, so its
        medium target is the high one in the first template.
    low: fluent prose that names labels but no value of the picture, then the conclusion.

    At every quality a record without a target raises, as with the rule refiner. The answer line is not written here: it is the
    record's answer, even where the facts were misread and the thinking concludes on another one.

    Attributes:
        quality: one of config.QUALITIES.
        rules: writes the high targets; only these use its template bank.
    """

    quality: str
    rules: RuleRefiner = field(default_factory=RuleRefiner)

    def __post_init__(self) -> None:
        if self.quality not in QUALITIES:
            raise ValueError(f"the quality of targets must be one of {QUALITIES}: got {self.quality!r}")

    def refine(self, item: Item) -> str:
        """The thinking to memorize.

        Raises:
            ValueError: as RuleRefiner.refine does.
        """
        thinking = self.rules.refine(item)
        if self.quality == "medium":
            return FIRST_TEMPLATE.fill(replace(item, evidence=item.evidence[:-1] or item.evidence, working=""))
        if self.quality == "low":
            return LOW_TEMPLATE.format(labels=" and ".join(item.labels), conclusion=item.conclusion)
        return thinking

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """A target per data record, None without evidence; a misread record concludes on the answer that its facts give."""
        items = [_as_misread(record) for record in records]
        return [self.refine(item) if item.evidence else None for item in items]

    def candidates_all(self, records: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The right targets of each data record, as RuleRefiner's; of a lower quality there is one."""
        if self.quality != "high":
            return [[text] if text else [] for text in self.refine_all(records)]
        items = [_as_misread(record) for record in records]
        return [self.rules.candidates(item) if item.evidence else [] for item in items]


def _as_misread(record: dict[str, Any]) -> Item:
    """The item with the answer that its facts give; for a misread record that is not the data set's answer."""
    item = item_of(record)
    return replace(item, answer=item.misread_answer or item.answer)


def corrupt(records: Sequence[Record], share: float) -> list[Record]:
    """The records, about `share` of them misread (`misread`). A hash of each item's id decides which ones, so that those of a
    smaller share are among those of a larger one.

    Args:
        records: mini records of the training split.
        share: in [0, 1]; 0 returns the records as they are.
    """
    return [misread(record) if _place(record.item) < share else record for record in records]


def _place(item: str) -> float:
    """A number in [0, 1), the same for an id on every machine."""
    return int.from_bytes(hashlib.sha256(f"misread {item}".encode()).digest()[:6], "big") / 2 ** 48


def misread(record: Record) -> Record:
    """The record with wrong supervision: every value that its answer rests on is another number of 1 to LARGEST_VALUE, at most
    LARGEST_SLIP away, in `facts` and `evidence` alike; what the question does not ask for stays right.

    Picture, question and answer stay. Working and conclusion are computed anew from the wrong values, so that the arithmetic
    of a target holds: all that is wrong in it are its facts and what follows from them. It reads "2001 has 5, 2013 has 20 ...
    5 + 20 = 25, the sum is 25" before the data set's own answer line, 17. The new conclusion may be the right one by luck
    (often for "which", seldom for sums). `misread_answer` in the supervision's JSON is what the wrong facts come to. Values
    with which the question could not be asked (a tie, a count of none) are drawn again.

    Raises:
        ValueError: for a record that is no mini record, or whose question does not belong to its facts.
    """
    if record.kind not in KINDS:
        raise ValueError(f"item {record.item!r}: only kinds {', '.join(KINDS)} can be misread, got {record.kind!r}")
    item, rng = item_of(record.row), random.Random(f"misread {record.item}")
    table = _table_of(record, item.facts)
    read = {(fact.entity, fact.attribute) for fact in item.evidence}
    for _ in range(TRIES):
        wrong = replace(table, values=tuple(
            tuple(_slip(rng, table.value(group, series)) if (group, series) in read else table.value(group, series)
                  for group in table.groups) for series in table.series))
        found = KINDS[record.kind](rng, wrong)
        if found is not None and found.question == record.question:
            return replace(record, supervision=write_supervision(replace(found, misread_answer=found.answer)))
    raise ValueError(f"item {record.item!r}: {record.question!r} is no question of kind {record.kind!r} on its facts")


def _table_of(record: Record, facts: Sequence[Fact]) -> Table:
    """The table that `facts_of` made the facts of."""
    values = {(fact.entity, fact.attribute): int(fact.value) for fact in facts}
    groups, series = (tuple(dict.fromkeys(names)) for names in zip(*values, strict=True))
    return Table(record.source, groups, series,
                 tuple(tuple(values[group, name] for group in groups) for name in series), facts[0].unit)


def _slip(rng: random.Random, value: int) -> int:
    """Another number near `value`."""
    near = range(max(1, value - LARGEST_SLIP), min(LARGEST_VALUE, value + LARGEST_SLIP) + 1)
    return rng.choice([other for other in near if other != value])
