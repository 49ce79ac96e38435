"""How far a checker agrees with a labelled set: one row per trace, and a confusion matrix by class."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dyme_core.data.schema import Item, facts_to_rows
from dyme_core.supervision.checker import SCORES, VisualChecker
from scripts.labelled import LabelledTrace

TOTAL = "all"  # the label of the last row of a confusion matrix


def agreement(checker: VisualChecker, labelled: Sequence[LabelledTrace]) -> list[dict[str, Any]]:
    """Score every trace, all asked in one batch.

    Args:
        checker: any back end.
        labelled: the traces; a trace with a base must not score more than it.
    Returns:
        one row per trace: question, label, thinking, expected (ratings, joined by "/"), rating, base_rating ("" without a base,
        or where the checker gave no score), is_right (0 or 1).
    """
    bases = [trace for trace in labelled if trace.base]
    asked = [(trace.thinking, trace.item) for trace in labelled] + [(trace.base, trace.item) for trace in bases]
    scores = checker.score_all([thinking for thinking, _ in asked],
                               [record_of(item, f"trace-{number:04d}") for number, (_, item) in enumerate(asked)])
    names = {score: rating for rating, score in SCORES.items()}
    ratings = [names.get(score, "") for score in scores]  # NaN, no score to be had, is no rating
    base_ratings = iter(ratings[len(labelled):])
    return [_row(trace, rating, next(base_ratings) if trace.base else "")
            for trace, rating in zip(labelled, ratings[:len(labelled)], strict=True)]


def _row(trace: LabelledTrace, rating: str, base: str) -> dict[str, Any]:
    is_right = rating in trace.expected and (not base or SCORES[rating] <= SCORES[base])
    return {"question": trace.item.question, "label": trace.label, "thinking": trace.thinking,
            "expected": "/".join(name for name in SCORES if name in trace.expected), "rating": rating, "base_rating": base,
            "is_right": int(is_right)}


def confusion(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count ratings by class, in the classes' order of appearance, then all together.

    Returns:
        rows of label, num, low, medium, high (counts), num_right, share_right.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return [_class_row(label, [row for row in rows if label in (TOTAL, row["label"])]) for label in (*labels, TOTAL)]


def record_of(item: Item, name: str) -> dict[str, Any]:
    """The data record called `name` that `schema.item_of` reads `item` from."""
    supervision = {"facts": facts_to_rows(item.facts), "evidence": facts_to_rows(item.evidence), "labels": item.labels,
                   "working": item.working, "conclusion": item.conclusion}
    return {"question": item.question, "answer": item.answer, "item": name, "kind": "", "supervision": json.dumps(supervision)}


def _class_row(label: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    ratings = Counter(row["rating"] for row in rows)
    right = sum(row["is_right"] for row in rows)
    return {"label": label, "num": len(rows), **{rating: ratings[rating] for rating in SCORES}, "num_right": right,
            "share_right": right / len(rows) if rows else None}
