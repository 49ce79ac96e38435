"""From stored rows (one per run and item) to estimates: loading, the rows of a setting, intervals and paired tests.

A setting is a run's name without its seed ("svlm-pure_dyme-luffy"). A study under way is incomplete: what has no rows is left
out, and every number says on how many seeds it rests. Nothing is drawn: the same rows give the same interval.
"""
from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import norm as normal
from scipy.stats import t as student

from dyme_core.config import METHODS
from dyme_core.utils import SUFFIX, read_rows, run_file
from study import plan

LEVEL = 0.95  # of every interval
# What tables and figures report, by column of the rows; where there is room for one measure it is the first.
MEASURES = {"right": "right answer and thinking", "strict": "answer alone"}
FIRST, SECOND = MEASURES
SMALLEST_P = 1e-12


class NoRows(ValueError):
    """What is asked for has not been measured (yet)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items with its 95 % interval, and what it rests on."""

    value: float
    low: float
    high: float
    num_seeds: int
    num_items: int


def load_rows(folder: Path, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Load the per-item rows of some runs (all that the folder holds, if none are named), in order of their names, with the
    columns of `derived`.

    Raises:
        FileNotFoundError: if the folder holds no rows, or none of a run that is named.
        ValueError: if a method is unknown, or a (run, split, item) occurs twice.
    """
    rows = _load(folder, runs)
    twice = rows.duplicated(["run", "split", "item"])
    if twice.any():
        raise ValueError(f"rows must hold one line per (run, split, item): {rows[twice].iloc[0]['run']!r} repeats "
                         f"{rows[twice].iloc[0]['item']!r}; delete its file in {folder} and evaluate again")
    return derived(rows)


def load_logs(folder: Path, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Load training logs like `load_rows`: rows with event "step" (one per optimisation step) and "eval"."""
    return _load(folder, runs)


def _load(folder: Path, runs: Iterable[str] | None) -> pd.DataFrame:
    files = sorted(Path(folder).glob(f"*{SUFFIX}") if runs is None else {run_file(Path(folder), run) for run in runs})
    if not files:
        raise FileNotFoundError(f"no <run>{SUFFIX} in {folder}; train and evaluate first (notebook 03)")
    frame = pd.DataFrame([row for file in files for row in read_rows(file)])
    unknown = sorted(set(frame["method"]) - set(METHODS))
    if unknown:
        raise ValueError(f"unknown methods {unknown} in {folder}; expected some of {METHODS}")
    return frame


def score_matrix(rows: pd.DataFrame, metric: str) -> np.ndarray:
    """Arrange one method's rows of one split as (seeds, items), both in sorted order.

    Raises:
        ValueError: if the seeds were not scored on the same items.
    """
    table = rows.pivot(index="seed", columns="item", values=metric).sort_index().sort_index(axis=1)
    if table.isna().any(axis=None):
        missing = table.index[table.isna().any(axis=1)].tolist()
        raise ValueError(f"every seed must have a {metric!r} for the same items: seeds {missing} lack some; "
                         "evaluate them again")
    return table.to_numpy(dtype=float)


def interval(scores: np.ndarray) -> Estimate:
    """The mean of one setting's scores, (seeds, items) in any unit, with its interval (`contrast`).

    Shares (all scores from 0 to 1) have bounds from 0 to 1.
    """
    found, scores = contrast([scores], [1]), np.asarray(scores, dtype=float)
    if scores.min() >= 0 and scores.max() <= 1:
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
    return found


def paired(first: np.ndarray, second: np.ndarray) -> Estimate:
    """The difference first - second of two methods on the same seeds and items; see `contrast`."""
    return contrast([first, second], [1, -1])


def contrast(scores: Sequence[np.ndarray], signs: Sequence[int]) -> Estimate:
    """A signed sum of several methods' means, with a 95 % interval for new seeds and new items.

    A seed stands for a base and its training questions, which the methods share, so that the sum is formed for each seed and
    item first. The variance of its mean has two parts, that of seeds and what items add to it (`variances`). With three to
    eight seeds the t distribution is needed for the first: half the interval is sqrt(t^2 var_seeds + z^2 var_items), which
    covers the truth in 94 to 98 of 100 simulated studies, a bootstrap of seeds and items of three in 86 to 98
    (docs/evaluation.md; Howe 1974, for two components of variance).

    Args:
        scores: matrices (seeds, items), seeds and items in the same order.
        signs: 1 or -1 for each matrix; [1, -1, -1, 1] is the difference between two differences.
    Raises:
        ValueError: if the matrices differ in shape.
    """
    table = _signed_sum(scores, signs)
    value, half = float(table.mean()), _half_width(table, 1 - LEVEL)
    return Estimate(value, value - half, value + half, *table.shape)


def p_value(scores: Sequence[np.ndarray], signs: Sequence[int]) -> float:
    """The two-sided p-value of "the signed sum is 0": what an interval that reaches 0 leaves out (arguments of `contrast`)."""
    table = _signed_sum(scores, signs)
    gap = abs(table.mean())
    if not gap or _half_width(table, SMALLEST_P) <= gap:
        return SMALLEST_P if gap else 1.0
    return float(brentq(lambda level: _half_width(table, level) - gap, SMALLEST_P, 1.0))


def _signed_sum(scores: Sequence[np.ndarray], signs: Sequence[int]) -> np.ndarray:
    scores = [np.atleast_2d(np.asarray(matrix, dtype=float)) for matrix in scores]
    if len({matrix.shape for matrix in scores}) > 1:
        raise ValueError(f"methods must share seeds and items: got {' and '.join(str(matrix.shape) for matrix in scores)}")
    return sum(sign * matrix for sign, matrix in zip(signs, scores, strict=True))


def _half_width(table: np.ndarray, level: float) -> float:
    """Half the interval of the mean of (seeds, items) that leaves out `level`."""
    of_seeds, of_items = variances(table)
    t = student.isf(level / 2, max(1, len(table) - 1))
    return float(np.sqrt(t ** 2 * of_seeds + normal.isf(level / 2) ** 2 * of_items))


def variances(table: np.ndarray) -> tuple[float, float]:
    """The variance of a table's mean by seeds (rows), and what items (columns) add to it, by analysis of variance.

    One seed: all is of the items. One item: all is of the seeds.
    """
    seeds, items = table.shape
    if seeds == 1:
        return 0.0, float(table.var(ddof=1) / items) if items > 1 else 0.0
    of_seeds = table.mean(axis=1).var(ddof=1) / seeds
    if items == 1:
        return float(of_seeds), 0.0
    rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    within = (rest ** 2).sum() / ((seeds - 1) * (items - 1))
    return float(of_seeds), max(0.0, float(table.mean(axis=0).var(ddof=1) / items - within / (seeds * items)))


def holm(values: Sequence[float]) -> list[float]:
    """P-values adjusted for many tests, as Holm (1979) does: the smallest times their number, the next times one less, ..."""
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1)) if len(values) else []
    found = np.empty(len(values))
    found[order] = np.minimum(adjusted, 1.0)
    return found.tolist()


def summarise(rows: pd.DataFrame, metric: str, by: Sequence[str] = ("model", "method", "split")) -> pd.DataFrame:
    """Estimate one metric for each group of rows.

    Returns:
        One line per group, sorted (methods in the order of METHODS): the columns of `by`, then `metric`, value, low,
        high, num_seeds, num_items.
    Raises:
        NoRows: if there are no rows.
        ValueError: if score_matrix refuses them.
    """
    if rows.empty:
        raise NoRows(f"no rows to summarise {metric!r} by {tuple(by)}; evaluate this model and split first")
    lines = [dict(zip(by, key, strict=True)) | {"metric": metric} | vars(interval(score_matrix(group, metric)))
             for key, group in rows.groupby(list(by), sort=True)]
    return pd.DataFrame(lines).sort_values(list(by), key=method_rank, kind="stable", ignore_index=True)


def method_rank(column: pd.Series) -> pd.Series:
    """Sort key: methods in the order of METHODS, everything else as it is."""
    return column.map(METHODS.index) if column.name == "method" else column


def setting_of(run: str) -> str:
    """The setting of a run, from its name."""
    return re.sub(r"-s\d+$", "", run)


def with_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows or logs with the column `setting`, from their column `run`."""
    return frame.assign(setting=frame["run"].map({run: setting_of(run) for run in frame["run"].unique()}))


def derived(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the measures that follow from their others, 0 or 1 each:

    right: right answer and right thinking, which the rule checker rates 1.
    pseudo: the trace is well-formed and states a wrong fact.
    follows: of the altered split: right on the chart as it was, and right again where one value changed and the answer with it.
    stays: of the altered split: the answer is what was said of the chart as it was, although the right one changed.
    """
    right = ((rows["correct"] == 1) & (rows["thinking"] == 1)).astype(int)
    rows = rows.assign(right=right, pseudo=((rows["has_format"] == 1) & (rows["wrong_facts"].str.len() > 0)).astype(int))
    is_altered = rows["split"] == "altered"
    before = rows[rows["split"] == "test"].set_index(["run", "item"])
    pairs = pd.MultiIndex.from_arrays([rows.loc[is_altered, "run"],
                                       rows.loc[is_altered, "item"].str.replace("altered", "test", n=1)])
    was_right, said = (before[name].reindex(pairs).to_numpy() for name in ("right", "answer"))
    own = rows[is_altered]
    rows.loc[is_altered, "follows"] = (own["right"] * was_right).to_numpy(dtype=float)
    rows.loc[is_altered, "stays"] = (own["answer"] == said).to_numpy(dtype=float)
    return rows


def rows_of(rows: pd.DataFrame, point: plan.Point, split: str) -> pd.DataFrame:
    """The rows of a point's runs on one split; empty where none has been made."""
    return rows[(rows["split"] == split) & rows["run"].isin([f"{point.setting}-s{seed}" for seed in point.seeds])]


def scores(rows: pd.DataFrame, points: Sequence[plan.Point], splits: Sequence[str] = ("test",), metric: str = FIRST,
           scale: float = 100.0) -> pd.DataFrame:
    """Estimate one metric for each point and split that has rows.

    Returns:
        One line per (point, split) in the order of `points`: experiment, label, method, model, setting, x (the point's value),
        split, metric, value, low, high (times `scale`), num_seeds, num_items.
    Raises:
        NoRows: if no point that its experiment adds to the main runs and to earlier experiments' has rows.
    """
    found = [(point, split, rows_of(rows, point, split)) for point, split in itertools.product(points, splits)]
    homes = plan.homes()
    added = {point.setting: point.experiment for point in points if point.variant and homes[point.setting] == point.experiment}
    if not any(point.setting in added and len(part) for point, _, part in found):
        raise NoRows(f"no run of {', '.join(dict.fromkeys(added.values()))} has been made")
    frame = pd.DataFrame([
        {"experiment": point.experiment, "label": point.label, "method": point.method, "model": point.model,
         "setting": point.setting, "x": point.value, "split": split, "metric": metric}
        | vars(interval(score_matrix(part, metric))) for point, split, part in found if len(part)])
    frame[["value", "low", "high"]] *= scale
    return frame


def shared(rows: pd.DataFrame, settings: Sequence[str], split: str) -> tuple[list[pd.DataFrame], list[int]]:
    """The rows of each setting (column `setting`) on one split, of the seeds that all of them have, and those seeds.

    Each seed has its own base, so settings are compared on the same seeds alone.
    """
    found = [rows[(rows["setting"] == setting) & (rows["split"] == split)] for setting in settings]
    seeds = sorted(set.intersection(*(set(part["seed"]) for part in found)))
    return [part[part["seed"].isin(seeds)] for part in found], seeds
