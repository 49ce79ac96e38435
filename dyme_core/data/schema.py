"""A question on a picture (`Record`), a value that a picture shows (`Fact`), what is known of a question (`Item`), and the
error of a row that cannot be used (`DataError`).
"""
from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from dyme_core.data import pictures

NO_SUPERVISION = json.dumps({"facts": [], "evidence": []})
MAX_SHOWN = 300  # characters of a faulty value that an error shows
COLUMNS = ("answer", "question", "item", "kind", "supervision")  # what rewards and refiner get of a record


class DataError(ValueError):
    """A data set that must not be trained or scored on: names the row, what was expected, what came, what to do."""

    @classmethod
    def of(cls, item: str, expected: str, got: object, advice: str) -> DataError:
        """The error of one row; what came is cut short, and none of its characters reaches a terminal as a command."""
        came = str(got) if len(str(got)) <= MAX_SHOWN else f"{str(got)[:MAX_SHOWN]}..."
        text = f"item {item!r}: expected {expected}, got {came}; {advice}"
        return cls("".join(char if char.isprintable() else ascii(char)[1:-1] for char in text))


@dataclass(frozen=True)
class Fact:
    """One value that the picture shows, e.g. Fact("2010", "FAV", 62.0, "percent")."""

    entity: str
    attribute: str
    value: float
    unit: str = ""


@dataclass(frozen=True)
class Item:
    """One question with all that is known of it; in a data record it is JSON (`item_of`, `write_supervision`).

    Attributes:
        question, answer: as the record has them.
        facts: what the picture shows.
        evidence: those that the answer rests on, in reading order.
        labels: what has to be located first.
        working: arithmetic or comparison on the evidence, e.g. "62 - 36 = 26"; "" for a look-up.
        conclusion: the closing statement, e.g. "the difference is 26".
        trace: thinking that comes with the data set.
        misread_answer: the answer that misread facts come to (supervision.corruption); "" where nothing is misread.
        scoring: what the data set's own scorer needs beyond the answer; read-only, as rows share it.
    """

    question: str
    answer: str
    facts: tuple[Fact, ...] = ()
    evidence: tuple[Fact, ...] = ()
    labels: tuple[str, ...] = ()
    working: str = ""
    conclusion: str = ""
    trace: str = ""
    misread_answer: str = ""
    scoring: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Record:
    """One question on one picture, or on none.

    Attributes:
        item: id, unique in its data set.
        question: as a user asks it, without the format instruction.
        answer: the data set's answer.
        kind: question kind ("lookup", ...; ChartQA: "human" or "augmented").
        source: where the picture's numbers are from.
        split: one of config.SPLITS.
        image: the picture, the bytes of its file, or where it lies; None for a question of text alone.
        supervision: the rest of its `Item` as JSON (`write_supervision`); NO_SUPERVISION where nothing is known.
        table_key: what makes two pictures the same statistics; "" where unknown.
    """

    item: str
    question: str
    answer: str
    kind: str
    source: str
    split: str
    image: Image.Image | Path | bytes | None = field(repr=False)
    supervision: str = field(default=NO_SUPERVISION, repr=False)
    table_key: str = ""

    @property
    def row(self) -> dict[str, str]:
        """The columns that rewards, checker and refiner see."""
        return {name: getattr(self, name) for name in COLUMNS}

    def load_image(self) -> Image.Image:
        """The picture in 8-bit RGB, as people see it.

        Taken: PNG, JPEG, GIF, WebP, BMP and TIFF; upright by EXIF; the first frame of an animation; what is transparent on
        white; of 16 bits the upper 8; CMYK converted without colour profiles.

        Raises:
            DataError: if there is none; if it is missing, damaged or cut off, of another format, or of 32 bits; if a side
                has fewer than 2 or more than 10,000 pixels, or the whole more than 50 million (pictures.py).
        """
        if self.image is None:
            raise DataError.of(self.item, "a picture", "a question of text alone", "ask it without a picture")
        try:
            return pictures.read_rgb(self.image)
        except pictures.PictureError as error:
            raise DataError.of(self.item, *error.args) from error


def known(facts: Sequence[Fact] = (), trace: str = "", **scoring: Any) -> str:
    """A record's supervision where no steps were computed; NO_SUPERVISION for nothing."""
    return write_supervision(Item("", "", tuple(facts), trace=trace, scoring=scoring))


def write_supervision(item: Item) -> str:
    """All of an item but question and answer, as a record keeps it: JSON that passes through `datasets` and TRL unchanged."""
    return json.dumps(supervision_row(item))


def supervision_row(item: Item) -> dict[str, Any]:
    """All of an item but question and answer as a plain row; what is empty is left out, except facts and evidence."""
    steps = {"labels": item.labels, "working": item.working, "conclusion": item.conclusion}
    more = {"trace": item.trace, "misread_answer": item.misread_answer, "scoring": item.scoring}
    return {"facts": facts_to_rows(item.facts), "evidence": facts_to_rows(item.evidence),
            **(steps if any(steps.values()) else {}), **{name: value for name, value in more.items() if value}}


def item_of(record: Mapping[str, Any]) -> Item:
    """What a data record (`Record.row`, or a row of a data set) says of its question."""
    return _parsed(record.get("question", ""), record.get("answer", ""), record["supervision"])


@functools.lru_cache(maxsize=8192)  # checker, refiner and scorer ask for the same record, once a rollout
def _parsed(question: str, answer: str, supervision: str) -> Item:
    stored = json.loads(supervision)
    texts = (stored.get(name, "") for name in ("working", "conclusion", "trace", "misread_answer"))
    return Item(question, answer, facts_from_rows(stored["facts"]), facts_from_rows(stored["evidence"]),
                tuple(stored.get("labels", ())), *texts, stored.get("scoring", {}))


def facts_to_rows(facts: Iterable[Fact]) -> list[dict[str, Any]]:
    return [asdict(fact) for fact in facts]


def facts_from_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[Fact, ...]:
    """Facts of rows {entity, attribute, value, unit}; no attribute and no unit are "". Names may be numbers (a year, 0)."""
    return tuple(Fact(str(row["entity"]), _text(row.get("attribute")), float(row["value"]), _text(row.get("unit")))
                 for row in rows)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def write_number(value: float) -> str:
    """62.0 -> "62", 8.90 -> "8.9": one spelling a value."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def write_facts(facts: tuple[Fact, ...]) -> str:
    """Facts as the poster's trace states them: "2010 has 62 and 36, 2012 has 65 and 35", values in the legend's order."""
    by_entity: dict[str, list[str]] = {}
    for fact in facts:
        by_entity.setdefault(fact.entity, []).append(write_number(fact.value))
    return ", ".join(f"{entity} has {' and '.join(values)}" for entity, values in by_entity.items())
