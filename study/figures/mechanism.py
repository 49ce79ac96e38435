"""Figures of what training does inside, and of what it carries over to questions and tables that it did not show."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyme_core.config import METHOD_NAMES, METHODS
from study import plan, selection
from study.figures.plots import GAP, WINDOW
from study.figures.sweeps import INTERVALS, draw_intervals
from study.figures.theme import BODY, COLUMN, GREY, PAGE, PALETTE, SMALL, STYLES, finish, label_ends, panels, themed
from study.statistics import NoRows, bootstrap

GRADIENT_STYLES = {"memorize": (PALETTE[3], "^", "solid"), "explore": (PALETTE[0], "o", (0, (4, 1.5)))}
LEFT_OUT = ("gap", "count")  # kinds of the experiment "kinds"
CAPTIONS = {
    "transfer": "What carries over to what training did not show; correct on test, mini world. Left: trained without questions "
                "of the kinds gap and count (filled) and with all kinds (hollow). Right: trained on generated tables, on real "
                "statistics or on both (hollow), tested on each.",
    "mechanism": "Poster's claim: SFT and RL complement each other. {parts} Lines are means over seeds; "
                 "bands: lowest to highest seed.",
}
PARTS = {
    "gradients": "Pure DyME: norm of the memorize and the explore part of one step's gradient.",
    "cosine": "Cosine between the two: above 0 they pull the same way.",
    "entropy": "Entropy of the policy's tokens, mean of {window} steps.",
    "captions": "Captions of charts still right word for word after training (line: before), with 95 % intervals over seeds.",
}


@themed
def transfer(rows: pd.DataFrame) -> Figure:
    """Draw accuracy on left-out and trained kinds, and on generated and real tables, by what training showed."""
    generated = rows["source"] == "generated"
    is_left_out = rows["kind"].isin(LEFT_OUT)
    blocks = [(_kinds(rows), {"gap and count": is_left_out, "other kinds": ~is_left_out}),
              (_statistics(rows), {"generated tables": generated, "real statistics": ~generated})]
    blocks = [(chosen, parts) for chosen, parts in blocks if any(point.variant for point, _ in chosen)]
    if not blocks:
        raise NoRows("no run of kinds or statistics has been made")
    lines = max(len(chosen) for chosen, _ in blocks)
    figure, (line,) = panels(1, 2 * len(blocks), PAGE if len(blocks) == 2 else COLUMN, 0.8 + 0.19 * lines, sharex=True)
    frames = []
    for index, (chosen, parts) in enumerate(blocks):
        labels = [label for _, label in chosen]
        filled = {label: bool(point.variant) for point, label in chosen}
        for axes, (title, mask) in zip(line[2 * index: 2 * index + 2], parts.items(), strict=True):
            frame = selection.scores(rows[mask], [point for point, _ in chosen])
            names = {(selection.setting_of(point), point.experiment): label for point, label in chosen}
            keys = zip(frame["setting"], frame["experiment"], strict=True)
            frame = frame.assign(label=[names[key] for key in keys], part=title)
            draw_intervals(axes, frame, labels, filled)
            axes.set(yticks=range(len(labels)), yticklabels=[], ylim=(len(labels) - 0.5, -0.5))
            axes.set_title(title)
            frames.append(frame)
        line[2 * index].set_yticks(range(len(labels)), labels)
    frame = pd.concat(frames)
    line[0].set_xlim(0, 1.05 * frame["high"].max() or 1)
    line[0].xaxis.set_major_locator(MaxNLocator(4))
    figure.get_layout_engine().set(wspace=GAP / 2)
    figure.supxlabel("correct (%)", fontsize=BODY)
    return finish(figure, frame, CAPTIONS["transfer"] + INTERVALS + selection.seeds_sentence(frame))


@themed
def mechanism(logs: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw norms of the two gradients and their cosine (Pure DyME), entropy by method, and captions kept after training.

    Args:
        logs: training logs; "step" rows carry entropy, some of them memorize_norm, explore_norm and cosine.
        manifests: of all runs; `captions` is the share of captions that are right word for word, in [0, 1].
    """
    logs = selection.main_runs(logs[logs["model"] == "svlm"])
    logs = logs[logs["event"] == "step"]
    gradients = logs[logs["method"] == "pure_dyme"]
    frames = {"gradients": pd.concat([_curve(gradients, f"{kind}_norm").assign(name=kind) for kind in GRADIENT_STYLES]),
              "cosine": _curve(gradients, "cosine"),
              "entropy": pd.concat([_curve(part, "entropy", WINDOW).assign(name=method)
                                    for method, part in logs.groupby("method")]),
              "captions": _captions(manifests)}
    frames = {name: frame.assign(panel=name) for name, frame in frames.items() if len(frame)}
    if not frames:
        raise NoRows("no run has logged gradients, entropy or captions")
    drawn = {"gradients": _draw_gradients, "cosine": _draw_cosine, "entropy": _draw_entropy, "captions": _draw_captions}
    lines = -(-len(frames) // 2)
    figure, grid = panels(lines, 2, PAGE, 0.3 + 1.75 * lines)
    for axes in grid.flat[len(frames):]:
        axes.set_visible(False)
    for axes, (name, frame) in zip(grid.flat, frames.items(), strict=False):
        if "step" in frame:
            axes.set(xlim=(0, logs["step"].max()), xlabel="optimisation step")
        drawn[name](axes, frame)
    frame = pd.concat(frames.values())
    parts = " ".join(PARTS[name].format(window=WINDOW) for name in frames)
    return finish(figure, frame, CAPTIONS["mechanism"].format(parts=parts) + selection.seeds_sentence(frame))


def _kinds(rows: pd.DataFrame) -> list[tuple[plan.Point, str]]:
    """Points of the left-out kinds, each after the main run of its method, with their labels; those that have rows."""
    found = []
    for point in selection.points("kinds"):
        (main,) = selection.points("main", (point.method,))
        found += [(main, f"{METHOD_NAMES[point.method]}, all kinds"), (point, f"{METHOD_NAMES[point.method]}, without")]
    return [(point, label) for point, label in found if len(selection.rows_of(rows, point, "test"))]


def _statistics(rows: pd.DataFrame) -> list[tuple[plan.Point, str]]:
    """Points of the tables' origin, each method's after its main run, with their labels; those that have rows."""
    found = []
    for method in dict.fromkeys(point.method for point in selection.points("statistics")):
        (main,) = selection.points("main", (method,))
        found += [(main, f"{METHOD_NAMES[method]}, both")]
        found += [(point, f"{METHOD_NAMES[method]}, {point.label.split()[0]}") for point in
                  selection.points("statistics", (method,))]
    return [(point, label) for point, label in found if len(selection.rows_of(rows, point, "test"))]


def _curve(logs: pd.DataFrame, column: str, window: int = 1) -> pd.DataFrame:
    """Mean, lowest and highest over the seeds at each step: columns step, value, low, high, num_seeds."""
    if column not in logs or logs[column].dropna().empty:
        return pd.DataFrame(columns=["step", "value", "low", "high", "num_seeds"])
    wide = logs.dropna(subset=[column]).pivot(index="step", columns="seed", values=column).sort_index()
    wide = wide.rolling(window, min_periods=1).mean() if window > 1 else wide
    curve = wide.agg(["mean", "min", "max", "count"], axis=1).reset_index()
    return curve.set_axis(["step", "value", "low", "high", "num_seeds"], axis=1).dropna().assign(measure=column)


def _captions(manifests: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Captions kept, in per cent, of each method's main runs."""
    kept: dict[str, list[float]] = {}
    for manifest in manifests:
        if manifest.get("captions") is not None and manifest["model"] == "svlm" and not manifest.get("variant"):
            kept.setdefault(manifest["method"], []).append(100 * manifest["captions"])
    lines = [{"name": method, **vars(bootstrap(pd.DataFrame(kept[method]).to_numpy()))} for method in METHODS if method in kept]
    return pd.DataFrame(lines)


def _band(axes: Axes, frame: pd.DataFrame, color: str, **look: Any) -> None:
    axes.fill_between(frame["step"].astype(float), frame["low"], frame["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(frame["step"], frame["value"], color=color, markevery=max(1, len(frame) // 6), clip_on=False, **look)


def _draw_gradients(axes: Axes, frame: pd.DataFrame) -> None:
    ends = []
    for kind, (color, marker, linestyle) in GRADIENT_STYLES.items():
        part = frame[frame["name"] == kind]
        if len(part):
            _band(axes, part, color, marker=marker, linestyle=linestyle)
            ends.append((part["step"].iloc[-1], part["value"].iloc[-1], kind, color))
    axes.set(ylabel="gradient norm", ylim=(0, 1.05 * frame["high"].max()))
    label_ends(axes, ends)


def _draw_cosine(axes: Axes, frame: pd.DataFrame) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    style = STYLES["pure_dyme"]
    _band(axes, frame, style.color, marker=style.marker, linestyle=style.linestyle)
    reach = 1.15 * max(frame["high"].abs().max(), frame["low"].abs().max(), 0.05)
    axes.set(ylabel="cosine", ylim=(-reach, reach))


def _draw_entropy(axes: Axes, frame: pd.DataFrame) -> None:
    ends = []
    for method in (method for method in METHODS if method in set(frame["name"])):
        part, style = frame[frame["name"] == method], STYLES[method]
        _band(axes, part, style.color, marker=style.marker, linestyle=style.linestyle)
        ends.append((part["step"].iloc[-1], part["value"].iloc[-1], METHOD_NAMES[method], style.text_color))
    axes.set(ylabel="entropy (nats)", ylim=(0, 1.05 * frame["high"].max()))
    label_ends(axes, ends)


def _draw_captions(axes: Axes, frame: pd.DataFrame) -> None:
    base, trained = frame[frame["name"] == "base"], frame[frame["name"] != "base"].reset_index(drop=True)
    for line in base.itertuples():
        axes.axvline(line.value, color=STYLES["base"].color, linestyle=STYLES["base"].linestyle)
        axes.annotate("before", (line.value, 1), (-2, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="right", va="bottom", fontsize=SMALL, color=STYLES["base"].text_color)
    names = [METHOD_NAMES[name] for name in trained["name"]]
    draw_intervals(axes, trained.assign(method=trained["name"], label=names), names, dict.fromkeys(names, True))
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlim=(0, 103),
             xlabel="captions right (%)")
