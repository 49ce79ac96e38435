"""What a trace claims: names before and after numbers, lists, strangers, conclusions; any text in bounded time."""
from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme_core.data.schema import Fact
from dyme_core.supervision.claims import read_trace

FACTS = tuple(Fact(year, name, value) for year, values in (("2010", (62, 36)), ("2012", (65, 35)))
              for name, value in zip(("FAV", "UNF"), map(float, values), strict=True))
BARS = (Fact("Latvia", "", 3.0), Fact("Portugal", "", 8.9), Fact("Romania", "", 13.0), Fact("Malta", "", -3.9),
        Fact("Peru", "", 0.4838709))
RIGHT = {("2010", "FAV", 62.0), ("2010", "UNF", 36.0), ("2012", "FAV", 65.0), ("2012", "UNF", 35.0)}


def claims(text: str, facts: tuple[Fact, ...] = FACTS) -> list[tuple]:
    return [(claim.entity, claim.attribute, claim.value, claim.is_right) for claim in read_trace(text, facts).claims]


@pytest.mark.parametrize("text", [
    "2010 has FAV 62 and UNF 36, 2012 has FAV 65 and UNF 35.", "2010: FAV 62, UNF 36; 2012: FAV 65, UNF 35",
    "FAV is 62 in 2010 and 65 in 2012; UNF is 36 in 2010 and 35 in 2012.", "2010 (FAV 62, UNF 36), 2012 (FAV 65, UNF 35)",
    "In 2010 we see 62 for FAV and 36 for UNF. In 2012 we see 65 for FAV and 35 for UNF.",
    "FAV and UNF in 2010 are 62 and 36, and in 2012 65 and 35.",
    "There are 62 for FAV in 2010, 36 for UNF in 2010, 65 for FAV in 2012, 35 for UNF in 2012.",
    "FAV: 2010 62, 2012 65. UNF: 2010 36, 2012 35."])
def test_named_values_are_read_in_any_order(text: str) -> None:
    found = claims(text)
    assert {claim[:3] for claim in found} == RIGHT and all(claim[3] for claim in found)


@pytest.mark.parametrize("text", [
    "2010 has FAV 36 and UNF 62.", "FAV is 65 in 2010 and 62 in 2012.", "2010 has 36 and 62.", "In 2010 we see 36 for FAV.",
    "FAV and UNF in 2010 are 36 and 62."])
def test_swapped_series_or_entities_are_wrong_in_any_order(text: str) -> None:
    assert not any(claim[3] for claim in claims(text))


@pytest.mark.parametrize("text", [
    "Latvia has 3.0, Portugal has 8.9 and Romania has 13.0.",
    "for Latvia, Portugal, and Romania: 3.0, 8.9, and 13.0, respectively",
    "3.0, 8.9 and 13.0 for Latvia, Portugal and Romania", "Latvia = 3, Portugal = 8.9, Romania = 13",
    "LATVIA 3%, portugal 8.9%, Romania 13%", "1. Latvia: 3.0\n2. Portugal: 8.9\n3. Romania: 13.0"])
def test_lists_are_paired_by_position(text: str) -> None:
    assert claims(text, BARS) == [("Latvia", None, 3.0, True), ("Portugal", None, 8.9, True), ("Romania", None, 13.0, True)]


def test_a_minus_is_a_sign_where_it_touches_its_number() -> None:
    assert claims("Malta has -3.9 and Latvia has 3", BARS) == [("Malta", None, -3.9, True), ("Latvia", None, 3.0, True)]
    assert claims("Malta has 3.9", BARS) == [("Malta", None, 3.9, False)]


@pytest.mark.parametrize(("said", "is_right"), [("0.48", True), ("0.484", True), ("0.5", False), ("0.49", False)])
def test_a_long_ratio_may_be_rounded_to_two_places(said: str, is_right: bool) -> None:
    assert claims(f"Peru has {said}", BARS) == [("Peru", None, float(said), is_right)]


@pytest.mark.parametrize("text", ["Hungary has 3.0", "We see 3.0 in Hungary.", "Latvia, Hungary: 8, 3.0",
                                  "In HUN the value is 3.0"])
def test_a_number_of_a_stranger_is_a_wrong_claim(text: str) -> None:
    assert not any(claim[3] for claim in claims(text, BARS))


def test_words_of_the_question_and_units_are_no_strangers() -> None:
    facts = (Fact("2010", "", 62.0, "TWh"), Fact("2012", "", 65.0, "TWh"))
    reading = read_trace("In 2010 Brazil has 62 TWh and in 2012 Brazil has 65 TWh.", facts, "How much coal did Brazil burn?")
    assert [claim.value for claim in reading.claims] == [62.0, 65.0]
    assert [claim.is_right for claim in claims_of("2010 has 62 TWh, 2012 has 65 TWh.", facts)] == [True, True]


def claims_of(text: str, facts: tuple[Fact, ...]) -> tuple:
    return read_trace(text, facts).claims


@pytest.mark.parametrize("text", ["Step 1 is to look.", "62 - 36 = 26, a gap of 26.", "62 - 36 = 26. With 26 it leads.",
                                  "Those above 50 count.",
                                  "The 3 bars differ.",
                                  "So the answer is 62."])
def test_numbers_of_working_steps_bounds_counts_and_answers_are_no_claims(text: str) -> None:
    assert claims(text) == []


@pytest.mark.parametrize(("text", "conclusion"), [
    ("2010 has 62. The greater gap is in 2012.", "2012"), ("So it is 2010. Therefore, it is 2012. Rate it.", "2012"),
    ("So the sum is 98. Rate this high.", "98"), ("62 > 36, so yes.",
    "yes"),
    ("The answer is Yes because 62 > 36.", "Yes"), ("The mean is approximately **8.3**, which sums it up.", "8.3"),
    ("Therefore, the answer is Hungary.", "Hungary"), ("`2015` has the greatest divergence.", "2015"), ("nothing", ""),
    ("So, 2010 has 62 and 36. As 62 - 36 = 26, the gap is 26.", "26")])
def test_the_conclusion_is_where_the_text_ends_or_what_therefore_leads_to(text: str, conclusion: str) -> None:
    facts = (*FACTS, Fact("2015", "FAV", 87.0))
    assert read_trace(text, facts).conclusion == conclusion


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    reading = read_trace(text, FACTS)
    assert 0 <= reading.groundedness <= 1
    assert all(0 <= claim.start < claim.end <= len(text) for claim in reading.claims)


@given(st.lists(st.sampled_from(["2010", "2012", "FAV", "UNF", "fav", "62", "1.5", "-", "=", "has", "in", "and", ",", ".",
                                 "(", ")", "is", "Hungary", "So", "the sum of", "yes", "\u0000", "\u202e",
                                 "\n", "%", "\u0130", "**"]),
                                 max_size=60))
def test_any_order_of_a_traces_words_is_read(words: list[str]) -> None:
    read_trace(" ".join(words), FACTS)


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=1, max_size=12))
def test_a_long_text_takes_less_than_a_second(piece: str) -> None:
    assert any(seconds(piece) < 1 for _ in range(3)), "a collection of garbage may fall into one of them"


@pytest.mark.parametrize("piece", ["1 ", "1+1=2 ", "So 1. ", "2010 ", "2010 has 50 and 51, ", "Xx ", "(", "- ", "sum of 1 and ",
                                   "62 in 2010 and ", "9", " ", "\n", "1,000", "1 = 1 > ", "difference between 1 and 2 is ",
                                   "a-"])
def test_a_long_text_of_the_words_that_patterns_look_for_takes_less_than_a_second(piece: str) -> None:
    assert any(seconds(piece) < 1 for _ in range(3)), "a collection of garbage may fall into one of them"


def seconds(piece: str) -> float:
    """Of the processor, so that a busy machine is no slow reader."""
    start = time.process_time()
    read_trace((piece * 20_000)[:20_000], FACTS)
    return time.process_time() - start
