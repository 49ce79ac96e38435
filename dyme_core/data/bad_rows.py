"""The checks that every row must pass, whatever its data set. A row that fails stops the reading, or is left out.

A row that is left out is logged and counted, and the run's manifest says how many there were and why. Exact repeats, which
published data sets hold, are left out and counted under either policy.
"""
from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dyme_core.data import pictures
from dyme_core.data.schema import DataError, Record, item_of

logger = logging.getLogger(__name__)
MOST = 0.5  # share of bad rows above which the data set is refused
SHOWN = 10  # bad rows that log and manifest list
MAX_CHARS = 20_000  # of one text
MAX_VALUE = 1e15  # of a fact; floats cannot distinguish whole numbers far above it

_ID = re.compile(r"\w[\w.-]{0,127}", re.ASCII)  # is used as a file name
_LABEL = re.compile(r"[^|<>`\n]{0,300}")  # kinds and sources are shown in tables
# Control characters except tab and line ends, lone surrogates, and characters that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
_SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>|\[/?INST\]|<(?:image|video|audio|pad|unk|bos|eos|mask|end_of_utterance|"
                      r"start_of_turn|end_of_turn|start_of_image|end_of_image|fake_token_around_image|global-img)>")


class BadRows:
    """Collects the rows that a reader refuses.

    Args:
        policy: "raise": the first one ends the reading; "skip": each is left out.
    """

    def __init__(self, policy: str = "raise") -> None:
        self.policy = policy
        self.reasons, self.repeats = dict[str, None](), dict[str, None]()  # a row that is read twice counts once

    def note(self, error: DataError) -> None:
        """Leave a row out, for this reason.

        Raises:
            DataError: the reason itself, where the policy is "raise".
        """
        if self.policy != "skip":
            raise error
        if str(error) not in self.reasons and len(self.reasons) < SHOWN:
            logger.warning("left out: %s", error)
        self.reasons[str(error)] = None

    def records(self, rows: Iterable[Any], read: Callable[[Any, int], Record | None]) -> list[Record]:
        """The records that `read` makes of rows and their numbers, counted from 1; None from `read` is not a bad row.

        Args:
            rows: as `rows.read_json` gives them; None stands for one that was left out already.
        Raises:
            DataError: as `note`, or where more than MOST of the rows are bad.
        """
        found: dict[str, Record] = {}
        rows = list(rows)
        num_bad = sum(row is None for row in rows)
        for number, row in enumerate(rows, 1):
            try:
                record = None if row is None else read(row, number)
                if record is None:
                    continue
                check(record, number)
                if record.item not in found:
                    found[record.item] = record
                elif record == found[record.item]:
                    self.repeats[f"{record.item} (row {number})"] = None
                else:
                    raise DataError.of(record.item, "ids to be unique", f"row {number} has it again", "rename one")
            except DataError as error:
                self.note(error)
                num_bad += 1
        self.refuse_most(num_bad, len(rows))
        return list(found.values())

    def without_repeats(self, records: Sequence[Record], digest: Callable[[Record], bytes] | None = None) -> list[Record]:
        """The records whose picture (its pixels) and question (case aside) no earlier one has.

        Args:
            digest: of a record's picture; by default it is read where a question is asked more than once, and a record whose
                picture cannot be read is kept.
        Raises:
            DataError: as `note`, for a repeat with another answer.
        """
        digest = digest or partial(_digest, known={})
        num_asked = Counter(_question(record) for record in records)
        first: dict[tuple[str, bytes], Record] = {}
        kept = []
        for record in records:
            key = _question(record), digest(record) if num_asked[_question(record)] > 1 else b""
            earlier = first.setdefault(key, record)
            if earlier is record:
                kept.append(record)
            elif earlier.answer.strip().lower() == record.answer.strip().lower():
                self.repeats[record.item] = None
            else:
                wanted = f"the answer {earlier.answer!r}, as item {earlier.item!r} gives for the same picture and question"
                self.note(DataError.of(record.item, wanted, repr(record.answer), "correct it or remove one of them"))
        return kept

    def refuse_most(self, num_bad: int, num_rows: int) -> None:
        """Stop where more than MOST of the rows are bad: then the fault is not in single rows.

        Raises:
            DataError: with their number and the last reason.
        """
        if num_bad > MOST * num_rows:
            raise DataError(f"expected at most {MOST:.0%} of the rows to be bad, got {num_bad} of {num_rows}; correct the data "
                            f"set, or read it as what it is; the last one: {next(reversed(self.reasons))}")

    def summary(self) -> dict[str, Any]:
        """How many bad rows were left out, the first SHOWN reasons, which name them, and the number of repeats; also logged."""
        if self.reasons or self.repeats:
            logger.warning("%d bad rows and %d repeated ones were left out", len(self.reasons), len(self.repeats))
        return {"count": len(self.reasons), "first": list(self.reasons)[:SHOWN], "repeats": len(self.repeats)}


def _question(record: Record) -> str:
    return record.question.strip().lower()


def _digest(record: Record, known: dict[Any, bytes]) -> bytes:
    """Of the picture's pixels, each file read once; a picture that cannot be read is like no other."""
    key = record.image if isinstance(record.image, Path) else record.item
    if key not in known:
        try:
            known[key] = b"" if record.image is None else pictures.digest(record.load_image())
        except DataError:
            return record.item.encode()
    return known[key]


def check(record: Record, number: int) -> None:
    """Check all texts and numbers of a record.

    Raises:
        DataError: naming id and row.
    """
    where, item = f"{record.item} (row {number})", item_of(record.row)
    if not _ID.fullmatch(record.item):
        raise DataError.of(where, "an id of at most 128 letters, digits, '.', '_' and '-'", repr(record.item), "rename it")
    for name in ("kind", "source", "table_key"):
        if not _LABEL.fullmatch(getattr(record, name)):
            raise DataError.of(where, f"a {name} of one line, at most 300 characters, without | < > `",
                               repr(getattr(record, name)), "rename it")
    facts = [*item.facts, *item.evidence]
    texts = {"question": record.question, "answer": record.answer, "kind": record.kind, "source": record.source,
             "trace": item.trace, "working": item.working, "conclusion": item.conclusion,
             "facts": " ".join(text for fact in facts for text in (fact.entity, fact.attribute, fact.unit))}
    for name, text in texts.items():
        _check_text(text, name, where)
    for fact in facts:
        if not abs(fact.value) <= MAX_VALUE:  # nor is NaN
            raise DataError.of(where, f"facts with values of at most {MAX_VALUE:g}", f"{fact.value} for {fact.entity!r}",
                               "correct this fact or remove it")


def _check_text(text: str, name: str, where: str) -> None:
    if name in ("question", "answer") and not text.strip():
        raise DataError.of(where, f"a {name}", repr(text), "fill it in or remove the row")
    if len(text) > MAX_CHARS:
        raise DataError.of(where, f"a text of at most {MAX_CHARS} characters in {name!r}", len(text), "shorten it")
    if found := _CONTROL.search(text):
        raise DataError.of(where, f"{name} without control characters", ascii(found[0]), "take it out")
    if found := _SPECIAL.search(text):
        raise DataError.of(where, f"{name} without special tokens", repr(found[0]),
                           "a model would take it for a picture or an end: rewrite the row")
