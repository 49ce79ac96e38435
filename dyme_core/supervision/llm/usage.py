"""What calls cost: the tally of one call, one ledger line per call, and the sums of a step and of a run.

A run that resumes from a checkpoint repeats the requests made since, and the recording answers them. Its ledger must still
equal that of an uninterrupted run. So every attempt writes a ledger of its own; a reply that an earlier attempt paid for is
entered as that call (`Attempts.paid`), and for each step the rows of the last attempt count (`merge`).
"""
from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyme_core.config import PRICES_USD_PER_MILLION
from dyme_core.supervision.llm.parsing import InvalidReply, NotAsked, Reply, Request, SupervisionError
from dyme_core.utils import json_line, write_rows

LEDGER_FILE = "ledger.jsonl"
COUNTS = ("calls", "hits", "retries", "repairs", "failures", "invalid", "refused", "tokens_in", "tokens_out", "cost_usd")
logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """What one call has cost so far; tokens are None while no reply reports any."""

    step: int = 0  # training step
    key: str = ""  # Request.key
    start: float = field(default_factory=time.monotonic)
    retries: int = 0
    repairs: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None

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
    """Records every request: a JSONL row, appended at once, and the sums. Safe for several threads; several processes may write
    to one file.

    Args:
        path: the JSONL file; None keeps the sums only.
        model: the name that rows carry.
        usd_per_million: prices in place of config.py's.
        paid: rows of calls by `identity`. Where the recording serves one of these requests, its row is entered once, in place
            of a hit.
    """

    def __init__(self, path: Path | None, model: str, usd_per_million: tuple[float, float] | None = None,
                 paid: Mapping[tuple, dict[str, Any]] | None = None) -> None:
        self._path, self._model, self._prices, self._lock = path, model, usd_per_million, threading.Lock()
        self._sums, self._paid = add_up([]), dict(paid or {})
        self._under_way, self._since, self._waited_s = 0, 0.0, 0.0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def book(self, request: Request, tally: Tally, error: SupervisionError | None = None, is_hit: bool = False) -> None:
        """Enter how a request ended. A hit costs nothing; its tokens are those of the call that was recorded."""
        cost = 0.0 if is_hit else cost_usd(self._model, tally.tokens_in, tally.tokens_out, self._prices)
        row = {"step": tally.step, "purpose": request.purpose, "item": request.item, "key": tally.key, "model": self._model,
               "tokens_in": tally.tokens_in, "tokens_out": tally.tokens_out,
               "seconds": round(time.monotonic() - tally.start, 3), "hit": is_hit, "retries": tally.retries,
               "repairs": tally.repairs, "outcome": "ok" if error is None else type(error).__name__, "cost_usd": cost}
        with self._lock:
            if is_hit and error is None:
                row = self._paid.pop(identity(row), row)
            for name, amount in add_up([row]).items():
                self._sums[name] += amount
            if self._path is not None:
                with self._path.open("ab") as file:  # one write of one line
                    file.write(json_line(row))

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count the time of the block as waiting; overlapping blocks count once."""
        with self._lock:
            self._since = self._since if self._under_way else time.monotonic()
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._waited_s += 0.0 if self._under_way else time.monotonic() - self._since

    def sums(self) -> dict[str, float]:
        """COUNTS and `waited_s`, seconds in which at least one call was under way."""
        with self._lock:
            running_s = time.monotonic() - self._since if self._under_way else 0.0
            return {**self._sums, "waited_s": self._waited_s + running_s}


class Attempts:
    """The ledgers of earlier attempts at a run, and the file of this one. Several processes may share it, if all of them create
    it before one writes. A call that was under way when its process was killed is in no ledger: it got no reply.

    Attributes:
        path: of this attempt's ledger.
        paid: calls of earlier attempts that got a reply, by `identity`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._is_over, earlier = folder, False, _read_attempts(folder)
        self.path = folder / f"attempt-{len(earlier)}.jsonl"
        self.paid = {identity(row): row for rows in earlier for row in rows if is_call(row) and row["outcome"] == "ok"}

    def rows(self) -> list[dict[str, Any]]:
        """The run's ledger up to now."""
        return merge(_read_attempts(self._folder))

    def write(self) -> None:
        """Write the run's ledger, whole or not at all."""
        write_rows(self._folder / LEDGER_FILE, self.rows())
        self._is_over = True

    def close(self) -> None:
        """Remove the attempts' files where the ledger is written; else the next attempt needs them."""
        for file in _attempt_files(self._folder) if self._is_over else ():
            file.unlink()


def merge(attempts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One ledger of all attempts, sorted by step, purpose, item and request. For each step it has the rows of the last attempt
    with any, and earlier calls that this attempt did not repeat: they were paid for (sampling on a GPU may differ)."""
    last = {row["step"]: number for number, rows in enumerate(attempts) for row in rows}
    kept = [row for number, rows in enumerate(attempts) for row in rows if last[row["step"]] == number]
    known = {identity(row) for row in kept if is_call(row)}
    lost = {identity(row): row for rows in attempts for row in rows if is_call(row) and identity(row) not in known}
    return sorted([*kept, *lost.values()], key=lambda row: (row["step"], row["purpose"], row["item"], row["key"], row["hit"]))


def _attempt_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*[0-9].jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))


def _read_attempts(folder: Path) -> list[list[dict[str, Any]]]:
    return [list(_read_lines(file)) for file in _attempt_files(folder)]


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in filter(None, file.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            yield json.loads(line)
        except ValueError:
            logger.warning("%s: a line was torn when the run was interrupted; one call is not in the ledger", file)
