"""Precision and recall of a back end's facts against gold tables, whole facts and values alone."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.numbers import same_label, same_value
from dyme_core.data.schema import Fact
from dyme_core.supervision.fact_extraction import Extraction, FactBackend, FactStore, Picture

COUNTS = ("num_gold", "num_found", "num_right", "num_contradicted", "num_values_right")
TOTAL = "all"  # the item of the last row


def backend_rows(pictures: Iterable[Picture], backend: FactBackend, store: FactStore) -> list[dict[str, Any]]:
    """Compare a back end with the tables of pictures that have one: one row per picture, then the row `TOTAL`.

    Returns:
        rows of item, backend, version, the counts, and
        precision, recall: of whole facts, in [0, 1]; None where nothing was found, or nothing is gold.
        precision_listed: precision of the found facts whose cell the table fills; gold tables leave out cells that the
            picture prints.
        value_precision, value_recall: of the values alone.
        seconds: of the extraction; of all of them in the last row.
    """
    rows = [_row(picture, store.get(picture, backend)) for picture in pictures if picture.table]
    total = {name: sum(row[name] for row in rows) for name in (*COUNTS, "seconds")}
    return [*rows, _rates({"item": TOTAL, "backend": backend.name, "version": backend.version, **total})]


def _row(picture: Picture, made: Extraction) -> dict[str, Any]:
    counts = compare(made.facts, csv_facts(picture.table))
    return _rates({"item": picture.item, "backend": made.backend, "version": made.version, **counts, "seconds": made.seconds})


def compare(found: Sequence[Fact], gold: Sequence[Fact]) -> dict[str, int]:
    """Count right facts, each gold fact matched once.

    Labels match except for case, punctuation and errors of OCR, values except for printed rounding. Attributes count only in
    tables of several: the name of a single series may be anything from "Value" to the chart's title. `num_contradicted`
    are found facts whose cell is in the table with another value.
    """
    has_series = len({fact.attribute for fact in gold}) > 1

    def same_cell(fact: Fact, wanted: Fact) -> bool:
        return same_label(fact.entity, wanted.entity) and (not has_series or same_label(fact.attribute, wanted.attribute))

    right = _pairs(found, gold, lambda fact, wanted: same_cell(fact, wanted) and same_value(fact.value, wanted.value))
    values = _pairs(found, gold, lambda fact, wanted: same_value(fact.value, wanted.value))
    others = [fact for place, fact in enumerate(found) if place not in {pair[0] for pair in right}]
    contradicted = [fact for fact in others if any(same_cell(fact, wanted) for wanted in gold)]
    return dict(zip(COUNTS, (len(gold), len(found), len(right), len(contradicted), len(values)), strict=True))


def _pairs(found: Sequence[Fact], gold: Sequence[Fact], fits: Callable[[Fact, Fact], bool]) -> list[tuple[int, int]]:
    """Match each gold fact with one found fact that fits, the nearest value first."""
    free, pairs = set(range(len(found))), []
    for place, wanted in enumerate(gold):
        fitting = [index for index in sorted(free) if fits(found[index], wanted)]
        if fitting:
            best = min(fitting, key=lambda index, wanted=wanted: abs(found[index].value - wanted.value))
            free.remove(best)
            pairs.append((best, place))
    return pairs


def _rates(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its shares between counts and seconds."""
    seconds = row.pop("seconds")
    right, found, gold = row["num_right"], row["num_found"], row["num_gold"]
    return {**row, "precision": _share(right, found), "recall": _share(right, gold),
            "precision_listed": _share(right, right + row["num_contradicted"]),
            "value_precision": _share(row["num_values_right"], found), "value_recall": _share(row["num_values_right"], gold),
            "seconds": round(seconds, 2)}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
