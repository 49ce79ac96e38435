"""Figures of numbers: gradients, training curves, accuracy. Data in, Figure out (`theme` says what each carries)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from dyme_core.config import METHOD_NAMES
from study import plan, statistics
from study.figures import theme
from study.figures.theme import draw_intervals, draw_line, finish, label_ends, name_lines, panels, seeds_note, themed

DTYPE_STYLES = {"float64": (theme.PALETTE[0], "o"), "float32": (theme.PALETTE[1], "^")}
SHADES = {0.0: "#d9d9d9", 0.5: "#8fb8d6", 1.0: theme.PALETTE[0]}  # by score
ERROR_FLOOR = 1e-18  # an error of exactly 0 is drawn here, on the log axis
MODES = {"memorize": 0.9, "explore": 0.5, "mastered": 0.2}  # how strong a mode's colour is: also told apart in grey
WINDOW = 10  # steps of the running mean of per-step logs
BOTH_MARKS = "right (%): answer and thinking (filled), answer (hollow)"
MEASURED = ("answers that are right with right thinking before them (filled), and answers that are right (hollow). Dotted: "
            "luck, what the best guess learned on the training questions gets right without a look at any value.")
BAND = "Band: lowest to highest seed; line: their mean."


@themed()
def gradient_equivalence(frame: pd.DataFrame) -> Figure:
    """Draw the relative error per parameter group in both precisions, log axis, with the expected bounds.

    Args:
        frame: columns group, dtype ("float64", "float32"), relative_error, cosine.
    """
    groups = list(dict.fromkeys(frame["group"]))
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 0.75 + 0.19 * len(groups))
    for dtype, (color, marker) in DTYPE_STYLES.items():
        part = frame[frame["dtype"] == dtype]
        rows = part["group"].map(groups.index)
        axes.plot(part["relative_error"].clip(lower=ERROR_FLOOR), rows, marker, color=color)
        bound = plan.GRADIENT_BOUNDS[dtype]
        axes.axvline(bound, color=color, linestyle=(0, (4, 2)), linewidth=0.8)
        axes.annotate(f"{dtype}\n< $10^{{{round(np.log10(bound))}}}$", (bound, 1.0), (2, 1), textcoords="offset points",
                      xycoords=("data", "axes fraction"), ha="left", va="bottom", fontsize=theme.SMALL, color=color,
                      linespacing=1.0)
    right = max(1e-3, 10 * frame["relative_error"].max())  # an error beyond its bound must be seen
    axes.set(xscale="log", xlim=(ERROR_FLOOR / 3, right), xlabel="relative error of the gradient")
    name_lines(axes, groups)
    zero = f" Errors of exactly 0 are drawn at {ERROR_FLOOR:.0e}." if (frame["relative_error"] == 0).any() else ""
    cosine = f" Smallest cosine between the two: 1 - {max(0.0, 1 - frame['cosine'].min()):.1e}."
    return finish(figure, frame, "Relative error between the SFT gradient and the GRPO form with ratio 1 and advantage 1, per "
                  f"parameter group, on a real VLM. Dashed: the expected bounds.{cosine}{zero}")


@themed()
def off_policy(frame: pd.DataFrame) -> Figure:
    """Draw what each setting does to the gradient: its relative error, its scale against the SFT gradient, or both.

    Args:
        frame: column setting, and relative_error or scale or both; one line per setting.
    """
    titles = {"scale": "gradient / SFT gradient", "relative_error": "relative error"}
    columns = [column for column in titles if column in frame]
    figure, (line,) = panels(1, len(columns), theme.COLUMN, 0.6 + 0.2 * len(frame), sharey=True)
    for axes, column in zip(line, columns, strict=True):
        exact = 1.0 if column == "scale" else 0.0
        axes.axvline(exact, color=theme.GREY, linewidth=0.8)
        axes.hlines(range(len(frame)), exact, frame[column], color=theme.PALETTE[0], linewidth=1.0)
        axes.plot(frame[column], range(len(frame)), "o", color=theme.PALETTE[0])
        axes.set_xlabel(titles[column])
        axes.margins(x=0.12)
        name_lines(axes, frame["setting"].tolist())
    return finish(figure, frame, "What the GRPO form gives against the SFT gradient when the ratio is not 1 or the loss is "
                  "weighted otherwise.")


@themed()
def stability(logs: pd.DataFrame) -> Figure:
    """Draw correct answers on validation against the step, one line per method with a band over its seeds (SVLM)."""
    curves = step_curves(logs, "eval", "correct", scale=100)
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 2.3)
    draw_curves(axes, curves, curves["step"].max())
    axes.set(xlabel="optimisation step", ylabel="correct on validation (%)")
    return finish(figure, curves, "Correct answers (right and well-formed) on validation during training, mini world."
                  + seeds_note(curves[curves["method"] != "base"], BAND))


@themed()
def modes(logs: pd.DataFrame, method: str = "full_dyme") -> Figure:
    """Draw a DyME run's shares of memorize, explore and mastered groups above GRPO's share of zero-variance groups.

    Args:
        logs: training logs; "step" rows of `method` carry the three counts, those of "grpo" carry zero_variance.
        method: the DyME method to show.
    """
    steps = logs[(logs["event"] == "step") & (logs["model"] == "svlm")]
    counts = steps[steps["method"] == method].groupby("step")[list(MODES)].mean()
    zero = steps[steps["method"] == "grpo"].groupby("step")[["zero_variance"]].mean()
    shares, zero = ((100 * part).rolling(WINDOW, min_periods=1).mean()
                    for part in (counts.div(counts.sum(axis=1), axis=0), zero))
    figure, ((top,), (bottom,)) = panels(2, 1, theme.COLUMN, 2.7, sharex=True)
    edges = np.vstack([np.zeros(len(shares)), shares.cumsum(axis=1).T.to_numpy()])
    for lower, upper, (mode, strength) in zip(edges[:-1], edges[1:], MODES.items(), strict=True):
        tint = 1 - strength * (1 - np.array(to_rgb(theme.MODE_COLORS[mode])))  # mixed with white
        top.fill_between(shares.index, lower, upper, color=tint, linewidth=0)
    bottom.plot(zero.index, zero["zero_variance"], color=theme.STYLES["grpo"].color, linestyle="solid")
    for axes, title in ((top, METHOD_NAMES[method]), (bottom, "GRPO")):
        axes.set_title(title, fontsize=theme.BODY)
        axes.set(ylim=(0, 100), ylabel="groups (%)", yticks=(0, 50, 100))
    bottom.set(xlabel="optimisation step", xlim=(shares.index.min(), shares.index.max()))
    middles = (edges[:-1, -1] + edges[1:, -1]) / 2
    label_ends(top, [(shares.index[-1], middle, name, "black") for middle, name in zip(middles, MODES, strict=True)])
    label_ends(bottom, [(zero.index[-1], zero["zero_variance"].iloc[-1], "all rewards equal", theme.STYLES["grpo"].text_color)])
    drawn = steps[steps["method"].isin([method, "grpo"])]
    frame = shares.join(zero.rename(columns={"zero_variance": "grpo_zero_variance"}), how="outer").reset_index()
    return finish(figure, frame, f"Top: how the groups of {METHOD_NAMES[method]} split into modes, mean of {WINDOW} steps. "
                  "Bottom: share of groups from which GRPO learns nothing because all rewards of the group are equal."
                  + theme.seeds_sentence(drawn.groupby("method")["seed"].nunique().rename("num_seeds").reset_index()))


@themed()
def thinking(logs: pd.DataFrame) -> Figure:
    """Draw groundedness and format on validation, and the rollouts' thinking length, at each step (SVLM)."""
    parts = {"groundedness (%)": step_curves(logs, "eval", "groundedness", scale=100),
             "format right (%)": step_curves(logs, "eval", "has_format", scale=100),
             "thinking (tokens)": step_curves(logs, "step", "thinking_tokens", window=WINDOW)}
    frame = pd.concat(curves.assign(measure=label) for label, curves in parts.items())
    figure, rows = panels(3, 1, theme.COLUMN, 4.3, sharex=True)
    for (axes,), (label, curves) in zip(rows, parts.items(), strict=True):
        axes.set_ylabel(label)
        draw_curves(axes, curves, frame["step"].max())
    rows[-1][0].set_xlabel("optimisation step")
    return finish(figure, frame, "What becomes of thinking during training, mini world: groundedness and format on validation, "
                  f"length of the rollouts' thinking (mean of {WINDOW} steps; SFT makes no rollouts)."
                  + seeds_note(frame[frame["method"] != "base"], BAND))


@themed()
def performance(rows: pd.DataFrame, luck: Mapping[tuple[str, str], float]) -> Figure:
    """Draw both measures of each method on both test sets, with 95 % intervals (SVLM).

    Args:
        luck: by split and kind ("all": all kinds), the share of answers that the best blind guess gets right.
    """
    summary = _percent(rows[rows["split"].isin(["test", "unseen"])], ("method", "split"))
    methods = list(dict.fromkeys(summary["method"]))
    figure, (line,) = panels(1, 2, theme.COLUMN, 0.75 + 0.24 * len(methods), gap=theme.GAP, xlabel=BOTH_MARKS, sharex=True)
    for axes, (split, title) in zip(line, {"test": "test", "unseen": "unseen"}.items(), strict=True):
        _draw_methods(axes, summary[summary["split"] == split], methods, title, luck.get((split, "all")))
    line[0].set_xlim(0, 1.05 * summary["high"].max() or 1)
    _name_methods(line[0], methods)
    return finish(figure, summary, f"After training, mini world: {MEASURED} {summary['num_items'].max()} test charts in seen "
                  "styles, and as many in unseen styles and value ranges. Bars: 95 % intervals." + seeds_note(summary, ""))


@themed()
def kinds(rows: pd.DataFrame, luck: Mapping[tuple[str, str], float]) -> Figure:
    """Draw both measures on the test set by question kind, one small panel per kind, with 95 % intervals (SVLM).

    Args:
        luck: by split and kind, the share of answers that the best blind guess gets right.
    """
    summary = _percent(rows[rows["split"] == "test"], ("kind", "method"))
    methods = [method for method in METHOD_NAMES if method in set(summary["method"])]
    names = sorted(set(summary["kind"]))
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, grid = panels(lines, columns, theme.PAGE, 0.35 + lines * (0.4 + 0.2 * len(methods)), count=len(names),
                          gap=theme.GAP, xlabel=BOTH_MARKS, sharex=True)
    for axes, name in zip(grid.flat, names, strict=False):
        _draw_methods(axes, summary[summary["kind"] == name], methods, name, luck.get(("test", name)))
    grid[0, 0].set_xlim(0, 1.05 * summary["high"].max() or 1)
    for axes in grid[:, 0]:
        _name_methods(axes, methods)
    # Where the last line of panels is not full, the panels above the gap need their own numbers.
    for axes in grid.flat[max(0, len(names) - columns): len(names)]:
        axes.tick_params(labelbottom=True)
    fewest, most = summary["num_items"].min(), summary["num_items"].max()
    return finish(figure, summary, f"By kind of question, mini world: {MEASURED} Test set, "
                  f"{most if fewest == most else f'{fewest} to {most}'} questions of each kind. Bars: 95 % intervals."
                  + seeds_note(summary, ""))


@themed()
def scores(ratings: Mapping[str, Sequence[float]]) -> Figure:
    """Draw how a checker's scores 0, 0.5 and 1 are shared out, one bar a source of traces.

    Args:
        ratings: scores by the name of who wrote the traces; NaN (no score) is left out.
    """
    found = {name: pd.Series(values).dropna() for name, values in ratings.items()}
    frame = pd.DataFrame([{"source": name, "score": score, "share": 100 * (values == score).mean(), "num_traces": len(values)}
                          for name, values in found.items() for score in SHADES])
    figure, ((axes,),) = panels(1, 1, theme.COLUMN, 0.75 + 0.28 * len(found))
    shares = frame.pivot(index="source", columns="score", values="share").loc[list(found)]
    left = shares.cumsum(axis=1) - shares
    for score, shade in SHADES.items():
        axes.barh(range(len(found)), shares[score], left=left[score], color=shade, height=0.7, label=f"score {score:g}")
    axes.legend(ncols=len(SHADES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    name_lines(axes, list(found))
    axes.set_xlim(0, 100)
    axes.set_xlabel("traces (%), by the checker's score")
    return finish(figure, frame, "What the rule checker gives the thinking of the base (sampled) and the refiner's targets for "
                  "the same validation charts, mini world: 0 no right fact, 0.5 some, 1 all facts right, in order and leading "
                  "to the answer.")


def _percent(rows: pd.DataFrame, by: tuple[str, ...]) -> pd.DataFrame:
    """Both measures of the SVLM's rows."""
    own = rows[rows["model"] == "svlm"]
    summary = pd.concat([statistics.summarise(own, metric, by) for metric in statistics.MEASURES], ignore_index=True)
    summary[["value", "low", "high"]] *= 100
    return summary


def _draw_methods(axes: Axes, summary: pd.DataFrame, methods: list[str], title: str, luck: float | None) -> None:
    """Two marks with their intervals per method, that of the first measure filled and above; a line at the level of luck."""
    for metric, hollow, shift in ((statistics.FIRST, (), -theme.SHIFT), (statistics.SECOND, methods, theme.SHIFT)):
        part = summary[summary["metric"] == metric]
        draw_intervals(axes, part.assign(label=part["method"]), methods, hollow, shift, linestyle="None")
    if luck is not None:
        theme.draw_level(axes, 100 * luck)
        title += f" (luck {100 * luck:.0f} %)"
    axes.set_title(title, fontsize=theme.SMALL)


def _name_methods(axes: Axes, methods: list[str]) -> None:
    name_lines(axes, [METHOD_NAMES[method] for method in methods], [theme.STYLES[method].text_color for method in methods])


def step_curves(logs: pd.DataFrame, event: str, column: str, scale: float = 1.0, window: int = 1) -> pd.DataFrame:
    """Mean, lowest and highest over the seeds at each step, each run smoothed over `window` steps (SVLM).

    Returns:
        Columns method, step, mean, low, high, num_seeds.
    """
    part = logs[(logs["event"] == event) & (logs["model"] == "svlm")].dropna(subset=[column])
    wide = scale * part.pivot(index="step", columns=["method", "seed"], values=column).sort_index()
    if window > 1:
        wide = pd.concat([wide[[run]].dropna().rolling(window, min_periods=1).mean() for run in wide], axis=1)
    long = wide.stack(["method", "seed"], future_stack=True).dropna().groupby(["method", "step"])
    curves = long.agg(["mean", "min", "max", "count"]).reset_index().rename(
        columns={"min": "low", "max": "high", "count": "num_seeds"})
    return curves.sort_values(["method", "step"], key=statistics.method_rank, kind="stable", ignore_index=True)


def draw_curves(axes: Axes, curves: pd.DataFrame, last: int, headroom: float = 1.08) -> None:
    """One line per method with its band, and its name at the right; the base, which is not trained, as a level."""
    ends = []
    for method, part in curves.groupby("method", sort=False):
        style = theme.STYLES[method]
        if method == "base":
            level = part["mean"].iloc[-1]
            axes.axhline(level, color=style.color, linestyle=style.linestyle)
            ends.append((last, level, METHOD_NAMES[method], style.text_color))
        else:
            ends.append(draw_line(axes, part, "step", "mean", style, METHOD_NAMES[method], num_marks=6))
    axes.set_xlim(0, last)
    axes.set_ylim(0, headroom * curves["high"].max() or 1)  # 0 throughout still needs an axis
    label_ends(axes, ends)
