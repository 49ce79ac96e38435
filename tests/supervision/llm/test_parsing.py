"""Reading replies: which are usable, and above all which are not."""
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dyme_core.supervision.llm.completion import NoReply, Reply, read_completion
from dyme_core.supervision.llm.parsing import Rating, Request, Unusable, parse_rating, read_object
from dyme_core.supervision.llm.prompts import CheckReply, FactsReply, RefineReply, ask_again, ask_for_json


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
    '{"rating": "high", "why": "a\nb\tc\0"}', '\ufeff{"rating": "high"}', '{"rating": "high", "why": "\\ud83d"}',
    '{"rating": "high", "why": "it says </think> and <think>"}', 'So: {"rating": "high", "why": "[/THINK] low"}.',
    '{"rating": "high", "why": "the text says {\\"rating\\": \\"low\\"}"}'])
def test_a_valid_object_is_found_also_with_text_around_it(text: str) -> None:
    assert read_object(Reply(text), Verdict).rating == "high"


@pytest.mark.parametrize(("text", "reason"), [
    ("high", "no JSON object"), ('["high"]', "no JSON object"), ('{"rating": "high"', "no JSON object|not one JSON object"),
    ('{"rating": "low"} or {"rating": "high"}', "not one JSON object"), ('{"rating": "high"} {"rating": "high"}', "not one"),
    ('{"rating": "low", "rating": "high"}', "a key stands twice in the reply: 'rating'"),
    ('{"draft": {"rating": "high"}, oops', "not one JSON object"), ('{"draft": {"rating": "high"}}', "rating: Field required"),
    ('{"rating": "high", "weight": NaN}', "weight: Input should be a valid number"), ('}high{', "no JSON object"),
    ("{" * 100_000, "no JSON object"), ('{"a":' * 19_000 + "}", "nested too deeply"),
    ("<think>high", "'<think>' opens is not closed"), ('{"n": ' + "9" * 5000 + "}", "not one JSON object"),
    ('{"rating": "high"} </think>', "no JSON object"),
    ('{"rating": "high"}' + " " * 100_000, "100018 characters, at most 100000 are read")])
def test_a_reply_that_could_be_misread_is_unusable(text: str, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        read_object(Reply(text), Verdict)


THINKING = {
    "think": ("<think>", "</think>"), "thinking": ("<thinking>", "</thinking>"), "capitals": ("[THINK]", "[/THINK]"),
    "thought": ("<thought>", "</thought>"), "reasoning": ("<reasoning>", "</reasoning>"),
    "an attribute": ("<think time=3>", "</ think >"), "a vendor": ("<seed:think>", "</seed:think>"),
    "a camel": ("<antThinking>", "</antThinking>"), "pipes": ("<|thinking|>", "<|/thinking|>"),
    "begin and end": ("<|begin_of_thought|>", "<|end_of_thought|>"),
    "start and end": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "triangles": ("\u25c1think\u25b7", "\u25c1/think\u25b7"), "unused tokens": ("<unused94>thought", "<unused95>"),
    "wide pipes": ("<\uff5cbegin\u2581of\u2581thinking\uff5c>", "<\uff5cend\u2581of\u2581thinking\uff5c>"),
    "channels": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    "a channel": ("<|channel>thought", "<channel|>")}


@pytest.mark.parametrize("vendor", THINKING)
def test_the_reply_stands_behind_the_last_mark_that_closes_the_thinking(vendor: str) -> None:
    start, end = THINKING[vendor]
    low, high = '{"rating": "low"}', '{"rating": "high"}'
    for text in (f"{start}{low}{end}{high}", f"{low}\n{end}\n\n```json\n{high}\n```", f"{start}{end}{high}",
                 f"{end}{low}{end}{high}", f"{start} {'x' * 100_001} {low} {end} {high}"):
        assert read_object(Reply(text), Verdict).rating == "high", text
    for text in (f"{start}{high}", f"{start}{low}{end}{start}{high}", f"{high}{start}", f"{low} {start} {high}"):
        with pytest.raises(Unusable, match="opens is not closed"):
            read_object(Reply(text), Verdict)


TEXT = st.text(st.characters() | st.sampled_from(list('{}[]":,\\\0\n\ud800\udfff\ufeff')), max_size=40)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.integers(10**400, 10**401) | st.floats() | TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8)
FACTS = st.fixed_dictionaries({"entity": TEXT, "attribute": TEXT, "value": st.floats() | st.integers() | TEXT, "unit": TEXT})
CONTENT = TEXT | JSON.map(json.dumps) | st.one_of(
    st.fixed_dictionaries({"reasons": st.lists(TEXT, max_size=2), "rating": st.sampled_from(["low", "high"]) | TEXT}),
    st.fixed_dictionaries({"thinking": TEXT}), st.fixed_dictionaries({"facts": st.lists(FACTS, max_size=3)}),
).flatmap(lambda value: st.sampled_from([json.dumps(value), json.dumps(value, ensure_ascii=False)]))


@given(CONTENT | JSON, st.sampled_from(["stop", "length", None]), JSON, st.booleans())
def test_no_reply_raises_anything_but_the_typed_errors_and_its_texts_can_be_written(content, finish, other, is_ascii) -> None:
    choice = {"message": {"role": "assistant", "content": content, "reasoning": other}, "finish_reason": finish}
    for body in (json.dumps({"choices": [choice], "usage": other}, ensure_ascii=is_ascii), json.dumps(other), str(content),
                 json.dumps({"choices": other}), json.dumps({"choices": [other]}), json.dumps({"error": other})):
        try:
            reply = read_completion(body)
            assert reply.content.encode() is not None
        except NoReply as error:
            assert str(error).encode() and 400 <= error.status <= 599
            continue
        for schema in (CheckReply, RefineReply, FactsReply):
            try:
                value = read_object(reply, schema)
            except Unusable as error:
                assert str(error).encode()
            else:
                assert schema.model_validate_json(value.model_dump_json()) == value


def test_words_are_put_behind_the_last_user_turn() -> None:
    system, user = {"role": "system", "content": "Judge."}, {"role": "user", "content": "This."}
    assert [m["role"] for m in ask_for_json([system, user], Verdict)] == ["system", "user"]
    parts = ask_again([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "no", "why")[0]["content"]
    assert parts[0] == {"type": "text", "text": "x"} and "no" in parts[1]["text"]
    assert user == {"role": "user", "content": "This."}, "the request itself is not changed"


def test_a_request_refuses_what_the_client_sets() -> None:
    with pytest.raises(ValueError, match=r"must not hold \['model', 'stream'\]"):
        Request("check", "a", [{"role": "user", "content": "x"}], Verdict, {"stream": True, "model": "other"})
    with pytest.raises(ValueError, match="at least one message"):
        Request("check", "a", [], Verdict)
