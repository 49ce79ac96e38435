"""Settings of a server, and how its errors are read."""
from __future__ import annotations

import httpx2
import openai
import pytest

from dyme_core.config import Endpoint
from dyme_core.supervision.llm.client import Client
from dyme_core.utils import redact, redact_error

SECRET = "sk-planted-0123456789abcdef"


def status_error(message: str = "slow down") -> openai.APIStatusError:
    response = httpx2.Response(429, request=httpx2.Request("POST", "http://x"))
    return openai.RateLimitError(message, response=response, body={"message": message})


def test_the_key_is_taken_out_of_an_error_and_all_its_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    error, cause, context = status_error(f"bad {SECRET}"), OSError(7, f"sent {SECRET}"), ValueError(SECRET)
    error.__cause__, cause.__context__ = cause, context
    assert redact_error(error) is error
    assert (str(error), error.message, error.body) == ("bad [api key]", "bad [api key]", None)
    assert cause.args == (7, "sent [api key]") and str(context) == "[api key]"


def test_a_word_that_stands_for_no_key_is_left_in_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert redact("none of the facts") == "none of the facts"
    monkeypatch.delenv("OPENAI_API_KEY")
    assert redact("as it is") == "as it is"


def test_nothing_is_sent_unless_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no server is named, so nothing is sent; set OPENAI_BASE_URL"):
        Client(Endpoint(model="gpt-4o"))
    with pytest.raises(ValueError, match="set OPENAI_MODEL"):
        Client(Endpoint())
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OPENAI_MODEL", "tiny")
    found = Endpoint().resolved()
    assert (found.model, found.base_url) == ("tiny", "http://127.0.0.1:1/v1")
    assert Endpoint(model="mine").resolved().model == "mine"


@pytest.mark.parametrize(("settings", "advice"), [
    ({"base_url": f"http://me:{SECRET}@host/v1"}, "put the key into OPENAI_API_KEY"),
    ({"base_url": "localhost:80"}, "must be like"), ({"max_tries": 0}, "max_tries must be greater than or equal to 1: got 0"),
    ({"requests_per_minute": 0}, "leave it out")])
def test_settings_that_cannot_work_are_refused(settings: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as caught:
        Endpoint(model="m", **settings)
    assert SECRET not in str(caught.value)


def test_a_model_named_by_its_folder_is_recorded_by_its_last_part() -> None:
    assert Endpoint(model="/models here/SmolLM2-135M/").name == "SmolLM2-135M"
    assert Endpoint(model="org/name").name == "org/name"
