"""Which number of a chart belongs to which name, by their positions.

Three layouts are tried, and the one that explains most numbers is taken: horizontal bars (names in a column at the left), marks
over an axis (names in a row below), and names beside their number (pies). Numbers in an even row or column are an axis, not
facts. Numbers that no layout explains stay loose.
"""
from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from dyme_core.data.numbers import clean_label, is_year
from dyme_core.supervision.chart_ocr.tokens import (
    LINE_GAP,
    TOLERANCE,
    Mark,
    Token,
    clusters,
    find_ticks,
    join_lines,
    sort_tokens,
    split_inline,
)

REACH_ACROSS, REACH_UPRIGHT = 0.45, 0.4  # of the distance between names: how far a number may be from its name
SAME_ROW = 5  # pixels; no two lines of print are closer
Cells = list[tuple[Token, Mark]]
Offset = Callable[[Token, Mark], float]


@dataclass
class Chart:
    """A chart as read: names with their numbers, axis numbers, other texts, numbers left over.

    Attributes:
        form: "across" (horizontal bars), "upright" (names below), "beside" (names beside their numbers).
        cells: (name, number) pairs, in the picture's order.
        loose: numbers that belong to no name.
        ticks: numbers of an axis.
        texts: everything that is not a number; years too.
    """

    form: str
    cells: Cells = field(default_factory=list)
    loose: list[Mark] = field(default_factory=list)
    ticks: list[Mark] = field(default_factory=list)
    texts: list[Token] = field(default_factory=list)

    @property
    def names(self) -> list[Token]:
        return list(dict.fromkeys(name for name, _ in self.cells))


def read_chart(tokens: Sequence[Token]) -> Chart:
    """Separate names, values, axis numbers and other texts, and join values to names where the layout allows."""
    texts, marks = sort_tokens(tokens)
    ticks = find_ticks(marks)
    marks = [mark for mark in marks if mark not in ticks]
    tries = {"across": _across(texts, marks), "upright": _upright(texts, marks), "beside": _beside(texts, marks)}
    weight = {"across": _regular(tries["across"], _down), "upright": _regular(tries["upright"], _right),
              "beside": 2 * len(tries["beside"])}
    form = max(tries, key=weight.__getitem__)
    cells = tries[form]
    used = {mark for _, mark in cells}
    chart = Chart(form, cells, [mark for mark in marks if mark not in used], ticks, texts)
    if form == "upright":
        _place_between_years(chart)
    chart.loose = _inside(chart)
    return chart


def _down(name: Token, mark: Mark) -> float:
    return mark.token.y - name.y


def _right(name: Token, mark: Mark) -> float:
    return mark.token.x - name.x


def _pitch(places: list[float]) -> float:
    """Usual distance between neighbouring places."""
    places = sorted(places)
    steps = [step for before, after in zip(places, places[1:], strict=False) if (step := after - before) > SAME_ROW]
    return statistics.median(steps) if steps else 0.0


def _across(texts: list[Token], marks: list[Mark]) -> Cells:
    """Names in a column with a common right (or left) edge, their numbers in the same rows at the right."""
    rows = _pitch([mark.token.y for mark in marks])
    lying = [text for text in texts if text.height <= text.right - text.left or len(text.text) < 3]
    tries = []
    for edge in (lambda text: text.right, lambda text: text.left):
        for column in clusters(lying, edge, lambda text: TOLERANCE * text.height):
            names = _merge_rows(column, rows)
            reach = REACH_ACROSS * _pitch([name.y for name in names])
            tries.append(_nearest(marks, names, _down, reach, lambda name, mark: name.right <= mark.token.x))
    return _most_regular(tries, _down)


def _merge_rows(column: list[Token], rows: float) -> list[Token]:
    """Join lines of one name: those that touch, and lie closer together than the rows of numbers do."""
    groups: list[list[Token]] = []
    for line in sorted(column, key=lambda text: text.y):
        last = groups[-1][-1] if groups else None
        if last and line.y - last.y < 0.6 * rows and line.top - last.bottom <= LINE_GAP * line.height:
            groups[-1].append(line)
        else:
            groups.append([line])
    return [join_lines(group) for group in groups]


def _upright(texts: list[Token], marks: list[Mark]) -> Cells:
    """Names in a row (turned ones have a common top), their numbers above them."""
    tries = []
    for edge in (lambda text: text.y, lambda text: text.top):
        for row in clusters(texts, edge, lambda text: TOLERANCE * min(text.height, 20)):
            names = [_with_line_below(name, texts, row) for name in sorted(row, key=lambda text: text.x)]
            steps = [after.x - before.x for before, after in zip(names, names[1:], strict=False)]
            tries.append(_nearest(marks, names, _right, REACH_UPRIGHT * min(steps, default=0.0),
                                  lambda name, mark: mark.token.y <= name.top))
    return _most_regular(tries, _right)


def _with_line_below(name: Token, texts: list[Token], row: list[Token]) -> Token:
    below = [text for text in texts if text not in row and abs(text.top - name.bottom) <= TOLERANCE * name.height
             and abs(text.x - name.x) <= name.height and text.height <= 1.2 * name.height]
    return join_lines([name, *below[:1]])


def _nearest(marks: list[Mark], names: list[Token], offset: Offset, reach: float, fits: Callable) -> Cells:
    """Each number with the nearest name in reach; names keep at most the usual count of numbers, the nearest ones."""
    pairs = [(min(near, key=lambda name, mark=mark: abs(offset(name, mark))), mark) for mark in marks
             if (near := [name for name in names if fits(name, mark) and abs(offset(name, mark)) <= reach])]
    counts = Counter(name for name, _ in pairs)
    if len(counts) < 2:
        return []
    usual = statistics.mode(counts.values())
    # Of equally near numbers the one at the left: at the right stand the icons of a web page.
    kept = [pair for name in names for pair in sorted(
        (pair for pair in pairs if pair[0] == name),
        key=lambda pair: (abs(offset(*pair)) // (TOLERANCE * pair[1].token.height), pair[1].token.left))[:usual]]
    return sorted(kept, key=lambda pair: (names.index(pair[0]), pair[1].token.left, pair[1].token.top))


def _most_regular(tries: list[Cells], offset: Offset) -> Cells:
    """The layout with most numbers that lie to their names as the other names' numbers do."""
    return max(tries, key=lambda cells: _regular(cells, offset), default=[])


def _regular(cells: Cells, offset: Offset) -> int:
    """How many numbers lie as far from their name as the number of the same rank does from the other names.

    Numbers right beside their name count twice: every third label of a column is regular too.
    """
    aligned = sum(abs(offset(name, mark)) <= 0.6 * mark.token.height for name, mark in cells)
    by_name: dict[Token, list[tuple[float, float]]] = {}
    for name, mark in cells:
        by_name.setdefault(name, []).append((offset(name, mark), mark.token.height))
    full = max(map(len, by_name.values()), default=0)
    ranks = list(zip(*(sorted(found) for found in by_name.values() if len(found) == full), strict=True))
    usual = [statistics.median(place for place, _ in rank) for rank in ranks]
    return aligned + sum(min(abs(place - middle) for middle in usual) <= 0.6 * height if len(found) < full
               else abs(place - usual[rank]) <= 0.6 * height
               for found in by_name.values() for rank, (place, height) in enumerate(sorted(found)))


def _beside(texts: list[Token], marks: list[Mark]) -> Cells:
    """Names right above their number, right before it on one line, or in one text with it; at least two of them."""
    cells = [found for text in texts if (found := split_inline(text)) is not None]
    for mark in marks:
        at = mark.token
        near = [text for text in texts if abs(text.x - at.x) <= (text.right - text.left) / 2
                and abs(at.top - text.bottom) <= TOLERANCE * at.height
                or abs(text.y - at.y) <= TOLERANCE * at.height and 0 <= at.left - text.right <= at.height]
        if near:
            cells.append((max(near, key=lambda text: text.y), mark))
    return cells if len(cells) > 1 else []


def _place_between_years(chart: Chart) -> None:
    """Give numbers over an unlabelled year its name: an axis that prints 2007 and 2009 has 2008 half-way."""
    years = sorted((name.x, int(clean_label(name.text))) for name in chart.names if is_year(name.text))
    for mark in list(chart.loose):
        for (left, first), (right, last) in zip(years, years[1:], strict=False):
            year = first + (last - first) * (mark.token.x - left) / (right - left)
            if left < mark.token.x < right and first < round(year) < last and abs(year - round(year)) <= 0.2:
                name = next(name for name in chart.names if name.x == left)
                chart.cells.append((replace(name, text=str(round(year)), left=mark.token.left, right=mark.token.right), mark))
                chart.loose.remove(mark)


def _inside(chart: Chart) -> list[Mark]:
    """The loose numbers inside the field of the chart; those outside are icons or page numbers."""
    known = [mark.token for _, mark in chart.cells] + [tick.token for tick in chart.ticks]
    if not known:
        return chart.loose
    left, right = min(token.left for token in known), max(token.right for token in known)
    top, bottom = min(token.top for token in known), max(token.bottom for token in known)
    return [mark for mark in chart.loose if left <= mark.token.x <= right and top <= mark.token.y <= bottom]
