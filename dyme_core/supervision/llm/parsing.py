"""Requests to a language model, and how a reply is read into one object that fits a schema.

A reply must be complete and unambiguous: a text that is cut off, two objects or a repeated key make it unusable, never a
score. A body without a reply (an error, a page, an event stream) is the server's fault, not the model's.
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
CUT_OFF, FILTERED = {"length", "max_tokens", "model_length"}, {"content_filter", "safety"}  # finish reasons
FAILED = {"error", "abort", "insufficient_system_resource"}
STATUS_WORDS = (("rate limit", 429), ("too many requests", 429), ("quota", 429), ("exhausted", 429), ("invalid request", 400),
                ("bad request", 400), ("badrequest", 400), ("not found", 404), ("api key", 401), ("authentication", 401),
                ("permission", 403))  # of an error that names no number
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


class NoReply(ValueError):
    """A body of HTTP 200 that holds no reply of a model.

    Attributes:
        status: the HTTP status that says what it is: that of the error inside, else 502.
        is_final: whether asking again would bring the same.
    """

    def __init__(self, what: str, status: int = 502, is_final: bool = False) -> None:
        super().__init__(what)
        self.status, self.is_final = status, is_final


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


@dataclass(frozen=True)
class Reply:
    """A server's reply: its text, or why there is none; tokens are None where the server does not count them."""

    content: str = ""
    fault: str | None = None
    can_repair: bool = True
    tokens_in: int | None = None
    tokens_out: int | None = None


def read_completion(body: str) -> Reply:
    """Read the body of a chat completion; an incomplete reply has a fault.

    Raises:
        NoReply: for a body that is no chat completion, or one without any text of the model in its place.
    """
    choice, usage = _first_choice(body := body.lstrip("\ufeff"))
    message, finish = choice["message"], str(choice.get("finish_reason")).lower()
    content, refusal = _text_of(message, body)
    fault, can_repair = None, True
    if refusal:
        fault, can_repair = f"the model refused: {refusal!r:.200}", False
    elif finish in FILTERED:
        fault, can_repair = "the server's content filter held the reply back", False
    elif finish in CUT_OFF:
        fault = "the reply was cut off at the token limit; be shorter"
    elif not content.strip():
        _refuse_text_elsewhere(message, choice)
        fault = "the reply is empty"
    tokens = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(content, fault, can_repair, *(number if type(number) is int else None for number in tokens))


def _first_choice(body: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first choice of a completion, which has a message, and the usage.

    Raises:
        NoReply: saying what the body is instead.
    """
    try:
        completion = cleaned(json.loads(body, strict=False))
    except (ValueError, RecursionError):
        raise NoReply(*_what_is(body)) from None
    completion = completion[0] if isinstance(completion, list) and len(completion) == 1 else completion  # Google's errors
    completion = completion if isinstance(completion, dict) else {"body": completion}
    choices, usage = completion.get("choices"), completion.get("usage")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    has_failed = str(choice.get("finish_reason")).lower() in FAILED
    if error := completion.get("error") or choice.get("error") or (choice if has_failed else None):
        raise NoReply(f"an error in its body: {_shown(error)}", _status_in(error))
    if not choice:
        is_error = choices is None and ("message" in completion or "detail" in completion)
        raise NoReply(f"no choices in its body: {_shown(completion)}", _status_in(completion) if is_error else 502)
    if not isinstance(choice.get("message"), dict):
        raise NoReply(f"a choice without a message in its body: {_shown(choice)}", is_final=True)
    return choice, usage if isinstance(usage, dict) else {}


def _what_is(body: str) -> tuple[str, int, bool]:
    """What a body is that is no JSON: in words, as an HTTP status, and whether asking again would bring the same."""
    start = body.lstrip()[:200]
    if start.startswith(("data:", "event:", ":", "id:", "retry:")):
        return f"an event stream, though none was asked for; turn streaming off at the server or proxy: {start!r}", 502, True
    kind = "a page" if start.startswith("<") else "no whole JSON" if start else "an empty body"
    return f"{kind} in place of a chat completion; check the address and any proxy: {start!r}", 502, False


def _status_in(error: object) -> int:
    """The HTTP status that an error inside a body names, by number or by word; 503 where it names none."""
    fields = error if isinstance(error, dict) else {}
    for name in ("code", "status", "status_code"):
        number = str(fields.get(name))
        if number.isdecimal() and number.isascii() and len(number) == 3 and 400 <= int(number) <= 599:
            return int(number)
    words = re.sub(r"[_-]", " ", _shown(error).lower())
    return next((status for word, status in STATUS_WORDS if word in words), 503)


def _shown(value: object) -> str:
    return json.dumps(value)[:300]


def _text_of(message: dict[str, Any], body: str) -> tuple[str, str]:
    """The text of a message and its refusal, "" where there is none. Of a list of parts only those of text count."""
    content, refusal = message.get("content"), message.get("refusal")
    parts = content if isinstance(content, list) else [content or ""]
    if any(not isinstance(part, str | dict) for part in parts):
        raise NoReply(f"a content that is no text in its body: {body[:200]!r}", is_final=True)
    parts = [{"text": part} if isinstance(part, str) else part for part in parts]
    texts = [part.get("text") for part in parts if part.get("type", "text") in ("text", "output_text")]
    refusals = [part.get("refusal") for part in parts] + [refusal]
    return "".join(text for text in texts if isinstance(text, str)), "".join(filter(None, map(str, filter(None, refusals))))


def _refuse_text_elsewhere(message: dict[str, Any], choice: dict[str, Any]) -> None:
    """Raise NoReply where the content is empty and the model's text stands in another field."""
    parts = message["content"] if isinstance(message.get("content"), list) else []
    fields = {**{name: value for name, value in choice.items() if name == "text"}, **message,
              **{f"content part {part.get('type')}": part for part in parts if isinstance(part, dict)}}
    named = [name for name, value in fields.items()
             if value and name not in ("role", "content", "refusal", "annotations", "content part text")]
    if named:
        raise NoReply(f"no content: the model's text stands in {', '.join(map(repr, named))}; turn off the server's parser of "
                      "reasoning or tools for this model, or the model's thinking", is_final=True)


def cleaned(value: Any) -> Any:
    """A JSON value whose texts can be written in UTF-8: what is half of a surrogate pair becomes U+FFFD.

    Raises:
        RecursionError: for a value nested too deeply.
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return {cleaned(name): cleaned(one) for name, one in value.items()} if isinstance(value, dict) else value


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
