"""Each data set's own rules on edge cases, and what is trained on."""
from __future__ import annotations

import pytest

from dyme_core.data import metrics, schema


def row(answer: str, kind: str = "", **more: object) -> dict:
    return {"answer": answer, "kind": kind, "supervision": schema.known(**more)}


TEN = ["pipe"] * 4 + ["cigarette"] * 3 + ["smoke"] * 2 + ["Cigar "]
DIRECT = row("pipe", "direct", direct_answers=TEN, difficult_direct_answer=False, choices=list("wxyz"),
             correct_choice_idx=0)
DIFFICULT = row("pipe", "direct", direct_answers=TEN, difficult_direct_answer=True, choices=list("wxyz"),
                correct_choice_idx=0)
CHOICE = row("food", "choice", direct_answers=TEN, difficult_direct_answer=True, correct_choice_idx=1,
             choices=["toothpick", "food", "popsicle stick", "a pipe"])
ANGLE = row("B", "Vision Only", question_type="multi-choice", choices={"A": "50°", "B": "65°"})


def value(answer: str) -> dict:
    return row(answer, "Text Lite", question_type="free-form")


@pytest.mark.parametrize(("prediction", "expected"), [
    ("1234", (1, 1, 1, 1)), ("1,234", (0, 0, 0, 1)), ("1200", (1, 0, 1, 1)), ("5", (0, 0, 0, 0)), (None, (0, 0, 0, 0))])
def test_chartqa_keeps_the_lenient_rule_beside_the_three(prediction: str | None, expected: tuple) -> None:
    scores = metrics.chartqa_scores(prediction, row("1234", "human"))
    assert scores == dict(zip(("relaxed", "strict", "year_exact", "lenient"), expected, strict=True))


@pytest.mark.parametrize(("task", "record"), [
    ("chartqa", row("1234")), ("own", row("nan")), ("aokvqa", DIRECT), ("aokvqa", CHOICE), ("gsm8k", row("6", "text")),
    ("slake", row("liver", "open")), ("slake", row("Yes", "closed")), ("geometry", ANGLE), ("geometry", value("8"))])
def test_no_parsed_answer_scores_zero_by_every_rule_of_a_task(task: str, record: dict) -> None:
    scores = metrics.SCORERS[task](None, record)
    assert set(scores.values()) <= {0, None} and 0 in scores.values()
    assert metrics.training_accuracy(task, None, record) == 0


def test_aokvqa_drops_difficult_questions_from_the_official_score_alone() -> None:
    assert metrics.aokvqa_scores("pipe", DIFFICULT) == {
        "direct_answer": None, "direct_answer_lenient": None, "any_match": 1, "multiple_choice": None}


@pytest.mark.parametrize(("response", "target", "strict", "flexible"), [
    ("So it is 6.\n#### 6", "6", 1, 1), ("It costs $1,234.", "1234", 0, 1), ("It costs $1,234.$", "1234", 0, 1),
    ("<answer>6</answer>", "6", 0, 1), ("#### 6 and then 7", "6", 1, 0), ("#### 5\n#### 6", "6", 0, 1), ("6.0", "6", 0,
        0)])
def test_gsm8k_by_the_strict_and_the_flexible_rule(response: str | None, target: str, strict: int,
                                                   flexible: int) -> None:
    assert metrics.gsm8k_scores(response, row(target, "text")) == {"strict": strict, "flexible": flexible}


def test_gsm8ks_rules_see_the_whole_response_and_other_rules_the_answer() -> None:
    response = "#### 7 is what I thought first .\n<answer>6</answer>"
    assert metrics.score_response("gsm8k", response, row("7", "text")) == {"strict": 1, "flexible": 0}
    assert metrics.score_response("chartqa", response, row("6", "human"))["strict"] == 1
    assert metrics.score_response("chartqa", "no tag : 6", row("6", "human"))["strict"] == 0


@pytest.mark.parametrize(("task", "answer", "record", "earned"), [
    ("chartqa", "1200", row("1234"), 0), ("chartqa", "1234.0", row("1234"), 1),
    ("gsm8k", "$1,234", row("1234"), 1), ("gsm8k", "6.0", row("6"), 1), ("gsm8k", "6.1", row("6"), 0),
    ("gsm8k", "", row("6"), 0),
    ("aokvqa", "smoke", DIFFICULT, 2 / 3), ("aokvqa", "cigar", DIRECT, 1 / 3), ("aokvqa", "B", CHOICE, 1),
    ("slake", "Liver", row("liver", "open"), 1), ("slake", "liver and lung", row("liver", "open"), 0),
    ("geometry", "B", ANGLE, 1), ("geometry", "8.0", value("8"), 1)])
def test_what_an_answer_earns_in_training(task: str, answer: str, record: dict, earned: float) -> None:
    assert metrics.training_accuracy(task, answer, record) == pytest.approx(earned)


def test_the_accuracy_of_a_task_is_a_reward_function_of_trl() -> None:
    reward = metrics.accuracy_of("aokvqa")
    columns = {name: [DIRECT[name]] * 3 for name in DIRECT}
    texts = ["A man .\n<answer>smoke</answer>", [{"role": "assistant", "content": "<answer>pipe</answer>"}], "pipe"]
    assert reward(completions=texts, prompts=["p"] * 3, item=["a"] * 3, **columns) == [pytest.approx(2 / 3), 1, 0]
    assert reward.__name__ == "accuracy_reward"


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="chartqa, own, aokvqa, gsm8k, slake, geometry: got 'vqa'"):
        metrics.accuracy_of("vqa")
