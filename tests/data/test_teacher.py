"""The teacher's traces: right by the checker's contract, as long and as varied as the dials say, and what is memorized."""
from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.schema import item_of
from dyme_core.data.teacher import WORDINGS, teacher_trace
from dyme_core.models import tiny_onevision
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner, target_writer
from scripts import curriculum

LENGTHS = (1, 2)
RECORDS = datasets.mini_records("train", 240, seed=3)
ITEMS = [item_of(record.row) for record in RECORDS]


def all_traces(num_wordings: int = 40, length: int = 1, has_new_words: bool = False) -> list[str]:
    return [teacher_trace(item, record.item, num_wordings, length, has_new_words)
            for item, record in zip(ITEMS, RECORDS, strict=True)]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("has_new_words", [False, True])
def test_every_trace_is_rated_high_in_any_wording(length: int, has_new_words: bool) -> None:
    rng, checker = random.Random(length), RuleChecker()
    for item in ITEMS:
        for wording in rng.sample(WORDINGS, 3):
            trace = wording.write(item, length, has_new_words)
            judgement = checker.judge(trace, item)
            assert judgement.score == 1, (trace, judgement.reasons)


@pytest.mark.exhaustive
def test_every_wording_is_rated_high_on_every_kind_and_split() -> None:
    checker = RuleChecker()
    for record in [record for split in config.SPLITS for record in datasets.mini_records(split, 2 * len(KINDS), seed=9)]:
        item = item_of(record.row)
        for wording in WORDINGS:
            for length in LENGTHS:
                trace = wording.write(item, length, has_new_words=bool(wording.facts % 2))
                assert checker.judge(trace, item).score == 1, (trace, checker.judge(trace, item).reasons)


def test_one_wrong_value_in_a_trace_costs_the_full_score() -> None:
    checker, rng = RuleChecker(), random.Random(0)
    for item, trace in zip(ITEMS, all_traces(length=2), strict=True):
        shown = str(int(rng.choice(item.evidence).value))
        wrong = re.sub(rf"(?<!\d){shown}(?!\d)", "97", trace.removeprefix(item.question))
        assert checker.judge(wrong, item).score < 1, wrong


@pytest.mark.parametrize("has_new_words", [False, True])
def test_the_dial_says_how_many_wordings_there_are(has_new_words: bool) -> None:
    item = next(item for item, record in zip(ITEMS, RECORDS, strict=True) if record.kind == "difference")
    assert len({wording.write(item, 1, has_new_words) for wording in WORDINGS}) == 40
    for num_wordings in (1, 3, 11, 40):
        assert len({teacher_trace(item, str(name), num_wordings, 1, has_new_words) for name in range(400)}) == num_wordings


def test_a_longer_trace_is_about_so_many_times_as_long() -> None:
    tokenizer = tiny_onevision.build_tokenizer()
    means = {length: sum(len(tokenizer(trace)["input_ids"]) for trace in all_traces(length=length)) / len(ITEMS)
             for length in LENGTHS}
    assert means[2] / means[1] == pytest.approx(2, rel=0.2)


def test_without_new_words_a_trace_has_only_those_that_the_base_was_taught_and_with_them_others() -> None:
    rng, taught = random.Random("taught"), Counter()
    for _ in range(3000):
        table, _ = curriculum.draw_chart(rng, "train")
        for turn in (*curriculum.draw_turns(rng, table, is_early=False), curriculum.draw_sum(rng)):
            taught.update(re.findall(r"[A-Za-z]+", " ".join(turn)))
    names = {name for item in ITEMS for fact in item.facts for name in (fact.entity, fact.attribute)}
    for length in LENGTHS:
        plain = Counter(re.findall(r"[A-Za-z]+", " ".join(all_traces(length=length))))
        assert not plain.keys() - taught.keys() - names
        new = Counter(re.findall("[A-Za-z]+", " ".join(all_traces(length=length, has_new_words=True))))
        assert sum(new[word] for word in new.keys() - taught.keys() - names) > 0.1 * sum(new.values())


def test_every_word_of_a_trace_is_one_token_and_a_bracket_at_most_two() -> None:
    tokenizer = tiny_onevision.build_tokenizer()
    for trace in all_traces(length=2, has_new_words=True) + all_traces():
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(trace)["input_ids"])
        assert len(pieces) == len(re.findall(r"\w+|[^\w\s]", trace)) + trace.count("("), trace
        assert tokenizer.decode(tokenizer(trace)["input_ids"]) == trace


def test_training_questions_bring_the_teachers_traces_where_the_world_says_so_and_held_out_ones_never() -> None:
    settings = {"world.train_questions": 24, "world.validation_questions": 8, "world.traces": "teacher",
                "world.trace_wordings": 1}
    taught = config.load_profile("mini", **settings)
    rows = [record.row for record in datasets.of_profile(taught, "train", 0)]
    first = WORDINGS[0]
    assert target_writer(RuleRefiner())(rows) == [
        f"{first.write(item_of(row), has_new_words=True)}\n<answer>{row['answer']}</answer>" for row in rows]
    assert not any(item_of(record.row).trace for record in datasets.of_profile(taught, "validation", 0))
    refined = config.load_profile("mini", **{**settings, "world.traces": "refined"})
    plain = [record.row for record in datasets.of_profile(refined, "train", 0)]
    assert not any(item_of(row).trace for row in plain)
    assert [{**row, "supervision": ""} for row in plain] == [{**row, "supervision": ""} for row in rows], "the same questions"


@pytest.mark.parametrize("settings", [{"supervision.corruption": 0.5}, {"supervision.quality": "low"}])
def test_what_changes_refined_targets_is_refused_beside_the_teachers_traces(settings: dict) -> None:
    with pytest.raises(ValueError, match="world.traces must be 'refined': got 'teacher'"):
        config.load_profile("mini", **{"world.traces": "teacher", **settings})
