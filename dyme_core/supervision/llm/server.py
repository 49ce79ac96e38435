"""One OpenAI-compatible server: how a request is sent, and what its replies and errors mean.

`openai` sends a request and retries (408, 409, 429 with its Retry-After, 5xx, lost connections). Added here: a time limit on
each whole try, a rate limit, a request for JSON in words for servers that know no schemas, and that a body of HTTP 200
without a reply is the error that it stands for. The API key is read from $OPENAI_API_KEY and is kept in no field, text or file.
"""
from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import httpx2
import openai
from aiolimiter import AsyncLimiter
from pydantic import BaseModel

from dyme_core.config import Endpoint
from dyme_core.supervision.llm.completion import NoReply, Reply, read_completion
from dyme_core.supervision.llm.parsing import Request
from dyme_core.supervision.llm.prompts import ask_for_json
from dyme_core.supervision.llm.usage import Tally
from dyme_core.utils import redact

CONNECT_TIMEOUT_S = 5.0
NO_SCHEMAS = (400, 404, 422, 500, 501)  # how servers that do not know response_format refuse it
BURST = 0.1  # share of a minute's budget that may go out at once, so that no minute holds more than 1.1 budgets
logger = logging.getLogger(__name__)
for _name in ("httpx", "httpx2"):  # under openai; a line for every call, with the server's address
    logging.getLogger(_name).setLevel(logging.WARNING)


class Server:
    """Sends messages and returns the server's reply, unchecked.

    `takes_schemas` says whether the server knows response_format: None until it is known; False for good after it refused it
    (NO_SCHEMAS) and then answered without, or after it answered a schema with prose.

    Raises:
        ValueError: without a base_url, as nothing leaves the machine unless one is set; for a key that no header can carry.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        if not endpoint.base_url:
            raise ValueError("no server is named, so nothing is sent; set OPENAI_BASE_URL (for a local server for example "
                             "http://127.0.0.1:8000/v1) or supervision.base_url, or use mode='replay' with a recording")
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise ValueError("OPENAI_API_KEY must be one line of ASCII characters: got others in it; copy the key anew")
        self.endpoint, self.takes_schemas = endpoint, None
        self._openai = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=key, max_retries=endpoint.max_tries - 1,
                                          http_client=_LimitedHttp(endpoint))

    async def complete(self, request: Request, messages: Sequence[dict[str, Any]], tally: Tally) -> Reply:
        """The server's reply; JSON that fits the request's schema where the server supports that.

        Raises:
            openai.APIError: of the last try.
        """
        if self.takes_schemas is False:
            return await self._post(request, messages, tally, with_schema=False)
        try:
            reply = await self._post(request, messages, tally, with_schema=True)
        except openai.APIStatusError as error:
            if self.takes_schemas or error.status_code not in NO_SCHEMAS:
                raise
            reply = await self._post(request, messages, tally, with_schema=False)
            self._note_schemas(False)
            return reply
        if reply.fault is None:
            self._note_schemas("{" in reply.content)
        return reply

    async def close(self) -> None:
        await self._openai.close()

    def _note_schemas(self, are_taken: bool) -> None:
        if not are_taken and self.takes_schemas is not False:
            logger.warning("the server refuses or ignores response_format; from now on JSON is asked for in words")
        self.takes_schemas = are_taken and self.takes_schemas is not False

    async def _post(self, request: Request, messages: Sequence[dict[str, Any]], tally: Tally, with_schema: bool) -> Reply:
        # In the body rather than as arguments: the library would check each message part by type, two thirds of a call's cost.
        body: dict[str, Any] = {**request.parameters, "stream": False}
        body |= {"messages": list(messages), "response_format": _response_format(request.schema)} if with_schema else {
            "messages": ask_for_json(messages, request.schema)}
        try:
            raw = await self._openai.chat.completions.with_raw_response.create(
                model=self.endpoint.model, messages=(), extra_body=body)
        except openai.APIError as error:
            tally.retries += int(error.request.headers.get("x-stainless-retry-count", 0))
            raise
        tally.retries += raw.retries_taken
        reply: Reply = raw.http_response.extensions["reply"]
        tally.add(reply)
        return reply


@functools.cache
def _response_format(schema: type[BaseModel]) -> dict[str, Any]:
    strict = openai.pydantic_function_tool(schema)["function"]["parameters"]
    return {"type": "json_schema", "json_schema": {"name": schema.__name__, "schema": strict, "strict": True}}


class _LimitedHttp(openai.DefaultAsyncHttpxClient):
    """Sends each try when the rate limit allows it, and gives up where the whole reply takes longer than total_timeout_s.

    It reads the reply, too: a body of HTTP 200 that holds none becomes an HTTP error, so that `openai` waits and retries as
    with any other.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._total_s, per_minute = endpoint.total_timeout_s, endpoint.requests_per_minute
        at_once = max((per_minute or 1.0) * BURST, 1.0)
        self._rate = AsyncLimiter(at_once, at_once * 60.0 / per_minute) if per_minute else contextlib.nullcontext()
        super().__init__(trust_env=not endpoint.is_local, follow_redirects=False,
                         timeout=httpx2.Timeout(endpoint.total_timeout_s, connect=CONNECT_TIMEOUT_S))

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """One try, headers and body; `extensions["reply"]` is the Reply."""
        async with self._rate:
            pass
        try:
            async with asyncio.timeout(self._total_s):
                response = await super().send(request, **options)
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no whole reply in time", request=request) from error
        return _with_reply(response) if response.is_success else response


def _with_reply(response: httpx2.Response) -> httpx2.Response:
    """The response with its Reply, or the HTTP error that stands for a body without one."""
    try:  # JSON is UTF-8, whatever a header says
        response.extensions["reply"] = read_completion(redact(response.content.decode("utf-8", "replace")))
        return response
    except NoReply as error:
        headers = {name: value for name, value in response.headers.items() if name.startswith("retry-after")}
        headers |= {"x-should-retry": "false"} if error.is_final else {}
        return httpx2.Response(error.status, headers=headers, request=response.request,
                               json={"error": {"message": f"HTTP {response.status_code} with {error}"}})


def status_of(error: openai.APIError) -> int | None:
    """The HTTP status of an error, None where no answer came."""
    return error.status_code if isinstance(error, openai.APIStatusError) else None


def advice(error: openai.APIError, endpoint: Endpoint) -> str:
    """What came, and what to do about it."""
    status = status_of(error)
    if isinstance(error, openai.APITimeoutError):
        return (f"got no whole reply within {endpoint.total_timeout_s:g} s; raise total_timeout_s, ask for fewer tokens, lower "
                "max_concurrency, or check that the server does not hang")
    if status is None:
        return (f"lost the connection ({type(error.__cause__ or error).__name__}); check that the server runs and that "
                "OPENAI_BASE_URL names its host and port")
    remedies = {
        400: "a prompt longer than the model's context, or one of supervision.parameters that the server does not take, is the "
             "usual cause",
        401: "check OPENAI_API_KEY, and that its account may use the model",
        404: f"check the model's name ({endpoint.model!r} from OPENAI_MODEL; GET <base_url>/models lists those served) and "
             "that OPENAI_BASE_URL has the right path, mostly /v1",
        429: "set requests_per_minute to the account's limit, or check its quota"}
    remedies |= {403: remedies[401], 413: remedies[400], 422: remedies[400]}
    other = ("redirects are not followed; name the final address in OPENAI_BASE_URL" if 300 <= status < 400 else
             "read the server's log; replies so far are kept, rerun to go on")
    words = redact(str((error.body.get("message") if isinstance(error.body, dict) else None) or error.message))[:400]
    words = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)  # none commands a terminal
    return f"got HTTP {status} ({words}); {remedies.get(status, other)}"
