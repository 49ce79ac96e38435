"""What calls cost: the tally of one request, one JSON line per request in the ledger, and the sums of a step and of a run.

A run that resumes from a checkpoint repeats the requests made since, and the recording answers them. Its ledger must still
equal that of an uninterrupted run. So every row says which attempt at the run wrote it; a reply that an earlier attempt paid
for is entered as that call, and for each step the rows of the last attempt count (`merge`).
"""
from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from dyme_core.config import PRICES_USD_PER_MILLION
from dyme_core.supervision.llm.completion import Reply
from dyme_core.supervision.llm.parsing import InvalidReply, NotAsked, SupervisionError
from dyme_core.utils import json_line, write_rows

LEDGER_FILE, ROWS_FILE = "ledger.jsonl", "calls.jsonl"  # of a finished run, and of one that goes on
COUNTS = ("calls", "hits", "retries", "repairs", "failures", "invalid", "refused", "tokens_in", "tokens_out", "cost_usd")
logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """One request and what it has cost so far; tokens are None while no reply reports any, the cost where it is unknown.

    Attributes:
        step: the training step.
        key: Request.key.
        hit: whether it was served without a call.
        outcome: "ok", or the name of the error.
    """

    step: int
    purpose: str
    item: str
    key: str
    model: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    seconds: float = 0.0
    hit: bool = False
    retries: int = 0
    repairs: int = 0
    outcome: str = "ok"
    cost_usd: float | None = None

    def add(self, reply: Reply) -> None:
        """Add the tokens that a reply reports."""
        for name in ("tokens_in", "tokens_out"):
            if getattr(reply, name) is not None:
                setattr(self, name, (getattr(self, name) or 0) + getattr(reply, name))


def cost_usd(model: str, tokens_in: int | None, tokens_out: int | None,
             usd_per_million: tuple[float, float] | None = None) -> float | None:
    """Dollars of a call by the price table of config.py, or by the given (input, output) prices; None where unknown."""
    prices = usd_per_million or PRICES_USD_PER_MILLION.get(model)
    if prices is None or tokens_in is None or tokens_out is None:
        return None
    return (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6


def identity(row: Mapping[str, Any]) -> tuple[int, str, str]:
    """What identifies a request in a ledger: the training step, the item, the request's key."""
    return row["step"], row["item"], row["key"]


def is_call(row: Mapping[str, Any]) -> bool:
    """Whether a ledger's row is of a call that was made."""
    return not row["hit"] and row["outcome"] != NotAsked.__name__


def add_up(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """COUNTS of a ledger's rows, as `Client.counts` names them; retries, repairs, tokens and dollars are those of calls."""
    sums: dict[str, float] = dict.fromkeys(COUNTS, 0)
    for row in rows:
        outcome, is_made = row["outcome"], is_call(row)
        counted = {"calls": is_made, "hits": row["hit"] and outcome == "ok", "failures": outcome != "ok",
                   "invalid": outcome == InvalidReply.__name__, "refused": outcome == NotAsked.__name__}
        for name in COUNTS:
            sums[name] += counted[name] if name in counted else is_made and row[name] or 0
    return sums


class Ledger:
    """Records every request of a run: a JSON line each, appended at once, and the sums since this attempt began.

    Safe for several threads. Several processes may share a folder, if all of them open it before one writes. A call that was
    under way when its process was killed is not in it: it got no reply.

    Args:
        folder: of the run, where the rows of earlier attempts lie; None keeps the sums only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._lock, self._is_over = folder, threading.Lock(), False
        earlier = self._read()
        self._attempt = 1 + max((row["attempt"] for row in earlier), default=-1)
        self._paid = {identity(row): row for row in earlier if is_call(row) and row["outcome"] == "ok"}
        self._sums = add_up([])
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def book(self, tally: Tally, error: SupervisionError | None = None) -> None:
        """Enter how a request ended; a hit that an earlier attempt paid for as that call, once."""
        row = {**asdict(tally), "outcome": "ok" if error is None else type(error).__name__}
        with self._lock:
            if tally.hit and error is None:
                row = self._paid.pop(identity(row), row)
            for name, amount in add_up([row]).items():
                self._sums[name] += amount
            if self._folder is not None:
                with (self._folder / ROWS_FILE).open("ab") as file:  # one write; an earlier one may have been torn
                    file.write(b"\n" + json_line({**row, "attempt": self._attempt}))

    def sums(self) -> dict[str, float]:
        """COUNTS of this attempt."""
        with self._lock:
            return dict(self._sums)

    def rows(self) -> list[dict[str, Any]]:
        """The run's ledger up to now, of all attempts and processes."""
        return merge(self._read())

    def write(self) -> None:
        """Write the ledger of a finished run, whole or not at all."""
        write_rows(self._folder / LEDGER_FILE, self.rows())
        self._is_over = True

    def close(self) -> None:
        """Remove the attempts' rows where the ledger is written; else the next attempt needs them."""
        if self._is_over:
            (self._folder / ROWS_FILE).unlink(missing_ok=True)

    def _read(self) -> list[dict[str, Any]]:
        return [] if self._folder is None else list(_read_lines(self._folder / ROWS_FILE))


def merge(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One ledger of the rows of all attempts, sorted by step, purpose, item and request. For each step it has the rows of the
    last attempt with any, and earlier calls that this attempt did not repeat: they were paid for (sampling on a GPU may
    differ)."""
    last = {row["step"]: row["attempt"] for row in sorted(rows, key=lambda row: row["attempt"])}
    kept = [row for row in rows if row["attempt"] == last[row["step"]]]
    known = {identity(row) for row in kept if is_call(row)}
    lost = {identity(row): row for row in rows if is_call(row) and identity(row) not in known}
    in_order = sorted([*kept, *lost.values()], key=itemgetter("step", "purpose", "item", "key", "hit"))
    return [{name: value for name, value in row.items() if name != "attempt"} for row in in_order]


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in filter(None, path.read_bytes().split(b"\n") if path.is_file() else ()):
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s: a line was torn when the run was interrupted; one call is not in the ledger", path)
