"""Facts counted against gold tables."""
from __future__ import annotations

import pytest

from dyme_core.data.schema import Fact
from scripts.chart_facts import compare

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
