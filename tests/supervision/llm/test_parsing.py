"""Reading replies: which are usable, and above all which are not."""
from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from dyme_core.supervision.llm.parsing import Rating, Reply, Request, Unusable, parse_rating, read_object
from dyme_core.supervision.llm.prompts import ask_again, ask_for_json


class Verdict(BaseModel):
    rating: Rating
    weight: float = 1.0


@pytest.mark.parametrize(("text", "rating"), [("low", "low"), ("High", "high"), (" MEDIUM. ", "medium"), ("**high**", "high"),
                                              ('"low"', "low")])
def test_a_rating_is_one_of_three_words_in_any_case(text: str, rating: str) -> None:
    assert parse_rating(text) == Verdict(rating=text).rating == rating


@pytest.mark.parametrize("value", ["follows", "low or high", "highly", "not high", "low/medium", "hi gh", "éhigh", "", "0.5", 1,
                                   True, None, ["high"]])
def test_anything_else_is_no_rating(value: object) -> None:
    with pytest.raises(ValueError, match="a rating is one of the words low, medium, high"):
        parse_rating(value)
    with pytest.raises(ValidationError):
        Verdict(rating=value)


@pytest.mark.parametrize("text", [
    '{"rating": "high"}', 'Sure: {"rating": "high"} Anything else?', '```json\n{"rating": "high"}\n```',
    '<think>{"rating": "low"}?</think>{"rating": "high"}',
    '{"rating": "high", "why": "the text says {\\"rating\\": \\"low\\"}"}'])
def test_a_valid_object_is_found_also_with_text_around_it(text: str) -> None:
    assert read_object(Reply(text), Verdict).rating == "high"


@pytest.mark.parametrize(("text", "reason"), [
    ("high", "no JSON object"), ('["high"]', "no JSON object"), ('{"rating": "high"', "no JSON object|not one JSON object"),
    ('{"rating": "low"} or {"rating": "high"}', "not one JSON object"), ('{"rating": "high"} {"rating": "high"}', "not one"),
    ('{"rating": "low", "rating": "high"}', "a key stands twice in the reply: 'rating'"),
    ('{"draft": {"rating": "high"}, oops', "not one JSON object"), ('{"draft": {"rating": "high"}}', "rating: Field required"),
    ('{"rating": "high", "weight": NaN}', "weight: Input should be a valid number"), ('}high{', "no JSON object"),
    ("{" * 100_000, "no JSON object"), ('{"a":' * 19_000 + "}", "nested too deeply"), ("<think>high", "no JSON object"),
    ('{"rating": "high"}' + " " * 100_000, "100018 characters, at most 100000 are read")])
def test_a_reply_that_could_be_misread_is_unusable(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_object(Reply(text), Verdict)


def test_words_are_put_behind_the_last_user_turn() -> None:
    system, user = {"role": "system", "content": "Judge."}, {"role": "user", "content": "This."}
    assert [m["role"] for m in ask_for_json([system, user], Verdict)] == ["system", "user"]
    assert ask_again([system], "no", "why")[0] == system
    parts = ask_again([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "no", "why")[0]["content"]
    assert parts[0] == {"type": "text", "text": "x"} and "no" in parts[1]["text"]
    assert user == {"role": "user", "content": "This."}, "the request itself is not changed"


def test_a_request_refuses_what_the_client_sets() -> None:
    with pytest.raises(ValueError, match=r"must not hold \['model', 'stream'\]"):
        Request("check", "a", [{"role": "user", "content": "x"}], Verdict, {"stream": True, "model": "other"})
    with pytest.raises(ValueError, match="at least one message"):
        Request("check", "a", [], Verdict)
