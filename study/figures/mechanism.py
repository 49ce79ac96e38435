"""Figures of what training does inside, and of what it carries over to questions and tables that it did not show."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dyme_core.config import METHOD_NAMES, METHODS
from dyme_core.pipeline.methods import UNSUPERVISED
from study import plan, statistics
from study.figures import theme
from study.figures.plots import WINDOW, draw_curves, step_curves
from study.figures.sweeps import INTERVALS, MEASURED, RIGHT
from study.figures.theme import draw_intervals, draw_line, finish, label_ends, name_lines, panels, seeds_sentence, themed
from study.statistics import NoRows, interval, method_rank

GRADIENT_STYLES = {"memorize": theme.Style(theme.MODE_COLORS["memorize"], "solid", "^"),
                   "explore": theme.Style(theme.MODE_COLORS["explore"], (0, (4, 1.5)), "o")}
CAPTIONS = {
    "transfer": "What carries over to what training did not show: trained without questions of the kinds gap and count "
                "(filled) and with all kinds (hollow); refined targets.",
    "gradients": "Poster's claim: SFT and RL complement each other. Pure DyME: norm of the memorize and the explore part of a "
                 "step's gradient, and the cosine between the two: above 0 they pull the same way. Lines are means over seeds; "
                 "bands: lowest to highest seed.",
    "entropy": "Whether a policy stays open to exploring: entropy of its tokens, mean of {window} steps. Lines are means over "
               "seeds; bands: lowest to highest seed.",
    "forgetting": "What training makes a model forget: captions of charts that are still right word for word (line: before "
                  "training), with 95 % intervals over seeds.",
    "targets": "What Full DyME memorizes drifts toward what the model says. Mean negative log-likelihood per token under the "
               "policy, of the teacher's trace and of the target chosen in its place, mean of {window} steps; training on a "
               "teacher's traces, mini world. Lines are means over seeds; bands: lowest to highest seed.",
}


@themed()
def transfer(rows: pd.DataFrame) -> Figure:
    """Draw what a method makes of kinds of question that training left out, and of the others."""
    points: dict[str, plan.Point] = {}
    for point in plan.points("kinds"):
        (whole,) = plan.points("main" if point.method in UNSUPERVISED else "refined", methods=(point.method,))
        name = METHOD_NAMES[point.method]
        points |= {f"{name}, all kinds": replace(whole, experiment=point.experiment), f"{name}, without both": point}
    left_out, names = rows["kind"].isin(plan.LEFT_OUT_KINDS), {point.setting: label for label, point in points.items()}
    parts = {"gap and count": left_out, "other kinds": ~left_out}
    drawn = list(points.values())
    frame = pd.concat([statistics.scores(rows[mask], drawn).assign(part=title) for title, mask in parts.items()])
    frame["label"] = frame["setting"].map(names)
    labels = [label for label in points if label in set(frame["label"])]
    figure, (line,) = panels(1, 2, theme.COLUMN, 0.8 + 0.19 * len(labels), gap=theme.GAP, xlabel=RIGHT, sharex=True)
    for axes, title in zip(line, parts, strict=True):
        draw_intervals(axes, frame[frame["part"] == title], labels, [name for name in labels if name.endswith("all kinds")])
        axes.set_title(title)
    name_lines(line[0], labels)
    line[0].set_xlim(0, 1.05 * frame["high"].max() or 1)
    line[0].xaxis.set_major_locator(MaxNLocator(4))
    return finish(figure, frame, CAPTIONS["transfer"] + MEASURED + INTERVALS + seeds_sentence(frame))


@themed()
def gradients(logs: pd.DataFrame) -> Figure:
    """Draw norms of the memorize and the explore part of a step's gradient, and their cosine (Pure DyME).

    Args:
        logs: training logs of all runs; some "step" rows carry memorize_norm, explore_norm and cosine.
    """
    pure = logs[(logs["method"] == "pure_dyme") & (logs["variant"].fillna("") == "")]
    norm = pd.concat([_curves(pure, f"{kind}_norm").assign(name=kind, panel="norm") for kind in GRADIENT_STYLES])
    cosine = _curves(pure, "cosine").assign(panel="cosine")
    if norm.empty or cosine.empty:
        raise NoRows("no step with both a memorize and an explore part has logged their gradients")
    frame = pd.concat([norm, cosine])
    figure, ((left, right),) = panels(1, 2, theme.PAGE, 2.0, xlabel="optimisation step")
    ends = [draw_line(left, part, "step", "value", GRADIENT_STYLES[kind], kind, num_marks=6)
            for kind, part in norm.groupby("name", sort=False)]
    for axes in (left, right):
        axes.set_xlim(0, frame["step"].max())
    left.set(ylabel="gradient norm", ylim=(0, 1.05 * norm["high"].max()))
    label_ends(left, [(x, y, kind, GRADIENT_STYLES[kind].color) for x, y, kind, _ in ends])
    right.axhline(0, color=theme.GREY, linewidth=0.8)
    draw_line(right, cosine, "step", "value", theme.STYLES["pure_dyme"], "", num_marks=6)
    reach = 1.15 * max(cosine["high"].abs().max(), cosine["low"].abs().max(), 0.05)
    right.set(ylabel="cosine", ylim=(-reach, reach))
    return finish(figure, frame, CAPTIONS["gradients"] + seeds_sentence(frame))


@themed()
def entropy(logs: pd.DataFrame) -> Figure:
    """Draw the entropy of each method's tokens over training."""
    frame = _curves(logs[logs["variant"].fillna("") == ""], "entropy", WINDOW)
    if frame.empty:
        raise NoRows("no run has logged its entropy")
    frame = frame.rename(columns={"name": "method", "value": "mean"}).sort_values("method", key=method_rank, kind="stable")
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 2.0, xlabel="optimisation step")
    axes.set(xlim=(0, frame["step"].max()), ylabel="entropy (nats)")
    draw_curves(axes, frame, frame["step"].max(), headroom=1.05)
    return finish(figure, frame, CAPTIONS["entropy"].format(window=WINDOW) + seeds_sentence(frame))


@themed()
def forgetting(manifests: Iterable[Mapping[str, Any]]) -> Figure:
    """Draw how many captions each method leaves right.

    Args:
        manifests: of all runs; `captions` is the share of captions that are right word for word, in [0, 1].
    """
    frame = _captions(manifests)
    if frame.empty:
        raise NoRows("no run has been asked for captions")
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 1.6, xlabel="captions right (%)")
    style, trained = theme.STYLES["base"], frame[frame["name"] != "base"]
    for line in frame[frame["name"] == "base"].itertuples():
        axes.axvline(line.value, color=style.color, linestyle=style.linestyle)
        axes.annotate("before", (line.value, 1), (-2, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="right", va="bottom", fontsize=theme.SMALL, color=style.text_color)
    names = [METHOD_NAMES[name] for name in trained["name"]]
    draw_intervals(axes, trained.assign(method=trained["name"], label=names), names)
    name_lines(axes, names)
    axes.set_xlim(0, 103)
    return finish(figure, frame, CAPTIONS["forgetting"] + seeds_sentence(frame))


@themed()
def targets(logs: pd.DataFrame) -> Figure:
    """Draw how probable Full DyME's targets are under the policy, those chosen and those that stood first, over training."""
    (point,) = plan.points("main", methods=("full_dyme",))
    logs = logs[(logs["method"] == point.method) & (logs["variant"].fillna("") == "") & (logs["model"] == "svlm")]
    lines = {"the teacher's trace": ("first_target_nll", theme.STYLES["sft"]),
             "the target chosen": ("target_nll", theme.STYLES[point.method])}
    frame = pd.concat([_curves(logs, column, WINDOW).assign(name=name) for name, (column, _) in lines.items()])
    if frame.empty:
        raise NoRows("Full DyME has not been trained")
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 2.0)
    ends = [draw_line(axes, part, "step", "value", lines[name][1], name, num_marks=6)
            for name, part in frame.groupby("name", sort=False)]
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
