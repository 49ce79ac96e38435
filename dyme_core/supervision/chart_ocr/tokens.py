"""Texts with boxes, as OCR reads them of a chart: which are names, which numbers, and which numbers are an axis."""
from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from dyme_core.data.numbers import Quantity, is_year, read_quantity

DIGIT_ASPECT = 1.1  # largest width of a digit by its height; a wider one is the mark of a line
LEAST_SCORE = 0.6  # of a text that may be a name
LEAST_NUMBER_SCORE = 0.88  # of a number: one wrong digit makes a wrong fact
STRAIGHT = 0.35  # of a text's height: how far the numbers of one axis may lie apart across it
TOLERANCE = 0.5  # of a text's height: still aligned
LINE_GAP = 0.3  # of a text's height: largest space between the lines of one text

_INLINE = re.compile(r"[\W_]*(?P<name>\w.*?)\s+(?P<number>(?:\d )?\d+(?:\.\d+)?\s?%)")  # OCR sets digits apart ("1 3%")


@dataclass(frozen=True)
class Token:
    """One text of the picture and its upright box in pixels, y down."""

    text: str
    left: float
    top: float
    right: float
    bottom: float
    score: float = 1.0

    @property
    def x(self) -> float:
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def height(self) -> float:
        return self.bottom - self.top


@dataclass(frozen=True)
class Mark:
    """A printed number and its position."""

    token: Token
    quantity: Quantity


def sort_tokens(tokens: Sequence[Token]) -> tuple[list[Token], list[Mark]]:
    """Split into texts (years among them) and numbers; a unit word must come twice, else the whole is a name.

    Boxes that are too wide or too tall for print are left out, and so are texts with a low confidence and those without a
    letter or digit (swatches of a legend).
    """
    read = [(token, read_quantity(token.text)) for token in tokens]
    units = Counter(quantity.unit for _, quantity in read if quantity)
    usual = statistics.median(token.height for token in tokens) if tokens else 0
    texts, marks = [], []
    for token, quantity in read:
        is_number = quantity and (not quantity.unit.isalpha() or units[quantity.unit] > 1)
        if is_number and not is_year(token.text):
            is_sure = token.score >= LEAST_NUMBER_SCORE and _has_shape_of_digits(token, usual)
            marks += [Mark(token, quantity)] if is_sure else []
        elif token.score >= LEAST_SCORE and any(map(str.isalnum, token.text)):
            texts.append(token)
    return texts, marks


def split_inline(text: Token) -> tuple[Token, Mark] | None:
    """A name and the percent behind it, read as one text ("Comfortable 29%" beside a pie); None for other texts."""
    match = _INLINE.fullmatch(text.text)
    if match is None:
        return None
    name, number = replace(text, text=match["name"]), replace(text, text=match["number"].replace(" ", ""))
    return name, Mark(number, read_quantity(number.text))


def _has_shape_of_digits(token: Token, usual_height: float) -> bool:
    is_narrow = token.right - token.left <= DIGIT_ASPECT * len(token.text) * token.height
    return is_narrow and token.height <= 2.5 * usual_height


def find_ticks(marks: Sequence[Mark]) -> list[Mark]:
    """Numbers of an axis: at least three in a row or column, values even with their places, growing right or up.

    Three need a zero among them, for three values may be even by chance.
    """
    found: list[Mark] = []
    for across, along, direction in ((lambda t: t.y, lambda t: t.x, 1), (lambda t: t.x, lambda t: t.y, -1),
                                     (lambda t: t.right, lambda t: t.y, -1)):
        for line in clusters(marks, lambda mark, of=across: of(mark.token), lambda mark: TOLERANCE * mark.token.height):
            axis = _even([(along(mark.token) * direction, mark) for mark in line])
            places = [across(mark.token) for mark in axis]
            # The numbers of a slowly rising series lie on a slope; those of an axis are printed at one place.
            found += axis if axis and max(places) - min(places) <= STRAIGHT * axis[0].token.height else []
    return list(dict.fromkeys(found))


def _even(line: list[tuple[float, Mark]]) -> list[Mark]:
    """The largest part of a line whose values grow evenly with their positions, [] where it is too small for an axis."""
    best: list[Mark] = []
    line = sorted(line, key=lambda found: found[0])
    for start, (place, first) in enumerate(line):
        for other, second in line[start + 1:]:
            if second.quantity.value <= first.quantity.value or other - place < first.token.height:
                continue
            scale = (other - place) / (second.quantity.value - first.quantity.value)
            fits = [mark for at, mark in line
                    if abs(place + (mark.quantity.value - first.quantity.value) * scale - at) <= 0.3 * mark.token.height]
            best = max(best, fits if _has_even_steps(fits) else [], key=len)
    return best


def _has_even_steps(marks: Sequence[Mark]) -> bool:
    """True for values in steps of one size, at most every other of them missing, and enough of them not to be by chance."""
    values = sorted({mark.quantity.value for mark in marks})
    if len(values) < (3 if 0 in values else 4):
        return False
    step = min(after - before for before, after in zip(values, values[1:], strict=False))
    counts = [(value - values[0]) / step for value in values]
    return counts[-1] <= 2 * (len(values) - 1) and all(abs(count - round(count)) < 0.02 for count in counts)


def clusters(items: Iterable, place: Callable, tolerance: Callable) -> list[list]:
    """Group items whose places lie within the tolerance of their neighbour, in the order of places."""
    groups: list[list] = []
    for item in sorted(items, key=place):
        if groups and place(item) - place(groups[-1][-1]) <= tolerance(item):
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def merge_lines(texts: Iterable[Token], gap: float) -> list[Token]:
    """Texts of several lines as one each: a line joins the line above that it overlaps, at most `gap` heights below it."""
    blocks: list[list[Token]] = []
    for text in sorted(texts, key=lambda text: text.top):
        above = next((block for block in blocks if abs(text.top - block[-1].bottom) <= gap * text.height
                      and min(text.right, block[-1].right) > max(text.left, block[-1].left)), None)
        if above is None:
            blocks.append([text])
        else:
            above.append(text)
    return [join_lines(block) for block in blocks]


def join_lines(lines: Sequence[Token]) -> Token:
    """Several lines as one text with the box around them."""
    return Token(" ".join(line.text for line in lines), min(line.left for line in lines), min(line.top for line in lines),
                 max(line.right for line in lines), max(line.bottom for line in lines), min(line.score for line in lines))
