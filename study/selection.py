"""Rows of the study by its points: which runs a setting has, and what the points of an experiment scored.

A setting is a run's name without its seed ("svlm-pure_dyme-luffy"). A study under way is incomplete: what has no rows is left
out, and every number says on how many seeds it rests.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from study import plan, statistics
from study.statistics import NoRows

SEED = re.compile(r"-s\d+$")


def setting_of(point: plan.Point) -> str:
    """The part of a point's run names before the seed."""
    return SEED.sub("", point.runs()[0].name)


def with_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows or logs with the column `setting`, from their column `run`."""
    names = {run: SEED.sub("", run) for run in frame["run"].unique()}
    return frame.assign(setting=frame["run"].map(names))


def main_runs(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows or logs of the runs without a variant (all of them, where no run has one)."""
    return frame[frame["variant"].fillna("") == ""] if "variant" in frame else frame


def rows_of(rows: pd.DataFrame, point: plan.Point, split: str | None = None) -> pd.DataFrame:
    """The rows of a point's runs, of one split or of all; empty where none has been made."""
    found = rows[rows["run"].isin([run.name for run in point.runs()])]
    return found if split is None else found[found["split"] == split]


def points(experiment: str, methods: Sequence[str] | None = None) -> list[plan.Point]:
    """The points of one experiment, of some methods or of all."""
    return [point for point in plan.points(experiment) if methods is None or point.method in methods]


def need(rows: pd.DataFrame, chosen: Sequence[plan.Point]) -> None:
    """Raise NoRows unless one of the points, those that an experiment adds to the main runs, has rows."""
    if all(rows_of(rows, point).empty for point in chosen):
        raise NoRows(f"no run of {', '.join(dict.fromkeys(point.experiment for point in chosen))} has been made")


def scores(rows: pd.DataFrame, chosen: Sequence[plan.Point], splits: Sequence[str] = ("test",), metric: str = "correct",
           scale: float = 100.0, seed: int = 0) -> pd.DataFrame:
    """Estimate one metric for each point and split that has rows.

    Returns:
        One line per (point, split) in the order of `chosen`: experiment, label, method, model, setting, x (the point's value),
        split, metric, value, low, high (times `scale`), num_seeds, num_items.
    Raises:
        NoRows: if no point has rows.
    """
    lines = []
    for point in chosen:
        for split in splits:
            part = rows_of(rows, point, split)
            if len(part):
                estimate = statistics.bootstrap(statistics.score_matrix(part, metric), seed)
                lines.append({"experiment": point.experiment, "label": point.label, "method": point.method,
                              "model": point.model, "setting": setting_of(point), "x": point.value, "split": split,
                              "metric": metric, "value": scale * estimate.value, "low": scale * estimate.low,
                              "high": scale * estimate.high, "num_seeds": estimate.num_seeds, "num_items": estimate.num_items})
    if not lines:
        raise NoRows(f"no rows of {', '.join(dict.fromkeys(point.experiment for point in chosen)) or 'any point'} on {splits}")
    return pd.DataFrame(lines)


def shared(rows: pd.DataFrame, settings: Sequence[str], split: str) -> tuple[list[pd.DataFrame], list[int]]:
    """The rows of each setting on one split, of the seeds that all of them have, and those seeds.

    Each seed has its own base, so settings are compared on the same seeds alone.
    """
    found = [rows[(rows["setting"] == setting) & (rows["split"] == split)] for setting in settings]
    seeds = sorted(set.intersection(*(set(part["seed"]) for part in found)))
    return [part[part["seed"].isin(seeds)] for part in found], seeds


def seeds_sentence(frame: pd.DataFrame) -> str:
    """Say on how many seeds the numbers of a figure rest (column num_seeds)."""
    low, high = int(frame["num_seeds"].min()), int(frame["num_seeds"].max())
    if low == high == 1:
        return " One seed: the spread between training runs is not shown."
    return f" Seeds: {low}." if low == high else f" Seeds: {low} to {high}, by point."
