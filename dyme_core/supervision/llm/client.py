"""The client of an OpenAI-compatible server: it sends requests, validates and stores replies, and counts their cost.

A failure is always an error that names the item, never a value; the caller decides what follows (rule, raise, skip).
`openai` is slow to import: a live client alone does it.
"""
from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

from pydantic import BaseModel, ValidationError

from dyme_core.config import Endpoint
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.parsing import InvalidReply, NotAsked, Request, SupervisionError, Unusable, read_object
from dyme_core.supervision.llm.prompts import ask_again
from dyme_core.supervision.llm.usage import Ledger, Tally, cost_usd
from dyme_core.utils import redact_error

logger = logging.getLogger(__name__)


class Client(AbstractContextManager):
    """Calls a model, at most `max_concurrency` calls at once, on a thread of its own that starts with the first call.

    A valid reply is stored, and later requests get it from the recording; equal requests under way share one call. Storing has
    a thread of its own, too: a commit waits for the disk, and the next call must not. Replay mode uses only the recording: no
    socket, no thread.

    Attributes:
        step: the training step, for the ledger.

    Args:
        endpoint: server, model and limits.
        recording: cache of a live client (SQLite), source of a replay (SQLite or JSONL); the caller closes it.
        mode: "live" or "replay".
        ledger: gets a row per request; the caller writes and closes it.
    Raises:
        ValueError: for a live client without a base_url, a replay without a recording, an unknown mode.
    """

    def __init__(self, endpoint: Endpoint, recording: Recording | None = None, mode: str = "live",
                 ledger: Ledger | None = None) -> None:
        if mode not in ("live", "replay"):
            raise ValueError(f"mode must be 'live' or 'replay': got {mode!r}")
        if mode == "replay" and recording is None:
            raise ValueError("replay needs a recording; pass Recording(path, read_only=True)")
        if mode == "live" and recording is not None and recording.is_read_only:
            raise ValueError(f"a live client writes its recording, but {recording.path} is read-only; name a SQLite file")
        self.endpoint, self.recording, self.step = endpoint.resolved(), recording, 0
        self._ledger = ledger or Ledger()
        self._server = None
        if mode == "live":
            from dyme_core.supervision.llm.server import Server
            self._server = Server(self.endpoint)
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)
        self._under_way: dict[str, Future] = {}  # by key
        self._num_failed, self._rests_until = 0, 0.0  # failed calls in a row, and when the next may start
        self._lock, self._is_closed = threading.RLock(), False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dyme-recording")  # starts with the first reply

    def submit(self, request: Request) -> Future:
        """Start asking and return at once; the future gives the valid reply, an instance of `request.schema`.

        Its `result` raises SupervisionError where there is none; the subclass says why.
        """
        tally = Tally(self.step, request.purpose, request.item, request.key(self.endpoint.name), self.endpoint.name)
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this client is closed; make a new one")
            if tally.key in self._under_way:
                return self._share(self._under_way[tally.key], request, tally)
            if (value := self._recorded(request, tally)) is None and self._server is not None:
                self._under_way[tally.key] = future = self._start(self._call(request, tally))
                return future
        future = Future()
        if value is not None:
            future.set_result(value)
        else:
            error = self._error(NotAsked, request, f"{self.recording.path} holds no reply to it (key {tally.key[:12]}); record "
                                "it with a live client and the same model name, prompts and parameters")
            self._ledger.book(tally, error)
            future.set_exception(error)
        return future

    def counts(self) -> dict[str, float]:
        """Sums since the start.

        calls: requests that went to the server; hits: served from recording or from an equal call under way; retries,
        repairs; failures: requests without a usable reply, of which invalid: the reply was not valid, and refused: no call
        was made; tokens_in, tokens_out, cost_usd of the calls, as far as known; fallbacks: 1 once the server turned out not
        to know schemas.
        """
        return {**self._ledger.sums(), "fallbacks": int(self._server is not None and self._server.takes_schemas is False)}

    def close(self) -> None:
        """Cancel calls under way and end the thread; received replies are kept. May be called twice."""
        with self._lock:
            self._is_closed, loop, self._loop = True, self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            self._writer.shutdown()
            loop.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self, call: Coroutine) -> Future:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="dyme-client", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()

    def _recorded(self, request: Request, tally: Tally) -> BaseModel | None:
        """The recorded reply, entered as a hit; None where no recorded reply fits the schema."""
        row = self.recording.get(tally.key) if self.recording is not None else None
        if row is None:
            return None
        try:
            value = request.schema.model_validate(row["reply"])
        except ValidationError:
            logger.warning("the recorded reply to %s %s does not fit %s any more", request.purpose, request.item,
                           request.schema.__name__)
            return None
        tally.hit, tally.cost_usd, tally.tokens_in, tally.tokens_out = True, 0.0, row["tokens_in"], row["tokens_out"]
        self._ledger.book(tally)
        return value

    def _share(self, first: Future, request: Request, tally: Tally) -> Future:
        """The outcome of an equal request under way, as a hit; an error names this request."""
        own, start, tally.hit, tally.cost_usd = Future(), time.monotonic(), True, 0.0

        def finish(first: Future) -> None:
            if first.cancelled():
                own.cancel()
                return
            tally.seconds, error = round(time.monotonic() - start, 3), first.exception()
            if isinstance(error, SupervisionError):
                error = type(error)(f"{error} (item {request.item!r} asked the same)", request.item, request.purpose)
                error.__cause__ = first.exception().__cause__
            self._ledger.book(tally, error)
            own.set_result(first.result()) if error is None else own.set_exception(error)

        first.add_done_callback(finish)
        return own

    async def _call(self, request: Request, tally: Tally) -> BaseModel:
        start, error, value = time.monotonic(), None, None
        try:
            async with self._slots:
                value = await self._converse(request, tally)
        except SupervisionError as caught:
            error = caught
        try:
            tally.seconds = round(time.monotonic() - start, 3)
            tally.cost_usd = cost_usd(tally.model, tally.tokens_in, tally.tokens_out, self.endpoint.usd_per_million)
            self._ledger.book(tally, error)  # before the recording: after a crash a paid call never looks like a free hit
            if error is not None:
                raise error
            if self.recording is not None:
                row = {"key": tally.key, "purpose": tally.purpose, "item": tally.item, "model": tally.model,
                       "reply": value.model_dump(mode="json", by_alias=True), "tokens_in": tally.tokens_in,
                       "tokens_out": tally.tokens_out}
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, self.recording.put, row))
            return value
        finally:
            with self._lock:  # waits until `submit` has entered it
                self._under_way.pop(tally.key, None)

    async def _converse(self, request: Request, tally: Tally) -> BaseModel:
        """Call, and once more with the reasons where the reply is not usable; every failure is an error that names the item."""
        import openai

        from dyme_core.supervision.llm.server import advice, status_of
        if (left_s := self._rests_until - time.monotonic()) > 0:
            raise self._error(NotAsked, request, f"not asked, for {self._num_failed} calls in a row failed; the next is tried "
                              f"in {left_s:.0f} s")
        try:
            reply = await self._server.complete(request, request.messages, tally)
            try:
                value = read_object(reply, request.schema)
            except Unusable as error:
                if not reply.can_repair:
                    raise
                again, tally.repairs = ask_again(request.messages, reply.content, str(error)), 1
                value = read_object(await self._server.complete(request, again, tally), request.schema)
        except Unusable as error:
            self._note(is_alive=True)
            raise self._error(InvalidReply, request, f"expected a reply that fits {request.schema.__name__}, got none in "
                              f"{1 + tally.repairs} replies: {error}; a model that follows instructions better, or a larger "
                              f"{request.token_limit}, may do") from error
        except openai.APIError as error:
            self._note(is_alive=status_of(error) in (400, 413, 422))  # the server works, but refused this request
            raise self._error(SupervisionError, request, f"expected a reply within {1 + tally.retries} tries, "
                              f"{advice(error, self.endpoint)}") from redact_error(error)
        self._note(is_alive=True)
        return value

    def _note(self, is_alive: bool) -> None:
        """Count failed calls in a row; after too many of them, make no calls for a while."""
        self._num_failed = 0 if is_alive else self._num_failed + 1
        if self._num_failed >= self.endpoint.breaker_failures:
            logger.warning("%d calls in a row failed: none is made for %.0f s", self._num_failed,
                           self.endpoint.breaker_cooldown_s)
            self._rests_until = time.monotonic() + self.endpoint.breaker_cooldown_s

    def _error(self, kind: type[SupervisionError], request: Request, what: str) -> SupervisionError:
        """An error that names purpose, item and model before saying what was expected, what came and what to do."""
        return kind(f"{request.purpose} of item {request.item!r} by {self.endpoint.name!r}: {what}", request.item,
                    request.purpose)
