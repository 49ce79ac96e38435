"""Each data set's own rules on edge cases, and what is trained on."""
from __future__ import annotations

import pytest

from dyme_core.data import metrics, schema


def row(answer: str, kind: str = "", **more: object) -> dict:
    return {"answer": answer, "kind": kind, "supervision": schema.known(**more)}


TEN = ["pipe"] * 4 + ["cigarette"] * 3 + ["smoke"] * 2 + ["Cigar "]
DIRECT = row("pipe", "direct", direct_answers=TEN, difficult_direct_answer=False, choices=list("wxyz"), correct_choice_idx=0)
DIFFICULT = row("pipe", "direct", direct_answers=TEN, difficult_direct_answer=True, choices=list("wxyz"), correct_choice_idx=0)
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


@pytest.mark.parametrize(("prediction", "official", "any_match"), [
    ("pipe", 1, 1), ("cigarette", 1, 1), ("smoke", 2 / 3, 1), ("cigar", 1 / 3, 1), (" PIPE ", 1, 1), ("pipes", 0, 0),
    ("", 0, 0), (None, 0, 0)])
def test_aokvqa_counts_matches_among_the_ten_answers(prediction: str | None, official: float, any_match: int) -> None:
    assert metrics.aokvqa_scores(prediction, DIRECT) == {
        "direct_answer": pytest.approx(official), "any_match": any_match, "multiple_choice": None}


def test_aokvqa_drops_difficult_questions_from_the_official_score_alone() -> None:
    assert metrics.aokvqa_scores("pipe", DIFFICULT) == {"direct_answer": None, "any_match": 1, "multiple_choice": None}


@pytest.mark.parametrize(("prediction", "right"), [
    ("food", 1), ("Food.", 1), ("B", 1), ("(b)", 1), ("B: food", 1), ("B. food", 1), ("option B", 1), ("A", 0),
    ("toothpick", 0), ("a pipe", 0), ("b pipe", 0), ("", 0), (None, 0)])
def test_aokvqas_choice_is_named_by_its_text_or_its_letter(prediction: str | None, right: int) -> None:
    assert metrics.aokvqa_scores(prediction, CHOICE) == {"direct_answer": None, "any_match": None, "multiple_choice": right}


@pytest.mark.parametrize(("response", "target", "strict", "flexible"), [
    ("So it is 6.\n#### 6", "6", 1, 1), ("So it is 6.", "6", 0, 1), ("#### 1,234", "1234", 1, 1), ("#### 1234.", "1,234", 1, 1),
    ("It costs $1,234.", "1234", 0, 1), ("<answer>6</answer>", "6", 0, 1), ("#### 6 and then 7", "6", 1, 0),
    ("#### 5\n#### 6", "6", 0, 1), ("####6", "6", 0, 1), ("6.0", "6", 0, 0), ("-5", "5", 0, 0), ("#### -5", "-5", 1, 1),
    ("The total is 6 apples", "6", 0, 1), ("12 of 6", "6", 0, 1), ("6 %", "6", 0, 1), ("six", "6", 0, 0), ("", "6", 0, 0),
    (None, "6", 0, 0)])
def test_gsm8k_by_the_strict_and_the_flexible_rule(response: str | None, target: str, strict: int, flexible: int) -> None:
    assert metrics.gsm8k_scores(response, row(target, "text")) == {"strict": strict, "flexible": flexible}


def test_gsm8ks_rules_see_the_whole_response_and_other_rules_the_answer() -> None:
    response = "#### 7 is what I thought first .\n<answer>6</answer>"
    assert metrics.score_response("gsm8k", response, row("7", "text")) == {"strict": 1, "flexible": 0}
    assert metrics.score_response("chartqa", response, row("6", "human"))["strict"] == 1
    assert metrics.score_response("chartqa", "no tag : 6", row("6", "human"))["strict"] == 0


@pytest.mark.parametrize(("prediction", "target", "exact", "recall"), [
    ("Liver, Spleen", "liver, spleen", 1, 1), ("liver", "Liver, Spleen", 0, 0.5),
    ("the liver and the spleen", "liver, spleen", 0, 1),
    ("lung", "liver", 0, 0), ("live", "liver", 0, 0), ("Liver.", "liver", 1, 1), ("", "liver", 0, 0), (None, "liver", 0, 0),
    ("2.5", "2.5", 1, 1), ("T2", "t1", 0, 0)])
def test_slakes_open_questions_by_exactness_and_recall(prediction: str | None, target: str, exact: int, recall: float) -> None:
    assert metrics.slake_scores(prediction, row(target, "open")) == {
        "closed_accuracy": None, "open_exact": exact, "open_recall": recall}


@pytest.mark.parametrize(("prediction", "right"), [("yes", 1), ("Yes.", 1), ("No", 0), ("yes and no", 0), (None, 0)])
def test_slakes_closed_questions_by_accuracy(prediction: str | None, right: int) -> None:
    assert metrics.slake_scores(prediction, row("Yes", "closed")) == {
        "closed_accuracy": right, "open_exact": None, "open_recall": None}


@pytest.mark.parametrize(("prediction", "right"), [
    ("B", 1), ("b", 1), ("B:65°", 1), ("65°", 1), ("65 degrees", 1), (r"$65^{\circ}$", 1), ("A", 0), ("50°", 0), ("BC", 0),
    ("both", 0), ("", 0), (None, 0)])
def test_a_choice_of_geometry_is_named_by_its_letter_or_its_value(prediction: str | None, right: int) -> None:
    assert metrics.geometry_scores(prediction, ANGLE) == {"rule_accuracy": right}


@pytest.mark.parametrize(("prediction", "target", "right"), [
    ("8", "8.0", 1), ("8.", "8", 1), (r"8\text{ cm}", "8 cm", 1), ("2√3", "2 √3", 1), ("65", "65°", 1), ("8.1", "8", 0),
    ("(-3, 1]", "(-3,1]", 1), ("(-4, 1]", "(-3, 1]", 0), ("", "8", 0), (None, "8", 0)])
def test_a_value_of_geometry_is_compared_after_normalising(prediction: str | None, target: str, right: int) -> None:
    assert metrics.geometry_scores(prediction, value(target)) == {"rule_accuracy": right}


@pytest.mark.parametrize(("task", "answer", "record", "earned"), [
    ("chartqa", "1200", row("1234"), 0), ("chartqa", "1234.0", row("1234"), 1),
    ("gsm8k", "$1,234", row("1234"), 1), ("gsm8k", "6.0", row("6"), 1), ("gsm8k", "6.1", row("6"), 0),
    ("gsm8k", "", row("6"), 0),
    ("aokvqa", "smoke", DIFFICULT, 2 / 3), ("aokvqa", "cigar", DIRECT, 1 / 3), ("aokvqa", "B", CHOICE, 1),
    ("slake", "Liver", row("liver", "open"), 1), ("slake", "liver and lung", row("liver", "open"), 0),
    ("geometry", "B", ANGLE, 1), ("geometry", "8.0", value("8"), 1)])
def test_what_an_answer_earns_in_training(task: str, answer: str, record: dict, earned: float) -> None:
    assert metrics.training_accuracy(task, answer, record) == pytest.approx(earned)
    assert metrics.training_accuracy(task, None, record) == 0


def test_the_accuracy_of_a_task_is_a_reward_function_of_trl() -> None:
    reward = metrics.accuracy_of("aokvqa")
    columns = {name: [DIRECT[name]] * 3 for name in DIRECT}
    texts = ["A man .\n<answer>smoke</answer>", [{"role": "assistant", "content": "<answer>pipe</answer>"}], "pipe"]
    assert reward(completions=texts, prompts=["p"] * 3, item=["a"] * 3, **columns) == [pytest.approx(2 / 3), 1, 0]
    assert reward.__name__ == "accuracy_reward"


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="chartqa, aokvqa, gsm8k, slake, geometry: got 'vqa'"):
        metrics.accuracy_of("vqa")
