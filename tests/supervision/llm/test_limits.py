"""Rates and the circuit breaker by themselves, with a clock of the test's own where that is possible."""
from __future__ import annotations

import asyncio
import time

from dyme_core.supervision.llm.limits import Breaker, Rates, estimated_tokens


def test_rates_let_a_tenth_of_a_minute_out_at_once_and_no_more() -> None:
    async def seconds(rates: Rates, *max_tokens: int) -> float:
        start = time.monotonic()
        for number in max_tokens:
            await rates.wait(({"role": "user", "content": ""},), {"max_tokens": number})
        return time.monotonic() - start

    assert asyncio.run(seconds(Rates(1200, None), *[1] * 120)) < 0.1
    assert 0.2 < asyncio.run(seconds(Rates(1200, None), *[1] * 126)) < 0.6  # 6 more at 20 a second
    assert 0.25 < asyncio.run(seconds(Rates(None, 600_000), 57_000, 6_000)) < 0.6  # 3,000 too many at 10,000 a second
    assert 0.25 < asyncio.run(seconds(Rates(None, 600_000), 63_000)) < 0.6  # more than may ever go out at once
    assert asyncio.run(seconds(Rates(None, None), *[10**9] * 9)) < 0.1


def test_while_a_trial_is_under_way_no_other_call_goes() -> None:
    now = [0.0]
    breaker = Breaker(failures=1, cooldown_s=10, clock=lambda: now[0])
    assert breaker.refuse_for_s() is None
    breaker.settle(False)
    now[0] = 4.0
    assert breaker.refuse_for_s() == 6.0
    now[0] = 11.0
    assert breaker.refuse_for_s() is None and breaker.refuse_for_s() == 0.0
    breaker.settle(True)
    assert breaker.refuse_for_s() is None and breaker.refuse_for_s() is None


def test_only_failures_in_a_row_open_the_circuit() -> None:
    breaker = Breaker(failures=2, cooldown_s=10)
    for is_alive in (False, True, False, True, False):
        assert breaker.refuse_for_s() is None
        breaker.settle(is_alive)
    assert breaker.refuse_for_s() is None
    breaker.settle(False)
    assert breaker.refuse_for_s() > 9


def test_tokens_are_estimated_from_texts_pictures_and_the_longest_reply() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
    messages = [{"role": "system", "content": "x" * 40},
                {"role": "user", "content": [{"type": "text", "text": "y" * 20}, picture]}]
    assert estimated_tokens(messages, {"max_tokens": 50}) == 10 + 5 + 1000 + 50
    assert estimated_tokens(messages, {}) == 10 + 5 + 1000 + 256
