"""Figures of what training does inside, and of what it carries over to questions and tables that it did not show."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyme_core.config import METHOD_NAMES, METHODS
from study import plan, statistics
from study.figures import theme
from study.figures.plots import WINDOW, draw_curves, step_curves
from study.figures.sweeps import INTERVALS, MEASURED, RIGHT
from study.figures.theme import draw_intervals, draw_line, finish, label_ends, name_lines, panels, seeds_sentence, themed
from study.statistics import NoRows, interval, method_rank

GRADIENT_STYLES = {"memorize": theme.Style(theme.PALETTE[3], "solid", "^"),
                   "explore": theme.Style(theme.PALETTE[0], (0, (4, 1.5)), "o")}
CAPTIONS = {
    "transfer": "What carries over to what training did not show: trained without questions of the kinds gap and count "
                "(filled) and with all kinds (hollow).",
    "mechanism": "Poster's claim: SFT and RL complement each other. {parts} Lines are means over seeds; "
                 "bands: lowest to highest seed.",
    "targets": "What Full DyME memorizes drifts toward what the model says. Mean negative log-likelihood per token under the "
               "policy, of the teacher's trace and of the target chosen in its place, mean of {window} steps; training on a "
               "teacher's traces, mini world. Lines are means over seeds; bands: lowest to highest seed.",
}
PARTS = {
    "gradients": "Pure DyME: norm of the memorize and the explore part of one step's gradient.",
    "cosine": "Cosine between the two: above 0 they pull the same way.",
    "entropy": "Entropy of the policy's tokens, mean of {window} steps.",
    "captions": "Captions of charts still right word for word after training (line: before), with 95 % intervals over seeds.",
}


@themed()
def transfer(rows: pd.DataFrame) -> Figure:
    """Draw what a method makes of kinds of question that training left out, and of the others."""
    points: dict[str, plan.Point] = {}
    for point in plan.points("kinds"):
        (main,) = plan.points("main", methods=(point.method,))
        name = METHOD_NAMES[point.method]
        points |= {f"{name}, all kinds": main, f"{name}, without": point}
    left_out, names = rows["kind"].isin(plan.LEFT_OUT_KINDS), {point.setting: label for label, point in points.items()}
    parts = {"gap and count": left_out, "other kinds": ~left_out}
    drawn = list(points.values())
    frame = pd.concat([statistics.scores(rows[mask], drawn).assign(part=title) for title, mask in parts.items()])
    frame["label"] = frame["setting"].map(names)
    labels = [label for label in points if label in set(frame["label"])]
    figure, (line,) = panels(1, 2, theme.COLUMN, 0.8 + 0.19 * len(labels), gap=theme.GAP, xlabel=RIGHT, sharex=True)
    for axes, title in zip(line, parts, strict=True):
        draw_intervals(axes, frame[frame["part"] == title], labels, [name for name in labels if not points[name].variant])
        axes.set_title(title)
    name_lines(line[0], labels)
    line[0].set_xlim(0, 1.05 * frame["high"].max() or 1)
    line[0].xaxis.set_major_locator(MaxNLocator(4))
    return finish(figure, frame, CAPTIONS["transfer"] + MEASURED + INTERVALS + seeds_sentence(frame))


@themed()
def mechanism(logs: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw norms of the two gradients and their cosine (Pure DyME), entropy by method, and captions kept after training.

    Args:
        logs: training logs of all runs; "step" rows carry entropy, some of them memorize_norm, explore_norm and cosine.
        manifests: of all runs; `captions` is the share of captions that are right word for word, in [0, 1].
    """
    logs = logs[logs["variant"].fillna("") == ""]
    pure = logs[logs["method"] == "pure_dyme"]
    frames = {"gradients": pd.concat([_curves(pure, f"{kind}_norm").assign(name=kind) for kind in GRADIENT_STYLES]),
              "cosine": _curves(pure, "cosine").assign(name=None),
              "entropy": _curves(logs, "entropy", WINDOW).sort_values("name", kind="stable"),
              "captions": _captions(manifests)}
    frames = {name: frame.assign(panel=name) for name, frame in frames.items() if len(frame)}
    if not frames:
        raise NoRows("no run has logged gradients, entropy or captions")
    drawn = {"gradients": _draw_gradients, "cosine": _draw_cosine, "entropy": _draw_entropy, "captions": _draw_captions}
    lines = -(-len(frames) // 2)
    figure, grid = panels(lines, 2, theme.PAGE, 0.3 + 1.75 * lines, count=len(frames))
    for axes, (name, frame) in zip(grid.flat, frames.items(), strict=False):
        if "step" in frame:
            axes.set(xlim=(0, logs.loc[logs["event"] == "step", "step"].max()), xlabel="optimisation step")
        drawn[name](axes, frame)
    frame = pd.concat(frames.values())
    parts = " ".join(PARTS[name].format(window=WINDOW) for name in frames)
    return finish(figure, frame, CAPTIONS["mechanism"].format(parts=parts) + seeds_sentence(frame))


@themed()
def targets(logs: pd.DataFrame) -> Figure:
    """Draw how probable Full DyME's targets are under the policy, those chosen and those that stood first, over training."""
    (point,) = plan.points("main", methods=("full_dyme",))
    logs = logs[(logs["method"] == point.method) & (logs["variant"].fillna("") == "") & (logs["model"] == "svlm")]
    names = {"first_target_nll": "the teacher's trace", "target_nll": "the target chosen"}
    frames = [_curves(logs, column, WINDOW).assign(name=name) for column, name in names.items()]
    frame = pd.concat([part for part in frames if len(part)] or [pd.DataFrame()])
    if frame.empty:
        raise NoRows("Full DyME has not been trained")
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 2.0)
    ends = [draw_line(axes, part, "step", "value", style, name, num_marks=6)
            for (name, part), style in zip(frame.groupby("name", sort=False), GRADIENT_STYLES.values(), strict=True)]
    axes.set(xlim=(0, frame["step"].max()), ylim=(0, 1.05 * frame["high"].max()), xlabel="optimisation step",
             ylabel="nats per token")
    label_ends(axes, ends)
    return finish(figure, frame, CAPTIONS["targets"].format(window=WINDOW) + seeds_sentence(frame))


def _curves(logs: pd.DataFrame, column: str, window: int = 1) -> pd.DataFrame:
    """Columns step, value, low, high, num_seeds, measure (the column's name), and name (the method)."""
    if column not in logs or logs[column].isna().all():
        return pd.DataFrame(columns=["name"])
    curves = step_curves(logs, "step", column, window=window).rename(columns={"mean": "value", "method": "name"})
    return curves[["step", "value", "low", "high", "num_seeds"]].assign(measure=column, name=curves["name"])


def _captions(manifests: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Captions kept, in per cent, of each method's main runs."""
    kept: dict[str, list[float]] = {}
    for manifest in manifests:
        if manifest.get("captions") is not None and manifest["model"] == "svlm" and not manifest.get("variant"):
            kept.setdefault(manifest["method"], []).append(100 * manifest["captions"])
    return pd.DataFrame([{"name": method, **vars(interval(pd.DataFrame(kept[method]).to_numpy()))}
                         for method in METHODS if method in kept])


def _draw_gradients(axes: Axes, frame: pd.DataFrame) -> None:
    ends = [draw_line(axes, part, "step", "value", GRADIENT_STYLES[kind], kind, num_marks=6)
            for kind, part in frame.groupby("name", sort=False)]
    axes.set(ylabel="gradient norm", ylim=(0, 1.05 * frame["high"].max()))
    label_ends(axes, [(x, y, kind, GRADIENT_STYLES[kind].color) for x, y, kind, _ in ends])


def _draw_cosine(axes: Axes, frame: pd.DataFrame) -> None:
    axes.axhline(0, color=theme.GREY, linewidth=0.8)
    draw_line(axes, frame, "step", "value", theme.STYLES["pure_dyme"], "", num_marks=6)
    reach = 1.15 * max(frame["high"].abs().max(), frame["low"].abs().max(), 0.05)
    axes.set(ylabel="cosine", ylim=(-reach, reach))


def _draw_entropy(axes: Axes, frame: pd.DataFrame) -> None:
    axes.set_ylabel("entropy (nats)")
    curves = frame.rename(columns={"name": "method", "value": "mean"}).sort_values("method", key=method_rank, kind="stable")
    draw_curves(axes, curves, axes.get_xlim()[1], headroom=1.05)


def _draw_captions(axes: Axes, frame: pd.DataFrame) -> None:
    style, trained = theme.STYLES["base"], frame[frame["name"] != "base"]
    for line in frame[frame["name"] == "base"].itertuples():
        axes.axvline(line.value, color=style.color, linestyle=style.linestyle)
        axes.annotate("before", (line.value, 1), (-2, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="right", va="bottom", fontsize=theme.SMALL, color=style.text_color)
    names = [METHOD_NAMES[name] for name in trained["name"]]
    draw_intervals(axes, trained.assign(method=trained["name"], label=names), names)
    name_lines(axes, names)
    axes.set(xlim=(0, 103), xlabel="captions right (%)")
