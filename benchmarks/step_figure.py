"""The figure of `step_cost`: where a step's seconds go, and its ratio to TRL's GRPO step along five numbers."""
from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from arms import FULL, NO_ENGINE, PHASES, WITH_ENGINE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from study.figures.theme import GREY, PAGE, PALETTE, SMALL, finish, panels, save_figure, themed

CURVES = {  # section: the column on the x axis, its label
    "all_wrong": ("all_wrong", "groups all wrong (%)"), "generations": ("generations", "rollouts a prompt (G)"),
    "model": ("millions", "parameters (millions)"), "image_tokens": ("image_tokens", "image tokens"),
    "tokens": ("tokens", "tokens a rollout")}
COLORS = dict(zip(PHASES, (PALETTE[0], PALETTE[8], PALETTE[4], PALETTE[2], PALETTE[1]), strict=True))
STYLES = {WITH_ENGINE.name: (PALETTE[2], "D", (0, (5, 1.2, 1, 1.2))), NO_ENGINE.name: (PALETTE[3], "o", (0, (4, 1.5))),
          FULL.name: (PALETTE[0], "s", "solid")}
BARS = "side == 4 and tokens == 96"  # the shape of "headline" whose phases are shown
CAPTION = ("What a step costs on one CPU thread, all in one process by turns, same rollouts. Left above: median seconds by "
           "phase, rollouts of 96 tokens, half of the groups all wrong. Else: the median ratio to a step of TRL's GRPO in the "
           "same round, bars: quartiles. Rewards are scripted, weights are fresh. Tokens a rollout: 96 (all wrong), 48 (G, "
           "image tokens), 16 (parameters, 2 prompts x 4).")


def draw(folder: Path) -> Path:
    """Draw from the JSON files of `step_cost`; returns the PNG's path."""
    lines = {name: json.loads((folder / f"{name}.json").read_text())["lines"] for name in ("headline", *CURVES)}
    return save_figure(_figure(lines), "step_cost", folder)["png"]


@themed()
def _figure(lines: dict[str, list[dict]]) -> Figure:
    frames = {name: pd.DataFrame(found) for name, found in lines.items()}
    figure, axes = panels(2, 3, PAGE, 3.9)
    places = [place for row in axes for place in row]
    _bars(places[0], frames["headline"].query(BARS).reset_index(drop=True))
    for place, (section, (column, label)) in zip(places[1:], CURVES.items(), strict=True):
        _curve(place, frames[section], column, label)
    places[1].legend(loc="upper left", frameon=False, fontsize=SMALL)
    frame = pd.concat([frame.assign(section=name) for name, frame in frames.items()])
    return finish(figure, frame.drop(columns="savings"), CAPTION)


def _bars(axes: Axes, frame: pd.DataFrame) -> None:
    left = pd.Series(0.0, frame.index)
    for phase in PHASES:
        label = phase if (frame[phase] > 0.01 * frame["seconds"]).any() else None  # the others cannot be seen
        axes.barh(frame.index, frame[phase], left=left, color=COLORS[phase], height=0.7, label=label)
        left = left + frame[phase]
    axes.set(yticks=range(len(frame)), yticklabels=frame["arm"], ylim=(len(frame) - 0.4, -0.6), xlabel="seconds a step",
             xlim=(0, 2 * left.max()))
    axes.grid(axis="y", visible=False)
    axes.legend(loc="center right", frameon=False, fontsize=SMALL, handlelength=1, borderaxespad=0.1)


def _curve(axes: Axes, frame: pd.DataFrame, name: str, label: str) -> None:
    values = list(dict.fromkeys(frame[name]))
    is_log = name != "all_wrong"
    x = {value: value if is_log else 100 * value for value in values}
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (1, 1.5)))
    for arm, (color, marker, line) in STYLES.items():
        own = frame[frame["arm"] == arm]
        places = own[name].map(x)
        spread = [own["ratio"] - own["ratio_low"], own["ratio_high"] - own["ratio"]]
        axes.errorbar(places, own["ratio"], yerr=spread, color=color, marker=marker, linestyle=line, label=arm, elinewidth=0.8)
    if is_log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(list(x.values())))
    axes.set_xticklabels([f"{place:g}" for place in x.values()])
    axes.set(xlabel=label, ylabel="step / GRPO step", ylim=(0, 1.6))
