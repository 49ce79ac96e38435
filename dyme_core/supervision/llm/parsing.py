"""What a server answered, read into one object that fits a schema, or the reason why not.

A reply counts only when it is whole and means one thing: cut-off texts, two different objects or a doubled key are
unusable, never a score.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

MAX_BRACES = 1000  # where an object may begin; a text with more of them is rubbish that would take long to search
MAX_CHARS = 100_000  # of a reply, its thinking aside: a trace is a few sentences, a table some kilobytes
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)  # what reasoning models say before the reply proper


class Unusable(ValueError):
    """Why one reply is not taken; the client turns it into a repair attempt, then into InvalidReply."""


@dataclass(frozen=True)
class Reply:
    """What a server answered: the text, or why there is none to read; tokens are None where the server counts none."""

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
    choices: list[_Choice] = []
    usage: _Usage | None = None


def read_completion(body: str) -> Reply:
    """Read the body of a chat completion; one that is none, or is not whole, becomes a Reply with a fault."""
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return Reply(fault=f"the body is no chat completion: {body!r:.200}")
    usage = completion.usage or _Usage()
    fault, can_repair = _fault(completion)
    content = (completion.choices[0].message.content or "") if completion.choices else ""
    return Reply(content, fault, can_repair, usage.prompt_tokens, usage.completion_tokens)


def _fault(completion: _Completion) -> tuple[str | None, bool]:
    """(why the reply is not whole, or None; whether asking again makes sense)."""
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
    """The one valid object of a reply, also where text or a Markdown fence stands around it.

    Raises:
        Unusable: with the reasons, where there is none or where there are two that differ.
    """
    if reply.fault:
        raise Unusable(reply.fault)
    text, found, problems = _THINKING.sub("", reply.content), [], ["no JSON object in the reply"]
    if len(text) > MAX_CHARS:
        raise Unusable(f"the reply has {len(text)} characters, at most {MAX_CHARS} are read; be shorter")
    for candidate in _json_objects(text):
        try:
            found.append(schema.model_validate(candidate))
        except ValidationError as error:
            problems.append("; ".join(f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors()))
    if any(one != found[0] for one in found):
        raise Unusable("the reply holds two valid objects that differ; one is wanted")
    if not found:
        raise Unusable(problems[-1][:1000])
    return found[0]


def _json_objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects of a text. After a broken one the search goes on where the reading stopped, so that no inner
    part of a broken object passes for a reply."""
    decoder = json.JSONDecoder(object_pairs_hook=_without_doubles, parse_constant=lambda name: None)  # NaN is no number
    objects, start = [], text.find("{")
    for _ in range(MAX_BRACES):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(text, start)
            objects.append(value)
        except json.JSONDecodeError as error:
            end = max(error.pos, start + 1)
        except RecursionError:
            raise Unusable("the reply's JSON is nested too deeply") from None
        start = text.find("{", end)
    return objects


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise Unusable(f"a key stands twice in the reply: {max(names, key=names.count)!r:.80}")
    return dict(pairs)
