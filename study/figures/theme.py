"""The style of every figure: theme, one style per method, names at line ends, captions, and saving byte for byte.

The figures themselves are in `plots`, `sweeps` and `mechanism` (numbers) and `traces` (charts with their texts); each gives a
Figure with two attributes: `dyme_frame`, the numbers it was drawn from, and `dyme_caption`.
"""
from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from dyme_core.config import METHOD_NAMES
from study.tables import csv_text

logger = logging.getLogger(__name__)

COLUMN, PAGE = 3.3, 6.9  # inches: one column, two columns
SMALL, BODY = 7.0, 8.0  # points
PALETTE = sns.color_palette("colorblind").as_hex()
GREY = "#5f5f5f"
GAP = 0.08  # between panels side by side, of a panel's width: room for half a number at both ends of an axis
SHIFT = 0.17  # of a line, between its middle and a mark above or below it
ONE_SEED = " One seed: the spread between training runs is not shown."
End = tuple[float, float, str, Any]  # of a line: x, y, its name, the name's colour
RIGHT, WRONG = PALETTE[0], PALETTE[3]  # blue and vermilion: told apart by every common kind of colour blindness

FAMILY = "DejaVu Sans"
# Matplotlib brings its own, but takes a system's of the same name where its cache of fonts says so: other bytes in the PDF.
font_manager.fontManager.ttflist = [font for font in font_manager.fontManager.ttflist if font.name != FAMILY]
for _name in ("", "-Bold", "-BoldOblique", "-Oblique"):
    font_manager.fontManager.addfont(Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVuSans{_name}.ttf"))

THEME: dict[str, Any] = {
    "font.family": FAMILY, "font.size": SMALL, "axes.labelsize": BODY, "axes.titlesize": BODY,
    "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.linewidth": 1.3, "lines.markersize": 3.5, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e3e3e3",
    "grid.linewidth": 0.5, "figure.dpi": 150, "savefig.dpi": 300, "pdf.fonttype": 42, "path.simplify": False,
    "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03, "axes.titlelocation": "left", "axes.titlepad": 4.0,
}

@dataclass(frozen=True)
class Style:
    """Colour, line and marker of one method in every figure."""

    color: str
    linestyle: Any
    marker: str

    @property
    def text_color(self) -> tuple[float, ...]:
        """The colour darkened, so that small text in it can be read on white."""
        return tuple(0.72 * channel for channel in to_rgb(self.color))


MODE_COLORS = {"memorize": PALETTE[3], "explore": PALETTE[0], "mastered": PALETTE[7]}
STYLES = {
    "base": Style(PALETTE[7], (0, (1, 1.2)), "s"),
    "sft": Style(PALETTE[1], (0, (4, 1.5)), "^"),
    "grpo": Style(PALETTE[2], (0, (5, 1.2, 1, 1.2)), "D"),
    "sft_grpo": Style(PALETTE[4], (0, (2.2, 1)), "v"),
    "pure_dyme": Style(PALETTE[9], "solid", "X"),
    "full_dyme": Style(PALETTE[0], "solid", "o"),
}


@contextmanager
def themed() -> Iterator[None]:
    """Decorator of a figure function (or a `with` block): this theme, whatever the caller's settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(THEME)
        yield


def panels(rows: int, columns: int, width: float, height: float, *, count: int | None = None, gap: float | None = None,
           xlabel: str = "", **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure of (rows, columns) axes; closed for pyplot, so that a notebook shows it only once.

    Args:
        width, height: in inches.
        count: how many of the axes are used; the last ones are hidden.
        gap: between panels side by side, of a panel's width.
        xlabel: of all panels together.
        kwargs: of plt.subplots.
    """
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **kwargs)
    plt.close(figure)
    for unused in axes.flat[count:] if count else ():
        unused.set_visible(False)
    if gap is not None:
        figure.get_layout_engine().set(wspace=gap)
    if xlabel:
        figure.supxlabel(xlabel, fontsize=BODY)
    return figure, axes


def finish(figure: Figure, frame: pd.DataFrame, caption: str) -> Figure:
    """Attach the numbers and the caption to a drawn figure."""
    figure.dyme_frame, figure.dyme_caption = frame.reset_index(drop=True), caption
    return figure


def seeds_note(frame: pd.DataFrame, what: str) -> str:
    """Say what a band or interval covers, and on how many seeds the methods rest, or which on one only.

    Args:
        frame: columns method and num_seeds.
        what: the sentence for the methods with several seeds.
    """
    seeds = frame.groupby("method")["num_seeds"].min()
    single = [METHOD_NAMES[method] for method in METHOD_NAMES if seeds.get(method) == 1]
    if len(single) == len(seeds):
        return ONE_SEED
    note = f" {what}" if what else ""
    return note + (f" One seed only for {', '.join(single)}." if single else seeds_sentence(frame))


def seeds_sentence(frame: pd.DataFrame) -> str:
    """Say on how many seeds the numbers of a figure rest (column num_seeds)."""
    low, high = int(frame["num_seeds"].min()), int(frame["num_seeds"].max())
    if low == high == 1:
        return ONE_SEED
    return f" Seeds: {low}." if low == high else f" Seeds: {low} to {high}, by point."


def name_lines(axes: Axes, names: Sequence[str], colors: Sequence[Any] = ()) -> None:
    """Set a panel's lines 0, 1, ... from the top, each with its name; in its colour where colours are given."""
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    for tick, color in zip(axes.get_yticklabels(), colors, strict=False):
        tick.set_color(color)


def draw_level(axes: Axes, value: float, color: Any = GREY, is_upright: bool = True) -> None:
    """A dotted line behind the marks, through the whole panel."""
    (axes.axvline if is_upright else axes.axhline)(value, color=color, linestyle=(0, (1, 1.5)), linewidth=0.9, zorder=1)


def draw_intervals(axes: Axes, frame: pd.DataFrame, labels: Sequence[str], hollow: Collection[str] = (), shift: float = 0.0,
                   **marks: Any) -> None:
    """A mark with its interval on the line of its label: its method's marker, or a hollow circle where the label is `hollow`.

    Args:
        frame: columns method, label, value, low, high.
        labels: of all lines, from the top.
        shift: of all marks downwards, in lines.
        marks: their properties, as `Axes.plot` takes it.
    """
    for line in frame.itertuples():
        style, y = STYLES[line.method], labels.index(line.label) + shift
        axes.hlines(y, line.low, line.high, color=style.color, linewidth=1.2)
        marker = {"marker": "o", "markerfacecolor": "white"} if line.label in hollow else {"marker": style.marker}
        axes.plot(line.value, y, color=style.color, markersize=4.5, clip_on=False, **marker, **marks)
    name_lines(axes, [""] * len(labels))


def draw_line(axes: Axes, frame: pd.DataFrame, x: str, y: str, style: Style, name: str, num_marks: int | None = None) -> End:
    """A line with its band (columns low, high; of a single point a bar) and about `num_marks` marks (all points, if None);
    returns its end, for `label_ends`."""
    if len(frame) == 1:
        axes.vlines(frame[x], frame["low"], frame["high"], color=style.color, clip_on=False)
    axes.fill_between(frame[x].astype(float), frame["low"], frame["high"], color=style.color, alpha=0.18, linewidth=0)
    axes.plot(frame[x], frame[y], color=style.color, linestyle=style.linestyle, marker=style.marker, clip_on=False,
              markevery=num_marks and max(1, len(frame) // num_marks))
    return frame[x].iloc[-1], frame[y].iloc[-1], name, style.text_color


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Move positions apart until neighbours are at least `gap` apart, near where they were wanted and in [low, high].

    Args:
        wanted: positions in any order and unit.
    Returns:
        The positions moved, in the same order.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    moved = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x + steps  # the nearest in least squares
    result = np.empty(len(moved))
    result[order] = np.maximum(np.minimum(moved, high - steps[::-1]), low + steps)
    return result


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write names right of the axes, joined to the ends of their lines, moved apart where they would overlap.

    Args:
        axes: limits must be final.
        ends: of the lines, x and y in data units.
    """
    gap = 1.15 * SMALL  # points, between two names at least
    axes.figure.draw_without_rendering()  # the layout decides the height in points
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    points = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, _, _ in ends]))
    places = spread(points[:, 1] * height, gap, 0, max(height, gap * len(ends))) / height
    for (_, _, name, color), point, place in zip(ends, points, places, strict=True):
        axes.annotate(name, xy=point, xytext=(1.04, place), xycoords="axes fraction", textcoords="axes fraction",
                      va="center", ha="left", color=color, fontsize=SMALL,
                      arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 0,
                                  "relpos": (0, 0.5)}, annotation_clip=False)


def save_figure(figure: Figure, name: str, folder: Path) -> dict[str, Path]:
    """Write a figure as `<name>.pdf` and `.png` (300 dpi), its numbers as `.csv`, its caption as `.md`; the same rows give the
    same bytes.

    Returns:
        The paths, by suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports every glyph that a PDF embeds
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv", "md")}
    with themed():
        figure.savefig(paths["pdf"], metadata={"CreationDate": None})
        figure.savefig(paths["png"], dpi=300, metadata={"Software": None})
    paths["csv"].write_text(csv_text(figure.dyme_frame), encoding="utf-8", newline="\n")
    paths["md"].write_text(f"{figure.dyme_caption}\n", encoding="utf-8", newline="\n")
    logger.info("figure %s in %s", name, folder)
    return paths
