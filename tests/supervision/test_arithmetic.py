"""Working in signs and words, computed again."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dyme_core.supervision.arithmetic import check, find_chains, into_signs

SHOWN = {62.0, 36.0, 65.0, 35.0, 3.0, 8.9, 13.0, -3.9, 412.0, 398.0}
PIECES = ["62", "36", "26", "98", "-3.9", "1,234", "%", " ", "  ", "+", "-", "=", "<", "(", ")", "plus", "minus", "equals",
          "is", "greater than", "the sum of", "and", "subtracting", "from", "gives", "**", "\u2212", "\n", ".", "\u0662",
          "\u0130", "x"]


def holds(text: str) -> bool:
    return check(find_chains(into_signs(text)), SHOWN)[0]


@pytest.mark.parametrize("text", [
    "62 - 36 = 26 < 65 - 35 = 30", "62 \u2212 36 = 26", "62% - 36% = 26%", "(3.0 + 8.9 + 13.0) / 3 = 8.3",
    "62 minus 36 equals 26", "62 plus 36 is equal to 98", "the sum of 62 and 36 is 98", "Subtracting 36 from 62 gives 26",
    "62 is greater than 36", "the difference between 36 and 62 is 26", "adding 62 to 36 makes 98", "62 exceeds 36",
    "36 < 62", "3 - -3.9 = 6.9",
    "-3.9 + 3 = -0.9", "62 - 36 = 26, 26 - 3 = 23", "412 - 398 = 14", "no working at all", "$62 - $36 = 26", ""])
def test_what_holds_in_signs_or_words_holds(text: str) -> None:
    assert holds(text)


@pytest.mark.parametrize("text", [
    "62 - 36 = 27", "412 + 398 = 811", "62 minus 36 equals 36", "the sum of 62 and 36 is 99", "Subtracting 36 from 62 gives 98",
    "36 is greater than 62", "62 < 36", "62 < 62", "62 > 62", "64 - 36 = 28", "62 - 37 = 25", "62 - 36 = 26 > 65 - 35 = 30",
    "62 is less than 36",
    "(3.0 + 8.9 + 13.0) / 3 = 8.4"])
def test_a_wrong_result_a_wrong_sign_or_an_operand_not_shown_does_not(text: str) -> None:
    assert not holds(text)


def test_a_label_that_is_a_number_is_no_working() -> None:
    text = "2016 = 51, 2010 = 52"
    assert find_chains(text, [(0, 4), (11, 15)]) == []


def test_results_and_places_are_given() -> None:
    text = "So 62 - 36 = 26."
    [chain] = find_chains(text)
    assert text[chain.start: chain.end] == "62 - 36 = 26"
    assert check([chain], SHOWN) == (True, {26.0})


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_every_position_stays_the_same_and_nothing_breaks(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert len(into_signs(text)) == len(text)
    holds(text)
