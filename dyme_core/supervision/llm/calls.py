"""One call to the model: behind the circuit breaker, with one repair attempt; every fault a typed error naming the item."""
from __future__ import annotations

import openai
from pydantic import BaseModel

from dyme_core.supervision.llm.endpoint import Endpoint, advice, is_about_server, redact_error
from dyme_core.supervision.llm.limits import Breaker
from dyme_core.supervision.llm.parsing import Unusable, read_object
from dyme_core.supervision.llm.requests import CircuitOpen, InvalidReply, Request, SupervisionError, ask_again
from dyme_core.supervision.llm.transport import Transport
from dyme_core.supervision.llm.usage import Ledger, Tally


def call_error(kind: type[SupervisionError], request: Request, model: str, what: str) -> SupervisionError:
    """An error that names purpose, item and model before saying what was expected, what came and what to do."""
    return kind(f"{request.purpose} of item {request.item!r} by {model!r}: {what}", request.item, request.purpose)


class Caller:
    """Makes calls to one endpoint.

    Args:
        endpoint: with a base_url.
        ledger: told how long calls are under way; the caller of `call` books them.
    """

    def __init__(self, endpoint: Endpoint, ledger: Ledger) -> None:
        self.endpoint, self._ledger, self.transport = endpoint, ledger, Transport(endpoint)
        self._breaker = Breaker(endpoint.breaker_failures, endpoint.breaker_cooldown_s)

    async def call(self, request: Request, tally: Tally) -> BaseModel:
        """The valid reply to `request`.

        Raises:
            CircuitOpen: without asking, after too many failures in a row. Replies that are invalid, and requests that a
                working server refuses (400, 413, 422), are no such failures: they say nothing about the next call.
            InvalidReply: after the repair attempt.
            SupervisionError: after the last try; the cause is kept, without the API key.
        """
        left_s = self._breaker.refuse_for_s()
        if left_s is not None:
            raise self._error(CircuitOpen, request, f"not asked, for {self._breaker.failures} calls in a row failed; the next "
                              f"is tried in {left_s:.0f} s")
        is_alive = False
        try:
            with self._ledger.under_way():
                value = await self._converse(request, tally)
            is_alive = True
            return value
        except Unusable as error:
            is_alive = True
            raise self._error(InvalidReply, request, f"expected a reply that fits {request.schema.__name__}, got none in "
                              f"{1 + tally.repairs} replies: {error}; a model that follows instructions better, or a larger "
                              "max_tokens, may do") from error
        except (openai.APIError, TimeoutError) as error:
            is_alive = not is_about_server(error)
            raise self._error(SupervisionError, request, f"expected a reply within {1 + tally.retries} tries, "
                              f"{advice(error, self.endpoint)}") from redact_error(error)
        finally:
            self._breaker.settle(is_alive)

    async def _converse(self, request: Request, tally: Tally) -> BaseModel:
        """Ask, and once more with the reasons where the reply is not usable."""
        reply = await self.transport.complete(request, request.messages, tally)
        try:
            return read_object(reply, request.schema)
        except Unusable as error:
            if not reply.can_repair:
                raise
            messages = ask_again(request.messages, reply.content, str(error))
        tally.repairs += 1
        return read_object(await self.transport.complete(request, messages, tally), request.schema)

    def _error(self, kind: type[SupervisionError], request: Request, what: str) -> SupervisionError:
        return call_error(kind, request, self.endpoint.name, what)
