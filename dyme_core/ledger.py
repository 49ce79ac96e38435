"""What calls cost: the tally of one call, a ledger row for each, and the sums that a training step shows."""
from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dyme_core.asking import CircuitOpen, InvalidReply, MissingRecording, Request, SupervisionError
from dyme_core.config import PRICES_USD_PER_MILLION
from dyme_core.replies import Reply

COUNTS = ("calls", "hits", "retries", "repairs", "failures", "invalid", "refused", "tokens_in", "tokens_out", "cost_usd")


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


class Ledger:
    """Books every request: a JSONL row, appended at once, and the sums. Safe for several threads; rows of several processes
    may go into one file.

    Args:
        path: the JSONL file; None keeps the sums only.
        model: the name that rows carry.
        usd_per_million: prices in place of config.py's.
    """

    def __init__(self, path: Path | None, model: str, usd_per_million: tuple[float, float] | None = None) -> None:
        self._path, self._model, self._prices, self._lock = path, model, usd_per_million, threading.Lock()
        self._sums: dict[str, float] = dict.fromkeys(COUNTS, 0)
        self._under_way, self._since, self._waited_s = 0, 0.0, 0.0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def book(self, request: Request, tally: Tally, error: SupervisionError | None = None, is_hit: bool = False) -> None:
        """Enter how a request ended. A hit costs nothing; its tokens are those of the call that was recorded."""
        outcome = "ok" if error is None else type(error).__name__
        cost = 0.0 if is_hit else cost_usd(self._model, tally.tokens_in, tally.tokens_out, self._prices)
        row = {"purpose": request.purpose, "item": request.item, "model": self._model, "tokens_in": tally.tokens_in,
               "tokens_out": tally.tokens_out, "seconds": round(time.monotonic() - tally.start, 3), "hit": is_hit,
               "retries": tally.retries, "repairs": tally.repairs, "outcome": outcome, "cost_usd": cost}
        is_refused = isinstance(error, (CircuitOpen, MissingRecording))
        with self._lock:
            self._add(hits=is_hit and error is None, failures=error is not None, refused=is_refused,
                      invalid=isinstance(error, InvalidReply))
            if not is_hit and not is_refused:
                self._add(calls=1, retries=tally.retries, repairs=tally.repairs, tokens_in=tally.tokens_in or 0,
                          tokens_out=tally.tokens_out or 0, cost_usd=cost or 0.0)
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

    def _add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._sums[name] += amount
