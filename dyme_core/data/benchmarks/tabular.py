"""Facts of a data set's own table: first column entities, first row attributes, one fact per cell that holds a number."""
from __future__ import annotations

import csv
import re
from pathlib import Path

from dyme_core.data.numbers import clean_label, read_quantity
from dyme_core.data.schema import Fact

FILLED_SHARE = 0.25  # smallest divided by largest value of a series above which a zero in it is a filled gap

_PERCENT = re.compile(r"\(\s*%\s*\)|\b(?:in|as)\s+(?:%|percent)|^\s*(?:%|percent)", re.IGNORECASE)


def table_facts(path: Path) -> tuple[Fact, ...]:
    """Facts of a table in a CSV file, UTF-8 with or without a byte order mark; see `csv_facts`."""
    return csv_facts(path.read_bytes().decode("utf-8-sig"))


def csv_facts(text: str) -> tuple[Fact, ...]:
    """Facts of a table in CSV text, row by row.

    Numbers lose thousands commas and footnote stars, "8%" is 8 with unit "%" (as is a column called "(%)" or "in percent").
    Years are names of rows or columns, without the ".0" that some tables write. Cells without a number (empty, nan,
    "-") give no fact. Neither does a 0 that fills a gap: in a table of several series, a 0 in a series whose other values
    are positive and of one size (the smallest at least `FILLED_SHARE` of the largest); no claim of the picture can be
    checked against it.
    """
    header, *rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)] or [[]]
    found = []
    for column, attribute in enumerate(header[1:], 1):
        cells = [(place, clean_label(row[0]), quantity) for place, row in enumerate(rows)
                 if column < len(row) and row[0].strip(" *") and (quantity := read_quantity(row[column])) is not None]
        drops_zero = len(header) > 2 and _fills_gaps([quantity.value for _, _, quantity in cells])
        unit = "%" if _PERCENT.search(attribute) else ""
        found += [(place, column, Fact(entity, clean_label(attribute), quantity.value, quantity.unit or unit))
                  for place, entity, quantity in cells if quantity.value or not drops_zero]
    return tuple(fact for _, _, fact in sorted(found, key=lambda entry: entry[:2]))


def _fills_gaps(values: list[float]) -> bool:
    """True where a 0 among `values` is so far from the others that it must stand for a missing number."""
    others = [value for value in values if value]
    return len(others) > 1 and min(others) > 0 and min(others) >= FILLED_SHARE * max(others)
