"""Figures of the study's sweeps: one setting changed at a time, on the test set. Data in, Figure out (`theme`)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from dyme_core.config import METHOD_NAMES
from study import plan
from study.figures import theme
from study.figures.theme import draw_intervals, draw_line, finish, label_ends, name_lines, panels, seeds_sentence, themed
from study.statistics import scores

SPLITS = {"test": "test", "unseen": "unseen styles"}
INTERVALS = " Bars: 95 % intervals for new seeds and items."
BANDS = " Bands: 95 % intervals for new seeds and items."
RIGHT, RIGHT_UPRIGHT = "right answer and thinking (%)", "right answer\nand thinking (%)"  # names of an axis
CAPTIONS = {
    "switches": "Paper's claim: the binary switch is the best one. What decides between memorizing and exploring, all else as "
                "in Pure DyME on refined targets. Each switch's own number and learning rate were chosen on validation. "
                "Vertical lines: the binary switch, and the two methods without a switch below.",
    "ablation": "Paper's claim: every part is needed. Full DyME with one part taken away. Without memorize every group "
                "explores, at GRPO's learning rate; without explore every group memorizes; without the refiner targets are the "
                "teacher's traces as they are (Pure DyME); without the checker thinking earns nothing. Vertical line: Full "
                "DyME.",
    "memorized": "Paper's claim: memorizing a teacher's traces harms a small VLM; DyME makes use of them. Filled: methods that "
                 "memorize have the same traces in a teacher's words; hollow: refined targets. Left: right answer and right "
                 "thinking on test; middle: answers alone, with the base's (dotted); right: claims of the thinking that are "
                 "right. Mini world, 240 steps (960 where said).",
    "rollouts": "Claim: more rollouts a prompt help. At equal rollouts a step (32, so fewer prompts); refined targets.",
    "prompts": "What fewer rollouts a prompt buy. CoT-SFT, and Pure DyME with two rollouts a prompt (G = 2), by prompts a "
               "step; refined targets.",
    "supervision": "Claim: better supervision helps. Targets of less quality, and a share of questions with wrong facts.",
}
MEASURED = " Right answers after right thinking; test, mini world."
AXES = {"rollouts": "rollouts a prompt (G)", "prompts": "prompts a step"}


@themed()
def switches(rows: pd.DataFrame) -> Figure:
    """Draw each switch on both test sets; lines mark the binary switch, CoT-SFT and GRPO."""
    points = plan.points("switch")
    references = [replace(point, experiment="switch") for point in
                  plan.points("refined", methods=("sft",)) + plan.points("main", methods=("grpo",))]
    return _settings(rows, "switches", [*points, *references], [points[0], *references])


@themed()
def ablation(rows: pd.DataFrame) -> Figure:
    """Draw Full DyME and its four ablations on both test sets."""
    points = plan.points("ablation")
    return _settings(rows, "ablation", points, points[:1])


@themed()
def memorized(rows: pd.DataFrame) -> Figure:
    """Draw what each method makes of a teacher's traces beside refined targets: answers and thinking."""
    refined, cost = plan.points("refined"), plan.points("cost")
    taught = [point for point in plan.points("main", methods=("sft", "grpo", "sft_grpo", "pure_dyme", "full_dyme"))] + cost
    titles = {"right": "right answer, right thinking (%)", "strict": "answers alone (%)", "groundedness": "groundedness (%)"}
    frame = pd.concat([scores(rows, [*taught, *refined], metric=metric) for metric in titles], ignore_index=True)
    is_refined = frame["setting"].isin([point.setting for point in refined])
    frame["label"] = frame["label"].str.removesuffix(", refined targets")
    labels = list(dict.fromkeys(point.label for point in taught))
    base = scores(rows, [*plan.points("main", methods=("base",)), *cost], metric="strict").query("method == 'base'")
    figure, (line,) = panels(1, 3, theme.PAGE, 0.75 + 0.24 * len(labels), gap=theme.GAP, sharey=True)
    for axes, (metric, title) in zip(line, titles.items(), strict=True):
        for hides, part in frame[frame["metric"] == metric].groupby(is_refined):
            draw_intervals(axes, part, labels, labels if hides else (), theme.SHIFT if hides else -theme.SHIFT)
        axes.set(xlabel=title, xlim=(0, 103))
    for level in base["value"]:
        theme.draw_level(line[1], level, theme.STYLES["base"].color)
    name_lines(line[0], labels)
    return finish(figure, pd.concat([frame, base]), CAPTIONS["memorized"] + INTERVALS + seeds_sentence(frame))


def _settings(rows: pd.DataFrame, name: str, points: Sequence[plan.Point], references: Sequence[plan.Point]) -> Figure:
    """Two panels, one per test set: a mark with its interval per point; `references` are filled, with a line through them."""
    frame = scores(rows, points, tuple(SPLITS))
    labels, filled = list(dict.fromkeys(frame["label"])), [point.label for point in references]
    figure, (line,) = panels(1, 2, theme.COLUMN, 0.75 + 0.19 * len(labels), gap=theme.GAP, xlabel=RIGHT,
                             sharex=True, sharey=True)
    for axes, (split, title) in zip(line, SPLITS.items(), strict=True):
        part = frame[frame["split"] == split]
        for mark in part[part["label"].isin(filled)].itertuples():
            theme.draw_level(axes, mark.value, theme.STYLES[mark.method].color)
        draw_intervals(axes, part, labels, hollow=set(labels) - set(filled))
        axes.set_title(title)
    name_lines(line[0], labels)
    line[0].set_xlim(0, 1.05 * frame["high"].max() or 1)
    return finish(figure, frame, CAPTIONS[name] + MEASURED + INTERVALS + seeds_sentence(frame))


@themed()
def sweep(rows: pd.DataFrame, experiment: str) -> Figure:
    """Draw right answers against the values of an experiment of AXES, powers of two; lines with 95 % bands."""
    frame = scores(rows, plan.points(experiment))
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 2.2)
    ends = _draw_lines(axes, frame)
    places = sorted(set(frame["x"]))
    axes.set_xscale("log", base=2)
    axes.set(xlabel=AXES[experiment], ylabel=RIGHT_UPRIGHT, xlim=(places[0], max(places[-1], 1.01 * places[0])),
             ylim=(0, 1.05 * frame["high"].max() or 1))
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{place:,.0f}" for place in places])
    label_ends(axes, ends)
    return finish(figure, frame, CAPTIONS[experiment] + MEASURED + BANDS + seeds_sentence(frame))


@themed()
def supervision(rows: pd.DataFrame) -> Figure:
    """Draw right answers against the quality of targets, and against the share of questions with wrong facts."""
    qualities = ("low", "high")
    frame = scores(rows, plan.points("quality") + plan.points("corruption"))
    is_quality = frame["experiment"] == "quality"
    frame.loc[is_quality, "x"] = frame.loc[is_quality, "label"].map(qualities.index)
    figure, ((left, right),) = panels(1, 2, theme.COLUMN, 2.1, gap=theme.GAP, sharey=True)
    _draw_lines(left, frame[is_quality])
    ends = _draw_lines(right, frame[~is_quality])
    left.set(xlim=(-0.2, 1.2), xticks=range(2), xticklabels=qualities, xlabel="quality of targets",
             ylabel=RIGHT_UPRIGHT, ylim=(0, 1.05 * frame["high"].max() or 1))
    right.set(xlim=(-3, 53), xticks=(0, 50), xlabel="wrong facts (%)")
    label_ends(right, ends)
    return finish(figure, frame, CAPTIONS["supervision"] + MEASURED + BANDS + seeds_sentence(frame))


def _draw_lines(axes: Axes, frame: pd.DataFrame) -> list[theme.End]:
    """One line with its 95 % band per method."""
    return [draw_line(axes, part, "x", "value", theme.STYLES[method], METHOD_NAMES[method])
            for method, part in frame.sort_values("x", kind="stable").groupby("method", sort=False)]
