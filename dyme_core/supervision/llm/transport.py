"""One exchange with the server: rate limits, a time limit on every try, one layer of retries, JSON schema or plain JSON."""
from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
from collections.abc import Sequence
from typing import Any

import openai
from pydantic import BaseModel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from dyme_core.supervision.llm.endpoint import Endpoint, is_passing, redact, retry_after_s
from dyme_core.supervision.llm.limits import Rates
from dyme_core.supervision.llm.parsing import Reply, read_completion
from dyme_core.supervision.llm.requests import Request, ask_for_json
from dyme_core.supervision.llm.usage import Tally

logger = logging.getLogger(__name__)
for _name in ("httpx", "httpx2"):  # under openai; a line for every call, with the server's address
    logging.getLogger(_name).setLevel(logging.WARNING)


class Transport:
    """Sends messages and gives back the server's reply, whatever it is worth.

    `schemas` says whether the server takes response_format: None until it is known; False for good after it refused (400,
    422, or 500 twice) what it then answers in plain, or after it answered a schema with prose.

    Args:
        endpoint: with a base_url.
    Raises:
        ValueError: without a base_url; nothing leaves the machine unless one is set.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        if not endpoint.base_url:
            raise ValueError("no server is named, so nothing is sent; set OPENAI_BASE_URL (for a local server for example "
                             "http://127.0.0.1:8000/v1) or Endpoint(base_url=...), or use mode='replay' with a recording")
        self.endpoint, self.schemas = endpoint, None
        timeout = openai.Timeout(endpoint.total_timeout_s, connect=endpoint.connect_timeout_s)
        http = openai.DefaultAsyncHttpxClient(trust_env=not endpoint.is_local, follow_redirects=False, timeout=timeout)
        self._client = openai.AsyncOpenAI(base_url=endpoint.base_url, max_retries=0, timeout=timeout, http_client=http,
                                          api_key=os.environ.get("OPENAI_API_KEY", "").strip() or "none")
        self._random = random.Random(endpoint.seed)
        self._rates = Rates(endpoint.requests_per_minute, endpoint.tokens_per_minute)

    async def complete(self, request: Request, messages: Sequence[dict[str, Any]], tally: Tally) -> Reply:
        """The server's reply to `messages`, after at most `max_tries` tries.

        Raises:
            openai.APIError, TimeoutError: what the last try ended in.
        """
        def count(state: RetryCallState) -> None:
            tally.retries += 1
            logger.info("%s %s: try %d failed (%s), next in %.1f s", request.purpose, request.item, state.attempt_number,
                        type(state.outcome.exception()).__name__, state.next_action.sleep)

        retrying = AsyncRetrying(stop=stop_after_attempt(self.endpoint.max_tries), wait=self._wait_s, before_sleep=count,
                                 retry=retry_if_exception(is_passing), reraise=True, sleep=asyncio.sleep)
        reply = await retrying(self._try, request, messages, tally)
        tally.add(reply)
        return reply

    async def close(self) -> None:
        await self._client.close()

    def _wait_s(self, state: RetryCallState) -> float:
        """Seconds before the next try: the server's Retry-After up to its limit, else doubled each time, half of it random."""
        asked = retry_after_s(state.outcome.exception())
        if asked is not None:
            return min(asked, self.endpoint.retry_after_max_s)
        longest = min(self.endpoint.backoff_s * 2 ** (state.attempt_number - 1), self.endpoint.backoff_max_s)
        return self._random.uniform(longest / 2, longest)

    async def _try(self, request: Request, messages: Sequence[dict[str, Any]], tally: Tally) -> Reply:
        with_schema = self.schemas is not False and not tally.is_plain
        try:
            reply = await self._post(request, messages, with_schema)
        except openai.APIStatusError as error:
            if not with_schema or self.schemas or not self._may_be_refusal(error, tally):
                raise
            tally.is_plain = True
            if is_passing(error):
                raise
            return await self._try(request, messages, tally)
        self._learn(with_schema, reply)
        return reply

    def _may_be_refusal(self, error: openai.APIStatusError, tally: Tally) -> bool:
        """True where the fault may lie in response_format: 400 and 422 at once, 500 (llama-cpp-python) when it comes again."""
        tally.server_errors += error.status_code == 500
        has_come_again = error.status_code == 500 and tally.server_errors >= min(2, max(self.endpoint.max_tries - 1, 1))
        return error.status_code in (400, 422) or has_come_again

    def _learn(self, with_schema: bool, reply: Reply) -> None:
        """Remember what the server makes of schemas; whoever heeds one cannot answer in prose."""
        is_prose = with_schema and reply.fault is None and "{" not in reply.content
        if (is_prose and self.schemas is not False) or (self.schemas is None and not with_schema):
            self.schemas = False
            logger.warning("the server %s response_format; from now on JSON is asked for in words",
                           "ignores" if is_prose else "refuses")
        elif with_schema and self.schemas is None and reply.fault is None:
            self.schemas = True

    async def _post(self, request: Request, messages: Sequence[dict[str, Any]], with_schema: bool) -> Reply:
        """One try, through the limiters, within the total time limit (headers and the whole body)."""
        if not with_schema:
            messages = ask_for_json(messages, request.schema)
        # As `messages` the client library would look through them type by type, which is half of what a call costs here.
        body = {**request.parameters, "messages": list(messages)}
        if with_schema:
            body["response_format"] = _response_format(request.schema)
        await self._rates.wait(messages, request.parameters)
        async with asyncio.timeout(self.endpoint.total_timeout_s):
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self.endpoint.model, messages=(), extra_body=body)
        return read_completion(redact(raw.http_response.text))


@functools.cache
def _response_format(schema: type[BaseModel]) -> dict[str, Any]:
    strict = openai.pydantic_function_tool(schema)["function"]["parameters"]
    return {"type": "json_schema", "json_schema": {"name": schema.__name__, "schema": strict, "strict": True}}
