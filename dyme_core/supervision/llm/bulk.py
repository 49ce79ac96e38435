"""Many requests in order with flat memory and a line of progress now and then."""
from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from datetime import timedelta

from pydantic import BaseModel

from dyme_core.supervision.llm.requests import Request, SupervisionError

logger = logging.getLogger(__name__)


def in_order(submit: Callable[[Request], Future], requests: Iterable[Request], window: int, total: int | None = None,
             every_s: float = 10.0) -> Iterator[BaseModel | SupervisionError]:
    """Yield the outcome of each request in order; at most `window` are drawn from `requests` and not yet yielded.

    Args:
        submit: starts one request.
        total: how many there are, where that is known; the log line then tells the time left.
        every_s: seconds between log lines.
    """
    pace, pending = _Pace(total, every_s), deque()
    try:
        for request in requests:
            pending.append(submit(request))
            if len(pending) >= window:
                yield pace.outcome(pending.popleft())
        while pending:
            yield pace.outcome(pending.popleft())
    finally:
        for future in pending:
            future.cancel()


class _Pace:
    """Waits for outcomes and logs how it goes, also while one of them is long in coming."""

    def __init__(self, total: int | None, every_s: float) -> None:
        self._total, self._every_s = total, every_s
        self._start = self._said = time.monotonic()
        self._done = self._failed = 0

    def outcome(self, future: Future) -> BaseModel | SupervisionError:
        while not wait([future], max(self._said + self._every_s - time.monotonic(), 0.001)).done:
            self._say()
        self._done += 1
        try:
            value = future.result()
        except SupervisionError as error:
            self._failed += 1
            value = error
        self._say()
        return value

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said < self._every_s:
            return
        self._said, elapsed_s = now, now - self._start
        left = "time left not known"
        if self._done and self._total is not None:
            left = f"about {timedelta(seconds=round(elapsed_s / self._done * max(self._total - self._done, 0)))} left"
        logger.info("%d of %s replies, %d failed, %.1f a second, %s", self._done,
                    "?" if self._total is None else self._total, self._failed, self._done / elapsed_s, left)
