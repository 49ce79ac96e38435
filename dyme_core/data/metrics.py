"""The rules that each data set is scored by, named as in docs/evaluation.md; None is a score that does not apply.

A scorer is given a prediction (the parsed answer, None where there is none; for GSM8K the whole response) and the record's
row. A rule that forgives more than the official one has a name of its own. Training uses `training_accuracy`.
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from dyme_core.data.prompt_format import Completion, completion_text, split_response
from dyme_core.data.schema import NO_SUPERVISION, item_of

Scores = dict[str, float | None]
Row = Mapping[str, Any]
RELAXED_TOLERANCE = 0.05  # ChartQA's common rule, used in evaluation
STRICT_TOLERANCE = 0.0  # public code: trains with 0 and evaluates with 5 %
YEARS = range(1800, 2101)  # a target written as one of these integers is a year
WHOLE_RESPONSE = ("gsm8k",)  # tasks whose official rules extract the answer themselves

_AMOUNT = re.compile(r"([-+]?)([$€£¥]?)\s*([-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?)\s*(%|[a-z][a-z /]*)?")
_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PERCENT = ("percent", "per cent", "pct")
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LETTER = re.compile(r"(?:option|choice)?\s*\(?(?P<letter>[a-h])\)?(?::(?P<behind>.*)|[.)](?:\s+(?P<later>.*))?)?",
                     re.IGNORECASE | re.DOTALL)


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
    text = target.strip()
    is_year = len(text) == 4 and text.isdecimal() and int(text) in YEARS
    return relaxed_accuracy(prediction, target, STRICT_TOLERANCE if is_year else RELAXED_TOLERANCE)


def lenient_accuracy(prediction: str, target: str, tolerance: float = RELAXED_TOLERANCE) -> float:
    """Score as the common rule does, but forgive thousands commas, currency, a trailing dot and a unit on one side.

    Never report it as the common rule. "2%" is 2 or 0.02. Two different units never match ("5 million" is not "5 thousand").
    """
    if _same_text(prediction, target) or relaxed_accuracy(prediction, target, tolerance):
        return 1.0
    number, unit, wanted, wanted_unit = *_parse_lenient(prediction), *_parse_lenient(target)
    if unit and wanted_unit and unit != wanted_unit:
        return 0.0
    return relaxed_accuracy(number, wanted, tolerance)


def score_answer(prediction: str | None, target: str, task: str = "chartqa") -> dict[str, int]:
    """Score one answer by the three rules that are always reported together.

    Args:
        prediction: the parsed answer, None where there is none.
        target: the data set's answer.
        task: for "own", equal texts are equal: "Nan" and "Infinity" are words. The common rule takes them for numbers.
    Returns:
        {"relaxed", "strict", "year_exact"}, each 0 or 1; all 0 for None.
    """
    rules = {"relaxed": relaxed_accuracy, "strict": strict_accuracy, "year_exact": year_exact_accuracy}
    if prediction is None or task == "own" and _same_text(prediction, target):
        return dict.fromkeys(rules, int(prediction is not None))
    return {name: int(rule(prediction, target)) for name, rule in rules.items()}


def chartqa_scores(prediction: str | None, row: Row, task: str = "chartqa") -> Scores:
    """relaxed (the common rule), strict and year_exact, as `score_answer` gives them, and beside them lenient."""
    answer = row["answer"]
    lenient = 0.0 if prediction is None else lenient_accuracy(prediction, answer)
    return {**score_answer(prediction, answer, task), "lenient": lenient}


def aokvqa_scores(prediction: str | None, row: Row) -> Scores:
    """Scores of A-OKVQA: multiple_choice for a question asked with its choices, else the other three.

    direct_answer is the official score (the script of allenai/aokvqa at 0438d33a): min(1, matches / 3) over the ten answers,
    where a match is an equal text; None for a difficult_direct_answer. (The script itself drops these from the other score.)
    direct_answer_lenient takes case and outer spaces aside. any_match is what the public DyME code counts: any such match,
    nothing dropped. multiple_choice is official for the right choice's text; its letter, and another case, count here as well.
    """
    scoring = item_of(row).scoring
    if row["kind"] == "choice":
        choices = {chr(ord("A") + place): text for place, text in enumerate(scoring["choices"])}
        right = _is_choice(prediction, chr(ord("A") + scoring["correct_choice_idx"]), choices, _plain_text)
        return {"direct_answer": None, "direct_answer_lenient": None, "any_match": None, "multiple_choice": right}
    counts = {"direct_answer": scoring["direct_answers"].count(prediction), "direct_answer_lenient": _matches(prediction, row)}
    dropped = scoring["difficult_direct_answer"]
    return {**{name: None if dropped else min(1.0, count / 3) for name, count in counts.items()},
            "any_match": float(counts["direct_answer_lenient"] > 0), "multiple_choice": None}


def gsm8k_scores(prediction: str | None, row: Row) -> Scores:
    """strict: the number behind the first "#### "; flexible: the last number. As in lm-evaluation-harness (gsm8k, version 3).

    Before texts are compared, both lose commas, then "$", then a trailing dot. Our answer line has no "####", so that strict
    is 0 for it: flexible is the figure to compare.
    """
    strict, numbers = _STRICT.search(prediction or ""), list(_FLEXIBLE.finditer(prediction or ""))
    target = _plain_number(row["answer"])
    return {"strict": float(strict is not None and _plain_number(strict[1]) == target),
            "flexible": float(bool(numbers) and _plain_number(numbers[-1][0]) == target)}


def slake_scores(prediction: str | None, row: Row) -> Scores:
    """closed_accuracy for closed questions; open_exact and open_recall (share of the target's words said) for open ones.

    The paper's accuracy counts an answer that equals the target; here words are compared, case and punctuation aside.
    """
    said, wanted = _words(prediction or ""), _words(row["answer"])
    exact, is_open = _same_words(prediction, row["answer"]), row["kind"] == "open"
    recall = sum(word in said for word in wanted) / len(wanted) if wanted else exact
    return {"closed_accuracy": None if is_open else exact, "open_exact": exact if is_open else None,
            "open_recall": recall if is_open else None}


def geometry_scores(prediction: str | None, row: Row) -> Scores:
    """rule_accuracy of a choice (its letter, or its text) or a value (equal after normalising), for Geo170K and MathVerse.

    Not MathVerse's official score: that one asks a language model to extract and to judge. A rule misses equal values
    written differently, so that it is lower.
    """
    scoring = item_of(row).scoring
    if scoring["question_type"] == "multi-choice":
        return {"rule_accuracy": _is_choice(prediction, row["answer"], scoring.get("choices", {}), _plain_value)}
    said = _plain_value(prediction or "")
    return {"rule_accuracy": float(bool(said) and _same_value(said, _plain_value(row["answer"])))}


SCORERS: dict[str, Callable[[str | None, Row], Scores]] = {
    "chartqa": chartqa_scores, "own": partial(chartqa_scores, task="own"), "aokvqa": aokvqa_scores, "gsm8k": gsm8k_scores,
    "slake": slake_scores, "geometry": geometry_scores}


def score_response(task: str, response: str, row: Row) -> Scores:
    """Score a whole response by the rules of a task (a key of SCORERS)."""
    return SCORERS[task](response if task in WHOLE_RESPONSE else split_response(response)[1], row)


def training_accuracy(task: str, answer: str | None, row: Row) -> float:
    """What a parsed answer earns in training, in [0, 1]; above 0.5 counts as correct. Training is strict.

    chartqa, own: an equal text or number. gsm8k: the same number; a "%" behind it is a unit. aokvqa: direct_answer_lenient with
    nothing dropped, so that one match of ten is not yet correct. slake: exact. geometry: the rule. No answer earns 0.
    """
    if answer is None:
        return 0.0
    if task in ("chartqa", "own"):
        return float(score_answer(answer, row["answer"], "own")["strict"])
    if task == "gsm8k":
        return float(_same_value(_plain_number(answer.strip()).rstrip("%"), _plain_number(row["answer"])))
    if task == "slake":
        return _same_words(answer, row["answer"])
    if task == "aokvqa" and row["kind"] == "direct":
        return min(1.0, _matches(answer, row) / 3)
    return float(SCORERS[task](answer, row)[{"aokvqa": "multiple_choice", "geometry": "rule_accuracy"}[task]])


def accuracy_of(task: str) -> Callable[..., list[float]]:
    """The accuracy reward of a task, as a TRL reward function for `rewards.dyme_rewards`.

    Raises:
        ValueError: for an unknown task, with the known ones.
    """
    if task not in SCORERS:
        raise ValueError(f"expected one of the tasks {', '.join(SCORERS)}: got {task!r}")

    def accuracy_reward(completions: Sequence[Completion], answer: Sequence[str], kind: Sequence[str] | None = None,
                        supervision: Sequence[str] | None = None, **kwargs: Any) -> list[float]:
        """Give each completion the training accuracy of its parsed answer; TRL repeats the columns, one value per rollout."""
        columns = zip(answer, kind or repeat(""), supervision or repeat(NO_SUPERVISION), strict=False)
        rows = [dict(zip(("answer", "kind", "supervision"), values, strict=True)) for values in columns]
        return [training_accuracy(task, split_response(completion_text(completion))[1], row)
                for completion, row in zip(completions, rows, strict=True)]

    return accuracy_reward


accuracy_reward = accuracy_of("own")  # of charts and of your own data: 1.0 for an equal text or number, else 0.0


def _matches(prediction: str | None, row: Row) -> int:
    return sum(_same_text(prediction, answer) for answer in item_of(row).scoring["direct_answers"]) if prediction else 0


def _same_text(said: str, wanted: str) -> bool:
    return said.strip().lower() == wanted.strip().lower()


def _is_choice(prediction: str | None, letter: str, choices: Mapping[str, str], plain: Callable[[str], str]) -> float:
    """1.0 for the right choice's text or letter ("B", "(b)", "B: 65°"). The text of another choice is never read as a letter
    ("a.m." is not A), nor is a letter with that text behind it."""
    said, texts = (prediction or "").strip(), {name: plain(text) for name, text in choices.items()}
    if named := [name for name, text in texts.items() if said and text == plain(said)]:
        return float(letter in named)
    found = _LETTER.fullmatch(said)
    behind = plain(found["behind"] or found["later"] or "") if found else ""
    is_other = bool(behind) and behind != texts.get(letter) and behind in texts.values()
    return float(found is not None and found["letter"].upper() == letter and not is_other)


def _plain_number(text: str) -> str:
    return re.sub(r"\.$", "", text.replace(",", "").replace("$", ""))


def _same_value(said: str, wanted: str) -> bool:
    """True for equal texts and equal numbers; "25%" is no number."""
    try:
        return said == wanted or float(said) == float(wanted)
    except ValueError:
        return False


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:\.\d+)?", unicodedata.normalize("NFKC", text).lower())


def _same_words(said: str | None, wanted: str) -> float:
    """1.0 for the same words in the same order; a target without any ("+") must be met as it is."""
    words = _words(wanted)
    return float(said is not None and (_words(said) == words if words else _same_text(said, wanted)))


def _plain_text(text: str) -> str:
    """A text without case, doubled spaces and a trailing dot."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")


def _plain_value(text: str) -> str:
    r"""A value without spaces, case, degree signs, `$` and \text{...}, and without a trailing dot."""
    text = re.sub(r"\\text\s*{([^{}]*)}", r"\1", unicodedata.normalize("NFKC", text))
    return re.sub(r"\s|\$|°|\^?{?\\circ}?|(?:degrees?\b)|\.\s*$", "", text).lower()


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100.0 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _parse_lenient(text: str) -> tuple[str, str]:
    """Split a text into (number or cleaned text, unit or '')."""
    text = _THOUSANDS_COMMA.sub("", text.strip().rstrip(".").strip().lower())
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return text, ""
    sign, currency, number, unit = match.groups()
    unit = (unit or "").strip()
    return sign + number, currency + ("%" if unit in _PERCENT else unit)
