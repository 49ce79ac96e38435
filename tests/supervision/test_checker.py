"""The rule checker: the poster's traces, every kind of question, and traces made wrong on purpose."""
from __future__ import annotations

import dataclasses
import json
import random

import pytest

from dyme_core.data import chart_questions, chart_tables, datasets, prompt_format
from dyme_core.data.schema import Fact, Item, item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, FIRST_TEMPLATE, Template

CHECKER = RuleChecker()
BARS = tuple(Fact(country, "", value, "percent")
             for country, value in (("Latvia", 3.0), ("Portugal", 8.9), ("Romania", 13.0)))
AVERAGE = Item("What is the average of the three bars?", "8.3", BARS, BARS, ("Latvia", "Portugal", "Romania"),
               "(3.0 + 8.9 + 13.0) / 3 = 8.3", "the average is 8.3")
OPINIONS = {"2010": (62.0, 36.0), "2012": (65.0, 35.0), "2015": (87.0, 13.0)}
BRAZIL = tuple(Fact(year, name, value) for year, values in OPINIONS.items()
               for name, value in zip(("good", "bad"), values, strict=True))
DIVERGENCE = Item("Which year shows a greater divergence of opinions about Brazil's economy, 2010 or 2012?", "2012",
                  BRAZIL, BRAZIL[:4], ("2010", "2012"), "62 - 36 = 26 < 65 - 35 = 30",
                  "the year with greater divergence is 2012")
POSTER = [  # the poster's own texts, with the scores it prints or describes
    (AVERAGE, "From the figure, the values represented by the three bars can be directly observed. Taking their mean "
              "yields an overall average of approximately **8.3**, which provides a concise summary of the "
              "distribution reflected.", 0.0),
    (AVERAGE, "To answer the question, ..., step 1 is to extract the values for Latvia, Portugal, and Romania: 3.0, "
              "8.9, and 13.0, respectively. Step 2 is to calculate the average of these values: (3.0 + 8.9 + 13.0) / 3 "
              "= 8.3. Therefore, the average is 8.3.", 1.0),
    (DIVERGENCE, "We **locate** 2010 and 2012. Then, **extract** 2010 has 62 and 36, 2012 has 65 and 35. **Comparing** "
                 "62 - 36 = 26 < 65 - 35 = 30, the year with greater divergence is 2012.", 1.0),
    (DIVERGENCE, "To answer the question, we first **locate** the relevant years in the chart. Then, we **extract** "
                 "the values for each year. **Compare** the differences, the year with greater divergence is "
                 "2010.", 0.0),
    (DIVERGENCE, "`2015` has the greatest divergence.", 0.0),
]


def items(kind: str, count: int = 40) -> list[Item]:
    """Items of one kind on random tables of all splits."""
    rng = random.Random(kind)
    drawn = []
    while len(drawn) < count:
        table = chart_tables.draw_table(rng, rng.choice(["train", "test", "unseen"]))
        question = chart_questions.KINDS[kind](rng, table)
        if question is not None:
            drawn.append(question)
    return drawn


def small_item() -> Item:
    """Two groups, two series, a gap question, worked by hand: 30 - 10 = 20 > 25 - 20 = 5."""
    shown = (Fact("2010", "FAV", 30.0), Fact("2010", "UNF", 10.0), Fact("2012", "FAV", 25.0), Fact("2012", "UNF", 20.0))
    return Item("Which has the greater gap between FAV and UNF, 2010 or 2012?", "2010", shown, shown, ("2010", "2012"),
                "30 - 10 = 20 > 25 - 20 = 5", "the greater gap is in 2010")


GOOD = ("We locate 2010 and 2012. Then, extract 2010 has 30 and 10, 2012 has 25 and 20. Comparing 30 - 10 = 20 > "
        "25 - 20 = 5, the greater gap is in 2010.")
NAMED = GOOD.replace("30 and 10,", "FAV 30 and UNF 10,").replace("25 and 20.", "FAV 25 and UNF 20.")


@pytest.mark.parametrize(("item", "trace", "score"), POSTER,
                         ids=["pseudo mean", "refined mean", "grounded", "pseudo", "bare"])
def test_the_posters_traces_get_the_posters_scores(item: Item, trace: str, score: float) -> None:
    assert CHECKER.judge(trace, item).score == score


@pytest.mark.parametrize("kind", chart_questions.KINDS)
@pytest.mark.parametrize("template", DEFAULT_TEMPLATES, ids=["locate", "steps"])
def test_the_target_of_every_kind_and_template_passes_the_checker(kind: str, template: Template) -> None:
    for item in items(kind):
        thinking = template.fill(item)
        judgement = CHECKER.judge(thinking, item)
        assert judgement.rating == "high", (thinking, judgement.reasons)
        assert prompt_format.is_well_formed(prompt_format.write_response(thinking, item.answer))
        assert "{" not in thinking


def test_the_hand_worked_target_is_what_the_first_template_writes() -> None:
    assert FIRST_TEMPLATE.fill(small_item()) == GOOD


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("2010 has 30", "2010 has 31", "1 of 4 claims are wrong"),  # an altered figure
    ("2010 has 30 and 10", "2010 has 10 and 30", "2 of 4 claims are wrong"),  # swapped series
    ("2010 has FAV 30 and UNF 10", "2010 has FAV 10 and UNF 30", "2 of 4 claims are wrong"),
    ("2010 has FAV 30 and UNF 10", "2010 has FAV 10 and UNF 30", "leaves out 2010 has 30 and 10"),
    ("is in 2010.", "is in 2010, while 2012 has 99.", "claims after the working"),
    ("2012 has 25 and 20", "2013 has 25 and 20", "claims are wrong"),  # an entity that is not there
    ("2012 has FAV 25 and UNF 20", "2013 has FAV 25 and UNF 20", "claims are wrong"),
    (", 2012 has 25 and 20", "", "leaves out 2012 has 25 and 20"),
    ("is in 2010.", "is in 2012.", "closes on '2012', not on the answer '2010'"),
    ("30 - 10 = 20", "30 - 10 = 25", "arithmetic does not hold"),
    ("25 - 20 = 5", "25 - 21 = 4", "arithmetic does not hold"),  # an operand that the picture does not show
    ("20 > 25", "20 < 25", "arithmetic does not hold"),
])
def test_a_trace_made_wrong_scores_below_one_and_says_why(old: str, new: str, reason: str) -> None:
    trace = GOOD if old in GOOD else NAMED
    assert old in trace
    judgement = CHECKER.judge(trace.replace(old, new), small_item())
    assert judgement.score < 1
    assert any(reason in found for found in judgement.reasons), judgement.reasons


@pytest.mark.parametrize(("said", "rating"), [("2010 has 31 and 11, 2012 has 25 and 20", "medium"),
                                              ("2010 has 31 and 11, 2012 has 26 and 20", "low")])
def test_as_many_wrong_claims_as_right_ones_are_medium_and_more_are_low(said: str, rating: str) -> None:
    assert CHECKER.judge(GOOD.replace("2010 has 30 and 10, 2012 has 25 and 20", said), small_item()).rating == rating


@pytest.mark.parametrize("trace", [GOOD, NAMED], ids=["bare values", "named values"])
def test_the_untouched_trace_scores_one_without_reasons(trace: str) -> None:
    judgement = CHECKER.judge(trace, small_item())
    assert (judgement.score, judgement.reasons) == (1.0, ())


@pytest.mark.parametrize("trace", ["", "The greater gap is in 2010.",
                                   "We look at the chart and compare the values, so it is 2010.",
                                   "2010 has FAV 41 and UNF 42, 2012 has 43 and 44. The greater gap is in 2010."])
def test_a_trace_without_a_right_fact_scores_zero(trace: str) -> None:
    assert CHECKER.judge(trace, small_item()).score == 0


@pytest.mark.parametrize("kind", chart_questions.KINDS)
def test_changing_any_one_figure_of_a_target_costs_the_full_score(kind: str) -> None:
    for item in items(kind, 10):
        for fact in item.evidence:
            wrong = dataclasses.replace(item, evidence=tuple(
                dataclasses.replace(shown, value=97.0) if shown == fact else shown for shown in item.evidence))
            assert CHECKER.judge(FIRST_TEMPLATE.fill(wrong), item).score < 1


def test_a_record_survives_the_data_set_as_json() -> None:
    record = datasets.mini_records("train", 7, seed=3)[1]
    item = item_of(json.loads(json.dumps(record.row)))
    assert item.question == record.question and item.answer == record.answer
    assert all(isinstance(fact, Fact) for fact in (*item.facts, *item.evidence))
    assert set(item.evidence) <= set(item.facts)
    assert CHECKER.score_all([FIRST_TEMPLATE.fill(item), ""], [record.row] * 2) == [1, 0]
