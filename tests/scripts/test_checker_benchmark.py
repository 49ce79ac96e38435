"""The labelled set, the held-out traces, and how far the rule checker agrees with them."""
from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme_core.data import chart_questions
from dyme_core.data.schema import Fact, Item, item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import FIRST_TEMPLATE, RuleRefiner
from scripts.checker_benchmark import EXPECTED, HOSTILE, LabelledTrace, agreement, confusion, labelled_set
from scripts.heldout import held_out_set

ITEM = Item("What is A in 2010?", "5", (Fact("2010", "A", 5.0), Fact("2011", "A", 7.0)), (Fact("2010", "A", 5.0),), ("2010",),
            "", "the value is 5")


@pytest.fixture(scope="module")
def labelled() -> list[LabelledTrace]:
    return labelled_set(seed=0)


class Scorer:
    """A checker that scores 1 where the trace says high, gives none where it says nothing, else 0."""

    def score_all(self, thinkings: list[str], records: list[dict]) -> list[float]:
        assert all(item_of(record) == ITEM for record in records)
        assert len({record["item"] for record in records}) == len(records), "each request has a name of its own"
        return [math.nan if "nothing" in thinking else float("high" in thinking) for thinking in thinkings]


def test_the_set_is_large_covers_all_kinds_and_classes_and_is_the_same_each_time(labelled) -> None:
    assert len(labelled) >= 210
    counts = Counter(trace.label for trace in labelled)
    assert set(counts) == set(EXPECTED) and min(counts.values()) >= 30
    assert labelled == labelled_set(seed=0) and labelled != labelled_set(seed=1)
    starts = {"gap": "Which has the greatest gap", "peak": "Which has the highest", "count": "How many",
              "lowest": "Which has the lowest", "margin": "How much greater is", "sum": "What is the sum",
              "difference": "What is the difference", "lookup": "What is the value"}
    assert starts.keys() == chart_questions.KINDS.keys()
    assert all(any(trace.item.question.startswith(start) for trace in labelled) for start in starts.values())


def test_a_trace_made_wrong_differs_from_the_right_ones(labelled) -> None:
    right = {(trace.item, trace.thinking) for trace in labelled if trace.label == "right"}
    assert not [trace for trace in labelled if trace.label not in ("right", "hostile_right") and
                (trace.item, trace.thinking) in right]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rule_checker_rates_at_least_98_percent_of_the_set_rightly(seed: int) -> None:
    *classes, total = confusion(agreement(RuleChecker(), labelled_set(seed=seed)))
    assert total["share_right"] >= 0.98
    assert min(row["share_right"] for row in classes) >= 0.95


def test_the_rule_checker_rates_most_held_out_traces_rightly_and_no_wrong_one_high() -> None:
    rows = agreement(RuleChecker(), held_out_set())
    assert len(rows) >= 60 and confusion(rows)[-1]["share_right"] >= 0.95
    assert not [row for row in rows if row["label"] != "right" and row["rating"] == "high"]


def test_no_hostile_text_at_either_end_raises_a_score(labelled) -> None:
    checker = RuleChecker()
    for trace in [trace for trace in labelled if not trace.base][::5]:
        score = checker.judge(trace.thinking, trace.item).score
        for text in HOSTILE:
            for hostile in (f"{trace.thinking} {text}", f"{text}\n{trace.thinking}"):
                assert checker.judge(hostile, trace.item).score <= score, hostile


def test_agreement_counts_what_a_checker_says() -> None:
    traces = [LabelledTrace(ITEM, "high", "right", EXPECTED["right"]),
              LabelledTrace(ITEM, "high", "altered", EXPECTED["altered"])]
    rows = agreement(Scorer(), traces)
    assert [(row["label"], row["expected"], row["is_right"]) for row in rows] == [
        ("right", "high", 1), ("altered", "low/medium", 0)]
    assert confusion(rows) == [
        {"label": "right", "num": 1, "low": 0, "medium": 0, "high": 1, "num_right": 1, "share_right": 1.0},
        {"label": "altered", "num": 1, "low": 0, "medium": 0, "high": 1, "num_right": 0, "share_right": 0.0},
        {"label": "all", "num": 2, "low": 0, "medium": 0, "high": 2, "num_right": 1, "share_right": 0.5}]


def test_a_hostile_text_that_raises_the_score_is_wrong_even_where_any_rating_is_expected() -> None:
    raised = LabelledTrace(ITEM, "x high", "hostile_right", EXPECTED["hostile_right"], "x")
    lowered = LabelledTrace(ITEM, "x", "hostile_right", EXPECTED["hostile_right"], "x high")
    rows = agreement(Scorer(), [raised, lowered])
    assert [(row["base_rating"], row["rating"], row["is_right"]) for row in rows] == [("low", "high", 0), ("high", "low", 1)]


def test_a_trace_without_a_score_is_no_agreement_and_no_rating() -> None:
    [row] = agreement(Scorer(), [LabelledTrace(ITEM, "nothing", "altered", EXPECTED["altered"])])
    assert (row["rating"], row["is_right"]) == ("", 0)
    assert [confusion([row])[-1][name] for name in ("num", "low", "medium", "high")] == [1, 0, 0, 0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_a_refined_target_scores_one_and_any_one_other_figure_costs_it(seed: int, draw) -> None:
    trace = labelled_set(num_items=8, seed=seed % 40)[0] if seed % 2 else draw.draw(st.sampled_from(held_out_set()))
    item = trace.item
    if RuleChecker().judge(FIRST_TEMPLATE.fill(item), item).score < 1:
        pytest.fail(f"target of {item.question}")
    assert RuleChecker().judge(RuleRefiner().refine(item), item).score == 1
    target = draw.draw(st.sampled_from(item.evidence))
    value = draw.draw(st.integers(0, 999).map(float).filter(lambda number: number != target.value))
    wrong = dataclasses.replace(item, evidence=tuple(dataclasses.replace(fact, value=value) if fact == target else fact
                                                     for fact in item.evidence))
    assert RuleChecker().judge(FIRST_TEMPLATE.fill(wrong), item).score < 1
