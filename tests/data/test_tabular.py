"""Facts of tables: the awkward cells of real ones, and all gold tables of the shared ChartQA charts where they are."""
from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from dyme_core.data.benchmarks.tabular import csv_facts, table_facts
from dyme_core.data.schema import Fact

SHARED = Path(os.environ.get("DYME_SHARED", Path(__file__).resolve().parents[3] / "shared"))
TABLES = sorted((SHARED / "data" / "chartqa" / "tables").glob("*.csv"))
needs_tables = pytest.mark.skipif(not TABLES, reason=f"gold tables are not in {SHARED}/data/chartqa; set DYME_SHARED")


def test_cells_become_facts_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffYear,"Sales, net",Share\r\n2010*,"1,234",5%\r\n2011.0,nan,-2.5\r\n2012,,0\r\n'.encode())
    assert table_facts(path) == (Fact("2010", "Sales, net", 1234.0), Fact("2010", "Share", 5.0, "%"),
                                 Fact("2011", "Share", -2.5), Fact("2012", "Share", 0.0))


@pytest.mark.parametrize("header", ["Support (%)", "Support in percent", "% who support"])
def test_a_column_of_percent_gives_its_unit_to_bare_cells(header: str) -> None:
    assert csv_facts(f"Who,{header}\nMen,40") == (Fact("Men", header, 40.0, "%"),)


def test_a_zero_among_values_of_one_size_is_a_gap_and_one_among_small_values_is_not() -> None:
    gaps = csv_facts("Year,A,B\n2002,79,0\n2007,66,30\n2011,76,0\n2013,69,29")
    assert [fact.value for fact in gaps] == [79, 66, 30, 76, 69, 29]
    assert [fact.value for fact in csv_facts("Year,A,B\n1,79,0\n2,66,3\n3,69,29")] == [79, 0, 66, 3, 69, 29]
    assert [fact.value for fact in csv_facts("Who,A\na,30\nb,0\nc,29")] == [30, 0, 29]  # one series: a bar of length 0


@pytest.mark.parametrize("text", ["", "Year,A", "Year,A\n,5", "Year\n2010", "\n\n"])
def test_a_table_without_a_cell_gives_no_fact(text: str) -> None:
    assert csv_facts(text) == ()


def test_a_short_row_gives_what_it_has() -> None:
    assert csv_facts("Who,A,B\na,1\nb,2,3") == (Fact("a", "A", 1.0), Fact("b", "A", 2.0), Fact("b", "B", 3.0))


@needs_tables
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_cell_of_a_gold_table_is_a_fact_or_missing(path: Path) -> None:
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    cells = [(row[0], cell) for row in rows[1:] for cell in row[1:]]
    numbers = [float(cell.rstrip("%")) for _, cell in cells if cell not in ("", "nan")]
    values = [fact.value for fact in table_facts(path)]
    if path.stem == "10146":  # its zeros are the years that the chart leaves out
        assert (numbers.count(0), values) == (3, [79, 66, 30, 78, 30, 76, 69, 29, 72])
    else:
        assert values == numbers
    assert all(math.isfinite(value) for value in values)


@needs_tables
def test_gold_tables_keep_quoted_headers_signs_percent_and_clean_labels() -> None:
    facts = {path.stem: table_facts(path) for path in TABLES}
    assert len(TABLES) == 14 and sum(map(len, facts.values())) == 104
    assert facts["01499440003158"][0] == Fact(
        "Slovenia", "Gross enrolment ratio, secondary education, gender parity index (GPI),2006", 1.0)
    assert Fact("Generation Z", "Lost weight", -3.9) in facts["multi_col_100264"]
    assert {fact.unit for fact in facts["multi_col_100815"]} == {"%"}
    assert {"Asian", "Hispanic/Latino"} <= {fact.entity for fact in facts["two_col_100025"]}
    assert not any(fact.entity == "China" and fact.attribute == "More" for fact in facts["1366"])
