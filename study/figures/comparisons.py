"""Figures that set methods against each other: seed by seed, against what they cost, and against how learnable traces are."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from dyme_core.config import METHOD_NAMES, METHODS, MODEL_NAMES
from dyme_core.pipeline.methods import UNSUPERVISED
from study import plan, statistics
from study.figures import theme
from study.figures.sweeps import BANDS, INTERVALS, MEASURED, RIGHT_UPRIGHT
from study.figures.theme import draw_line, finish, label_ends, name_lines, panels, seeds_sentence, themed
from study.statistics import MEASURES, NoRows

TRACES = {"teacher": "a teacher's traces", "refined": "refined targets"}
DIALS = ["wordings", "length", "new_words"]  # of the teacher
MEASURED_ON_TRACES = {statistics.FIRST: RIGHT_UPRIGHT, "groundedness": "groundedness (%)"}
CAPTIONS = {
    "pairs": "Full DyME against each method that memorizes the same traces, or none; test, mini world. A dot is a seed: a base "
             "with its training questions. Above the dots their mean. To the right of 0 Full DyME is ahead.",
    "expense": "What training buys: right answers against the CPU seconds of a run (median over seeds). CoT-SFT on a teacher's "
               "traces: 240 and 960 steps, joined. SFT on answers alone gives no thinking and is left out.",
    "learnability": "Poster's claim: traces that a small model would not write do it harm. CoT-SFT and Full DyME on other sets "
                    "of a teacher's traces: in fewer and more wordings; in words that the base has seen, and twice as long; on "
                    "fewer questions. Full DyME takes its own targets in place of such traces, however many their wordings: "
                    "dotted. Gap: mean nats per token of the traces under the base, before training. Test, mini world.",
}


def _compared() -> dict[str, list[plan.Point]]:
    """By kind of traces: the points that memorize them, or no traces at all; in order of their methods."""
    found = sorted(plan.points("main", "cost", "refined"), key=lambda point: METHODS.index(point.method))
    traces = ["none" if point.method in UNSUPERVISED else point.runs()[0].profile.world.traces for point in found]
    return {kind: [point for point, own in zip(found, traces, strict=True) if own in (kind, "none")] for kind in TRACES}


@themed()
def pairs(rows: pd.DataFrame) -> Figure:
    """Draw Full DyME's lead over each method with the same kind of traces, or none: a dot a seed, and their mean."""
    rows = statistics.with_setting(rows)
    leads = {kind: pd.DataFrame([line for metric in MEASURES for line in _leads(rows, points, metric)]).assign(traces=kind)
             for kind, points in _compared().items()}
    leads = {kind: frame for kind, frame in leads.items() if len(frame)}
    if not leads:
        raise NoRows("Full DyME and its rivals share no seed yet")
    heights = [frame["label"].nunique() for frame in leads.values()]
    figure, grid = panels(len(leads), 2, theme.PAGE, 0.5 + 0.2 * len(leads) + 0.22 * sum(heights), gap=theme.GAP,
                          xlabel="lead of Full DyME (points)", sharex=True, gridspec_kw={"height_ratios": heights})
    for line, (kind, frame) in zip(grid, leads.items(), strict=True):
        labels = list(dict.fromkeys(frame["label"]))
        for axes, metric in zip(line, MEASURES, strict=True):
            _draw_leads(axes, frame[frame["metric"] == metric], labels)
        name_lines(line[0], labels)
        line[0].set_ylabel(TRACES[kind])
    for axes, title in zip(grid[0], MEASURES.values(), strict=True):
        axes.set_title(title, fontsize=theme.SMALL)
    frame = pd.concat(leads.values())
    return finish(figure, frame, CAPTIONS["pairs"] + INTERVALS + seeds_sentence(frame.dropna(subset="num_seeds")))


def _leads(rows: pd.DataFrame, points: Sequence[plan.Point], metric: str) -> Iterator[dict[str, Any]]:
    """Full DyME less each rival, in points: a line for all shared seeds, with the interval, and a line for each seed."""
    (own,) = [point for point in points if point.method == "full_dyme"]
    for rival in points:
        parts, seeds = statistics.shared(rows, (own.setting, rival.setting), "test")
        if rival is own or not seeds:
            continue
        first, second = (100 * statistics.score_matrix(part, metric) for part in parts)
        told = {"label": rival.label.removesuffix(", refined targets"), "method": rival.method, "metric": metric}
        yield told | vars(statistics.paired(first, second))
        for seed, gap in zip(seeds, (first - second).mean(axis=1), strict=True):
            yield told | {"seed": seed, "value": gap}


def _draw_leads(axes: Axes, frame: pd.DataFrame, labels: Sequence[str]) -> None:
    axes.axvline(0, color=theme.GREY, linewidth=0.8)
    theme.draw_intervals(axes, frame[frame["seed"].isna()], labels, shift=-theme.SHIFT)
    for dot in frame.dropna(subset="seed").itertuples():
        axes.plot(dot.value, labels.index(dot.label) + theme.SHIFT, "o", color=theme.STYLES[dot.method].color, markersize=2.5,
                  markeredgewidth=0)


@themed()
def expense(rows: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw right answers against the CPU seconds of a run, log axis, a panel for each kind of traces (SVLM).

    Args:
        manifests: of all runs, for `cpu_s`, of which a setting has the median over its seeds.
    """
    spent = pd.DataFrame([{"setting": statistics.setting_of(made["run"]), "cpu_s": made.get("cpu_s")} for made in manifests])
    cpu_s = spent.groupby("setting")["cpu_s"].median()
    frames = []
    for kind, points in _compared().items():
        thinking = [point for point in points if point.method != "base" and point.settings.get("world.traces") != "none"]
        part = statistics.scores(rows, thinking)
        frames.append(part.assign(traces=kind, x=part["setting"].map(cpu_s)).dropna(subset="x").sort_values("x"))
    frame = pd.concat(frames)
    figure, grid = panels(len(frames), 1, theme.COLUMN, 0.4 + 1.75 * len(frames), sharex=True, sharey=True)
    grid[0, 0].set(xscale="log", ylim=(0, 1.05 * frame["high"].max() or 1))
    grid[0, 0].xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    grid[0, 0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    grid[0, 0].xaxis.set_minor_formatter(NullFormatter())
    ends = []
    for (axes,), (kind, part) in zip(grid, frame.groupby("traces", sort=False), strict=True):
        axes.set_title(TRACES[kind], fontsize=theme.SMALL)
        axes.set_ylabel(RIGHT_UPRIGHT)
        ends.append([_draw_points(axes, own) for _, own in part.groupby("method", sort=False)])
    axes.set_xlabel("CPU seconds of a run")
    for (axes,), own in zip(grid, ends, strict=True):  # the axis that they share has its limits only now
        label_ends(axes, own)
    return finish(figure, frame, CAPTIONS["expense"] + MEASURED + INTERVALS + seeds_sentence(frame))


def _draw_points(axes: Axes, frame: pd.DataFrame) -> theme.End:
    """The marks of one method with their intervals, joined; returns the last one, for `label_ends`."""
    style, last = theme.STYLES[frame["method"].iloc[0]], frame.iloc[-1]
    axes.vlines(frame["x"], frame["low"], frame["high"], color=style.color, linewidth=1.2)
    axes.plot(frame["x"], frame["value"], color=style.color, linestyle=style.linestyle, marker=style.marker, markersize=4.5,
              clip_on=False)
    return last["x"], last["value"], METHOD_NAMES[last["method"]], style.text_color


@themed()
def learnability(rows: pd.DataFrame, gaps: pd.DataFrame) -> Figure:
    """Draw right answers and groundedness of CoT-SFT and Full DyME, a line per model, by what the memorized traces are: the
    number of a teacher's wordings, its words and length, the number of training questions. Where the three meet is the main
    runs' set.

    Args:
        gaps: columns model, those of DIALS, and gap, in nats per token (`scripts.learnability`).
    """
    points = plan.points("main", "sizes", "learnability", methods=("sft", "full_dyme"))
    sets = pd.DataFrame([_trace_set(point) for point in points]).merge(gaps, "left", ["model", *DIALS])
    found = pd.concat([statistics.scores(rows, points, metric=metric) for metric in MEASURED_ON_TRACES])
    frame = found.merge(sets, "inner", ["setting", "model"]).dropna(subset="gap")
    if frame.empty:
        raise NoRows("no gap of a teacher's traces has been measured; run python -m scripts.learnability")
    main = sets.iloc[0]
    is_worded, is_long, is_small = (frame[name] != main[name] for name in ("wordings", "words", "questions"))
    by_wording, by_words = frame[~is_long & ~is_small], frame[~is_worded & ~is_small]
    order, lines = _by_gap(by_words, "words"), _by_gap(by_wording, "wordings").sort_values("wordings")
    sides = [by_wording.assign(x=by_wording["wordings"]),
             by_words.assign(x=by_words["words"].map(list(order["words"]).index)),
             frame[~is_worded & ~is_long].assign(x=lambda part: part["questions"])]
    figure, grid = panels(2, 3, theme.PAGE, 3.6, sharex="col", sharey="row")
    gap_of = {line.wordings: f"{line.wordings}\n{line.gap:.1f}" for line in lines.itertuples()}
    counts = {count: f"{count:,}" for count in sorted(set(sides[2]["x"]))}
    for axes, ticks, name in ((grid[-1][0], gap_of, "wordings\nand gap (nats per token)"),
                              (grid[-1][2], counts, "training questions")):
        axes.set(xscale="log", xticks=list(ticks), xticklabels=list(ticks.values()), xlabel=name,
                 xlim=(0.9 * min(ticks), 1.1 * max(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
    grid[-1][1].set(xticks=range(len(order)), xticklabels=[f"{line.words}\n{line.gap:.1f}" for line in order.itertuples()],
                    xlim=(-0.3, len(order) - 0.7), xlabel="words and length\nand gap (nats per token)")
    for line, (metric, title) in zip(grid, MEASURED_ON_TRACES.items(), strict=True):
        line[0].set(ylabel=title, ylim=(0, 1.05 * frame.loc[frame["metric"] == metric, "high"].max() or 1))
        for axes, side in zip(line, sides, strict=True):
            part = side[side["metric"] == metric].sort_values("x", kind="stable")
            ends = [_draw_sets(axes, own) for _, own in part.groupby(["method", "model"], sort=False)]
        for level in frame.loc[(frame["setting"] == "svlm-full_dyme") & (frame["metric"] == metric), "value"]:
            theme.draw_level(line[0], level, theme.STYLES["full_dyme"].color, is_upright=False)
        label_ends(line[-1], ends)
    absent = ", ".join(sets.loc[~sets["setting"].isin(frame["setting"]), "setting"])
    caption = CAPTIONS["learnability"] + (f" Not measured yet: {absent}." if absent else "")
    return finish(figure, pd.concat(sides), caption + BANDS + seeds_sentence(frame))


def _trace_set(point: plan.Point) -> dict[str, Any]:
    """The set of traces that a point's runs memorize: the teacher's dials, words and length in words, how many questions."""
    world = point.runs()[0].profile.world
    words = "new\nwords" if world.trace_new_words else "known\nwords"
    return {"setting": point.setting, "words": words if world.trace_length == 1 else f"{world.trace_length} x as\nlong",
            "model": point.model, "wordings": world.trace_wordings, "length": world.trace_length,
            "new_words": world.trace_new_words, "questions": world.train_questions}


def _by_gap(frame: pd.DataFrame, dial: str) -> pd.DataFrame:
    """One line for each setting of a dial in order of gaps, the SVLM's where several models have it."""
    def key(column: pd.Series) -> pd.Series:
        return column.map(list(MODEL_NAMES).index) if column.name == "model" else column

    return frame.sort_values(["model", "gap"], key=key, kind="stable").drop_duplicates(dial)


def _draw_sets(axes: Axes, frame: pd.DataFrame) -> theme.End:
    """The line of a method and model; the larger models' are dotted."""
    method, model = frame[["method", "model"]].iloc[0]
    style, name = theme.STYLES[method], METHOD_NAMES[method]
    if model == "svlm":
        return draw_line(axes, frame, "x", "value", style, name)
    style = replace(style, linestyle=(0, (1, 1.2)), marker={"middle": "D", "large": "s"}[model])
    return draw_line(axes, frame, "x", "value", style, f"{name}, {model}")
