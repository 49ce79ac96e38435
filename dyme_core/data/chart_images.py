"""Drawing a chart: grouped bars, single bars or lines, in several styles, as a small RGB picture.

Pillow, not matplotlib: a picture takes well under a millisecond (matplotlib needs about 50), and a 3 x 5 pixel font stays
readable at 96 pixels, where a scaled vector font does not. A picture is two square tiles wide, as LLaVA-OneVision cuts it.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from dyme_core.data.chart_tables import Table

# Five rows of three pixels per glyph, each row one octal digit (4 = left pixel).
_GLYPHS = dict(zip("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", (
    "75557 26227 71747 71717 55711 74717 74757 71122 75757 75717 25755 65656 34443 65556 74647 74644 34553 55755 72227 "
    "11153 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 55775 55255 55222 71247").split(),
    strict=True))
TILE, NUM_TILES = 96, 2  # pixels a side, tiles beside each other
WIDTH, HEIGHT = NUM_TILES * TILE, TILE
CELL_WIDTH, CELL_HEIGHT = 4, 6  # pixels; text stands on a grid of character cells, as on a small display
COLUMNS, ROWS = WIDTH // CELL_WIDTH, HEIGHT // CELL_HEIGHT
GROUP_CELLS, SNAP = 6, 3  # a group is two values wide; a value starts on every third column, so that no patch cuts it


@dataclass(frozen=True)
class Style:
    """The style of a chart; it does not change the content."""

    form: str  # "bars" or "lines"
    colours: tuple[str, str]
    background: str = "#ffffff"
    has_grid: bool = False
    legend_at_top: bool = True
    shift: float = 0.0  # in [0, 1): share of the free space that lies left of the first group


_SEEN_COLOURS = (("#1f77b4", "#ff7f0e"), ("#2ca02c", "#d62728"), ("#4c72b0", "#55a868"), ("#8172b3", "#c44e52"),
                 ("#333333", "#999999"))
_UNSEEN_COLOURS = (("#e377c2", "#17becf"), ("#bcbd22", "#8c564b"))


def draw_style(rng: random.Random, is_unseen: bool = False) -> Style:
    """A random style; the unseen ones (second test set) share no palette and no background with the others."""
    if is_unseen:
        return Style(rng.choice(("bars", "lines")), rng.choice(_UNSEEN_COLOURS), "#f2efe6", True, rng.random() < 0.5,
                     rng.random())
    return Style(rng.choice(("bars", "bars", "lines")), rng.choice(_SEEN_COLOURS), rng.choice(("#ffffff", "#f7f7f7")),
                 rng.random() < 0.5, rng.random() < 0.7, rng.random())


def _write(draw: ImageDraw.ImageDraw, cell: tuple[int, int], text: str, colour: str) -> None:
    """Write `text` in the pixel font from character cell (column, row) on."""
    column, row = cell
    pixels = [((column + place) * CELL_WIDTH + x, row * CELL_HEIGHT + y)
              for place, letter in enumerate(text) for y, bits in enumerate(_GLYPHS[letter])
              for x in range(3) if int(bits) & (4 >> x)]
    draw.point(pixels, fill=colour)


@dataclass(frozen=True)
class Layout:
    """The layout of a chart; cells are (column, row) of the first character.

    Attributes:
        values: cell of each printed value, by (series, group) index.
        groups, series: cells of the axis labels and of the legend's names.
        marks: pixel (x, y) of each bar's top middle or line's point, by (series, group) index.
        top, bottom: pixel rows of the largest value and of the axis.
    """

    values: dict[tuple[int, int], tuple[int, int]]
    groups: list[tuple[int, int]]
    series: list[tuple[int, int]]
    marks: dict[tuple[int, int], tuple[int, int]]
    top: int
    bottom: int


def lay_out(table: Table, style: Style) -> Layout:
    """Place the marks and texts of `table`: no two texts of a chart share a cell."""
    label_row, legend_row = (ROWS - 1, 0) if style.legend_at_top else (ROWS - 2, ROWS - 1)
    top, bottom = (3 if style.legend_at_top else 2) * CELL_HEIGHT, label_row * CELL_HEIGHT - 2
    first = int(style.shift * (COLUMNS // GROUP_CELLS - len(table.groups) + 1))
    columns = [GROUP_CELLS * (first + place) for place in range(len(table.groups))]
    largest = max(max(row) for row in table.values)
    values, marks = {}, {}
    for place, column in enumerate(columns):
        heights = [round(row[place] / largest * (bottom - top)) for row in table.values]
        for number, height in enumerate(heights):
            cell = column + SNAP * number
            if style.form == "bars":
                marks[number, place] = cell * CELL_WIDTH + 3, bottom - max(1, height)
                values[number, place] = cell, marks[number, place][1] // CELL_HEIGHT - 1
            else:  # the first series' value stands left of its point, the second's right of it
                marks[number, place] = column * CELL_WIDTH + 9, bottom - max(CELL_HEIGHT, height)
                values[number, place] = cell, marks[number, place][1] // CELL_HEIGHT
    legend = (3, 15) if len(table.series) == 2 else (9,)
    return Layout(values, [(column, label_row) for column in columns], [(column, legend_row) for column in legend], marks,
                  top, bottom)


def render(table: Table, style: Style, scale: int = 1) -> Image.Image:
    """Draw `table` as an RGB picture of 192 x 96 pixels with every value printed beside its mark.

    Args:
        table: up to 8 groups, 1 or 2 series, values of at most two digits.
        style: palette, form and so on.
        scale: whole-number enlargement for print, 1 for the model.
    """
    layout = lay_out(table, style)
    image = Image.new("RGB", (WIDTH, HEIGHT), style.background)
    draw = ImageDraw.Draw(image)
    if style.has_grid:
        for share in (0.25, 0.5, 0.75, 1.0):
            y = layout.bottom - round(share * (layout.bottom - layout.top))
            draw.line((0, y, WIDTH, y), fill="#dddddd")
    draw.line((0, layout.bottom, WIDTH, layout.bottom), fill="#000000")
    for number, (name, cell) in enumerate(zip(table.series, layout.series, strict=True)):
        colour = style.colours[number]
        (_draw_bars if style.form == "bars" else _draw_line)(
            draw, [layout.marks[number, place] for place in range(len(table.groups))], layout.bottom, colour)
        x, y = cell[0] * CELL_WIDTH, cell[1] * CELL_HEIGHT
        draw.rectangle((x - 5, y, x - 2, y + 4), fill=colour)
        _write(draw, cell, name, "#000000")
    for (number, place), cell in layout.values.items():
        if style.form == "lines":  # no line runs through a value
            x, y = cell[0] * CELL_WIDTH, cell[1] * CELL_HEIGHT
            draw.rectangle((x - 1, y - 1, x + 2 * CELL_WIDTH - 1, y + CELL_HEIGHT - 1), fill=style.background)
        _write(draw, cell, str(table.values[number][place]), "#000000")
    for group, cell in zip(table.groups, layout.groups, strict=True):
        _write(draw, cell, group, "#000000")
    return image.resize((WIDTH * scale, HEIGHT * scale), Image.Resampling.NEAREST) if scale > 1 else image


def _draw_bars(draw: ImageDraw.ImageDraw, marks: list[tuple[int, int]], bottom: int, colour: str) -> None:
    for x, y in marks:
        draw.rectangle((max(0, x - 4), y, x + 4, bottom), fill=colour)


def _draw_line(draw: ImageDraw.ImageDraw, marks: list[tuple[int, int]], bottom: int, colour: str) -> None:
    draw.line(marks, fill=colour)
    for x, y in marks:
        draw.rectangle((x - 1, y - 1, x + 1, y + 1), fill=colour)
