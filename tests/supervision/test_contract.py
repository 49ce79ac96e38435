"""The checker's contract (docs/method.md), by kind of question, and the sets that it is measured on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dyme_core.data import datasets
from dyme_core.data.schema import Fact, Item, item_of
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, RuleRefiner
from dyme_core.supervision.task import task_of
from dyme_core.utils import read_rows
from scripts import wordings
from scripts.checker_benchmark import agreement
from scripts.heldout import FOLDER, PARTS, contract_set

CHECKER = RuleChecker()


def bars(unit: str = "", **values: float) -> tuple[Fact, ...]:
    return tuple(Fact(name, "rain", value, unit) for name, value in values.items())


RAIN = bars("mm", March=94, April=68, May=45, June=37)
COLD = bars("", Oslo=-3.0, Rome=12.5, Bern=-7.5)
SEATS = tuple(
    Fact(country, name, value)
    for country, values in (("Kenya", (22, 78)), ("Nepal", (33, 67)))
    for name, value in zip(("women", "men"), map(float, values), strict=True)
)
ITEMS = {
    "lookup": Item("What is the rain in May?", "45", RAIN, RAIN[2:3]),
    "sum": Item("What is the sum of rain in March and June?", "131", RAIN, (RAIN[0], RAIN[3])),
    "mean": Item("What is the average rain of May and June?", "41", RAIN, RAIN[2:]),
    "difference": Item("How much more rain has March than June?", "57", RAIN, (RAIN[0], RAIN[3])),
    "ratio": Item("What is the ratio of March to April?", "1.38", RAIN, RAIN[:2]),
    "gap": Item("Which has the greater gap between women and men, Kenya or Nepal?", "Kenya", SEATS, SEATS),
    "peak": Item("Which month has the highest rain?", "March", RAIN, RAIN),
    "compare": Item("Is rain in May greater than in June?", "Yes", RAIN, RAIN[2:]),
    "count": Item("How many have rain above 50?", "2", RAIN, RAIN),
}
STATED = {
    "lookup": "May has 45.",
    "sum": "March has 94 and June has 37.",
    "mean": "May has 45 and June has 37.",
    "difference": "March has 94 and June has 37.",
    "ratio": "March has 94 and April has 68.",
    "gap": "Kenya has women 22 and men 78, Nepal has women 33 and men 67.",
    "peak": "March has 94, April has 68, May has 45 and June has 37.",
    "compare": "May has 45 and June has 37.",
    "count": "March has 94, April has 68, May has 45 and June has 37.",
}
CLOSED = {kind: f"The answer is {item.answer}." for kind, item in ITEMS.items()}
DONE = {  # what shows the work, in signs and in words
    "sum": ("94 + 37 = 131.", "94 and 37 add up to 131.", "Adding them gives 131."),
    "mean": ("(45 + 37) / 2 = 41.", "45 + 37 = 82, 82 / 2 = 41.", "The mean of 45 and 37 is 41."),
    "difference": ("94 - 37 = 57.", "94 is 57 more than 37.", "March leads by 57.", "Subtracting 37 from 94 gives 57."),
    "ratio": ("94 / 68 = 1.38.", "94 divided by 68 is 1.38."),
    "gap": ("78 - 22 = 56, 67 - 33 = 34, 56 > 34.", "Kenya has a gap of 56 and Nepal has a gap of 34."),
    "peak": (
        "94 > 68 > 45 > 37.",
        "94 > 68, 94 > 45, 94 > 37.",
        "94 is the largest.",
        "94 is higher than all the others.",
    ),
    "compare": ("45 > 37.", "45 is more than 37.", "May is higher than June."),
    "count": ("94 > 50, 68 > 50.", "Only March and April are above 50.", "94 and 68 are above 50."),
}
NOT_DONE = {  # true, but not what the question needs
    "sum": ("94 - 37 = 57.", "94 > 37."),
    "mean": ("45 + 37 = 82.", "45 - 37 = 8."),
    "difference": ("94 + 37 = 131.", "94 > 37."),
    "ratio": ("94 - 68 = 26.",),
    "gap": ("78 - 22 = 56.", "78 > 67.", "22 + 78 = 100, 33 + 67 = 100."),
    "peak": ("94 > 68.", "68 > 45 > 37."),
    "compare": ("94 > 68.", "45 + 37 = 82."),
    "count": ("94 > 50.", "94 > 50, 68 > 50, 45 > 37.", "March is above 50."),
}


@pytest.mark.parametrize("kind", ITEMS)
def test_the_kind_of_a_question_is_told_from_its_words_answer_and_facts(kind: str) -> None:
    assert task_of(ITEMS[kind]).kind == kind


def test_a_difference_that_happens_to_be_the_average_is_a_difference() -> None:
    values = tuple(Fact("2011", name, value) for name, value in (("Seniors", 9.0), ("Newcomers", 3.0)))
    for words in ("How far apart are Seniors and Newcomers", "What is the distance between Seniors and Newcomers"):
        assert task_of(Item(f"{words} in 2011?", "6", values, values)).kind == "difference"


@pytest.mark.parametrize(("kind", "work"), [(kind, work) for kind, works in DONE.items() for work in works])
def test_facts_reasoning_and_conclusion_make_full_marks(kind: str, work: str) -> None:
    judgement = CHECKER.judge(f"{STATED[kind]} {work} {CLOSED[kind]}", ITEMS[kind])
    assert judgement.score == 1, judgement.reasons


@pytest.mark.parametrize("kind", DONE)
def test_facts_and_the_answer_alone_are_half(kind: str) -> None:
    judgement = CHECKER.judge(f"{STATED[kind]} {CLOSED[kind]}", ITEMS[kind])
    assert judgement.score == 0.5 and any("does not show its work" in reason for reason in judgement.reasons)
    assert CHECKER.judge(f"{STATED['lookup']} {CLOSED['lookup']}", ITEMS["lookup"]).score == 1, (
        "a look-up needs no reasoning"
    )


@pytest.mark.parametrize(("kind", "work"), [(kind, work) for kind, works in NOT_DONE.items() for work in works])
def test_another_working_is_half(kind: str, work: str) -> None:
    assert CHECKER.judge(f"{STATED[kind]} {work} {CLOSED[kind]}", ITEMS[kind]).score == 0.5


@pytest.mark.parametrize("kind", DONE)
def test_reasoning_without_the_facts_it_needs_is_no_full_mark(kind: str) -> None:
    assert CHECKER.judge(f"{DONE[kind][0]} {CLOSED[kind]}", ITEMS[kind]).score < 1


@pytest.mark.parametrize(
    "extra",
    [
        "Maybe.",
        "Wait, no.",
        "The answer is 130.",
        "So the sum is 94.",
        "Is the sum 131?",
        "March has 95.",
        "5 + 5 = 10.",
        "37 = 37.",
        "7 and 8.",
        "Blorp fnord zint.",
        "April never has 68.",
        "If it rains.",
        "August has 94.",
        "68 + 45 = 113.",
        "This is all made up.",
    ],
)
def test_any_sentence_that_is_doubtful_wrong_or_unknown_costs_the_full_score_wherever_it_stands(extra: str) -> None:
    parts = [STATED["sum"], DONE["sum"][0], CLOSED["sum"]]
    assert CHECKER.judge(" ".join(parts), ITEMS["sum"]).score == 1
    for place in range(4):
        assert CHECKER.judge(" ".join([*parts[:place], extra, *parts[place:]]), ITEMS["sum"]).score < 1, place


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Oslo has -3. The answer is -3.", 1),
        ("Oslo is at \u22123. So the value is \u22123.", 1),
        ("Oslo has minus 3. The answer is -3.", 1),
        ("Oslo has -3. The answer is 3.", 0.5),
        ("Oslo has 3. The answer is -3.", 0),
    ],
)
def test_a_negative_number_is_itself_only_with_its_sign(text: str, score: float) -> None:
    assert CHECKER.judge(text, Item("What is the rain in Oslo?", "-3", COLD, COLD[:1])).score == score


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (12400, "", "12,400"), (12400, "", "12 400"), (12400, "", "12.4 thousand"), (8.9, "", "8,9"), (8.9, "%", "8.9 %"),
        (8.9, "%", "8.9 percent"), (-8.9, "", "\u22128.9"), (62, "", "sixty-two"), (3.5, "billion dollars", "$3.5 billion"),
    ],
)
def test_a_value_is_read_as_people_write_it_and_another_one_is_not(value: float, unit: str, said: str) -> None:
    facts = (Fact("Total", "", value, unit), Fact("2019", "", 40.0, unit), Fact("May", "", 7.0, unit))
    item = Item("What is the value of Total?", f"{value:g}", facts, facts[:1])
    assert CHECKER.judge(f"In Total it is {said}. The answer is {said}.", item).score == 1
    assert CHECKER.judge(f"In 2019 it is {said}. The answer is {said}.", item).score == 0
    for wrong in (f"1{said}", f"{said} kg", f"{said} thousand" if "thousand" not in said else "12.5 thousand"):
        assert CHECKER.judge(f"In Total it is {wrong}. The answer is {said}.", item).score < 1, wrong


def test_a_negative_answer_has_a_target() -> None:
    item = Item(
        "What is the sum of rain in Oslo and Bern?",
        "-10.5",
        COLD,
        (COLD[0], COLD[2]),
        ("Oslo", "Bern"),
        "-3 + -7.5 = -10.5",
        "the sum is -10.5",
    )
    target = RuleRefiner().refine(item)
    assert target.endswith("the sum is -10.5.") and CHECKER.judge(target, item).score == 1
    assert CHECKER.judge(target.replace("is -10.5", "is 10.5"), item).score < 1
    lookup = replace(
        item,
        question="What is the rain in Oslo?",
        answer="-3",
        evidence=COLD[:1],
        working="",
        conclusion="the value is -3",
    )
    assert CHECKER.judge(RuleRefiner().refine(lookup), lookup).score == 1


@pytest.mark.parametrize(
    ("question", "answer", "trace"),
    [
        (
            "Which month has the least rain?",
            "June",
            "March has 94, April has 68, May has 45 and June has 37. 37 is the smallest. It is June.",
        ),
        (
            "What is the difference between March and June?",
            "57",
            "March has 94 and June has 37. 94 - 37 = 57. The answer is 57.",
        ),
        ("What's the rain of April?", "68", "April has 68. The answer is 68."),
        ("Which month has 45 mm?", "May", "May has 45. The answer is May."),
        ("What is twice the rain of May?", "90", "May has 45. 45 * 2 = 90. The answer is 90."),
    ],
)
def test_a_data_set_that_does_not_say_which_facts_the_answer_needs_is_rated_by_the_same_rule(
    question: str, answer: str, trace: str
) -> None:
    item = Item(question, answer, RAIN, ())
    assert CHECKER.judge(trace, item).score == 1, CHECKER.judge(trace, item).reasons
    assert CHECKER.judge(trace.replace("has", "may have"), item).score < 1
    assert CHECKER.judge(f"The answer is {answer}.", item).score == 0


def test_no_wrong_trace_of_the_written_set_is_high_and_98_percent_are_rated_rightly() -> None:
    rows = agreement(CHECKER, [trace for part in PARTS for trace in contract_set(part)])
    assert len(rows) > 600
    assert not [row for row in rows if row["expected"] != "high" and row["rating"] == "high"]
    assert sum(row["is_right"] for row in rows) >= 0.98 * len(rows)


def test_one_thing_changed_costs_the_full_score_and_other_words_do_not() -> None:
    for what, _, item, text in wordings.cases(600, seed=3):
        assert (CHECKER.judge(text, item).rating == "high") == (what == "right"), (what, text)


@pytest.mark.exhaustive
def test_every_target_of_2000_questions_is_rated_high_in_every_template() -> None:
    for record in datasets.mini_records("train", 2000, seed=7):
        item = item_of(record.row)
        for template in DEFAULT_TEMPLATES:
            assert CHECKER.judge(template.fill(item), item).score == 1, template.fill(item)


@pytest.mark.parametrize("trick", read_rows(FOLDER / "hacked.jsonl"), ids=lambda trick: f"{trick['kind']} {trick['step']}")
def test_what_reinforcement_learning_found_in_the_checker_is_not_high_any_more(trick: dict) -> None:
    assert CHECKER.judge(trick["thinking"], item_of(trick)).rating == "medium"
