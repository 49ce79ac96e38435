"""Which series a number of a chart belongs to: headings over bars, legends and coloured names; and the facts that follow."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dyme_core.data.numbers import clean_label
from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.layout import Chart
from dyme_core.supervision.chart_ocr.tokens import LINE_GAP, Mark, Token, clusters, merge_lines

Colour = np.ndarray
SAME_COLOUR = 45.0  # Euclidean distance in RGB (0..255) below which a number has a series' colour
WHITE, BLACK = 225, 40  # paper and ink are no series' colour


def chart_facts(chart: Chart, pixels: np.ndarray) -> tuple[Fact, ...]:
    """The facts of a chart.

    Args:
        chart: what `layout.read_chart` gives.
        pixels: (height, width, 3) the picture in RGB; decides which number has which legend colour.
    Returns:
        one fact per printed number: entity, attribute ("" where the series is unknown), value, unit; loose numbers last,
        with entity "". A unit that the chart prints at some numbers holds for all.
    """
    series = _series(chart, pixels)
    units = {mark.quantity.unit for _, mark in chart.cells if mark.quantity.unit}
    shared = units.pop() if len(units) == 1 else ""
    named = [Fact(clean_label(name.text), series.get(mark, ""), mark.quantity.value, mark.quantity.unit or shared)
             for name, mark in chart.cells]
    return (*named, *(Fact("", "", mark.quantity.value, mark.quantity.unit) for mark in chart.loose))


def _series(chart: Chart, pixels: np.ndarray) -> dict[Mark, str]:
    """The series' name of each number, by the first way that the layout allows."""
    count = max(Counter(name for name, _ in chart.cells).values(), default=0)
    if count < 2:
        return dict.fromkeys((mark for _, mark in chart.cells), _caption(chart))
    headings = _headings(chart, count)
    if headings:
        return _in_order(chart, headings)
    for names in (_legend(chart, count), _names_in_field(chart, count)):
        series = _by_colour(chart, names, pixels)
        if series:
            return series
    return {}


def _caption(chart: Chart) -> str:
    """What a single series is called: the axis title below the numbers of a horizontal axis, else the chart's title."""
    rows = clusters((tick.token for tick in chart.ticks), lambda token: token.y, lambda token: token.height / 2)
    axis = max(rows, key=len, default=[])
    others = [text for text in chart.texts if text not in chart.names]
    if len(axis) >= 3:
        left, right, bottom = min(t.left for t in axis), max(t.right for t in axis), max(t.bottom for t in axis)
        titles = [text for text in others if 0 <= text.top - bottom <= 2 * text.height
                  and abs(text.x - (left + right) / 2) <= 0.15 * (right - left)]
        if titles:
            return clean_label(titles[0].text)
    return _title(others)


def _title(texts: Sequence[Token]) -> str:
    """The topmost text with the lines below it that are as tall and start at the same edge."""
    lines: list[Token] = []
    for text in sorted(texts, key=lambda text: text.top):
        is_first = not lines and sum(map(str.isalpha, text.text)) > 2  # no icon
        if is_first or lines and (text.height >= 0.87 * lines[0].height and abs(text.left - lines[0].left) <= 5
                                  and text.top - lines[-1].bottom <= LINE_GAP * text.height):
            lines.append(text)
    return clean_label(" ".join(line.text for line in lines))


def _others(chart: Chart) -> list[Token]:
    """Texts that are not the name of a row or column (a name may have several lines)."""
    return [text for text in chart.texts
            if not any(name.left <= text.x <= name.right and name.top <= text.y <= name.bottom for name in chart.names)]


def _headings(chart: Chart, count: int) -> list[str]:
    """Names over the parts of horizontal bars: the row of `count` texts nearest above the first bar, else []."""
    if chart.form != "across":
        return []
    first = min(mark.token.top for _, mark in chart.cells)
    edge = max(name.right for name in chart.names)
    above = [text for text in merge_lines(_others(chart), LINE_GAP) if text.y < first and text.x > edge]
    rows = clusters(above, lambda text: text.y, lambda text: text.height / 2)
    row = sorted(rows[-1], key=lambda text: text.x) if rows else []
    return [clean_label(text.text) for text in row] if len(row) == count else []


def _in_order(chart: Chart, names: list[str]) -> dict[Mark, str]:
    """Names by the order of a bar's parts, for bars that print all of them."""
    series = {}
    for entity in chart.names:
        marks = sorted((mark for name, mark in chart.cells if name == entity), key=lambda mark: mark.token.x)
        series |= dict(zip(marks, names, strict=True)) if len(marks) == len(names) else {}
    return series


def _legend(chart: Chart, count: int) -> list[Token]:
    """The texts of a row of exactly `count` beside the field: a legend."""
    rows = clusters(_others(chart), lambda text: text.y, lambda text: text.height / 2)
    return next((row for row in rows if len(row) == count), [])


def _names_in_field(chart: Chart, count: int) -> list[Token]:
    """The `count` texts that stand among the numbers: names at their lines."""
    marks = [mark.token for _, mark in chart.cells]
    left, right = min(t.left for t in marks), max(t.right for t in marks)
    top, bottom = min(t.top for t in marks) - 2 * marks[0].height, max(t.bottom for t in marks) + 2 * marks[0].height
    inside = [text for text in _others(chart) if left <= text.x <= right and top <= text.y <= bottom and len(text.text) > 1]
    return inside if len(inside) == count else []


def _by_colour(chart: Chart, names: list[Token], pixels: np.ndarray) -> dict[Mark, str]:
    """Give each number the name whose swatch or ink has its colour; {} where names have no colours of their own."""
    inks = [(clean_label(name.text), colour) for name in names for colour in _name_colours(name, pixels)]
    if len({name for name, _ in inks}) < max(2, len(names)):
        return {}
    series = {}
    for _, mark in chart.cells:
        far, name = min((float(np.linalg.norm(colour - ink)), name)
                        for colour in _mark_colours(mark.token, pixels) or [np.full(3, -1e3)] for name, ink in inks)
        if far <= SAME_COLOUR:
            series[mark] = name
    return _without_doubles(chart, series)


def _without_doubles(chart: Chart, series: dict[Mark, str]) -> dict[Mark, str]:
    """Drop contradictions: two numbers of one entity in one series."""
    seen = Counter((name, series.get(mark)) for name, mark in chart.cells)
    return {mark: series[mark] for name, mark in chart.cells if mark in series and seen[name, series[mark]] == 1}


def _name_colours(name: Token, pixels: np.ndarray) -> list[Colour]:
    """Colour of the swatch left of a legend's name, else of the name's own ink."""
    swatch = _colour(pixels, name.left - 1.4 * name.height, name.top, name.left - 1, name.bottom)
    ink = _colour(pixels, name.left, name.top, name.right, name.bottom)
    return [colour for colour in (swatch if swatch is not None else ink,) if colour is not None]


def _mark_colours(token: Token, pixels: np.ndarray) -> list[Colour]:
    """Colours a number may stand for: under and in it, and half its height around it (the bar it stands by)."""
    around = token.height / 2
    boxes = ((0.0,), (around,))
    found = [_colour(pixels, token.left - by, token.top - by, token.right + by, token.bottom + by) for (by,) in boxes]
    return [colour for colour in found if colour is not None]


def _colour(pixels: np.ndarray, left: float, top: float, right: float, bottom: float) -> Colour | None:
    """The commonest colour of a box that is neither paper nor ink, as (3,) floats; None where there is hardly any."""
    part = pixels[max(0, round(top)): max(0, round(bottom)), max(0, round(left)): max(0, round(right))].reshape(-1, 3)
    part = part[(part.min(axis=1) < WHITE) & (part.max(axis=1) > BLACK)]
    if len(part) < 8:
        return None
    bins, counts = np.unique(part // 32, axis=0, return_counts=True)
    return part[(part // 32 == bins[counts.argmax()]).all(axis=1)].mean(axis=0)
