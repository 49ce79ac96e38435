"""Worse supervision on purpose: the targets of each quality, and which records are misread and how."""
from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from dyme_core.config import QUALITIES, Supervision, load_profile
from dyme_core.data import chart_tables, datasets, prompt_format, schema
from dyme_core.data.chart_questions import KINDS
from dyme_core.data.chart_tables import facts_of
from dyme_core.data.schema import item_of
from dyme_core.models import tiny_onevision
from dyme_core.supervision import corruption
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.claims import read_trace
from dyme_core.supervision.corruption import GradedRefiner, corrupt, misread
from dyme_core.supervision.refiner import RuleRefiner, target_writer

RECORDS = datasets.mini_records("train", 480, seed=0)
WRONG = corrupt(RECORDS, 1.0)
LIMIT = load_profile("mini").training.max_completion_tokens


def targets(quality: str, records: list[schema.Record] = RECORDS) -> list[str]:
    return target_writer(GradedRefiner(quality))([record.row for record in records])


def thinkings(quality: str, records: list[schema.Record] = RECORDS) -> list[str]:
    return [prompt_format.split_response(target)[0] for target in targets(quality, records)]


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("records", [RECORDS, WRONG], ids=["true", "misread"])
def test_targets_are_well_formed_answer_as_the_data_set_does_and_can_be_said(quality: str, records) -> None:
    tokenizer = tiny_onevision.build_tokenizer()
    for record, target in zip(RECORDS, targets(quality, records), strict=True):
        assert prompt_format.is_well_formed(target) and prompt_format.split_response(target)[1] == record.answer
        assert len(tokenizer(target)["input_ids"]) + 1 <= LIMIT


def test_high_targets_are_the_rule_refiners() -> None:
    assert targets("high") == target_writer(RuleRefiner())([record.row for record in RECORDS])


@pytest.mark.parametrize("quality", QUALITIES)
def test_the_checker_rates_targets_as_they_are_called(quality: str) -> None:
    ratings = Counter((record.kind == "lookup", RuleChecker().judge(thinking, item_of(record.row)).rating)
                      for record, thinking in zip(RECORDS, thinkings(quality), strict=True))
    assert ratings[True, "high" if quality == "medium" else quality] == 60, "a look-up has no working and one fact"
    # Where two series have the same value, the other one states the fact that is left out.
    assert ratings[False, quality] >= (415 if quality == "medium" else 420)


def test_medium_targets_state_right_facts_but_the_last_and_no_working() -> None:
    for record, thinking, high in zip(RECORDS, thinkings("medium"), thinkings("high"), strict=True):
        item = item_of(record.row)
        reading = read_trace(thinking, item.facts, item.question)
        assert reading.groundedness == 1.0 and reading.working_start is None
        assert len(reading.claims) == max(1, len(item.evidence) - 1)
        assert reading.conclusion == record.answer
        assert (thinking == high) == (record.kind == "lookup")


def test_low_targets_are_fluent_claim_nothing_and_need_no_word_the_model_has_not() -> None:
    words = {*tiny_onevision.WORDS, *chart_tables.LABELS, *map(str, chart_tables.YEARS)}
    for record, thinking in zip(RECORDS, thinkings("low"), strict=True):
        item = item_of(record.row)
        reading = read_trace(thinking, item.facts, item.question)
        assert reading.claims == () and reading.working_start is None and reading.conclusion == record.answer
        assert all(label in thinking for label in item.labels)
        before = thinking.removesuffix(f"{item.conclusion}.")
        assert before != thinking and set(re.findall(r"\w+", before)) <= words
        assert set(re.findall(r"\d+", before)) <= set(item.labels), "labels may be years"


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_record_that_is_wrong_has_no_target_of_any_quality_and_one_without_evidence_none(quality: str) -> None:
    with pytest.raises(ValueError, match="passes the checker"):
        targets(quality, [replace(RECORDS[3], answer="999")])
    assert targets(quality, [replace(RECORDS[3], supervision=schema.NO_SUPERVISION)]) == [None]


def test_an_unknown_quality_is_refused() -> None:
    with pytest.raises(ValueError, match="high.*got 'fair'"):
        GradedRefiner("fair")


@pytest.mark.parametrize("setting", [{"quality": "low"}, {"corruption": 0.5}])
def test_a_language_model_is_not_degraded(setting: dict) -> None:
    with pytest.raises(ValueError, match="need backend 'rule': got 'api'"):
        Supervision(backend="api", **setting)


def test_the_records_misread_at_a_smaller_share_are_among_those_at_a_larger_one() -> None:
    many = RECORDS + datasets.mini_records("train", 420, seed=1)
    chosen = [{record.item for record, before in zip(corrupt(many, share), many, strict=True)
               if record.supervision != before.supervision} for share in (0.0, 0.125, 0.25, 0.5, 1.0)]
    assert [len(items) / len(many) for items in chosen] == pytest.approx([0, 0.125, 0.25, 0.5, 1], abs=0.03)
    assert all(smaller < larger for smaller, larger in zip(chosen, chosen[1:], strict=False))


def test_which_records_are_misread_and_how_is_the_same_everywhere() -> None:
    assert [record.item for record, before in zip(corrupt(RECORDS[:40], 0.125), RECORDS, strict=False)
            if record is not before] == ["train-0-00001", "train-0-00021", "train-0-00027"]
    item = item_of(WRONG[3].row)
    assert (item.working, item.conclusion) == ("39 + 37 = 76", "the sum is 76"), "31 and 42 are true"


def test_exactly_the_facts_of_the_evidence_are_wrong_alike_in_both_lists() -> None:
    for record, wrong in zip(RECORDS, WRONG, strict=True):
        assert replace(wrong, supervision=record.supervision) == record, "picture, question and answer stay"
        before, after = item_of(record.row), item_of(wrong.row)
        for old, new in zip(before.facts, after.facts, strict=True):
            assert replace(old, value=new.value) == new
            assert (old.value != new.value) == (old in before.evidence)
            assert 1 <= new.value <= chart_tables.LARGEST_VALUE and abs(new.value - old.value) <= corruption.LARGEST_SLIP
        assert set(after.evidence) <= set(after.facts)
        assert [fact.entity for fact in after.evidence] == [fact.entity for fact in before.evidence]
        assert after.labels == before.labels


def test_a_misread_target_is_sound_but_for_its_facts() -> None:
    checker, agreed = RuleChecker(), Counter()
    for record, wrong, thinking in zip(RECORDS, WRONG, thinkings("high", WRONG), strict=True):
        misread = json.loads(wrong.supervision)["misread_answer"]
        assert checker.judge(thinking, replace(item_of(wrong.row), answer=misread)).rating == "high"
        by_truth = checker.judge(thinking, item_of(record.row))
        assert by_truth.rating == "low" and by_truth.reading.groundedness < 0.5, thinking
        agreed[record.kind] += misread == record.answer
    assert agreed["lookup"] == 0 and agreed["sum"] + agreed["difference"] + agreed["margin"] < 30
    assert all(5 < agreed[kind] < 60 for kind in ("gap", "peak", "lowest", "count")), "right by luck at times"


def test_the_true_thinking_is_rated_against_what_supervision_believes() -> None:
    ratings = Counter(RuleChecker().judge(thinking, item_of(wrong.row)).rating
                      for wrong, thinking in zip(WRONG, thinkings("high"), strict=True))
    assert ratings["low"] > 0.95 * len(WRONG)


def test_the_facts_make_up_the_table_again() -> None:
    for record in RECORDS[:70]:
        facts = item_of(record.row).facts
        assert facts_of(corruption._table_of(record, facts)) == facts


@pytest.mark.parametrize(("changes", "reason"), [({"kind": "human"}, "only kinds lookup"),
                                                 ({"question": "Who?"}, "is no question of kind")])
def test_what_cannot_be_misread_is_named(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=f"train-0-00002.*{reason}"):
        misread(replace(RECORDS[2], **changes))


def test_every_kind_occurs() -> None:
    assert Counter(record.kind for record in RECORDS) == dict.fromkeys(KINDS, 60)
