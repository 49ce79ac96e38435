"""Texts with boxes to facts: horizontal and vertical bars, lines over years, pies, on pictures laid out by hand."""
from __future__ import annotations

import numpy as np
import pytest

from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.layout import read_chart
from dyme_core.supervision.chart_ocr.series import chart_facts
from dyme_core.supervision.chart_ocr.tokens import Token, find_ticks, merge_lines, sort_tokens

WIDTH, HEIGHT = 400, 300
PAPER = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
BLUE, NAVY, ORANGE = (40, 118, 221), (15, 40, 63), (235, 155, 45)


def at(text: str, x: float, y: float, score: float = 1.0) -> Token:
    """A text of usual print, 7 pixels a character and 12 high, with its middle at (x, y)."""
    return Token(text, x - 3.5 * len(text), y - 6, x + 3.5 * len(text), y + 6, score)


def ending(text: str, right: float, y: float) -> Token:
    return at(text, right - 3.5 * len(text), y)


def painted(*patches: tuple[int, int, int, int, tuple[int, int, int]]) -> np.ndarray:
    """The paper with rectangles (left, top, right, bottom, colour)."""
    pixels = PAPER.copy()
    for left, top, right, bottom, colour in patches:
        pixels[top:bottom, left:right] = colour
    return pixels


def facts(tokens: list[Token], pixels: np.ndarray = PAPER) -> set[tuple[str, str, float]]:
    return {(fact.entity, fact.attribute, fact.value) for fact in chart_facts(read_chart(tokens), pixels)}


AXIS = [at(text, x, 280) for text, x in (("0", 100), ("20", 160), ("40", 220), ("60", 280), ("80", 340))]


def test_horizontal_bars_join_names_and_values_and_leave_the_axis_out() -> None:
    tokens = [at("Sales of things, 2012", 120, 10), ending("Latvia", 90, 60), at("30%", 200, 60), ending("A strong", 90, 113),
              ending("leader", 90, 127), at("62", 290, 120), ending("Romania", 90, 180), at("13", 150, 181),
              at("Share of firms", 220, 296), *AXIS]
    chart = read_chart(tokens)
    assert (chart.form, [mark.quantity.value for mark in chart.ticks]) == ("across", [0, 20, 40, 60, 80])
    assert set(chart_facts(chart, PAPER)) == {
        Fact("Latvia", "Share of firms", 30.0, "%"), Fact("A strong leader", "Share of firms", 62.0, "%"),
        Fact("Romania", "Share of firms", 13.0, "%")}


def test_parts_of_horizontal_bars_are_named_by_the_headings_above_them() -> None:
    tokens = [at("Title of the whole chart", 120, 10), at("More", 120, 40), at("About the", 200, 36), at("same", 200, 49),
              at("Less", 300, 40)]
    for y, name, values in ((70, "U.S.", "29 41 30"), (110, "EU", "19 59 21"), (150, "China", "17 31 50")):
        tokens += [ending(name, 60, y), *(at(value, x, y) for value, x in zip(values.split(), (110, 200, 290), strict=True))]
    assert facts(tokens) == {("U.S.", "More", 29), ("U.S.", "About the same", 41), ("U.S.", "Less", 30), ("EU", "More", 19),
                             ("EU", "About the same", 59), ("EU", "Less", 21), ("China", "More", 17),
                             ("China", "About the same", 31), ("China", "Less", 50)}


def test_vertical_bars_take_their_series_from_the_legends_colours() -> None:
    tokens = [at(text, 20, y) for text, y in (("6", 20), ("4", 70), ("2", 120), ("0", 170), ("-2", 220))]
    tokens += [at("Gained weight", 160, 280), at("Lost weight", 300, 280)]
    patches = [(100, 274, 112, 286, BLUE), (247, 274, 259, 286, NAVY)]
    for x, name, up, down in ((80, "Gen Z", "3", "-1.9"), (180, "Boomers", "2.2", "-1.4"), (280, "Total", "3.5", "-0.8")):
        tokens += [at(up, x, 110), at(down, x, 190), at(name, x, 250)]
        patches += [(x - 25, 90, x + 25, 170, BLUE), (x - 25, 170, x + 25, 215, NAVY)]
    assert facts(tokens, painted(*patches)) == {
        ("Gen Z", "Gained weight", 3), ("Gen Z", "Lost weight", -1.9), ("Boomers", "Gained weight", 2.2),
        ("Boomers", "Lost weight", -1.4), ("Total", "Gained weight", 3.5), ("Total", "Lost weight", -0.8)}


def test_a_number_of_another_colour_than_the_legends_gives_no_fact() -> None:
    tokens = [at("Gained", 160, 280), at("Lost", 300, 280), at("Gen Z", 80, 250), at("Boomers", 180, 250)]
    tokens += [at("30", 80, 110), at("19", 80, 190), at("22", 180, 110), at("14", 180, 190)]
    patches = [(121, 274, 133, 286, BLUE), (268, 274, 280, 286, NAVY), (55, 90, 105, 170, BLUE), (55, 170, 105, 215, NAVY),
               (155, 90, 205, 170, BLUE), (155, 170, 205, 215, ORANGE)]
    assert facts(tokens, painted(*patches)) == {("Gen Z", "Gained", 30), ("Gen Z", "Lost", 19), ("Boomers", "Gained", 22)}


def test_where_no_colour_tells_the_series_there_are_no_facts() -> None:
    tokens = [token for x, name in ((80, "A1x"), (180, "B2x"))
              for token in (at("31", x, 100), at("52", x, 150), at(name, x, 250))]
    assert facts(tokens) == set()


GROUPED = ((80, "Chile", "30", "55"), (180, "Ghana", "33", "20"), (280, "Peru", "36", "47"))  # the first series rises slowly


def grouped(edge: tuple[int, int, int] = BLUE) -> tuple[list[Token], list[tuple]]:
    """Two bars a name, their numbers above them, the second bar's edge of another colour; no legend yet."""
    tokens, patches = [], []
    for x, name, low, high in GROUPED:
        tokens += [at(low, x - 15, 194 - int(low)), at(high, x + 15, 194 - int(high)), at(name, x, 250)]
        patches += [(x - 30, 202 - int(low), x, 240, ORANGE), (x, 202 - int(high), x + 30, 240, edge),
                    (x + 1, 203 - int(high), x + 29, 240, BLUE)]
    return tokens, patches


WANTED = {(name, series, float(value)) for _, name, *values in GROUPED
          for series, value in zip(("Exports", "Imports"), values, strict=True)}


@pytest.mark.parametrize("swatches", ["\u25cf", "_", ""])  # as OCR reads them, where it does
def test_a_legend_in_a_column_names_the_bars_and_its_swatches_are_no_names(swatches: str) -> None:
    tokens, patches = grouped()
    for y, name, colour in ((40, "Exports", ORANGE), (60, "Imports", BLUE)):
        tokens += [at(name, 370, y), *([at(swatches, 333, y)] if swatches else [])]
        patches.append((327, y - 4, 339, y + 4, colour))
    assert facts(tokens, painted(*patches)) == WANTED


def test_a_turned_axis_title_is_no_part_of_the_legend_and_a_grey_edge_no_series() -> None:
    tokens, patches = grouped(edge=(128, 128, 128))
    tokens.append(Token("Share of adults", 4, 90, 16, 190))
    for x, name, colour in ((100, "Exports", ORANGE), (220, "Imports", BLUE)):
        tokens.append(at(name, x, 280))
        patches.append((x - 45, 276, x - 31, 284, colour))
    assert facts(tokens, painted(*patches)) == WANTED


def test_numbers_below_a_name_that_was_read_as_one_with_its_neighbours_give_no_fact() -> None:
    tokens = [at("Norway", 60, 250), at("South Africa Chile Malta", 200, 250), at("Ghana", 340, 250)]
    tokens += [at(value, x, 100) for value, x in (("16", 60), ("52", 130), ("24", 200), ("31", 270), ("43", 340))]
    assert {fact[::2] for fact in facts(tokens)} == {("Norway", 16), ("Ghana", 43)}


def test_a_number_that_stands_elsewhere_than_its_value_on_the_axis_is_misread() -> None:
    ticks = [at(str(value), 20, 220 - 2 * value) for value in (0, 20, 40, 60, 80)]
    bars = [(at(value, x, 208 - 2 * height), at(name, x, 250)) for x, name, value, height in (
        (80, "Chile", "39", 39), (160, "Ghana", "24", 24), (240, "Peru", "6", 49), (320, "Malta", "85", 85))]
    assert {fact[::2] for fact in facts([*ticks, *(token for bar in bars for token in bar)])} == {
        ("Chile", 39), ("Ghana", 24), ("Malta", 85)}


def test_a_number_without_the_percent_sign_of_the_others_may_have_it_read_as_digits() -> None:
    tokens = [token for x, name, value in ((80, "Chile", "12%"), (180, "Ghana", "596"), (280, "Peru", "31%"))
              for token in (at(value, x, 100), at(name, x, 250))]
    assert {fact[::2] for fact in facts(tokens)} == {("Chile", 12), ("Peru", 31)}


def test_a_line_over_years_names_its_points_even_between_the_labels() -> None:
    tokens = [at(year, x, 250) for year, x in (("2007", 80), ("2009", 160), ("2011", 240))]
    places = (("2007", "66", 80, 110), ("2008", "68", 120, 90), ("2009", "78", 160, 60), ("2010", "79", 200, 70),
              ("2011", "76", 240, 100))
    tokens += [at(value, x, y) for _, value, x, y in places]
    found = chart_facts(read_chart(tokens), PAPER)
    assert {(fact.entity, fact.value) for fact in found} == {(year, float(value)) for year, value, _, _ in places}


def test_two_lines_are_separated_by_the_colour_of_their_names() -> None:
    tokens, patches = [at("Approve", 120, 60), at("Reject", 120, 200)], [(96, 56, 144, 64, ORANGE), (99, 196, 141, 204, BLUE)]
    for x, year, up, down in ((80, "2012", "79", "16"), (160, "2013", "66", "30"), (240, "2014", "71", "25")):
        tokens += [at(up, x, 90), at(down, x, 170), at(year, x, 250)]
        patches += [(x - 5, 86, x + 5, 94, ORANGE), (x - 5, 166, x + 5, 174, BLUE)]
    assert facts(tokens, painted(*patches)) == {
        (year, name, value) for year, values in (("2012", (79, 16)), ("2013", (66, 30)), ("2014", (71, 25)))
        for name, value in zip(("Approve", "Reject"), values, strict=True)}


def test_a_pie_has_names_over_before_or_in_one_text_with_its_numbers() -> None:
    stacked = [at("Support", 100, 100), at("80%", 100, 112), at("Oppose", 200, 200), at("17%", 200, 212)]
    assert {fact[::2] for fact in facts(stacked)} == {("Support", 80), ("Oppose", 17)}
    inline = [at("\u2022 Comfortable 29%", 80, 50), at("- Somewhat poorly 1 3%", 300, 150), at("Very well 58%", 120, 250)]
    assert {fact[::2] for fact in facts(inline)} == {("Comfortable", 29), ("Somewhat poorly", 13), ("Very well", 58)}


def test_every_row_of_a_dense_column_keeps_its_own_number_although_every_third_label_starts_alike() -> None:
    names = ("Ohio", "Texas", "Florida", "Iowa", "Maine", "Georgia", "Utah", "Idaho", "Indiana")
    tokens = [token for row, name in enumerate(names)
              for token in (ending(name, 90, 30 + 24 * row), at(str(90 - row), 340 - 20 * row, 30 + 24 * row))]
    assert {fact[::2] for fact in facts(tokens)} == {(name, 90 - row) for row, name in enumerate(names)}


def test_a_number_that_fits_no_name_gives_no_fact() -> None:
    tokens = [ending("Latvia", 90, 60), at("30", 200, 60), ending("Romania", 90, 180), at("13", 150, 180), at("99", 180, 118),
              at("66", 390, 118)]
    assert {fact[::2] for fact in facts(tokens)} == {("Latvia", 30), ("Romania", 13)}


@pytest.mark.parametrize(("values", "is_axis"), [
    ("0 20 40", True), ("20 40 60", False), ("20 40 60 80", True), ("80 60 40 20", False), ("28.6 29.1 29.6 32", False),
    ("0 10 100", False), ("0 20 60 80", True)])
def test_an_axis_grows_evenly_to_the_right(values: str, is_axis: bool) -> None:
    first, *_ = numbers = [float(value) for value in values.split()]
    tokens = [at(value, 100 + 3 * abs(number - first), 280) for value, number in zip(values.split(), numbers, strict=True)]
    assert bool(find_ticks(sort_tokens(tokens)[1])) is is_axis


def test_what_is_no_print_is_left_out() -> None:
    wide = Token("8", 0, 0, 23, 19)  # the ring of a line, read as a digit
    tall = Token("1", 0, 0, 200, 400)  # a bar, read as a digit
    texts, marks = sort_tokens([wide, tall, at("62", 50, 50), at("o-", 70, 70, score=0.4), at("0 employees", 90, 90),
                                at("1 GPI", 50, 120), at("0.5 GPI", 50, 140)])
    assert [text.text for text in texts] == ["0 employees"]  # a unit that comes once is a name
    assert [mark.quantity.value for mark in marks] == [62, 1, 0.5]


def test_lines_join_the_line_above_and_no_neighbour() -> None:
    blocks = merge_lines([at("About the", 200, 40), at("same", 200, 52), at("More", 100, 46)], 0.3)
    assert {block.text for block in blocks} == {"About the same", "More"}


@pytest.mark.parametrize("tokens", [[], [at("Only a title", 100, 10)], [at("7", 100, 100)], [at("2012", 100, 100)]])
def test_a_picture_with_hardly_any_text_breaks_nothing(tokens: list[Token]) -> None:
    assert {fact.entity for fact in chart_facts(read_chart(tokens), PAPER)} <= {""}
