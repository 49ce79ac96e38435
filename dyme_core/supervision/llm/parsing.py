"""Requests to a language model, and how a reply is read into one object that fits a schema.

A reply must be complete and unambiguous: a text that is cut off, two objects or a repeated key make it unusable, never a
score.
"""
from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from dyme_core.utils import hash_json

RESERVED = {"model", "messages", "response_format", "stream", "n", "timeout", "extra_headers", "extra_query", "extra_body"}
MAX_CHARS = 100_000  # of a reply without its thinking: a trace is a few sentences, a table some kilobytes
_RATING = re.compile(r"[\W_]*(low|medium|high)[\W_]*")
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)  # what reasoning models say before the reply proper


class SupervisionError(RuntimeError):
    """A call without a usable reply after all tries; `item` and `purpose` say what it was for, the cause is kept."""

    def __init__(self, message: str, item: str = "", purpose: str = "") -> None:
        super().__init__(message)
        self.item, self.purpose = item, purpose


class InvalidReply(SupervisionError):
    """The server answered, but nothing valid: wrong schema, refusal, empty, null, cut off."""


class NotAsked(SupervisionError):
    """No call was made: too many calls in a row have failed, or a replay's recording has no reply."""


class Unusable(ValueError):
    """Why a reply is unusable; the client turns it into a repair attempt, then into InvalidReply."""


def parse_rating(value: object) -> str:
    """Read "low", "medium" or "high" in any case; quotes, dots and stars around the word are allowed.

    Raises:
        ValueError: for anything else, such as "follows", "not high" or "low or high".
    """
    match = _RATING.fullmatch(value.lower()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"a rating is one of the words low, medium, high: got {value!r:.80}")
    return match[1]


Rating = Annotated[Literal["low", "medium", "high"], BeforeValidator(parse_rating)]


@dataclass(frozen=True)
class Request:
    """One question to the model.

    Attributes:
        purpose: what it is for, "check", "refine" or "facts"; goes into the ledger.
        item: the record's name; goes into ledger, recording and error texts, not into the key.
        messages: OpenAI chat messages; `content` is a text or a list of parts (image_url with a data: URI).
        schema: of the reply.
        parameters: temperature, max_tokens, seed and the like, sent as they are.
    """

    purpose: str
    item: str
    messages: Sequence[dict[str, Any]]
    schema: type[BaseModel]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"a request needs at least one message: got none for {self.item!r}")
        if taken := RESERVED & self.parameters.keys():
            raise ValueError(f"parameters must not hold {sorted(taken)}: the client sets them or has no use for them")

    def key(self, model: str) -> str:
        """SHA-256 of model, messages, parameters and schema, as 64 hex digits; the order of dict keys does not matter."""
        return hash_json([model, list(self.messages), dict(self.parameters), self.schema.model_json_schema()])


@dataclass(frozen=True)
class Reply:
    """A server's reply: its text, or why there is none; tokens are None where the server does not count them."""

    content: str = ""
    fault: str | None = None
    can_repair: bool = True
    tokens_in: int | None = None
    tokens_out: int | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """The fields that are read; many servers leave out others that `openai.types` requires."""

    choices: list[_Choice] = []
    usage: _Usage | None = None


def read_completion(body: str) -> Reply:
    """Read the body of a chat completion; another body, or an incomplete one, gives a Reply with a fault."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Reply(fault=f"the body is no chat completion: {body!r:.200}")
    usage = completion.usage or _Usage()
    fault, can_repair = _fault(completion)
    content = (completion.choices[0].message.content or "") if completion.choices else ""
    return Reply(content, fault, can_repair, usage.prompt_tokens, usage.completion_tokens)


def _fault(completion: _Completion) -> tuple[str | None, bool]:
    """(why the reply is incomplete, or None; whether another try makes sense)."""
    if not completion.choices:
        return "no choices in the reply", True
    choice = completion.choices[0]
    if choice.message.refusal:
        return f"the model refused: {choice.message.refusal!r:.200}", False
    if choice.finish_reason == "content_filter":
        return "the server's content filter held the reply back", False
    if choice.finish_reason == "length":
        return "the reply was cut off at the token limit; be shorter", True
    return (None, True) if (choice.message.content or "").strip() else ("the reply is empty", True)


def read_object(reply: Reply, schema: type[BaseModel]) -> BaseModel:
    """The valid object of a reply, even inside other text or a Markdown fence.

    Raises:
        Unusable: with the reasons, where there is none, or more than one.
    """
    if reply.fault:
        raise Unusable(reply.fault)
    text = _THINKING.sub("", reply.content)
    if len(text) > MAX_CHARS:
        raise Unusable(f"the reply has {len(text)} characters, at most {MAX_CHARS} are read; be shorter")
    whole = text[text.find("{"): text.rfind("}") + 1]
    if not whole:
        raise Unusable("no JSON object in the reply")
    try:
        return schema.model_validate(json.loads(whole, object_pairs_hook=_without_doubles, parse_constant=lambda name: None))
    except json.JSONDecodeError as error:
        raise Unusable(f"not one JSON object in the reply: {error}") from error
    except RecursionError:
        raise Unusable("the reply's JSON is nested too deeply") from None
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors())
        raise Unusable("; ".join(reasons)[:1000]) from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise Unusable(f"a key stands twice in the reply: {max(names, key=names.count)!r:.80}")
    return dict(pairs)
