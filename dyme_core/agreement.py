"""How far a checker agrees with a labelled set: one row a trace, a confusion matrix by class."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dyme_core.facts import facts_to_rows
from dyme_core.labelled import LabelledTrace
from dyme_core.supervision import SCORES, Item, VisualChecker

TOTAL = "all"  # the label of the last row of a confusion matrix


def agreement(checker: VisualChecker, labelled: Iterable[LabelledTrace]) -> list[dict[str, Any]]:
    """Judge every trace.

    Args:
        checker: anything with `judge(thinking, item)`, or else with `score(thinking, record)`.
        labelled: the traces; a trace with a base must not score more than it.
    Returns:
        one row a trace: question, label, thinking, expected (ratings, joined by "/"), rating, base_rating ("" without a
        base), is_right (0 or 1), reasons.
    """
    rows = []
    for trace in labelled:
        rating, reasons = _rate(checker, trace.thinking, trace.item)
        base = _rate(checker, trace.base, trace.item)[0] if trace.base else ""
        is_right = rating in trace.expected and (not base or SCORES[rating] <= SCORES[base])
        rows.append({"question": trace.item.question, "label": trace.label, "thinking": trace.thinking,
                     "expected": "/".join(name for name in SCORES if name in trace.expected), "rating": rating,
                     "base_rating": base, "is_right": int(is_right), "reasons": "; ".join(reasons)})
    return rows


def confusion(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count ratings by class, in the classes' order of appearance, then all together.

    Returns:
        rows of label, num, low, medium, high (counts), num_right, share_right.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return [_class_row(label, [row for row in rows if label in (TOTAL, row["label"])]) for label in (*labels, TOTAL)]


def record_of(item: Item) -> dict[str, Any]:
    """The data record that `supervision.item_of` reads `item` from, for checkers that only score records."""
    supervision = {"facts": facts_to_rows(item.facts), "evidence": facts_to_rows(item.evidence), "labels": item.labels,
                   "working": item.working, "conclusion": item.conclusion}
    return {"question": item.question, "answer": item.answer, "item": item.question, "kind": "",
            "supervision": json.dumps(supervision)}


def _rate(checker: VisualChecker, thinking: str, item: Item) -> tuple[str, tuple[str, ...]]:
    if hasattr(checker, "judge"):
        judgement = checker.judge(thinking, item)
        return judgement.rating, judgement.reasons
    score = checker.score(thinking, record_of(item))
    return min(SCORES, key=lambda rating: abs(SCORES[rating] - score)), ()


def _class_row(label: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratings = Counter(row["rating"] for row in rows)
    right = sum(row["is_right"] for row in rows)
    return {"label": label, "num": len(rows), **{rating: ratings[rating] for rating in SCORES}, "num_right": right,
            "share_right": right / len(rows) if rows else None}
