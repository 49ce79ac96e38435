"""The look of every figure: theme, one style per method, names at line ends, captions, and saving byte for byte.

The figures themselves are in `plots` (numbers) and `traces` (charts with their texts); each gives a Figure with two
attributes: `dyme_frame`, the numbers it was drawn from, and `dyme_caption`.
"""
from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
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

from dyme_core.config import METHOD_NAMES
from study.tables import csv_text

logger = logging.getLogger(__name__)

COLUMN, PAGE = 3.3, 6.9  # inches: one column, two columns
SMALL, BODY = 7.0, 8.0  # points
PALETTE = sns.color_palette("colorblind").as_hex()
GREY = "#5f5f5f"
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

CAPTIONS = {
    "gradient_equivalence":
        "Relative error between the SFT gradient and the GRPO form with ratio 1 and advantage 1, per parameter group,"
        " on a real VLM. Dashed: the expected bounds.",
    "off_policy":
        "What the GRPO form gives against the SFT gradient when the ratio is not 1 or the loss is weighted otherwise.",
    "stability":
        "Correct answers (right and well-formed) on validation during training, mini world.",
    "modes":
        "Top: how the groups of {method} split into modes, mean of {window} steps. Bottom: share of groups from which"
        " GRPO learns nothing because all rewards of the group are equal.",
    "thinking":
        "What becomes of thinking during training, mini world: groundedness and format on validation, length of the "
        "rollouts' thinking (mean of {window} steps; SFT makes no rollouts).",
    "performance":
        "Correct answers (right and well-formed) after training, mini world: {items} test charts in seen styles, and "
        "as many in unseen styles and value ranges. Bars: 95 % bootstrap intervals.",
    "kinds":
        "Correct answers on the test set by kind of question, mini world. Bars: 95 % bootstrap intervals.",
    "pseudo_thinking":
        "After CoT-SFT. Left: the first test chart, in order of item ids, on which the large model is correct and "
        "states no wrong fact while the small model's trace is well-formed with wrong facts ({shown} of {items} "
        "charts); wrong facts underlined. Right: groundedness (right facts / stated facts) and pseudo-thinking rate "
        "(well-formed traces with a wrong fact), with 95 % bootstrap intervals.",
    "pseudo_thinking_none":
        "After CoT-SFT. On none of the {items} test charts is the large model correct without a wrong fact while the "
        "small one is well-formed with wrong facts: the chart shown has the largest gap in groundedness. Right: "
        "groundedness (right facts / stated facts) and pseudo-thinking rate (well-formed traces with a wrong fact), "
        "with 95 % bootstrap intervals.",
    "scores":
        "What the rule checker gives the thinking of the base (sampled) and the refiner's targets for the same validation "
        "charts, mini world: 0 no right fact, 0.5 some, 1 all facts right, in order and leading to the answer.",
    "gallery":
        "Charts with a question and a trace: facts of the chart stated rightly in bold, wrongly in bold and "
        "underlined; the checker's score beneath each.",
}


@dataclass(frozen=True)
class Style:
    """How one method looks in every figure."""

    color: str
    linestyle: Any
    marker: str

    @property
    def text_color(self) -> tuple[float, ...]:
        """The colour darkened, so that small text in it can be read on white."""
        return tuple(0.72 * channel for channel in to_rgb(self.color))


STYLES = {
    "base": Style(PALETTE[7], (0, (1, 1.2)), "s"),
    "sft": Style(PALETTE[1], (0, (4, 1.5)), "^"),
    "grpo": Style(PALETTE[2], (0, (5, 1.2, 1, 1.2)), "D"),
    "sft_grpo": Style(PALETTE[4], (0, (2.2, 1)), "v"),
    "pure_dyme": Style(PALETTE[9], "solid", "X"),
    "full_dyme": Style(PALETTE[0], "solid", "o"),
}


def themed(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorate a figure function: it draws in the house theme, whatever the caller's settings."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(THEME)
            return draw(*args, **kwargs)

    return drawn


def panels(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """Make a figure of (rows, columns) axes; sizes in inches. Closed for pyplot, so a notebook shows it only once."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **kwargs)
    plt.close(figure)
    return figure, axes


def finish(figure: Figure, frame: pd.DataFrame, caption: str) -> Figure:
    """Attach the numbers and the caption to a drawn figure."""
    figure.dyme_frame, figure.dyme_caption = frame.reset_index(drop=True), caption
    return figure


def seeds_note(frame: pd.DataFrame, what: str) -> str:
    """Say what a band or interval covers, and which methods rest on one seed only.

    Args:
        frame: columns method and num_seeds.
        what: the sentence for the methods with several seeds.
    """
    seeds = frame.groupby("method")["num_seeds"].min()
    single = [METHOD_NAMES[method] for method in METHOD_NAMES if seeds.get(method) == 1]
    if len(single) == len(seeds):
        return " One seed: the spread between training runs is not shown."
    note = f" {what}" if what else ""
    return note + (f" One seed only for {', '.join(single)}." if single else "")


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> np.ndarray:
    """Move positions apart until neighbours are at least `gap` apart, near where they were wanted and in [low, high].

    Args:
        wanted: positions in any order and unit.
    Returns:
        The positions moved, in the same order.
    """
    order = np.argsort(wanted, kind="stable")
    blocks: list[list[float]] = []  # [sum of the members' wanted starts, members]: a block's members stand `gap` apart
    for position in np.asarray(wanted, dtype=float)[order]:
        blocks.append([position, 1])
        while len(blocks) > 1 and _start(blocks[-2]) + blocks[-2][1] * gap > _start(blocks[-1]):
            total, members = blocks.pop()
            blocks[-1][0] += total - members * blocks[-1][1] * gap
            blocks[-1][1] += members
    moved = np.concatenate([_start(block) + gap * np.arange(block[1]) for block in blocks])
    floor = low + gap * np.arange(len(moved))
    ceiling = high - gap * np.arange(len(moved))[::-1]
    result = np.empty(len(moved))
    result[order] = np.maximum(np.minimum(moved, ceiling), floor)
    return result


def _start(block: list[float]) -> float:
    return block[0] / block[1]


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, Any]], gap: float = SMALL * 1.15) -> None:
    """Write names right of the axes, joined to the ends of their lines, moved apart where they would overlap.

    Args:
        axes: limits must be final.
        ends: (x, y, name, colour) for each line, x and y in data units.
        gap: least distance between two names, in points.
    """
    axes.figure.draw_without_rendering()  # the layout decides the height in points
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    points = axes.transAxes.inverted().transform(axes.transData.transform([(x, y) for x, y, _, _ in ends]))
    places = spread(points[:, 1] * height, gap, 0, max(height, gap * len(ends))) / height
    for (_, _, name, color), point, place in zip(ends, points, places, strict=True):
        axes.annotate(name, xy=point, xytext=(1.04, place), xycoords="axes fraction", textcoords="axes fraction",
                      va="center", ha="left", color=color, fontsize=SMALL,
                      arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 0,
                                  "relpos": (0, 0.5)}, annotation_clip=False)


def save_figure(figure: Figure, frame: pd.DataFrame, name: str, folder: Path) -> dict[str, Path]:
    """Write `<name>.pdf`, `.png` (300 dpi) and `.csv`; the same rows give the same bytes.

    Args:
        frame: the numbers the figure was drawn from (`figure.dyme_frame`).
    Returns:
        The three paths, by suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it would tell of every glyph that a PDF embeds
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv")}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(THEME)
        figure.savefig(paths["pdf"], metadata={"CreationDate": None})
        figure.savefig(paths["png"], dpi=300, metadata={"Software": None})
    table = csv_text(frame)
    paths["csv"].write_text(table, encoding="utf-8", newline="\n")
    logger.info("figure %s in %s", name, folder)
    return paths
