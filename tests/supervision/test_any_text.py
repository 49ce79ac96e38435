"""Whatever a model writes: supervision gives a score, a target or facts, or raises its typed errors, and no other."""
from __future__ import annotations

import dataclasses
import io
import json
import math
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scripted_judge import GOOD, ITEM, RECORD, client_of, record_of
from scripted_server import ScriptedServer, answer, body, status

from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import Fact, Item, facts_from_rows, facts_to_rows, item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.fact_extraction import FactStore, ImageFacts, Picture
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.judge import LLMChecker
from dyme_core.supervision.llm.parsing import SupervisionError
from dyme_core.supervision.llm.refiner import LLMRefiner
from dyme_core.supervision.refiner import LearningChecker, TemplateBank
from dyme_core.utils import read_rows, write_rows
from scripts.checker_benchmark import WRITERS

ODD = ["\0", "\ud83d", "\udfff", "\ufeff", "\u202e", "\u2028", "{", "}", "{facts}", "{working}", "<", "</think>", "\u0663",
       "\u00b2", "12", " has ", " = ", "-", "/0", "1e999",
       "2010", "FAV", "**", "`", "\\", '"', "\n", ".", " is ", "Therefore", "yes", GOOD]
TEXT = st.lists(st.sampled_from(ODD) | st.text(max_size=5), max_size=12).map("".join)
VALUE = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
FACT = st.builds(Fact, TEXT, TEXT, VALUE, TEXT)
WORD = re.compile(r"\w+|[^\w\s]")
MANY = pytest.mark.parametrize("examples", [15, pytest.param(300, marks=pytest.mark.exhaustive)])


def fuzz_settings(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def reply_of(value: object, is_ascii: bool) -> str:
    return json.dumps(value, ensure_ascii=is_ascii)


GRADE = st.fixed_dictionaries({"reasons": st.lists(TEXT, max_size=2), "rating": st.just("high") | TEXT})
REPLY = TEXT | st.builds(reply_of, GRADE | st.fixed_dictionaries({"thinking": TEXT}), st.booleans())
FACTS_REPLY = TEXT | st.builds(reply_of, st.fixed_dictionaries({"facts": st.lists(st.fixed_dictionaries(
    {"entity": TEXT, "attribute": TEXT, "value": VALUE | st.integers(10**400, 10**401) | TEXT, "unit": TEXT}), max_size=3)}),
    st.booleans())


@fuzz_settings(50)
@given(TEXT, st.lists(FACT, max_size=3), TEXT, TEXT)
def test_the_rules_rate_any_text_by_any_facts_and_the_bank_learns_from_it(thinking: str, facts: list[Fact], question: str,
                                                                          answer: str) -> None:
    for item in (ITEM, Item(question, answer, tuple(facts), tuple(facts[:1]))):
        assert RuleChecker().judge(thinking, item).score in (0.0, 0.5, 1.0)
        bank = TemplateBank()
        bank.observe(thinking, item)
        bank.load_state_dict(bank.state_dict())
        assert [bank.best().fill(item) for _ in bank.counts]


@pytest.mark.parametrize("number", [400, pytest.param(20_000, marks=pytest.mark.exhaustive)])
def test_the_rules_rate_right_traces_with_words_lost_doubled_swapped_and_mixed(number: int) -> None:
    """As a policy in the middle of training writes them."""
    rng, items = random.Random(0), [item_of(record.row) for record in mini_records("train", 40, 0)]
    pool = [word for item in items for write in WRITERS for word in WORD.findall(write(item, rng))]
    for _ in range(number):
        item = rng.choice(items)
        words = WORD.findall(rng.choice(WRITERS)(item, rng))
        for _ in range(rng.randint(1, 12)):
            place, length = rng.randrange(len(words) + 1), rng.randint(1, 5)
            words[place: place + length * rng.randint(0, 1)] = rng.choice(
                ([], [rng.choice(pool)], words[place: place + length], words[place: place + length][::-1]))
        text = " ".join(words).replace(" ,", ",").replace(" .", ".")
        assert RuleChecker().judge(text, item).score in (0.0, 0.5, 1.0), text
        TemplateBank().observe(text, item)


@pytest.mark.parametrize("text", ["We find one3 bars.", "2010 has two\u00e9.", "five_ and 62", "Sixty-two\ufffd 2"])
def test_a_number_word_that_runs_on_is_no_number(text: str) -> None:
    assert RuleChecker().judge(text, ITEM).rating != "high"


def test_a_comparison_with_an_empty_side_is_no_right_working() -> None:
    for thinking in ("2010 has 30 and 10. 30 = = 10, so it is 2010.", "30 - 10 = > 25 - 20 = 5, the greater gap is in 2010.",
                     "Comparing 30 - 10 =, = 5 < is 20, 2010."):
        assert RuleChecker().judge(thinking, ITEM).rating != "high"


def test_a_trace_that_holds_a_slot_of_its_own_is_no_template() -> None:
    bank = TemplateBank()
    for own in ("{working} ", "{facts} and ", "{other} "):
        assert not bank.observe(own + GOOD, ITEM)
    assert bank == TemplateBank()


@MANY
@pytest.mark.parametrize("policy", ["rule", "raise", "skip"])
def test_any_reply_gives_a_score_and_a_target_or_the_typed_error(policy: str, examples: int, tmp_path: Path) -> None:
    said: list[str] = []
    with ScriptedServer(lambda sent: answer(said[-1])) as server, Recording(tmp_path / "r.sqlite") as recording:
        with client_of(server, recording, max_tries=1, breaker_failures=10**6) as client:
            bank = TemplateBank()
            checker, refiner = LearningChecker(LLMChecker(client, policy), bank), LLMRefiner(client, bank, policy)

            @fuzz_settings(examples)
            @given(REPLY, TEXT, st.lists(FACT, max_size=2))
            def fuzz(reply: str, text: str, facts: list[Fact]) -> None:
                said.append(reply)
                item = dataclasses.replace(ITEM, question=f"{ITEM.question} {text}", facts=(*ITEM.facts, *facts))
                record = record_of(item, text)
                try:
                    [score] = checker.score_all([GOOD], [record])
                    assert score in (0.0, 0.5, 1.0) or policy == "skip" and math.isnan(score)
                    [target] = refiner.refine_all([record])
                    assert target is None or target.isprintable()
                except SupervisionError as error:
                    assert policy == "raise" and str(error).encode()
            fuzz()
        number = recording.export_jsonl(tmp_path / "r.jsonl")
    with Recording(tmp_path / "r.jsonl") as recording:
        assert recording.export_jsonl(tmp_path / "again.jsonl") == number == len(read_rows(tmp_path / "r.jsonl"))


@MANY
def test_facts_of_any_reply_are_stored_and_read_back_or_refused(examples: int, tmp_path: Path) -> None:
    said: list[str] = []
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    with ScriptedServer(lambda sent: answer(said[-1])) as server:
        with client_of(server, max_tries=1, breaker_failures=10**6) as client:
            @fuzz_settings(examples)
            @given(FACTS_REPLY, TEXT)
            def fuzz(reply: str, item: str) -> None:
                said.append(reply)
                picture, backend = Picture(item, buffer.getvalue()), ImageFacts(client, {"seed": len(said)})
                try:
                    made = FactStore(tmp_path).get(picture, backend)
                except SupervisionError:
                    return
                assert FactStore(tmp_path).get(picture, backend) == made
                rows = facts_to_rows(made.facts)
                assert facts_from_rows(rows) == made.facts
                write_rows(tmp_path / "rows.jsonl", rows)
                assert read_rows(tmp_path / "rows.jsonl") == rows
                frame = pd.DataFrame(rows)
                frame.to_csv(tmp_path / "rows.csv")
                frame.to_html(tmp_path / "rows.html", encoding="utf-8")
                frame.to_parquet(tmp_path / "rows.parquet")
                RuleChecker().judge(GOOD, dataclasses.replace(ITEM, facts=made.facts))
            fuzz()
    assert list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("act", [status(400, message="\x1b[2J \ud83d\n"), body('{"error": "\x1b[2J \\ud83d"}'), body("\x1b[2J"),
                                 status(404, message="x" * 10**6)])
def test_a_servers_error_is_told_in_one_line_that_a_terminal_and_a_file_can_take(act) -> None:
    with ScriptedServer([act]) as server, client_of(server, max_tries=1) as client:
        with pytest.raises(SupervisionError) as caught:
            LLMChecker(client, "raise").score_all([GOOD], [RECORD])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["\ud83d", '{"rating": "high", "reasons": ["\\ud83d"]}', "\0", '{"rating": "high\0"}'])
def test_half_a_character_from_a_judge_costs_nothing_under_policy_rule(text: str, tmp_path: Path) -> None:
    with ScriptedServer([answer(text)]) as server, Recording(tmp_path / "r.sqlite") as recording:
        with client_of(server, recording) as client:
            assert LLMChecker(client).score_all([GOOD], [RECORD]) == [1.0]
