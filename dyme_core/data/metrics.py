"""The rules that each data set is scored by, named as in docs/evaluation.md; None is a score that does not apply.

A scorer is given a prediction (the parsed answer, None where there is none; for GSM8K the whole response) and the record's
row. A rule that forgives more than the official one has a name of its own. Training uses `training_accuracy`.
"""
from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dyme_core.data.prompt_format import Completion, completion_text, split_response

Scores = dict[str, float | None]
Row = Mapping[str, Any]
RELAXED_TOLERANCE = 0.05  # ChartQA's common rule, used in evaluation
STRICT_TOLERANCE = 0.0  # public code: trains with 0 and evaluates with 5 %
YEARS = range(1800, 2101)  # a target written as one of these integers is a year
WHOLE_RESPONSE = ("gsm8k",)  # tasks whose official rules extract the answer themselves

_NUMBER_WITH_UNIT = re.compile(r"([-+]?)([$€£¥]?)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?%?)\s*([a-z][a-z /]*)?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LETTER = re.compile(r"(?:option|choice)?\s*\(?([a-h])\)?(?:[:.)].*)?", re.IGNORECASE | re.DOTALL)


def relaxed_accuracy(prediction: str, target: str, tolerance: float = RELAXED_TOLERANCE) -> float:
    """Score one answer by ChartQA's common rule (docs/evaluation.md): 1.0 correct, 0.0 not.

    Args:
        prediction: the parsed answer; `x%` reads as x / 100, commas and units do not parse.
        target: the data set's answer.
        tolerance: allowed |p - t| / |t|; with 0 numbers must be equal ("26" equals "26.0").
    Returns:
        1.0 or 0.0. Numbers are compared where both parse and the target is not 0, else stripped strings, case aside.
    """
    prediction, target = prediction.strip(), target.strip()
    number, wanted = _to_float(prediction), _to_float(target)
    if number is not None and wanted:
        return float(abs(number - wanted) / abs(wanted) <= tolerance)
    return float(prediction.lower() == target.lower())


def strict_accuracy(prediction: str, target: str) -> float:
    """Score by the common rule with tolerance 0 (the accuracy that is trained on)."""
    return relaxed_accuracy(prediction, target, STRICT_TOLERANCE)


def year_exact_accuracy(prediction: str, target: str) -> float:
    """Score by the common rule, but with tolerance 0 where the target is a year (2008 is not 2010)."""
    return relaxed_accuracy(prediction, target, STRICT_TOLERANCE if _is_year(target) else RELAXED_TOLERANCE)


def lenient_accuracy(prediction: str, target: str, tolerance: float = RELAXED_TOLERANCE) -> float:
    """Score as the common rule does, but forgive thousands commas, currency, a trailing dot and a unit on one side.

    Never report it as the common rule. Two different units never match ("5 million" is not "5 thousand").
    """
    if relaxed_accuracy(prediction, target, tolerance):
        return 1.0
    number, unit, wanted, wanted_unit = *_parse_lenient(prediction), *_parse_lenient(target)
    if unit and wanted_unit and unit != wanted_unit:
        return 0.0
    return relaxed_accuracy(number, wanted, tolerance)


def score_answer(prediction: str | None, target: str) -> dict[str, int]:
    """Score one answer by the three rules that are always reported together.

    Returns:
        {"relaxed", "strict", "year_exact"}, each 0 or 1; all 0 where no answer could be parsed (None).
    """
    rules = {"relaxed": relaxed_accuracy, "strict": strict_accuracy, "year_exact": year_exact_accuracy}
    return {name: 0 if prediction is None else int(rule(prediction, target)) for name, rule in rules.items()}


def chartqa_scores(prediction: str | None, row: Row) -> Scores:
    """relaxed (the common rule), strict and year_exact, and beside them lenient."""
    answer = row["answer"]
    return {**score_answer(prediction, answer), "lenient": 0.0 if prediction is None else lenient_accuracy(prediction, answer)}


def aokvqa_scores(prediction: str | None, row: Row) -> Scores:
    """Scores of A-OKVQA: multiple_choice for a question asked with its choices, else direct_answer and any_match.

    direct_answer: min(1, matches / 3) over the ten answers, None for a difficult_direct_answer (the official rule; the
    script of allenai/aokvqa at 0438d33a drops those from the other score). any_match is what the public DyME code counts: any
    match, nothing dropped. Texts are compared stripped, case aside; multiple_choice takes the choice's letter as well.
    """
    scoring = _scoring(row)
    if row["kind"] == "choice":
        right = scoring["correct_choice_idx"]
        return {"direct_answer": None, "any_match": None,
                "multiple_choice": _is_choice(prediction, chr(ord("A") + right), scoring["choices"][right])}
    share = _matches(prediction, row)
    return {"direct_answer": None if scoring["difficult_direct_answer"] else min(1.0, share / 3), "any_match": float(share > 0),
            "multiple_choice": None}


def gsm8k_scores(prediction: str | None, row: Row) -> Scores:
    """strict: the number behind the first "#### "; flexible: the last number. As in lm-evaluation-harness (gsm8k, version 3).

    Before texts are compared, both lose commas, "$" and a trailing dot. Our answer line has no "####", so that strict is
    0 for it: flexible is the figure to compare.
    """
    strict, numbers = _STRICT.search(prediction or ""), list(_FLEXIBLE.finditer(prediction or ""))
    target = _plain_number(row["answer"])
    return {"strict": float(strict is not None and _plain_number(strict[1]) == target),
            "flexible": float(bool(numbers) and _plain_number(numbers[-1][0]) == target)}


def slake_scores(prediction: str | None, row: Row) -> Scores:
    """closed_accuracy for closed questions; open_exact and open_recall (share of the target's words said) for open ones.

    Words are compared, case and punctuation aside.
    """
    said, wanted = _words(prediction or ""), _words(row["answer"])
    exact, is_open = float(bool(said) and said == wanted), row["kind"] == "open"
    recall = sum(word in said for word in wanted) / len(wanted) if wanted else exact
    return {"closed_accuracy": None if is_open else exact, "open_exact": exact if is_open else None,
            "open_recall": recall if is_open else None}


def geometry_scores(prediction: str | None, row: Row) -> Scores:
    """rule_accuracy of a choice (its letter, or its text) or a value (equal after normalising), for Geo170K and MathVerse.

    Not MathVerse's official score: that one asks a language model to extract and to judge. A rule misses equal values
    written differently, so that it is lower.
    """
    if _scoring(row)["question_type"] == "multi-choice":
        letter = row["answer"]
        return {"rule_accuracy": _is_choice(prediction, letter, _scoring(row).get("choices", {}).get(letter, letter))}
    said, wanted = _plain_value(prediction or ""), _plain_value(row["answer"])
    return {"rule_accuracy": float(bool(said) and strict_accuracy(said, wanted))}


SCORERS: dict[str, Callable[[str | None, Row], Scores]] = {
    "chartqa": chartqa_scores, "aokvqa": aokvqa_scores, "gsm8k": gsm8k_scores, "slake": slake_scores,
    "geometry": geometry_scores}


def score_response(task: str, response: str, row: Row) -> Scores:
    """Score a whole response by the rules of a task (a key of SCORERS)."""
    return SCORERS[task](response if task in WHOLE_RESPONSE else split_response(response)[1], row)


def training_accuracy(task: str, answer: str | None, row: Row) -> float:
    """What a parsed answer earns in training, in [0, 1]; above 0.5 counts as correct. Training is strict.

    chartqa: tolerance 0. gsm8k: the same number. aokvqa: the official score with nothing dropped, so that one match of ten is
    not yet correct. slake: exact. geometry: the rule. No answer earns 0.
    """
    if answer is None:
        return 0.0
    if task == "gsm8k":
        return strict_accuracy(_plain_number(answer.strip()), _plain_number(row["answer"]))
    if task == "slake":
        return float(_words(answer) == _words(row["answer"]))
    if task == "aokvqa" and row["kind"] == "direct":
        return min(1.0, _matches(answer, row) / 3)
    name = {"chartqa": "strict", "aokvqa": "multiple_choice", "geometry": "rule_accuracy"}[task]
    return float(SCORERS[task](answer, row)[name])


def accuracy_reward(completions: Sequence[Completion], answer: Sequence[str], **kwargs: Any) -> list[float]:
    """Give 1.0 to each completion whose parsed answer equals the target strictly, else 0.0 (also where none is parsed).

    Args:
        completions: one per rollout.
        answer: the data column of targets, repeated by TRL to one per rollout.
    """
    return [float(score_answer(split_response(completion_text(completion))[1], target)["strict"])
            for completion, target in zip(completions, answer, strict=True)]


def accuracy_of(task: str) -> Callable[..., list[float]]:
    """The accuracy reward of a task, as a TRL reward function for `rewards.dyme_rewards`.

    Raises:
        ValueError: for an unknown task, with the known ones.
    """
    if task not in SCORERS:
        raise ValueError(f"expected one of the tasks {', '.join(SCORERS)}: got {task!r}")

    if task == "chartqa":
        return accuracy_reward

    def task_accuracy(completions: Sequence[Completion], answer: Sequence[str], kind: Sequence[str],
                      supervision: Sequence[str], **kwargs: Any) -> list[float]:
        """Give each completion the training accuracy of its parsed answer; TRL repeats the columns, one value per rollout."""
        rows = [dict(zip(("answer", "kind", "supervision"), values, strict=True))
                for values in zip(answer, kind, supervision, strict=True)]
        return [training_accuracy(task, split_response(completion_text(completion))[1], row)
                for completion, row in zip(completions, rows, strict=True)]

    task_accuracy.__name__ = accuracy_reward.__name__  # TRL names its metrics by it
    return task_accuracy


def _scoring(row: Row) -> dict[str, Any]:
    return json.loads(row["supervision"])["scoring"]


def _matches(prediction: str | None, row: Row) -> int:
    said = (prediction or "").strip().lower()
    return sum(said == answer.strip().lower() for answer in _scoring(row)["direct_answers"]) if said else 0


def _is_choice(prediction: str | None, letter: str, text: str) -> float:
    said = (prediction or "").strip()
    found = _LETTER.fullmatch(said)
    return float(bool(said) and (_plain_value(said) == _plain_value(text) or found is not None and found[1].upper() == letter))


def _plain_number(text: str) -> str:
    return re.sub(r"[,$]|\.$", "", text)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:\.\d+)?", unicodedata.normalize("NFKC", text).lower())


def _plain_value(text: str) -> str:
    r"""A value without spaces, case, degree signs, `$` and \text{...}, and without a trailing dot."""
    text = re.sub(r"\\text\s*{([^{}]*)}", r"\1", unicodedata.normalize("NFKC", text))
    return re.sub(r"\s|\$|°|\^?{?\\circ}?|(?:degrees?\b)|\.\s*$", "", text).lower()


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _is_year(target: str) -> bool:
    text = target.strip()
    return len(text) == 4 and text.isdecimal() and int(text) in YEARS


def _parse_lenient(text: str) -> tuple[str, str]:
    """Split a text into (number or cleaned text, unit or '')."""
    text = _THOUSANDS_COMMA.sub("", text.strip().rstrip(".").strip().lower())
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    sign, currency, number, unit = match.groups()
    return sign + number, currency + (unit or "").strip()
