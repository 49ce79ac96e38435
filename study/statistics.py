"""From stored rows (one per run and item) to estimates: loading, the rows of a setting, intervals and paired tests.

A setting is a run's name without its seed ("svlm-pure_dyme-luffy"). A study under way is incomplete: what has no rows is left
out, and every number says on how many seeds it rests. Every bootstrap takes `seed=` and draws from its own numpy generator:
the same rows give the same interval, whatever else is computed beside it.
"""
from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dyme_core.config import METHODS
from dyme_core.utils import SUFFIX, read_rows, run_file
from study import plan

LEVEL = 0.95  # of every interval
RESAMPLES = 2000


class NoRows(ValueError):
    """What is asked for has not been measured (yet)."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % bootstrap interval, and what it rests on."""

    value: float
    low: float
    high: float
    num_seeds: int
    num_items: int


def load_rows(folder: Path, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """Load the per-item rows of some runs (all that the folder holds, if none are named), in order of their names.

    Raises:
        FileNotFoundError: if the folder holds no rows, or none of a run that is named.
        ValueError: if a method is unknown, or a (run, split, item) occurs twice.
    """
    rows = _load(folder, runs)
    twice = rows.duplicated(["run", "split", "item"])
    if twice.any():
        raise ValueError(f"rows must hold one line per (run, split, item): {rows[twice].iloc[0]['run']!r} repeats "
                         f"{rows[twice].iloc[0]['item']!r}; delete its file in {folder} and evaluate again")
    return rows


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


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: floor(n / 4) values are cut at each end (n < 4: the plain mean)."""
    values = np.sort(np.asarray(values, dtype=float), axis=-1)
    cut = values.shape[-1] // 4
    return values[..., cut: values.shape[-1] - cut].mean(axis=-1)


def bootstrap(scores: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the interquartile mean over seeds, resampling seeds and items together (one seed: items only).

    Args:
        scores: (seeds, items), any unit; all seeds share their items.
        seed: of the generator.
        resamples: number of bootstrap resamples.
    """
    return contrast([scores], [1], seed, resamples)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the difference first - second of two methods on the same items; see `contrast`."""
    return contrast([first, second], [1, -1], seed, resamples)


def contrast(scores: Sequence[np.ndarray], signs: Sequence[int], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate a signed sum of several methods' scores on the same items.

    Items are drawn once for all, and so are seeds where all have as many: a seed stands for a base and its training
    questions, which the methods share. Otherwise seeds are drawn for each method by itself.

    Args:
        scores: matrices (seeds, items), seeds and items in the same order; the numbers of seeds may differ.
        signs: 1 or -1 for each matrix; [1, -1, -1, 1] is the difference between two differences.
    Raises:
        ValueError: if the numbers of items differ.
    """
    scores = [np.atleast_2d(matrix) for matrix in scores]
    if len({matrix.shape[1] for matrix in scores}) > 1:
        raise ValueError(f"paired methods must share their items: got {' and '.join(str(m.shape[1]) for m in scores)}")
    counts, generator = _drawn_items(scores[0].shape[1], seed, resamples)
    means = counts @ np.concatenate(scores).T / scores[0].shape[1]  # (resamples, all seeds)
    parts = np.split(means, np.cumsum([len(matrix) for matrix in scores])[:-1], axis=1)
    shapes, drawn = {part.shape for part in parts}, None
    values = np.zeros(resamples)
    for sign, part in zip(signs, parts, strict=True):
        if drawn is None or len(shapes) > 1:
            drawn = generator.integers(part.shape[1], size=part.shape)
        values += sign * interquartile_mean(np.take_along_axis(part, drawn, axis=1))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    value = sum(sign * interquartile_mean(matrix.mean(axis=1)) for sign, matrix in zip(signs, scores, strict=True))
    return Estimate(float(value), float(low), float(high), *min(scores, key=len).shape)


@lru_cache(maxsize=32)
def _item_counts(items: int, seed: int, resamples: int) -> tuple[np.ndarray, Mapping[str, Any]]:
    """How often each resample draws each item, and the generator's state then: one draw serves all tests on as many items."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(float)
    return counts, generator.bit_generator.state


def _drawn_items(items: int, seed: int, resamples: int) -> tuple[np.ndarray, np.random.Generator]:
    counts, state = _item_counts(items, seed, resamples)
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return counts, generator


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Give the two-sided exact p-value of McNemar's test for two runs on the same items.

    Args:
        first, second: (items,) 0/1 or booleans.
    Returns:
        p in (0, 1]; 1.0 where the two never differ.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    first_only, second_only = int((first & ~second).sum()), int((~first & second).sum())
    if first_only + second_only == 0:
        return 1.0
    return float(binomtest(first_only, first_only + second_only, 0.5).pvalue)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> float:
    """Share of pairs of runs in which the first method beats the second; a tie counts half.

    Args:
        first, second: (seeds,) one score per run; the numbers of seeds may differ.
    """
    gaps = np.asarray(first, dtype=float)[:, None] - np.asarray(second, dtype=float)[None, :]
    return float((np.sign(gaps) / 2 + 0.5).mean())


def summarise(rows: pd.DataFrame, metric: str, by: Sequence[str] = ("model", "method", "split")) -> pd.DataFrame:
    """Bootstrap one metric for each group of rows.

    Returns:
        One line per group, sorted (methods in the order of METHODS): the columns of `by`, then `metric`, value, low,
        high, num_seeds, num_items.
    Raises:
        NoRows: if there are no rows.
        ValueError: if score_matrix refuses them.
    """
    if rows.empty:
        raise NoRows(f"no rows to summarise {metric!r} by {tuple(by)}; evaluate this model and split first")
    lines = [dict(zip(by, key, strict=True)) | {"metric": metric} | vars(bootstrap(score_matrix(group, metric)))
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


def has_pseudo_thinking(rows: pd.DataFrame) -> pd.Series:
    """1 for each row whose trace is well-formed and states a wrong fact, else 0."""
    return ((rows["has_format"] == 1) & (rows["wrong_facts"].str.len() > 0)).astype(int)


def rows_of(rows: pd.DataFrame, point: plan.Point, split: str) -> pd.DataFrame:
    """The rows of a point's runs on one split; empty where none has been made."""
    return rows[(rows["split"] == split) & rows["run"].isin([f"{point.setting}-s{seed}" for seed in point.seeds])]


def scores(rows: pd.DataFrame, points: Sequence[plan.Point], splits: Sequence[str] = ("test",), metric: str = "correct",
           scale: float = 100.0) -> pd.DataFrame:
    """Estimate one metric for each point and split that has rows.

    Returns:
        One line per (point, split) in the order of `points`: experiment, label, method, model, setting, x (the point's value),
        split, metric, value, low, high (times `scale`), num_seeds, num_items.
    Raises:
        NoRows: if no point that its experiment adds to the main runs (one with a variant) has rows.
    """
    found = [(point, split, rows_of(rows, point, split)) for point, split in itertools.product(points, splits)]
    if not any(point.variant and len(part) for point, _, part in found):
        raise NoRows(f"no run of {', '.join(dict.fromkeys(point.experiment for point in points))} has been made")
    frame = pd.DataFrame([
        {"experiment": point.experiment, "label": point.label, "method": point.method, "model": point.model,
         "setting": point.setting, "x": point.value, "split": split, "metric": metric}
        | vars(bootstrap(score_matrix(part, metric))) for point, split, part in found if len(part)])
    frame[["value", "low", "high"]] *= scale
    return frame


def shared(rows: pd.DataFrame, settings: Sequence[str], split: str) -> tuple[list[pd.DataFrame], list[int]]:
    """The rows of each setting (column `setting`) on one split, of the seeds that all of them have, and those seeds.

    Each seed has its own base, so settings are compared on the same seeds alone.
    """
    found = [rows[(rows["setting"] == setting) & (rows["split"] == split)] for setting in settings]
    seeds = sorted(set.intersection(*(set(part["seed"]) for part in found)))
    return [part[part["seed"].isin(seeds)] for part in found], seeds
