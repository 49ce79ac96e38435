"""Figures of the study's sweeps: one setting changed at a time, on the test set. Data in, Figure out (`theme`)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dyme_core.config import METHOD_NAMES
from study import selection
from study.figures.plots import GAP
from study.figures.theme import (
    BODY,
    COLUMN,
    STYLES,
    finish,
    label_ends,
    panels,
    themed,
)

SPLITS = {"test": "test", "unseen": "unseen styles"}
INTERVALS = " Bars: 95 % bootstrap intervals over seeds and items."
BANDS = " Bands: 95 % bootstrap intervals over seeds and items."
CAPTIONS = {
    "switches": "Paper's claim: the binary switch is the best one. What decides between memorizing and exploring, all else as "
                "in Pure DyME; correct after training, mini world. Each switch's own number was chosen on validation. Vertical "
                "lines: the binary switch, and the two methods without a switch below.",
    "ablation": "Paper's claim: every part is needed. Full DyME with one part taken away; correct after training, mini world. "
                "Without memorize every group explores, without explore every group memorizes, without the refiner targets are "
                "the low ones, without the checker thinking earns nothing. Vertical line: Full DyME.",
    "rollouts": "Claim: more rollouts a prompt help. At equal rollouts a step (32, so fewer prompts); correct on test, mini "
                "world.",
    "prompts": "What fewer rollouts a prompt buy. CoT-SFT, and Pure DyME with two rollouts a prompt (G = 2), by prompts a "
               "step; correct on test, mini world.",
    "data": "What a method makes of few questions. Training questions, at equal steps up to 1,024 (4,096: one pass); correct "
            "on test, mini world.",
    "supervision": "Claim: better supervision helps. Targets of less quality, and a share of questions with wrong facts; "
                   "correct on test, mini world.",
    "length": "Poster's claim: long texts overwhelm a small model. The longest response allowed in training and test. Top: "
              "correct on test, mini world; bottom: length of the thinking in the answers.",
}


@themed
def switches(rows: pd.DataFrame) -> Figure:
    """Draw each switch's correct answers on both test sets; lines mark the binary switch, CoT-SFT and GRPO."""
    chosen, references = selection.points("switch"), selection.points("main", ("sft", "grpo"))
    selection.need(rows, chosen[1:])
    frame = selection.scores(rows, [*chosen, *references], tuple(SPLITS))
    return _dots(frame, [chosen[0].label, *(point.label for point in references)], "switches")


@themed
def ablation(rows: pd.DataFrame) -> Figure:
    """Draw Full DyME and its four ablations on both test sets."""
    chosen = selection.points("ablation")
    selection.need(rows, chosen[1:])
    frame = selection.scores(rows, chosen, tuple(SPLITS))
    return _dots(frame, [chosen[0].label], "ablation")


@themed
def rollouts(rows: pd.DataFrame) -> Figure:
    """Draw correct answers against G, rollouts of a prompt; lines of GRPO and Pure DyME with 95 % bands."""
    return _sweep(rows, "rollouts", "rollouts a prompt (G)")


@themed
def prompts(rows: pd.DataFrame) -> Figure:
    """Draw correct answers of CoT-SFT and of Pure DyME with G = 2 against the prompts of a step."""
    return _sweep(rows, "prompts", "prompts a step")


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
    right.set(xlim=(-3, 53), xticks=(0, 12.5, 25, 50), xticklabels=("0", "12.5", "25", "50"))
    left.set_ylim(0, 1.05 * frame["high"].max() or 1)
    figure.get_layout_engine().set(wspace=GAP)
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


def _dots(frame: pd.DataFrame, references: Sequence[str], name: str) -> Figure:
    """Two panels, one per test set: a dot with its interval per label; `references` are filled, with a line through them."""
    labels = list(dict.fromkeys(frame["label"]))
    low, high = frame["low"].min(), frame["high"].max()
    margin = 0.06 * (high - low)
    figure, (line,) = panels(1, 2, COLUMN, 0.75 + 0.19 * len(labels), sharex=True, sharey=True)
    for axes, (split, title) in zip(line, SPLITS.items(), strict=True):
        part = frame[frame["split"] == split]
        for mark in part[part["label"].isin(references)].itertuples():
            style = STYLES[mark.method]
            axes.axvline(mark.value, color=style.color, linestyle=(0, (1, 1.5)), linewidth=0.9, zorder=1)
        draw_intervals(axes, part, labels, {label: label in references for label in labels})
        axes.set_title(title)
    line[0].set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5),
                xlim=(max(0.0, low - margin), high + margin))
    figure.get_layout_engine().set(wspace=GAP)
    figure.supxlabel("correct (%)", fontsize=BODY)
    return finish(figure, frame, CAPTIONS[name] + INTERVALS + selection.seeds_sentence(frame))


def draw_intervals(axes: Axes, frame: pd.DataFrame, labels: Sequence[str], filled: Mapping[str, bool]) -> None:
    """A mark with its interval on the line of its label: its method's where `filled` says so, else a hollow circle."""
    for line in frame.itertuples():
        style, y = STYLES[line.method], labels.index(line.label)
        axes.hlines(y, line.low, line.high, color=style.color, linewidth=1.2)
        look = {"marker": style.marker} if filled[line.label] else {"marker": "o", "markerfacecolor": "white"}
        axes.plot(line.value, y, color=style.color, markersize=4.5, **look)
