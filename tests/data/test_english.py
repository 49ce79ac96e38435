"""Questions and traces in plain English: the checker understands both, and nothing but the words changes."""
from __future__ import annotations

from collections import Counter

import pytest

from dyme_core import config
from dyme_core.data import english
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.datasets import mini_records, of_profile
from dyme_core.data.schema import item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.supervision.task import task_of

TASKS = {"lowest": "peak", "margin": "difference"}  # the checker's name of a kind, where it has another
ITEMS = [(record.kind, item_of(record.row)) for record in mini_records("train", 240, 0, language="english")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_is_understood_and_the_teachers_and_the_refiners_trace_have_full_marks(kind: str) -> None:
    for number, item in enumerate(item for own, item in ITEMS if own == kind):
        assert task_of(item).kind == TASKS.get(kind, kind), item.question
        for trace in (english.english_trace(item, str(number)), RuleRefiner().refine(item)):
            assert RuleChecker().judge(trace, item).score == 1, (item.question, trace)


def test_only_words_differ_from_the_questions_in_codes() -> None:
    for named, coded in zip(mini_records("test", 40, 0, language="english"), mini_records("test", 40, 0), strict=True):
        assert (named.kind, named.table_key, named.image.tobytes()) == (coded.kind, coded.table_key, coded.image.tobytes())
        assert named.answer == english.name_of(coded.answer)
        assert [fact.value for fact in item_of(named.row).facts] == [fact.value for fact in item_of(coded.row).facts]


def test_no_code_is_left_in_a_question_or_trace() -> None:
    for number, (_, item) in enumerate(ITEMS):
        words = f"{item.question} {english.english_trace(item, str(number))} {item.answer}".replace("?", " ").split()
        assert not [word for word in words if len(word) == 3 and word.isupper()]


def test_an_altered_question_reads_as_it_did() -> None:
    asked = zip(*(mini_records(split, 40, 0, language="english") for split in ("test", "altered")), strict=True)
    assert all(first.question == second.question and first.answer != second.answer for first, second in asked)


def test_a_teacher_draws_its_sentences_anew_for_each_question() -> None:
    item = next(item for kind, item in ITEMS if kind == "sum")
    traces = Counter(english.english_trace(item, str(number)) for number in range(200))
    assert len(traces) > 150 and english.english_trace(item, "7") == english.english_trace(item, "7")


def test_a_profile_asks_in_english_of_charts_with_few_groups() -> None:
    profile = config.load_profile("mini", **{"world.language": "english", "world.most_groups": 5, "world.train_questions": 40})
    items = [item_of(record.row) for record in of_profile(profile, "train", 0)]
    assert all(item.trace == english.english_trace(item, f"train-0-{number:05d}") for number, item in enumerate(items))
    assert max(len({fact.entity for fact in item.facts}) for item in items) == 5
