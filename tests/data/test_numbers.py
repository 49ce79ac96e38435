"""Numbers and labels as charts and tables print them."""
from __future__ import annotations

import pytest

from dyme_core.data.numbers import Quantity, clean_label, is_year, read_quantity, same_label, same_value


@pytest.mark.parametrize(("text", "value", "unit"), [
    ("62", 62, ""), ("1,234,567", 1234567, ""),
    ("47 600", 47600, ""), ("-3.9", -3.9, ""), ("\u22122.4", -2.4, ""), ("29%", 29, "%"),
    ("29 %", 29, "%"), ("%0", 0, "%"), ("$5", 5, "$"), ("-$5", -5, "$"), ("$-5", -5, "$"),
    ("0.96 GPI", 0.96, "GPI"), ("16.1*", 16.1, ""),
    (" .5 ", 0.5, ""), ("03", 0.3, ""), ("0", 0, ""), ("0.48387096774193550", 0.4838709677419355, "")])
def test_a_printed_number_is_read(text: str, value: float, unit: str) -> None:
    assert read_quantity(text) == Quantity(value, unit)


@pytest.mark.parametrize("text", ["", "nan", "NaN", "n/a", "-", "\u2013", "..", "Q1", "1-9 employees", "1850-2015", "5.", "1,2",
                                  "May 5", "1 2", "12 per cent of all"])
def test_what_is_no_number_or_a_missing_cell_is_none(text: str) -> None:
    assert read_quantity(text) is None


def test_years_are_known_as_tables_and_axes_write_them() -> None:
    assert all(map(is_year, ("1934", "2012", "2012.0", "2020*")))
    assert not any(map(is_year, ("1,934", "999", "2012.5", "20120", "2012%", "3012")))


@pytest.mark.parametrize(("label", "clean"), [
    ("Asian**", "Asian"), ("2002.0", "2002"), ("Type 2.0", "Type 2.0"), (" a  b ", "a b")])
def test_labels_lose_stars_and_years_their_point(label: str, clean: str) -> None:
    assert clean_label(label) == clean


@pytest.mark.parametrize(("first", "second", "is_same"), [
    ("a strong leader", "A strong leader", True), ("Hispanic/Latino*", "Hispanic / Latino", True),
    ("LinkedIn", "Linkedln", True),
    ("10\u201349 employees", "10-49 employees", True), ("10-49 employees", "50-249 employees", False), ("2012", "2013", False),
    ("Satisfied", "Dissatisfied", False), ("male", "female", False), ("EU", "US", False), ("increase", "decrease", False)])
def test_two_spellings_are_the_same_label_only_where_they_are(first: str, second: str, is_same: bool) -> None:
    assert same_label(first, second) is same_label(second, first) is is_same


@pytest.mark.parametrize(("first", "second", "is_same"), [
    (8.9, 8.9, True), (8.87, 8.9, True), (8.8, 8.9, False), (62, 62.4, True), (62, 63, False), (1, 0.71, False),
    (0, 0.2, False), (-2.4, 2.4, False), (0.48387, 0.48, True), (1234, 1230, False)])
def test_values_match_but_for_printed_rounding(first: float, second: float, is_same: bool) -> None:
    assert same_value(first, second) is same_value(second, first) is is_same
