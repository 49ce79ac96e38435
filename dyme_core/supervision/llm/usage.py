"""What calls cost: the tally of one call, a ledger row for each, and the sums that a training step shows."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyme_core.config import PRICES_USD_PER_MILLION
from dyme_core.supervision.llm.parsing import Reply
from dyme_core.supervision.llm.requests import CircuitOpen, InvalidReply, MissingRecording, Request, SupervisionError

COUNTS = ("calls", "hits", "retries", "repairs", "failures", "invalid", "refused", "tokens_in", "tokens_out", "cost_usd")
REFUSED = (CircuitOpen.__name__, MissingRecording.__name__)  # outcomes of requests that nobody was asked


@dataclass
class Tally:
    """What one call has cost so far; tokens are None while no reply reports any."""

    start: float = field(default_factory=time.monotonic)
    retries: int = 0
    repairs: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    server_errors: int = 0  # HTTP 500 so far
    is_plain: bool = False  # the call goes on without response_format
    step: int = 0  # the training step that asks
    key: str = ""  # Request.key

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
    """What tells a ledger's requests apart: the training step, the item, the request's key."""
    return row["step"], row["item"], row["key"]


def is_call(row: Mapping[str, Any]) -> bool:
    """Whether a ledger's row is of a call that was made."""
    return not row["hit"] and row["outcome"] not in REFUSED


def add_up(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """COUNTS of a ledger's rows, as `Client.counts` names them; retries, repairs, tokens and dollars are those of calls."""
    sums: dict[str, float] = dict.fromkeys(COUNTS, 0)
    for row in rows:
        ended, is_made = row["outcome"], is_call(row)
        counted = {"calls": is_made, "hits": row["hit"] and ended == "ok", "failures": ended != "ok",
                   "invalid": ended == InvalidReply.__name__, "refused": ended in REFUSED}
        for name in COUNTS:
            sums[name] += counted[name] if name in counted else is_made and row[name] or 0
    return sums


class Ledger:
    """Books every request: a JSONL row, appended at once, and the sums. Safe for several threads; rows of several processes
    may go into one file.

    Args:
        path: the JSONL file; None keeps the sums only.
        model: the name that rows carry.
        usd_per_million: prices in place of config.py's.
        paid: rows of calls by `identity`: where one of these requests is served from the recording, its row is entered, once,
            in place of a hit's (`attempts`).
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
        outcome = "ok" if error is None else type(error).__name__
        cost = 0.0 if is_hit else cost_usd(self._model, tally.tokens_in, tally.tokens_out, self._prices)
        seconds = round(time.monotonic() - tally.start, 3)
        row = {"step": tally.step, "purpose": request.purpose, "item": request.item, "key": tally.key, "model": self._model,
               "tokens_in": tally.tokens_in, "tokens_out": tally.tokens_out, "seconds": seconds, "hit": is_hit,
               "retries": tally.retries, "repairs": tally.repairs, "outcome": outcome, "cost_usd": cost}
        with self._lock:
            if is_hit and error is None:
                row = self._paid.pop(identity(row), row)
            for name, amount in add_up([row]).items():
                self._sums[name] += amount
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:  # one write of one line
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count the time of the block as waited; of blocks that overlap it counts once."""
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
