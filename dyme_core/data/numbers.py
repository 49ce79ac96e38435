"""Numbers as charts and their tables print them: signs, thousands, percent, units, footnote stars, missing cells, years.

A year (2012, 2012.0) is a label of the axis, never a value; `read_quantity` leaves that decision to its caller, who knows
the layout, and `is_year` and `clean_label` help with it.
"""
from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

YEARS = (1800, 2100)
MINUS_SIGNS = "-\u2212\u2013\u2012"  # hyphen, minus, en dash and figure dash all print a negative number
MISSING = {"", "nan", "na", "n/a", "none", "null", "-", "\u2013", "\u2014", "..", "...", "x"}
SIMILAR = 0.85  # share of characters two spellings of one label must have in common (OCR slips, "A strong"/"a strong")
LARGEST_ROUNDING = 0.05  # of the value: 0.71 is not "printed as 1"

_QUANTITY = re.compile(rf"(?P<sign>[{MINUS_SIGNS}+]?)(?P<front>[$€£¥%]?)\s?(?P<inner>[{MINUS_SIGNS}]?)"
                       r"(?P<number>\d{1,3}(?:[, \u202f\u00a0]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
                       r"\s?(?P<unit>%|[^\W\d_][^\W\d_/]{0,11})?")


@dataclass(frozen=True)
class Quantity:
    """A printed number: Quantity(-2.4, "%"); `unit` is "%", a currency sign, a word, or ""."""

    value: float
    unit: str = ""


def read_quantity(text: str) -> Quantity | None:
    """The quantity that the whole of `text` prints; None for anything else, and for a missing cell.

    "1,234" and "\u22122.4" are numbers, "29 %" is Quantity(29, "%"); footnote stars go; an integer with a leading zero ("03")
    has lost its point in OCR, because no chart prints one.
    """
    text = text.strip().strip("*").strip()
    match = None if text.lower() in MISSING else _QUANTITY.fullmatch(text)
    if match is None:
        return None
    digits = re.sub(r"[, \u202f\u00a0]", "", match["number"])
    if re.fullmatch(r"0\d+", digits):
        digits = f"0.{digits[1:]}"
    is_negative = (match["sign"] or match["inner"]) in tuple(MINUS_SIGNS)
    return Quantity(-float(digits) if is_negative else float(digits), match["unit"] or match["front"])


def is_year(text: str) -> bool:
    """True for a year as an axis prints it, "2012" or "2020*" (a table may write "2012.0")."""
    digits = text.strip(" *").removesuffix(".0")
    return bool(re.fullmatch(r"[12]\d{3}", digits)) and YEARS[0] <= int(digits) <= YEARS[1]


def clean_label(text: str) -> str:
    """A name without footnote stars and doubled spaces; a year without its ".0"."""
    label = re.sub(r"\s+", " ", text).strip(" *\u2020\u2021")
    return label.removesuffix(".0") if is_year(label) else label


def same_label(first: str, second: str) -> bool:
    """True where two spellings name the same thing: equal but for case, spaces, punctuation, or a slip of OCR.

    Labels with digits ("Q1", "2012", "10-49 employees") must agree in them exactly.
    """
    first, second = (re.sub(r"[\W_]+", "", text.casefold()) for text in (first, second))
    if first == second:
        return True
    if re.sub(r"\D", "", first) != re.sub(r"\D", "", second) or min(len(first), len(second)) < 4:
        return False
    is_as_long = abs(len(first) - len(second)) <= 1  # "satisfied" is not a slip of "dissatisfied"
    return is_as_long and difflib.SequenceMatcher(None, first, second, autojunk=False).ratio() >= SIMILAR


def decimals(value: float) -> int:
    """Digits after the point that `value` needs, at most 6."""
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])


def same_value(first: float, second: float) -> bool:
    """True where two values are equal but for the rounding of the coarser print, and that moves it by at most 5 %."""
    places = min(decimals(first), decimals(second))
    is_close = abs(first - second) <= LARGEST_ROUNDING * max(abs(first), abs(second))
    return first == second or is_close and abs(first - second) <= 0.5 * 10.0**-places + 1e-9


def same_answer(said: str, wanted: str) -> bool:
    """True for equal texts, case aside, and for two spellings of one number ("8.30", "8.3", "1,234")."""
    first, second = read_quantity(said), read_quantity(wanted)
    return said.lower() == wanted.lower() or bool(first and second and first.value == second.value)
