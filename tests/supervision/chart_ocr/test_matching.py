"""Facts of a back end compared with gold tables."""
from __future__ import annotations

from pathlib import Path

import pytest

from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.matching import backend_rows, compare
from dyme_core.supervision.fact_extraction import FactStore, Picture

GOLD = (Fact("2010", "FAV", 62.0), Fact("2010", "UNF", 36.0), Fact("2012", "FAV", 65.4))


@pytest.mark.parametrize(("found", "right", "contradicted", "values"), [
    (GOLD, 3, 0, 3),
    ((), 0, 0, 0),
    ((Fact("2010", "FAV", 36.0), Fact("2010", "UNF", 62.0)), 0, 2, 2),  # series swapped: right numbers, no right fact
    ((Fact("2012", "fav.", 65.0, "%"),), 1, 0, 1),  # printed rounded, another spelling
    ((Fact("2010", "FAV", 62.0), Fact("2010", "FAV", 62.0)), 1, 1, 1),  # said twice, counts once
    ((Fact("2011", "FAV", 62.0), Fact("", "", 65.4)), 0, 0, 2),  # a cell the table has not; a loose number
])
def test_facts_are_counted_against_gold(found: tuple[Fact, ...], right: int, contradicted: int, values: int) -> None:
    assert compare(found, GOLD) == {"num_gold": 3, "num_found": len(found), "num_right": right,
                                    "num_contradicted": contradicted, "num_values_right": values}


def test_one_found_value_matches_one_gold_value_only() -> None:
    gold = (Fact("a", "", 5.0), Fact("b", "", 5.0))
    assert compare((Fact("", "", 5.0),), gold)["num_values_right"] == 1


def test_the_name_of_a_single_series_does_not_count() -> None:
    assert compare((Fact("DK", "Strong support", 3.0),), (Fact("DK", "Value", 3.0),))["num_right"] == 1


class Scripted:
    """A back end that finds the same facts in every picture."""

    name, version, reads = "scripted", "1", ("image",)

    def __init__(self, *facts: Fact) -> None:
        self.facts, self.items = facts, []

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        self.items.append(picture.item)
        return self.facts


def test_a_back_end_gets_a_row_a_chart_and_the_totals(tmp_path: Path) -> None:
    pictures = [Picture("a", b"1", "Year,FAV,UNF\n2010,62,36\n2012,65,35"), Picture("b", b"2", "Year,FAV,UNF\n2010,62,37"),
                Picture("no table", b"3")]
    backend = Scripted(Fact("2010", "FAV", 62.0, "%"), Fact("2010", "UNF", 36.0, "%"))
    *rows, total = backend_rows(pictures, backend, FactStore(tmp_path, clock=iter(range(9)).__next__))
    assert [(row["item"], row["precision"], row["recall"]) for row in rows] == [("a", 1.0, 0.5), ("b", 0.5, 0.5)]
    assert (total["item"], total["num_gold"], total["precision"], total["recall"], total["seconds"]) == ("all", 6, 0.75, 0.5, 2)
    assert total["precision_listed"] == 0.75 and backend.items == ["a", "b"]


def test_shares_of_nothing_are_unknown(tmp_path: Path) -> None:
    [_, total] = backend_rows([Picture("a", b"1", "Year,A\n2010,6")], Scripted(), FactStore(tmp_path))
    assert (total["precision"], total["recall"]) == (None, 0.0)
