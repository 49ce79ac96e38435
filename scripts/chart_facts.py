"""Precision and recall of facts by OCR on drawn and on real charts, a row a source and half.

    python -m scripts.chart_facts --real DEVELOPMENT_FOLDER --held-back OTHER_FOLDER --store runs/facts --out facts.csv

Drawn charts are made here (drawn_charts.py). Real ones lie in folders in ChartQA's layout: png/ and tables/.
"""
from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.numbers import same_label, same_value
from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.ocr import OcrFacts
from dyme_core.supervision.fact_extraction import FactStore, Picture
from scripts.drawn_charts import drawn_pictures

COUNTS = ("num_gold", "num_found", "num_right", "num_contradicted", "num_values_right")
STORED = Path(__file__).resolve().parents[1] / "results" / "facts.csv"


def real_pictures(folder: Path) -> list[Picture]:
    """The pictures of a folder in ChartQA's layout that have a table."""
    tables = sorted((folder / "tables").glob("*.csv"))
    return [Picture.of_files(folder / "png" / f"{table.stem}.png", table) for table in tables]


def source_row(source: str, half: str, pictures: list[Picture], store: FactStore) -> dict[str, str | int | float]:
    """Counts over all pictures, and precision, recall and the share of right values in a wrong series."""
    counts, backend = Counter(), OcrFacts()
    for picture in pictures:
        found, gold = store.get(picture, backend).facts, csv_facts(picture.table)
        counts += Counter(compare(found, gold))
        counts["num_wrong_series"] += sum(_has_wrong_series(fact, gold) for fact in found)
    found = max(1, counts["num_found"])
    return {"source": source, "half": half, "version": backend.version, "num_charts": len(pictures), **counts,
            "precision": round(counts["num_right"] / found, 3), "recall": round(counts["num_right"] / counts["num_gold"], 3),
            "wrong_series": round(counts["num_wrong_series"] / found, 3)}


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


def _has_wrong_series(fact: Fact, gold: Sequence[Fact]) -> bool:
    """True where the entity has this value in the table, in other series only."""
    names = [other.attribute for other in gold
             if same_label(other.entity, fact.entity) and same_value(fact.value, other.value)]
    has_series = len({other.attribute for other in gold}) > 1
    return has_series and bool(names) and not any(same_label(fact.attribute, name) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="charts that the rules were developed on")
    parser.add_argument("--held-back", type=Path, help="charts that no rule has seen")
    parser.add_argument("--store", type=Path, default=Path("runs/facts"))
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    store = FactStore(asked.store)
    sources = [("drawn", half, drawn_pictures(half == "held back")) for half in ("development", "held back")]
    sources += [("real", half, real_pictures(folder)) for half, folder in
                (("development", asked.real), ("held back", asked.held_back)) if folder]
    rows = [source_row(source, half, pictures, store) for source, half, pictures in sources]
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), restval=0)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
