"""Figures of the study's sweeps: one setting changed at a time, on the test set. Data in, Figure out (`figures`)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dyme_core import selection
from dyme_core.config import METHOD_NAMES
from dyme_core.figures import (
    BODY,
    COLUMN,
    SMALL,
    STYLES,
    finish,
    label_ends,
    panels,
    themed,
)
from dyme_core.plots import GAP

SPLITS = {"test": "test", "unseen": "unseen styles"}
INTERVALS = " Bars: 95 % bootstrap intervals over seeds and items."
BANDS = " Bands: 95 % bootstrap intervals over seeds and items."
CAPTIONS = {
    "switches": "What decides between memorizing and exploring, all else as in Pure DyME; correct after training, mini world."
                " Each switch's own number was chosen on validation. Vertical lines: methods without a switch.",
    "ablation": "Full DyME with one part taken away; correct after training, mini world. Without memorize every group "
                "explores, without explore every group memorizes, without the refiner targets are the low ones, without the "
                "checker thinking earns nothing. Vertical line: Full DyME.",
    "rollouts": "More rollouts a prompt at equal rollouts a step (32, so fewer prompts); correct on test, mini world.",
    "data": "Training questions, at equal steps up to 1,024 (4,096: one pass); correct on test, mini world.",
    "supervision": "Worse supervision: targets of less quality, and a share of questions with wrong facts; correct on test, "
                   "mini world.",
    "length": "The longest response allowed in training and test. Top: correct on test, mini world; bottom: length of the "
              "thinking in the answers.",
}


@themed
def switches(rows: pd.DataFrame) -> Figure:
    """Draw each switch's correct answers on both test sets, with CoT-SFT and GRPO as reference lines."""
    chosen = selection.points("switch")
    selection.need(rows, chosen[1:])
    frame = selection.scores(rows, chosen, tuple(SPLITS))
    reference = _references(rows, ("sft", "grpo"))
    return _dots(frame, reference, "switches")


@themed
def ablation(rows: pd.DataFrame) -> Figure:
    """Draw Full DyME and its four ablations on both test sets."""
    chosen = selection.points("ablation")
    selection.need(rows, chosen[1:])
    frame = selection.scores(rows, chosen, tuple(SPLITS))
    return _dots(frame, frame[frame["setting"] == "svlm-full_dyme"], "ablation")


@themed
def rollouts(rows: pd.DataFrame) -> Figure:
    """Draw correct answers against G, rollouts of a prompt; lines of GRPO and Pure DyME with 95 % bands."""
    return _sweep(rows, "rollouts", "rollouts a prompt (G)")


@themed
def data(rows: pd.DataFrame) -> Figure:
    """Draw correct answers against the number of training questions."""
    return _sweep(rows, "data", "training questions")


@themed
def supervision(rows: pd.DataFrame) -> Figure:
    """Draw correct answers against the quality of targets, and against the share of questions with wrong facts."""
    qualities = ("low", "medium", "high")
    quality, corruption = selection.points("quality"), selection.points("corruption")
    selection.need(rows, [point for point in quality + corruption if point.variant])
    frame = selection.scores(rows, quality + corruption)
    is_quality = frame["experiment"] == "quality"
    frame.loc[is_quality, "x"] = frame.loc[is_quality, "label"].map(qualities.index)
    figure, ((left, right),) = panels(1, 2, COLUMN, 2.1, sharey=True)
    for axes, part, label in ((left, frame[is_quality], "quality of targets"), (right, frame[~is_quality], "wrong facts (%)")):
        axes.set_xlabel(label)
        ends = draw_lines(axes, part)
    left.set(xlim=(-0.2, 2.2), xticks=range(3), xticklabels=qualities, ylabel="correct on test (%)")
    right.set(xlim=(0, 50), xticks=(0, 12.5, 25, 50), xticklabels=("0", "12.5", "25", "50"))
    left.set_ylim(0, 1.05 * frame["high"].max())
    label_ends(right, ends)
    return finish(figure, frame, CAPTIONS["supervision"] + BANDS + selection.seeds_sentence(frame))


@themed
def length(rows: pd.DataFrame) -> Figure:
    """Draw correct answers and the length of thinking against the limit of response tokens."""
    chosen = selection.points("length")
    selection.need(rows, [point for point in chosen if point.variant])
    correct = selection.scores(rows, chosen)
    tokens = selection.scores(rows, chosen, metric="num_thinking_tokens", scale=1)
    figure, ((top,), (bottom,)) = panels(2, 1, COLUMN, 2.9, sharex=True)
    for axes, part, label in ((top, correct, "correct on test (%)"), (bottom, tokens, "thinking (tokens)")):
        ends = draw_lines(axes, part)
        axes.set(ylabel=label, xlim=(part["x"].min(), part["x"].max()), ylim=(0, 1.05 * part["high"].max() or 1),
                 xticks=sorted(set(part["x"])))
        label_ends(axes, ends)
    bottom.set_xlabel("longest response (tokens)")
    frame = pd.concat([correct, tokens])
    return finish(figure, frame, CAPTIONS["length"] + BANDS + selection.seeds_sentence(frame))


def _sweep(rows: pd.DataFrame, experiment: str, label: str) -> Figure:
    """One panel: correct on test against the points' values, on an axis of powers of two."""
    chosen = selection.points(experiment)
    selection.need(rows, [point for point in chosen if point.variant])
    frame = selection.scores(rows, chosen)
    figure, ((axes,),) = panels(1, 1, COLUMN, 2.2)
    ends = draw_lines(axes, frame)
    places = sorted(set(frame["x"]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel=label, ylabel="correct on test (%)", xlim=(places[0], max(places[-1], 1.01 * places[0])),
             ylim=(0, 1.05 * frame["high"].max() or 1))
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{place:,.0f}" for place in places])
    label_ends(axes, ends)
    return finish(figure, frame, CAPTIONS[experiment] + BANDS + selection.seeds_sentence(frame))


def draw_lines(axes: Axes, frame: pd.DataFrame) -> list[tuple[float, float, str, Any]]:
    """One line with its 95 % band per method; returns the ends for `label_ends`."""
    ends = []
    for method, part in frame.sort_values("x", kind="stable").groupby("method", sort=False):
        style = STYLES[method]
        axes.fill_between(part["x"], part["low"], part["high"], color=style.color, alpha=0.18, linewidth=0)
        axes.plot(part["x"], part["value"], color=style.color, linestyle=style.linestyle, marker=style.marker, clip_on=False)
        ends.append((part["x"].iloc[-1], part["value"].iloc[-1], METHOD_NAMES[method], style.text_color))
    return ends


def _dots(frame: pd.DataFrame, reference: pd.DataFrame, name: str) -> Figure:
    """Two panels, one per test set: a dot with its interval per setting (the first filled), references as vertical lines."""
    labels = list(dict.fromkeys(frame["label"]))
    both = pd.concat([frame, reference])
    low, high = both["low"].min(), both["high"].max()
    limits = (max(0.0, low - 0.05 * (high - low)), high + 0.05 * (high - low))
    figure, (line,) = panels(1, 2, COLUMN, 0.85 + 0.2 * len(labels), sharex=True, sharey=True)
    for axes, (split, title) in zip(line, SPLITS.items(), strict=True):
        for mark in reference[reference["split"] == split].itertuples():
            axes.axvline(mark.value, color=STYLES[mark.method].color, linestyle=(0, (4, 2)), linewidth=0.9, zorder=1)
            if mark.label not in labels:
                axes.annotate(mark.label, (mark.value, 0), xycoords=("data", "axes fraction"), xytext=(2, 2), rotation=90,
                              textcoords="offset points", fontsize=SMALL - 1, color=STYLES[mark.method].text_color)
        draw_intervals(axes, frame[frame["split"] == split], labels)
        axes.set_title(title)
    line[0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5), xlim=limits)
    figure.get_layout_engine().set(wspace=GAP)
    figure.supxlabel("correct (%)", fontsize=BODY)
    caption = CAPTIONS[name] + INTERVALS + selection.seeds_sentence(frame)
    return finish(figure, pd.concat([frame, reference]).drop_duplicates(["setting", "split"]), caption)


def draw_intervals(axes: Axes, frame: pd.DataFrame, labels: Sequence[str], filled: Mapping[str, bool] | None = None) -> None:
    """A dot with its interval on the line of its label; hollow where `filled` says so (default: all but the first)."""
    for line in frame.itertuples():
        style, y = STYLES[line.method], labels.index(line.label)
        is_filled = y == 0 if filled is None else filled[line.label]
        axes.hlines(y, line.low, line.high, color=style.color, linewidth=1.2)
        axes.plot(line.value, y, style.marker, color=style.color, markersize=4.5,
                  markerfacecolor=style.color if is_filled else "white")


def _references(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Scores of main runs on both test sets; empty where there are none."""
    chosen = [point for point in selection.points("main", methods) if len(selection.rows_of(rows, point))]
    return selection.scores(rows, chosen, tuple(SPLITS)) if chosen else pd.DataFrame(columns=["value", "low", "high", "split"])
