"""Where a model is served and how hard it may be asked; what its faults mean. The API key is read from $OPENAI_API_KEY when
a call is made and is kept in no field, text or file.
"""
from __future__ import annotations

import email.utils
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import openai

LOOPBACK = ("localhost", "127.0.0.1", "::1")
PASSING = (408, 409, 429)  # HTTP statuses worth another try, beside 5xx
_MIN_SECRET_CHARS = 8  # a shorter "key" ("none", "EMPTY") is no secret, and blotting it out would spoil replies


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server and the limits of using it.

    Attributes:
        model: the model's id at the server; None reads $OPENAI_MODEL.
        base_url: for example http://127.0.0.1:8000/v1; None reads $OPENAI_BASE_URL. There is no other default.
        known_as: what key, recording and ledger call the model; None takes the id, of a path its last part (local servers
            name a model by its folder, which is another one on each machine).
        requests_per_minute, tokens_per_minute: None for no limit; tokens are estimated before a call.
        total_timeout_s: limit of one try from sending to the last byte.
        retry_after_max_s: longest wait that a server's Retry-After is granted.
        breaker_failures: failed calls in a row after which calls are refused for breaker_cooldown_s.
        usd_per_million: (input, output) prices in place of config.py's; (0.0, 0.0) says that the server costs nothing.
        seed: of the waiting times between tries.
    """

    model: str | None = None
    base_url: str | None = None
    known_as: str | None = None
    max_concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    connect_timeout_s: float = 5.0
    total_timeout_s: float = 60.0
    max_tries: int = 4
    backoff_s: float = 0.5  # doubled after each try
    backoff_max_s: float = 20.0
    retry_after_max_s: float = 60.0
    breaker_failures: int = 5
    breaker_cooldown_s: float = 30.0
    usd_per_million: tuple[float, float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", self.model or os.environ.get("OPENAI_MODEL") or None)
        object.__setattr__(self, "base_url", self.base_url or os.environ.get("OPENAI_BASE_URL") or None)
        for name in ("max_concurrency", "connect_timeout_s", "total_timeout_s", "max_tries", "breaker_failures"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0: got {getattr(self, name)!r}")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, or None for no limit: got {getattr(self, name)!r}")
        if not self.model:
            raise ValueError("no model is named; set OPENAI_MODEL or Endpoint(model=...)")
        if self.base_url:
            _check_url(self.base_url)

    @property
    def name(self) -> str:
        """What key, recording and ledger call the model."""
        is_path = self.model.startswith(("/", "~", ".")) or "\\" in self.model
        return self.known_as or (self.model.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if is_path else self.model)

    @property
    def is_local(self) -> bool:
        """True for a server on this machine; it is never reached through a proxy."""
        return urlsplit(self.base_url or "").hostname in LOOPBACK


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("base_url must not hold a user or password; put the key into OPENAI_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url must be like http://127.0.0.1:8000/v1: got {url!r}")


def redact(text: str) -> str:
    """The text without the API key."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return text.replace(key, "[api key]") if len(key) >= _MIN_SECRET_CHARS else text


def redact_error(error: BaseException) -> BaseException:
    """The same error, without the API key in its texts and in those of its causes (servers echo what they were sent)."""
    link: BaseException | None = error
    while link is not None:
        link.args = tuple(redact(part) if isinstance(part, str) else part for part in link.args)
        if isinstance(link, openai.APIError):
            link.message, link.body = redact(link.message), None
        link = link.__cause__ or link.__context__
    return error


def is_passing(error: BaseException) -> bool:
    """True for a fault that another try may not meet: time-outs, lost connections, 408, 409, 429 and 5xx."""
    if isinstance(error, openai.APIStatusError):
        return error.code != "insufficient_quota" and (error.status_code in PASSING or error.status_code >= 500)
    return isinstance(error, (TimeoutError, openai.APIConnectionError))


def is_about_server(error: BaseException) -> bool:
    """False where a working server refused this one request (400, 413, 422), which says nothing about the next."""
    return not (isinstance(error, openai.APIStatusError) and error.status_code in (400, 413, 422))


def retry_after_s(error: BaseException | None, now: datetime | None = None) -> float | None:
    """Seconds that the server's Retry-After asks for, given as a number or an HTTP date; None without a readable one."""
    text = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    try:
        return max(float(text), 0.0) if float(text) < float("inf") else None
    except ValueError:
        pass
    try:
        return max((email.utils.parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds(), 0.0)
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


def advice(error: BaseException, endpoint: Endpoint) -> str:
    """What came, and what to do about it."""
    if isinstance(error, openai.APIStatusError):
        return f"got HTTP {error.status_code} ({redact(error.message)[:300]}); {_status_advice(error.status_code, endpoint)}"
    if isinstance(error, (TimeoutError, openai.APITimeoutError)):
        return (f"got no whole reply within {endpoint.total_timeout_s:g} s; raise total_timeout_s, lower max_tokens or "
                "max_concurrency, or look whether the server hangs")
    return (f"lost the connection ({type(error.__cause__ or error).__name__}); check that the server runs and that "
            "OPENAI_BASE_URL names its host and port")


def _status_advice(status: int, endpoint: Endpoint) -> str:
    if status in (400, 413, 422):
        return "a prompt longer than the model's context, or a parameter that the server does not know, is the usual cause"
    if status in (401, 403):
        return "check OPENAI_API_KEY, and that its account may use the model"
    if status == 404:
        return (f"check the model's name ({endpoint.model!r} from OPENAI_MODEL; GET <base_url>/models lists those served) and "
                "that OPENAI_BASE_URL has the right path, mostly /v1")
    if status == 429:
        return "set requests_per_minute and tokens_per_minute to the account's limits, or check its quota"
    if 300 <= status < 400:
        return "redirects are not followed; name the final address in OPENAI_BASE_URL"
    return "look into the server's log; replies so far are kept, rerun to go on"
