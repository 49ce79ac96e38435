"""The client of an OpenAI-compatible server: it sends requests, validates and stores replies, and counts their cost.

A failure is always an error that names the item, never a value; the caller decides what follows (rule, raise, skip).
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
from pydantic import BaseModel, ValidationError

from dyme_core.config import Endpoint
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.parsing import InvalidReply, NotAsked, Request, SupervisionError, Unusable, read_object
from dyme_core.supervision.llm.prompts import ask_again
from dyme_core.supervision.llm.server import Server, advice, status_of
from dyme_core.supervision.llm.usage import Ledger, Tally
from dyme_core.utils import redact_error

logger = logging.getLogger(__name__)


class Client:
    """Calls a model, at most `max_concurrency` calls at once, on a thread of its own that starts with the first call.

    A valid reply is stored, and later requests get it from the recording; equal requests under way share one call. Replay mode
    uses only the recording: no socket, no thread.

    Attributes:
        step: the training step, for the ledger.

    Args:
        endpoint: server, model and limits.
        recording: cache of a live client (SQLite), source of a replay (SQLite or JSONL); the caller closes it.
        mode: "live" or "replay".
        ledger: JSONL file that gets a row per call.
        paid: see Ledger.
    Raises:
        ValueError: for a live client without a base_url, a replay without a recording, an unknown mode.
    """

    def __init__(self, endpoint: Endpoint, recording: Recording | None = None, mode: str = "live",
                 ledger: Path | None = None, paid: Mapping[tuple, dict[str, Any]] | None = None) -> None:
        if mode not in ("live", "replay"):
            raise ValueError(f"mode must be 'live' or 'replay': got {mode!r}")
        if mode == "replay" and recording is None:
            raise ValueError("replay needs a recording; pass Recording(path, read_only=True)")
        if mode == "live" and recording is not None and recording.is_read_only:
            raise ValueError(f"a live client writes its recording, but {recording.path} is read-only; name a SQLite file")
        endpoint = endpoint.resolved()
        self.endpoint, self.recording, self.mode, self.step = endpoint, recording, mode, 0
        self._ledger = Ledger(ledger, endpoint.name, endpoint.usd_per_million, paid)
        self._server = Server(endpoint) if mode == "live" else None
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)
        self._under_way: dict[str, asyncio.Task] = {}
        self._num_failed, self._rests_until = 0, 0.0  # failed calls in a row, and when the next may start
        self._lock, self._is_closed = threading.RLock(), False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def submit(self, request: Request) -> concurrent.futures.Future:
        """Start asking and return at once; the future gives the valid reply, an instance of `request.schema`.

        Its `result` raises SupervisionError where there is none; the subclass says why.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this client is closed; make a new one")
            tally = Tally(self.step, request.key(self.endpoint.name))
            if self.mode == "live":
                return asyncio.run_coroutine_threadsafe(self._ask(request, tally), self._running_loop())
        future: concurrent.futures.Future = concurrent.futures.Future()
        try:
            future.set_result(self._replay(request, tally))
        except SupervisionError as error:
            future.set_exception(error)
        return future

    def counts(self) -> dict[str, float]:
        """Sums since the start.

        calls: requests that went to the server; hits: served from recording or from an equal call under way; retries,
        repairs; failures: requests without a usable reply, of which invalid: the reply was not valid, and refused: no call
        was made; tokens_in, tokens_out, cost_usd of the calls, as far as known; waited_s: seconds in which at least one call
        was under way; fallbacks: 1 once the server turned out not to know schemas.
        """
        return {**self._ledger.sums(), "fallbacks": int(self._server is not None and self._server.takes_schemas is False)}

    def close(self) -> None:
        """Cancel calls under way and end the thread; received replies are kept. May be called twice."""
        with self._lock:
            self._is_closed, thread, self._thread = True, self._thread, None
        if thread is not None:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._thread is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="dyme-client", daemon=True)
            self._thread.start()
        return self._loop

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close()

    def _replay(self, request: Request, tally: Tally) -> BaseModel:
        value = self._look_up(request, tally)
        if value is not None:
            return value
        error = self._error(NotAsked, request, f"{self.recording.path} holds no reply to it (key {tally.key[:12]}); record it "
                            "with a live client and the same model name, prompts and parameters")
        self._ledger.book(request, tally, error)
        raise error

    async def _ask(self, request: Request, tally: Tally) -> BaseModel:
        """From the recording, else from an equal call under way, else from the server."""
        value = self._look_up(request, tally)
        if value is not None:
            return value
        key = tally.key
        if key in self._under_way:
            return await self._share(self._under_way[key], request, tally)
        task = self._under_way[key] = asyncio.create_task(self._call(request, tally))
        task.add_done_callback(lambda done: (self._under_way.pop(key), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    def _look_up(self, request: Request, tally: Tally) -> BaseModel | None:
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
        tally.tokens_in, tally.tokens_out = row["tokens_in"], row["tokens_out"]
        self._ledger.book(request, tally, is_hit=True)
        return value

    async def _share(self, task: asyncio.Task, request: Request, tally: Tally) -> BaseModel:
        """The outcome of an equal request under way; an error names this request."""
        try:
            value = await asyncio.shield(task)
        except SupervisionError as error:
            own = type(error)(f"{error} (item {request.item!r} asked the same)", request.item, request.purpose)
            self._ledger.book(request, tally, own, is_hit=True)
            raise own from error
        self._ledger.book(request, tally, is_hit=True)
        return value

    async def _call(self, request: Request, tally: Tally) -> BaseModel:
        try:
            async with self._slots:
                value = await self._converse(request, tally)
        except SupervisionError as error:
            self._ledger.book(request, tally, error)
            raise
        self._ledger.book(request, tally)  # first: after a crash a paid call never looks like a free hit
        if self.recording is not None:
            self.recording.put({"key": tally.key, "purpose": request.purpose, "item": request.item, "model": self.endpoint.name,
                                "reply": value.model_dump(mode="json", by_alias=True), "tokens_in": tally.tokens_in,
                                "tokens_out": tally.tokens_out})
        return value

    async def _converse(self, request: Request, tally: Tally) -> BaseModel:
        """Call, and once more with the reasons where the reply is not usable; every failure is an error that names the item."""
        self._refuse_while_resting(request)
        try:
            with self._ledger.under_way():
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

    def _refuse_while_resting(self, request: Request) -> None:
        left_s = self._rests_until - time.monotonic()
        if left_s > 0:
            raise self._error(NotAsked, request, f"not asked, for {self._num_failed} calls in a row failed; the next is tried "
                              f"in {left_s:.0f} s")

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
