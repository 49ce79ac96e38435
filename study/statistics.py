"""Aggregates, intervals and paired tests over the stored rows (one JSONL row per run and item).

Every bootstrap takes `seed=` and draws from its own numpy generator: the same rows give the same interval, whatever
else is computed beside it.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dyme_core.config import METHODS
from dyme_core.store import SUFFIX, read_rows, run_file

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
    scores = np.atleast_2d(scores)
    means, generator = _resample_items(scores, seed, resamples)
    values = _resample_seeds(means, generator)
    return _estimate(interquartile_mean(scores.mean(axis=1)), values, scores)


def paired_bootstrap(first: np.ndarray, second: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate the difference first - second of two methods on the same items.

    Items are drawn once for both, and so are seeds where both have as many: a seed stands for a base and its training
    questions, which the methods share. Otherwise seeds are drawn for each method by itself.

    Args:
        first, second: (seeds, items), seeds and items in the same order; the numbers of seeds may differ.
    Raises:
        ValueError: if the numbers of items differ.
    """
    return contrast([first, second], [1, -1], seed, resamples)


def contrast(scores: Sequence[np.ndarray], signs: Sequence[int], seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Estimate a signed sum of several methods' scores on the same items, as `paired_bootstrap` does for two.

    Args:
        scores: matrices (seeds, items), seeds and items in the same order; the numbers of seeds may differ.
        signs: 1 or -1 for each matrix; [1, -1, -1, 1] is the difference between two differences.
    Raises:
        ValueError: if the numbers of items differ.
    """
    scores = [np.atleast_2d(matrix) for matrix in scores]
    if len({matrix.shape[1] for matrix in scores}) > 1:
        raise ValueError(f"paired methods must share their items: got {' and '.join(str(m.shape[1]) for m in scores)}")
    means, generator = _resample_items(np.concatenate(scores), seed, resamples)
    parts = np.split(means, np.cumsum([len(matrix) for matrix in scores])[:-1], axis=1)
    if len({part.shape[1] for part in parts}) == 1:
        drawn = generator.integers(parts[0].shape[1], size=parts[0].shape)
        parts = [np.take_along_axis(part, drawn, axis=1) for part in parts]
        values = sum(sign * interquartile_mean(part) for sign, part in zip(signs, parts, strict=True))
    else:
        values = sum(sign * _resample_seeds(part, generator) for sign, part in zip(signs, parts, strict=True))
    value = sum(sign * interquartile_mean(matrix.mean(axis=1)) for sign, matrix in zip(signs, scores, strict=True))
    return _estimate(value, values, min(scores, key=len))


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


def summarise(rows: pd.DataFrame, metric: str, by: Sequence[str] = ("model", "method", "split"),
              seed: int = 0) -> pd.DataFrame:
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
    lines = [dict(zip(by, key, strict=True)) | {"metric": metric} | vars(bootstrap(score_matrix(group, metric), seed))
             for key, group in rows.groupby(list(by), sort=True)]
    return pd.DataFrame(lines).sort_values(list(by), key=method_rank, kind="stable", ignore_index=True)


def compare(rows: pd.DataFrame, first: str, second: str, metric: str = "correct", seed: int = 0) -> dict[str, float]:
    """Compare two methods on the same items of one model and split, as a claim in prose needs it.

    Returns:
        difference, low, high (in the metric's unit), mcnemar_p (of the first seed of each; metric must be 0/1) and
        probability_of_improvement over seeds.
    """
    matrices = [score_matrix(rows[rows["method"] == method], metric) for method in (first, second)]
    estimate = paired_bootstrap(*matrices, seed=seed)
    return {"difference": estimate.value, "low": estimate.low, "high": estimate.high,
            "mcnemar_p": mcnemar(matrices[0][0], matrices[1][0]),
            "probability_of_improvement": probability_of_improvement(*(matrix.mean(axis=1) for matrix in matrices))}


def method_rank(column: pd.Series) -> pd.Series:
    """Sort key: methods in the order of METHODS, everything else as it is."""
    return column.map(METHODS.index) if column.name == "method" else column


def _resample_items(scores: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, np.random.Generator]:
    """(seeds, items) -> (resamples, seeds): each seed's mean over one shared draw of the items; and the generator after it."""
    counts, state = _item_counts(scores.shape[1], seed, resamples)
    generator = np.random.default_rng()
    generator.bit_generator.state = state
    return counts @ scores.T / scores.shape[1], generator


@lru_cache(maxsize=32)
def _item_counts(items: int, seed: int, resamples: int) -> tuple[np.ndarray, Mapping[str, Any]]:
    """How often each resample draws each item, and the generator's state then: one draw serves all tests on as many items."""
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(items, np.full(items, 1 / items), size=resamples).astype(float)
    return counts, generator.bit_generator.state


def _resample_seeds(means: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(resamples, seeds) -> (resamples,): interquartile mean over a draw of the seeds."""
    drawn = generator.integers(means.shape[1], size=means.shape)
    return interquartile_mean(np.take_along_axis(means, drawn, axis=1))


def _estimate(value: float, values: np.ndarray, scores: np.ndarray) -> Estimate:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(value), float(low), float(high), *scores.shape)
