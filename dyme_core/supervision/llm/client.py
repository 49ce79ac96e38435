"""The client of an OpenAI-compatible server: asks, checks, keeps what was answered, and says in numbers what it cost.

Everything others need stands here: Client, Endpoint, Request, Recording, Rating and the errors. A fault is always an error
with the item's name, never a value; what to do about it (rule, raise, skip) is the caller's choice.
"""
from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from dyme_core.supervision.llm.bulk import in_order
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.calls import Caller, call_error
from dyme_core.supervision.llm.endpoint import Endpoint
from dyme_core.supervision.llm.requests import (
    CircuitOpen,
    InvalidReply,
    MissingRecording,
    Rating,
    Request,
    SupervisionError,
    parse_rating,
)
from dyme_core.supervision.llm.usage import Ledger, Tally

__all__ = ["CircuitOpen", "Client", "Endpoint", "InvalidReply", "MissingRecording", "Rating", "Recording", "Request",
           "SupervisionError", "parse_rating"]
logger = logging.getLogger(__name__)


class Client:
    """Asks a model, at most `max_concurrency` calls at once, on a thread of its own that starts with the first call.

    A reply that was valid once is served from the recording from then on; equal requests under way are asked once. In
    replay mode nothing but the recording is asked: no socket, no thread.

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
        self.endpoint, self.recording, self.mode = endpoint, recording, mode
        self._ledger = Ledger(ledger, endpoint.name, endpoint.usd_per_million, paid)
        self.step = 0  # of the training that asks, for the ledger
        self._caller = Caller(endpoint, self._ledger) if mode == "live" else None
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)
        self._under_way: dict[str, asyncio.Task] = {}
        self._lock, self._is_closed = threading.RLock(), False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def ask(self, request: Request) -> BaseModel:
        """The valid reply, an instance of `request.schema`.

        Raises:
            SupervisionError: where there is none; its subclasses say why.
        """
        return await asyncio.wrap_future(self.submit(request))

    def submit(self, request: Request) -> concurrent.futures.Future:
        """Start asking and return at once; the future gives what `ask` gives or raises."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("this client is closed; make a new one")
            tally = Tally(step=self.step)
            if self.mode == "live":
                return asyncio.run_coroutine_threadsafe(self._ask(request, tally), self._running_loop())
        future: concurrent.futures.Future = concurrent.futures.Future()
        try:
            future.set_result(self._replay(request, tally))
        except SupervisionError as error:
            future.set_exception(error)
        return future

    def ask_all(self, requests: Iterable[Request], **options: Any) -> list[BaseModel | SupervisionError]:
        """The replies in the order of the requests, an error in the place of each that got none; options of `iter_all`."""
        return list(self.iter_all(requests, **options))

    def iter_all(self, requests: Iterable[Request], window: int | None = None, total: int | None = None,
                 progress_every_s: float = 10.0) -> Iterator[BaseModel | SupervisionError]:
        """As `ask_all`, one by one, with at most `window` requests drawn and not yet yielded (None: 4 * max_concurrency), so
        that memory stays flat over any number. Progress is logged, with the time left where `total` or a length tells it."""
        total = total if total is not None else getattr(requests, "__len__", lambda: None)()
        yield from in_order(self.submit, requests, window or 4 * self.endpoint.max_concurrency, total, progress_every_s)

    def counts(self) -> dict[str, float]:
        """Sums since the start.

        calls: requests that went to the server; hits: served from recording or from an equal call under way; retries,
        repairs; failures: requests without a usable reply, of which invalid: answered, but not validly, and refused: by the
        open circuit, or for want of a recording; tokens_in, tokens_out, cost_usd of the calls, as far as known; waited_s:
        seconds in which at least one call was under way; fallbacks: 1 after the server was found to know no schemas.
        """
        is_plain = self._caller is not None and self._caller.transport.schemas is False
        return {**self._ledger.sums(), "fallbacks": int(is_plain)}

    def close(self) -> None:
        """Cancel what is under way and end the thread; replies that came are kept. May be called twice."""
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
        await self._caller.transport.close()

    def _replay(self, request: Request, tally: Tally) -> BaseModel:
        tally.key = request.key(self.endpoint.name)
        value = self._look_up(request, tally)
        if value is not None:
            return value
        error = call_error(MissingRecording, request, self.endpoint.name, f"{self.recording.path} holds no reply to it (key "
                           f"{tally.key[:12]}); record it with a live client and the same model name, prompts and parameters")
        self._ledger.book(request, tally, error)
        raise error

    async def _ask(self, request: Request, tally: Tally) -> BaseModel:
        key = tally.key = request.key(self.endpoint.name)
        value = self._look_up(request, tally)
        if value is not None:
            return value
        if key in self._under_way:
            return await self._share(self._under_way[key], request, tally)
        task = self._under_way[key] = asyncio.create_task(self._call(request, tally))
        task.add_done_callback(lambda done: (self._under_way.pop(key), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _share(self, task: asyncio.Task, request: Request, tally: Tally) -> BaseModel:
        """The outcome of an equal request under way; its error, too, under this request's own name."""
        try:
            value = await asyncio.shield(task)
        except SupervisionError as error:
            own = type(error)(f"{error} (item {request.item!r} asked the same)", request.item, request.purpose)
            self._ledger.book(request, tally, own, is_hit=True)
            raise own from error
        self._ledger.book(request, tally, is_hit=True)
        return value

    def _look_up(self, request: Request, tally: Tally) -> BaseModel | None:
        """The recorded reply, booked as a hit; None where there is none that still fits the schema."""
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

    async def _call(self, request: Request, tally: Tally) -> BaseModel:
        try:
            async with self._slots:
                value = await self._caller.call(request, tally)
        except SupervisionError as error:
            self._ledger.book(request, tally, error)
            raise
        self._ledger.book(request, tally)  # first: what was paid may be asked twice, but is never taken for a hit
        if self.recording is not None:
            self.recording.put({"key": tally.key, "purpose": request.purpose, "item": request.item, "model": self.endpoint.name,
                                "reply": value.model_dump(mode="json", by_alias=True), "tokens_in": tally.tokens_in,
                                "tokens_out": tally.tokens_out})
        return value
