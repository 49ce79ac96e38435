"""Which series a number of a chart belongs to: headings over bars, legends and coloured names; and the facts that follow.

A number whose name or series is not certain gives no fact.
"""
from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dyme_core.data.numbers import clean_label
from dyme_core.data.schema import Fact
from dyme_core.supervision.chart_ocr.layout import Chart
from dyme_core.supervision.chart_ocr.tokens import LINE_GAP, Mark, Token, clusters, merge_lines

Colour = np.ndarray
SAME_COLOUR = 45.0  # Euclidean distance in RGB (0..255) below which a pixel has a series' colour
PALE, WHITE, BLACK = 200, 225, 40  # paper (light, or pale and hardly coloured) and ink are no series' colour
SWATCH = 2.6  # of a name's height: how far at its left its swatch may begin
SURE = 0.8  # share of the coloured pixels at a number that must have one series' colour
FILLED = 0.12  # share of a number's own box that must be coloured to show its series
OFF_AXIS = 1.2  # of a number's height: how much farther from its value on the axis than the others it may stand


def chart_facts(chart: Chart, pixels: np.ndarray) -> tuple[Fact, ...]:
    """The facts of a chart.

    Args:
        chart: what `layout.read_chart` gives.
        pixels: (height, width, 3) the picture in RGB; decides which number has which legend colour.
    Returns:
        one fact per printed number whose name and series are certain: entity, attribute, value, unit. A unit that the chart
        prints at some numbers holds for all.
    """
    if not chart.cells:
        return ()
    series = _series(chart, pixels)
    units = Counter(mark.quantity.unit for _, mark in chart.cells)
    shared = max(units) if len(units.keys() - {""}) == 1 else ""
    doubtful = {*_off_axis(chart), *_odd_units(chart, units)}
    return tuple(Fact(clean_label(name.text), series[mark], mark.quantity.value, mark.quantity.unit or shared)
                 for name, mark in chart.cells
                 if mark in series and mark not in doubtful and not _is_joined(name, chart))


def _is_joined(name: Token, chart: Chart) -> bool:
    """True for neighbouring names that OCR read as one: below numbers that belong to no name."""
    return chart.form == "upright" and any(name.left <= mark.token.x <= name.right for mark in chart.loose)


def _odd_units(chart: Chart, units: Counter[str]) -> list[Mark]:
    """Numbers without the sign that most others have ("596" for "5%"), and with a sign that only one has."""
    [(usual, count)] = units.most_common(1) or [("", 0)]
    is_usual = count > len(chart.cells) / 2
    return [mark for _, mark in chart.cells if is_usual and mark.quantity.unit != usual
            and (usual or units[mark.quantity.unit] == 1 < len(chart.cells) - 1 and mark.quantity.unit != "%")]


def _off_axis(chart: Chart) -> list[Mark]:
    """Numbers that stand elsewhere than their value on the axis, where most of the others stand right: misread ones."""
    def place(token: Token) -> float:
        return token.y if chart.form == "upright" else token.x

    axis = max(clusters(chart.ticks, lambda mark: mark.token.x if chart.form == "upright" else mark.token.y,
                        lambda mark: mark.token.height), key=len, default=[])
    values = [mark.quantity.value for mark in axis]
    if chart.form == "beside" or len(set(values)) < 3:
        return []
    scale, start = np.polyfit(values, [place(mark.token) for mark in axis], 1)
    gaps = {mark: place(mark.token) - start - scale * mark.quantity.value for _, mark in chart.cells}
    usual = statistics.median(gaps.values())
    off = [mark for mark, gap in gaps.items() if abs(gap - usual) > OFF_AXIS * mark.token.height]
    return off if len(off) <= 0.3 * len(gaps) else []


def _series(chart: Chart, pixels: np.ndarray) -> dict[Mark, str]:
    """The series' name of each number that has a certain one, by the first way that the layout allows."""
    count = max(Counter(name for name, _ in chart.cells).values(), default=0)
    legend = _legend(chart, count, pixels) if chart.form != "beside" else {}
    if count < 2 and not legend:
        return dict.fromkeys((mark for _, mark in chart.cells), _caption(chart))
    headings = _headings(chart, count)
    if headings:
        return _in_order(chart, headings)
    return _by_colour(chart, legend or _inks(_names_in_field(chart, count), pixels), pixels)


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
    """Upright texts that are not the name of a row or column (a name may have several lines)."""
    return [text for text in chart.texts if not _is_turned(text)
            and not any(name.left <= text.x <= name.right and name.top <= text.y <= name.bottom for name in chart.names)]


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


def _is_turned(text: Token) -> bool:
    return text.height > 1.5 * (text.right - text.left) and len(text.text) > 2


def _legend(chart: Chart, count: int, pixels: np.ndarray) -> dict[str, Colour]:
    """The names of a row or column of at least `count` texts with a swatch each, of different colours; else {}."""
    others = [text for text in _others(chart) if _swatch(text, pixels) is not None]
    lines = [*clusters(others, lambda text: text.y, lambda text: text.height / 2),
             *clusters(others, lambda text: text.left, lambda text: text.height / 2)]
    legends = [names for line in (*lines, others) if (names := _distinct(
        {_legend_name(text): _swatch(text, pixels) for text in line})) and len(names) == len(line) >= count]
    return min(legends, key=lambda names: abs(len(names) - count), default={})


def _legend_name(text: Token) -> str:
    return re.sub(r"^[\W_]+", "", clean_label(text.text))


def _distinct(inks: dict[str, Colour]) -> dict[str, Colour]:
    """The names with their colours where there are two or more and no two colours are alike, else {}."""
    colours = list(inks.values())
    is_distinct = all(np.linalg.norm(one - other) > SAME_COLOUR for place, one in enumerate(colours)
                      for other in colours[place + 1:])
    return inks if len(inks) > 1 and is_distinct else {}


def _inks(names: list[Token], pixels: np.ndarray) -> dict[str, Colour]:
    """Names with the colours of their own print; {} where one has none, or two have the same."""
    inks = {clean_label(name.text): _colour(_box(pixels, name.left, name.top, name.right, name.bottom)) for name in names}
    return _distinct(inks) if all(ink is not None for ink in inks.values()) else {}


def _names_in_field(chart: Chart, count: int) -> list[Token]:
    """The `count` texts that stand among the numbers: names at their lines."""
    marks = [mark.token for _, mark in chart.cells]
    left, right = min(t.left for t in marks), max(t.right for t in marks)
    top, bottom = min(t.top for t in marks) - 2 * marks[0].height, max(t.bottom for t in marks) + 2 * marks[0].height
    inside = [text for text in _others(chart) if left <= text.x <= right and top <= text.y <= bottom and len(text.text) > 1]
    return inside if len(inside) == count else []


def _by_colour(chart: Chart, inks: dict[str, Colour], pixels: np.ndarray) -> dict[Mark, str]:
    """Give each number the name whose colour it has, it stands in, or stands at; none where that is not certain."""
    found = {mark: _nearest_ink(chart, mark, inks, pixels) for _, mark in chart.cells}
    return _without_doubles(chart, {mark: name for mark, name in found.items() if name})


def _nearest_ink(chart: Chart, mark: Mark, inks: dict[str, Colour], pixels: np.ndarray) -> str | None:
    """The name whose colour nearly all coloured pixels have, in the number's middle, else where its bar or point is."""
    at, is_below = mark.token, mark.quantity.value < 0
    half = (at.right - at.left) / 4  # the sides may lie over a neighbouring bar
    if chart.form == "across":
        bar = (at.right, at.right + at.height) if is_below else (at.left - at.height, at.left)
        around = _box(pixels, bar[0], at.y - at.height / 4, bar[1], at.y + at.height / 4)
    else:
        top, bottom = (at.top - at.height, at.top) if is_below else (at.bottom, at.bottom + at.height)
        around = _box(pixels, at.x - half, top, at.x + half, bottom)
    for part, least in ((_box(pixels, at.x - half, at.top, at.x + half, at.bottom), FILLED), (around, FILLED)):
        counts = {name: int((np.linalg.norm(part - ink, axis=1) <= SAME_COLOUR).sum()) for name, ink in inks.items()}
        if sum(counts.values()) >= max(8, least * len(part)):
            name = max(counts, key=counts.__getitem__)
            return name if counts[name] >= SURE * sum(counts.values()) else None
    return None


def _without_doubles(chart: Chart, series: dict[Mark, str]) -> dict[Mark, str]:
    """Drop contradictions: two numbers of one entity in one series."""
    seen = Counter((name, series.get(mark)) for name, mark in chart.cells)
    return {mark: series[mark] for name, mark in chart.cells if mark in series and seen[name, series[mark]] == 1}


def _swatch(name: Token, pixels: np.ndarray) -> Colour | None:
    """Colour of the swatch left of a legend's name, within OCR's box where that took in the swatch."""
    right = name.left + name.height * (not name.text[:1].isalnum()) / 2
    return _colour(_box(pixels, name.left - SWATCH * name.height, name.top, right - 1, name.bottom))


def _box(pixels: np.ndarray, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """The pixels of a box, (n, 3)."""
    return pixels[max(0, round(top)): max(0, round(bottom)), max(0, round(left)): max(0, round(right))].reshape(-1, 3)


def _colour(part: np.ndarray) -> Colour | None:
    """The commonest colour that is neither paper nor ink, as (3,) floats; None where there is hardly any."""
    dark, light = part.min(axis=1, initial=255), part.max(axis=1, initial=0)
    is_paper = (dark >= WHITE) | (dark >= PALE) & (light.astype(int) - dark < 40)
    part = part[~is_paper & (light > BLACK)]
    if len(part) < 8:
        return None
    bins, counts = np.unique(part // 32, axis=0, return_counts=True)
    return part[(part // 32 == bins[counts.argmax()]).all(axis=1)].mean(axis=0)
