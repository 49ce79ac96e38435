"""Working in signs and words, computed again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyme_core.data.schema import Fact
from dyme_core.supervision.claims import Reading, read_trace

VALUES = {
    "Kenya": 62.0,
    "Nepal": 36.0,
    "Peru": 65.0,
    "Ghana": 35.0,
    "Latvia": 3.0,
    "Portugal": 8.9,
    "Romania": 13.0,
    "Malta": -3.9,
    "Chad": 412.0,
    "Togo": 398.0,
}
SHOWN = tuple(Fact(name, "", value) for name, value in VALUES.items())
PIECES = [
    "62",
    "36",
    "26",
    "98",
    "-3.9",
    "1,234",
    "%",
    " ",
    "  ",
    "+",
    "-",
    "=",
    "<",
    "(",
    ")",
    "plus",
    "minus",
    "equals",
    "is",
    "greater than",
    "the sum of",
    "and",
    "subtracting",
    "from",
    "gives",
    "**",
    "\u2212",
    "\n",
    ".",
    "\u0662",
    "\u0130",
    "x",
    "Kenya",
    "not",
    "exceeds",
    "/",
    "together",
    "by",
    "leads",
]


def read(text: str) -> Reading:
    return read_trace(text, SHOWN)


@pytest.mark.parametrize(
    "text",
    [
        "62 - 36 = 26 < 65 - 35 = 30",
        "62 \u2212 36 = 26",
        "62% - 36% = 26%",
        "(3.0 + 8.9 + 13.0) / 3 = 8.3",
        "62 minus 36 equals 26",
        "62 plus 36 is equal to 98",
        "the sum of 62 and 36 is 98",
        "Subtracting 36 from 62 gives 26",
        "62 is greater than 36",
        "the difference between 36 and 62 is 26",
        "adding 62 to 36 makes 98",
        "62 exceeds 36",
        "36 < 62",
        "3 - -3.9 = 6.9",
        "3 - (-3.9) = 6.9",
        "-3.9 + 3 = -0.9",
        "62 - 36 = 26, 26 - 3 = 23",
        "412 - 398 = 14",
        "$62 - $36 = 26",
        "the mean of 3, 8.9 and 13 is 8.3",
        "62 and 36 add up to 98",
        "62 is 26 more than 36",
        "62 exceeds 36 by 26",
        "62 / 36 = 1.72",
        "36 is not greater than 62",
        "62 (Kenya) - 36 (Nepal) = 26",
        "62 in Kenya minus 36 in Nepal is 26",
        "65 is greater than 62, 36 and 35",
        "62 and 65 are above 36",
        "sixty-two minus thirty-six is twenty-six",
    ],
)
def test_what_holds_in_signs_or_words_holds(text: str) -> None:
    reading = read(text)
    assert reading.workings and reading.is_arithmetic_right


def test_without_working_there_is_nothing_wrong() -> None:
    for text in ("no working at all", "", "Kenya has 62 and Nepal has 36."):
        assert not read(text).workings and read(text).is_arithmetic_right


@pytest.mark.parametrize(
    "text",
    [
        "62 - 36 = 27",
        "412 + 398 = 811",
        "62 minus 36 equals 36",
        "the sum of 62 and 36 is 99",
        "Subtracting 36 from 62 gives 98",
        "36 is greater than 62",
        "62 < 36",
        "62 < 62",
        "62 > 62",
        "64 - 36 = 28",
        "62 - 37 = 25",
        "62 - 36 = 26 > 65 - 35 = 30",
        "62 is less than 36",
        "(3.0 + 8.9 + 13.0) / 3 = 8.4",
        "3.0 + 8.9 + 13.0 / 3 = 8.3",
        "the mean of 3, 8.9 and 13 is 8.4",
        "62 is 27 more than 36",
        "62 exceeds 36 by 27",
        "62 is not greater than 36",
        "62 is greater than 36 and 65",
        "62 + 36 = 97.6",
        "62 and 36 are above 40",
        "62 / 36 = 2",
        "5 + 5 = 10",
    ],
)
def test_a_wrong_result_a_wrong_sign_or_an_operand_not_shown_does_not(text: str) -> None:
    assert not read(text).is_arithmetic_right


def test_a_label_that_is_a_number_is_no_working() -> None:
    years = (Fact("2016", "", 51.0), Fact("2010", "", 52.0))
    reading = read_trace("2016 = 51, 2010 = 52", years)
    assert not reading.workings and [claim.is_right for claim in reading.claims] == [True, True]


def test_results_and_places_are_given() -> None:
    text = "So 62 - 36 = 26."
    [working] = read(text).workings
    assert text[working.start : working.end] == "62 - 36 = 26"
    assert working.relations == ("=",) and [side.value for side in working.sides] == [26.0, 26.0]
    assert working.sides[0].form == {62.0: 1.0, 36.0: -1.0}


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_order_of_pieces_is_read(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert all(0 <= working.start < working.end <= len(text) for working in read(text).workings)
