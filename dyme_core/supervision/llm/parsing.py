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

from dyme_core.supervision.llm.completion import Reply, cleaned
from dyme_core.utils import hash_json

RESERVED = {"model", "messages", "response_format", "stream", "n", "timeout", "extra_headers", "extra_query", "extra_body"}
MAX_CHARS = 100_000  # of a reply without its thinking: a trace is a few sentences, a table some kilobytes
_RATING = re.compile(r"[\W_]*(low|medium|high)[\W_]*")
# What reasoning models put around their thinking: <think>, </think>, [THINK], <seed:think>, <|begin_of_thought|>,
# <|END_THINKING|>, \u25c1think\u25b7. Of gpt-oss and Gemma, which name channels, the last one is the reply.
_WORDS = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|monologue|deliberation)"
MARK = re.compile(
    rf"<\|channel\|?>\s*(?:(?P<final>final)|commentary|{_WORDS})|(?P<ended><channel\|>|<unused95>)|<unused94>"
    r"|[<\[\u25c1][|\uff5c]?\s{0,3}(?P<close>/\s{0,3}|end[_\s\u2581](?:of[_\s\u2581])?)?"
    rf"(?:(?:begin|start)[_\s\u2581](?:of[_\s\u2581])?)?(?:\w{{1,20}}[:_-]|ant)?{_WORDS}"
    r"(?:[\s|\uff5c=][^<>\[\]]{0,60})?[>\]\u25b7]", re.IGNORECASE)


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

    @property
    def token_limit(self) -> str:
        """The name of the parameter that limits a reply's tokens."""
        return next((name for name in self.parameters if name.endswith("_tokens")), "max_tokens")

    def key(self, model: str) -> str:
        """SHA-256 of model, messages, parameters and schema, as 64 hex digits; the order of dict keys does not matter."""
        return hash_json([model, list(self.messages), dict(self.parameters), self.schema.model_json_schema()])


def read_object(reply: Reply, schema: type[BaseModel]) -> BaseModel:
    """The valid object of a reply, even inside other text or a Markdown fence, behind the model's thinking.

    Raises:
        Unusable: with the reasons, where there is none, or more than one.
    """
    if reply.fault:
        raise Unusable(reply.fault)
    try:
        return schema.model_validate(_find_object(reply.content))
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors())
        raise Unusable("; ".join(reasons)[:1000]) from error


def _find_object(text: str) -> dict[str, Any]:
    """The one object of a text; marks of thinking inside its strings do not count, those outside it do."""
    start, end = text.find("{"), text.rfind("}") + 1
    if len(text) <= MAX_CHARS and not MARK.search(text[:max(start, 0)] + " " + text[end:]):
        try:
            return _load(text[start: end])
        except Unusable:
            if not MARK.search(text):
                raise
    rest = _after_thinking(text)
    if len(rest) > MAX_CHARS:
        raise Unusable(f"the reply has {len(rest)} characters, at most {MAX_CHARS} are read; be shorter")
    return _load(rest[rest.find("{"): rest.rfind("}") + 1])


def _after_thinking(text: str) -> str:
    """What stands behind the last mark that closes the thinking.

    Raises:
        Unusable: where a mark opens it and none closes it: what follows may be a draft.
    """
    rest, opened = text, None
    for mark in MARK.finditer(text):
        is_close = bool(mark["close"] or mark["final"] or mark["ended"])
        rest, opened = (text[mark.end():], None) if is_close else (rest, mark[0])
    if opened:
        raise Unusable(f"the thinking that {opened!r} opens is not closed; close it, or reply without thinking")
    return rest


def _load(text: str) -> dict[str, Any]:
    """One JSON object; line ends and other control characters may stand in its strings as they are."""
    if not text:
        raise Unusable("no JSON object in the reply")
    try:
        return cleaned(json.loads(text, strict=False, object_pairs_hook=_without_doubles, parse_constant=lambda name: None))
    except RecursionError:
        raise Unusable("the reply's JSON is nested too deeply") from None
    except Unusable:
        raise
    except ValueError as error:  # no JSON; or a whole number of thousands of digits
        raise Unusable(f"not one JSON object in the reply: {error}") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise Unusable(f"a key stands twice in the reply: {max(names, key=names.count)!r:.80}")
    return dict(pairs)
