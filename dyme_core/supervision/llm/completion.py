"""The body that a server answers with, read as one reply of a model; or what it is instead.

An error, a page, an event stream or a body without any text is the server's fault, not a reply of the model, whatever
the HTTP status.
"""
from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

CUT_OFF, FILTERED = ("length", "max_tokens", "model_length"), ("content_filter", "safety")  # finish reasons
FAILED = ("error", "abort", "insufficient_system_resource")
NO_TEXT = ("role", "content", "refusal", "annotations")  # fields that hold no text of the model
STATUS_WORDS = (("rate limit", 429), ("too many requests", 429), ("quota", 429), ("exhausted", 429), ("invalid request", 400),
                ("bad request", 400), ("badrequest", 400), ("not found", 404), ("api key", 401), ("authentication", 401),
                ("permission", 403))  # of an error that names no number


@dataclass(frozen=True)
class Reply:
    """A model's reply: its text, or why there is none; tokens are None where the server does not count them."""

    content: str = ""
    fault: str | None = None
    can_repair: bool = True
    tokens_in: int | None = None
    tokens_out: int | None = None


class NoReply(ValueError):
    """A body of HTTP 200 that holds no reply of a model.

    Attributes:
        status: the HTTP status that says what it is: that of the error inside, else 502.
        is_final: whether asking again would bring the same.
    """

    def __init__(self, what: str, status: int = 502, is_final: bool = False) -> None:
        super().__init__(what)
        self.status, self.is_final = status, is_final


def read_completion(body: str) -> Reply:
    """Read the body of a chat completion; an incomplete reply has a fault.

    Raises:
        NoReply: for any other body, and for one that has the model's text elsewhere than in the content.
    """
    completion = _parse(body.lstrip("\ufeff"))
    choice = _first_choice(completion)
    message, finish = choice["message"], str(choice.get("finish_reason")).lower()
    content, refusal = _text_of(message)
    fault, can_repair = None, True
    if refusal:
        fault, can_repair = f"the model refused: {refusal!r:.200}", False
    elif finish in FILTERED:
        fault, can_repair = "the server's content filter held the reply back", False
    elif finish in CUT_OFF:
        fault = "the reply was cut off at the token limit; be shorter"
    elif not content.strip():
        _check_other_fields(message | {"text": choice.get("text")})
        fault = "the reply is empty"
    usage = completion["usage"] if isinstance(completion.get("usage"), dict) else {}
    tokens = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(content, fault, can_repair, *(number if type(number) is int else None for number in tokens))


def cleaned(value: Any) -> Any:
    """A JSON value whose texts can be written in UTF-8: half of a surrogate pair becomes U+FFFD.

    Raises:
        RecursionError: for a value nested too deeply.
    """
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [cleaned(one) for one in value]
    return {cleaned(name): cleaned(one) for name, one in value.items()} if isinstance(value, dict) else value


def _parse(body: str) -> dict[str, Any]:
    try:
        value = cleaned(json.loads(body, strict=False))
    except (ValueError, RecursionError):
        start = body.lstrip()[:200]
        if start.startswith((":", "data:", "event:", "id:", "retry:")):
            raise NoReply("an event stream, though none was asked for; turn streaming off at the server or proxy: "
                          f"{start!r}", is_final=True) from None
        kind = "a page" if start.startswith("<") else "no whole JSON" if start else "an empty body"
        raise NoReply(f"{kind} in place of a chat completion; check the address and any proxy: {start!r}") from None
    value = value[0] if isinstance(value, list) and len(value) == 1 else value  # Google lists its errors
    return value if isinstance(value, dict) else {"body": value}


def _first_choice(completion: dict[str, Any]) -> dict[str, Any]:
    """The first choice, which has a message."""
    choices = completion.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    has_failed = str(choice.get("finish_reason")).lower() in FAILED
    is_error = "choices" not in completion and (isinstance(completion.get("message"), str) or "detail" in completion)
    error = completion.get("error") or choice.get("error") or has_failed and choice or is_error and completion
    if error:
        raise NoReply(f"an error in its body: {_shown(error)}", _status_in(error))
    if not choice:
        raise NoReply(f"no choices in its body: {_shown(completion)}")
    if not isinstance(choice.get("message"), dict):
        raise NoReply(f"a choice without a message in its body: {_shown(choice)}", is_final=True)
    return choice


def _status_in(error: object) -> int:
    """The HTTP status that an error inside a body names, by number or by word; 503 where it names none."""
    fields = error if isinstance(error, dict) else {}
    numbers = (str(fields.get(name)) for name in ("code", "status", "status_code"))
    named = next((int(number) for number in numbers if re.fullmatch("[45][0-9]{2}", number)), None)
    words = re.sub(r"[_-]", " ", _shown(error).lower())
    return named or next((status for word, status in STATUS_WORDS if word in words), 503)


def _shown(value: object) -> str:
    return json.dumps(value)[:300]


def _text_of(message: dict[str, Any]) -> tuple[str, str]:
    """The text of a message and its refusal, "" where there is none; of a list of parts those of text, not of thinking."""
    content = message.get("content")
    parts = [{"text": part} if isinstance(part, str) else part for part in (
        content if isinstance(content, list) else [content or ""])]
    if any(not isinstance(part, dict) for part in parts):
        raise NoReply(f"a content that is no text in its body: {_shown(message)}", is_final=True)
    texts = [part.get("text") for part in parts if part.get("type", "text") in ("text", "output_text")]
    refusals = [one["refusal"] for one in (*parts, message) if one.get("refusal")]
    return "".join(text for text in texts if isinstance(text, str)), "; ".join(map(str, refusals))


def _check_other_fields(message: dict[str, Any]) -> None:
    """Refuse a message whose content is empty while the model's text stands in another field, or in parts of thinking."""
    content = message.get("content")
    parts = {f"content of type {part.get('type')}": part.get("type") not in (None, "text") for part in content
             if isinstance(part, dict)} if isinstance(content, list) else {}
    if named := [repr(name) for name, value in (message | parts).items() if value and name not in NO_TEXT]:
        raise NoReply(f"no content: the model's text stands in {', '.join(named)}; turn off the server's parser of reasoning "
                      "or tools for this model, or the model's thinking", is_final=True)
