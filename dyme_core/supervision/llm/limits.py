"""What holds calls back: rate limits in requests and tokens per minute, and the circuit breaker."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aiolimiter import AsyncLimiter

logger = logging.getLogger(__name__)
CHARS_PER_TOKEN = 4  # rough, for the limiter only; a server's own counts go into the ledger
IMAGE_TOKENS = 1000  # what a picture costs at most servers, about
DEFAULT_REPLY_TOKENS = 256
BURST = 0.1  # share of a minute's budget that may go out at once


class Breaker:
    """Refuses calls for `cooldown_s` after `failures` failed ones in a row, then lets one through as a trial.

    Args:
        failures: failed calls in a row that open the circuit.
        cooldown_s: seconds until the trial; one that fails opens the circuit again, one that does not closes it.
        clock: seconds, monotonic.
    """

    def __init__(self, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures, self._cooldown_s, self._clock = failures, cooldown_s, clock
        self._in_a_row, self._opened, self._has_trial = 0, None, False

    def refuse_for_s(self) -> float | None:
        """None where a call may go (it must then be settled), else the seconds until one may be tried."""
        if self._opened is None:
            return None
        left_s = self._opened + self._cooldown_s - self._clock()
        if left_s > 0 or self._has_trial:
            return max(left_s, 0.0)
        self._has_trial = True
        return None

    def settle(self, is_alive: bool) -> None:
        """Say how a call that was let through ended: did the server answer it?"""
        self._in_a_row = 0 if is_alive else self._in_a_row + 1
        if is_alive:
            if self._opened is not None:
                logger.warning("the server answers again")
            self._opened = None
        elif self._has_trial or (self._opened is None and self._in_a_row >= self.failures):
            logger.warning("%d calls in a row failed: none is made for %.0f s", self._in_a_row, self._cooldown_s)
            self._opened = self._clock()
        self._has_trial = False


class Rates:
    """Waits until a request fits into the requests and tokens per minute (None: no limit)."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._requests, self._tokens = _limiter(requests_per_minute), _limiter(tokens_per_minute)

    async def wait(self, messages: Sequence[dict[str, Any]], parameters: Mapping[str, Any]) -> None:
        """Return when the request may be sent; it is then counted as sent."""
        await _spend(self._requests, 1)
        await _spend(self._tokens, estimated_tokens(messages, parameters))


def estimated_tokens(messages: Sequence[dict[str, Any]], parameters: Mapping[str, Any]) -> int:
    """Tokens that a request may use, in and out: characters / 4 and max_tokens; pictures count IMAGE_TOKENS each."""
    chars = images = 0
    for message in messages:
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        chars += sum(len(part.get("text", "")) for part in parts)
        images += sum("image_url" in part for part in parts)
    reply = parameters.get("max_tokens") or parameters.get("max_completion_tokens") or DEFAULT_REPLY_TOKENS
    return chars // CHARS_PER_TOKEN + images * IMAGE_TOKENS + int(reply)


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """A limiter that lets a tenth of a minute's budget out at once, so that no minute holds more than 1.1 budgets."""
    if per_minute is None:
        return None
    at_once = max(per_minute * BURST, 1.0)
    return AsyncLimiter(at_once, at_once * 60.0 / per_minute)


async def _spend(limiter: AsyncLimiter | None, amount: float) -> None:
    """Wait until the limiter grants `amount`, in pieces where it is more than may go out at once."""
    while limiter is not None and amount > 0:
        await limiter.acquire(min(amount, limiter.max_rate))
        amount -= limiter.max_rate
