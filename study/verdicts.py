"""From stored rows to a verdict: every claim is a difference, turned so that above 0 is what is claimed.

The verdict follows from the difference's 95 % bootstrap interval alone (`judge`); McNemar's test and the probability of
improvement stand beside it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from study import plan, selection, statistics
from study.figures.plots import BOUNDS
from study.statistics import Estimate, NoRows

MIN_SEEDS = 3  # fewer cannot show the spread between training runs
REPRODUCED, NOT_REPRODUCED, NOISE = "reproduced", "not reproduced here", "inside the noise"
NOT_TESTABLE, NOT_MEASURED = "not testable here", "not measured yet"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, NOISE, NOT_TESTABLE, NOT_MEASURED)
LAST_EVALUATIONS = 3  # over which a run's restlessness is measured
METRICS = {"correct": "correct", "strict": "answers alone, right or wrong thinking", "groundedness": "groundedness",
           "pseudo": "well-formed traces with a wrong fact"}


@dataclass(frozen=True)
class Measured:
    """What one claim came to, in words, and the verdict."""

    verdict: str
    measured: str = ""
    tests: str = ""
    rests_on: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything a claim may look at: what `statistics.load_rows` and `load_logs` give, manifests, notebook 01's gradients."""

    stored_rows: pd.DataFrame
    stored_logs: pd.DataFrame
    manifests: Sequence[Mapping[str, Any]] = ()
    gradients: pd.DataFrame | None = None  # columns dtype, relative_error

    @cached_property
    def rows(self) -> pd.DataFrame:
        rows = selection.with_setting(self.stored_rows)
        return rows.assign(pseudo=((rows["has_format"] == 1) & (rows["wrong_facts"].str.len() > 0)).astype(int))

    @cached_property
    def logs(self) -> pd.DataFrame:
        cpu_s = {made["run"]: made["cpu_s"] / made["steps"] for made in self.manifests if made.get("steps")}
        logs = selection.with_setting(self.stored_logs)
        return logs.assign(cpu_s=logs["run"].map(cpu_s))


def judge(estimate: Estimate) -> str:
    """The verdict of a difference whose positive side is the claim."""
    if estimate.low > 0:
        return REPRODUCED
    return NOT_REPRODUCED if estimate.high < 0 else NOISE


def items(evidence: Evidence, first: str, second: str, metric: str = "correct", split: str = "test",
          kinds: Sequence[str] = ()) -> Measured:
    """Compare two settings on the same items (of some kinds of question, or all) and seeds: `first` above `second` is the
    claim."""
    rows, where = evidence.rows, f"{split}, {' and '.join(kinds)}" if kinds else split
    parts, seeds = _enough(rows[rows["kind"].isin(kinds)] if kinds else rows, (first, second), split)
    matrices = [statistics.score_matrix(part, metric) for part in parts]
    estimate = statistics.paired_bootstrap(*matrices)
    sides = [100 * statistics.interquartile_mean(matrix.mean(axis=1)) for matrix in matrices]
    tests = f"P(improvement) {statistics.probability_of_improvement(*(matrix.mean(axis=1) for matrix in matrices)):.2f}"
    if metric != "groundedness":
        tests = f"McNemar p = {statistics.mcnemar(matrices[0][0], matrices[1][0]):.2g} (seed {seeds[0]}); {tests}"
    return Measured(judge(estimate), f"{_interval(estimate, 100, 'points')}: {sides[0]:.1f} against {sides[1]:.1f} % "
                    f"({METRICS[metric]}, {where})", tests, _basis((first, second), seeds, f"{estimate.num_items} items"))


def gains(evidence: Evidence, first: tuple[str, str], second: tuple[str, str], metric: str = "strict") -> Measured:
    """Compare two gains, each (after, before), on the same test items: a larger first gain is the claim."""
    parts, seeds = _enough(evidence.rows, (*first, *second), "test")
    matrices = [statistics.score_matrix(part, metric) for part in parts]
    estimate = statistics.contrast(matrices, [1, -1, -1, 1])
    means = [100 * statistics.interquartile_mean(matrix.mean(axis=1)) for matrix in matrices]
    text = (f"{_interval(estimate, 100, 'points')}: gains of {means[0] - means[1]:+.1f} and {means[2] - means[3]:+.1f} points "
            f"({METRICS[metric]}, test)")
    return Measured(judge(estimate), text, "–", _basis((*first, *second), seeds, f"{estimate.num_items} items"))


def runs(evidence: Evidence, first: str, second: str | float, measure: Callable[[pd.DataFrame], pd.Series], unit: str,
         what: str, sign: int = 1) -> Measured:
    """Compare a number per run of two settings, seed by seed, or of one setting with a level: `first` above is the claim.

    Args:
        measure: the logs of one setting to a number per seed (index seed); rows that lack it give NaN.
        unit: of the number; what: the number's name.
        sign: -1 where `first` below `second` is the claim.
    """
    own = _series(evidence.logs, first, measure)
    other = _series(evidence.logs, second, measure) if isinstance(second, str) else pd.Series(second, own.index, dtype=float)
    seeds = sorted(set(own.index) & set(other.index))
    settings = (first, second) if isinstance(second, str) else (first,)
    if len(seeds) < MIN_SEEDS:
        raise _too_few(settings, seeds)
    own, other = own[seeds], other[seeds]
    estimate = statistics.bootstrap(sign * (own - other).to_numpy()[:, None])
    sides = f"{statistics.interquartile_mean(own):.2f} against {statistics.interquartile_mean(other):.2f} {unit} ({what})"
    tests = f"P(improvement) {statistics.probability_of_improvement(sign * own.to_numpy(), sign * other.to_numpy()):.2f}"
    return Measured(judge(estimate), f"{_interval(estimate, 1, unit, 2)}: {sides}", tests, _basis(settings, seeds, "logs"))


def gradient_form(evidence: Evidence) -> Measured:
    """Notebook 01's relative errors against their bounds: all below is "reproduced"."""
    if evidence.gradients is None:
        raise NoRows("notebook 01 has not run")
    worst = evidence.gradients.groupby("dtype")["relative_error"].max()
    is_equal = all(worst[dtype] < bound for dtype, bound in BOUNDS.items())
    text = ", ".join(f"{worst[dtype]:.1e} in {dtype} (bound {bound:.0e})" for dtype, bound in BOUNDS.items())
    return Measured(REPRODUCED if is_equal else NOT_REPRODUCED, f"largest relative error {text}", "–",
                    f"notebook 01, {evidence.gradients['group'].nunique()} groups of parameters")


def zero_variance(logs: pd.DataFrame) -> pd.Series:
    """Share of groups in which all rewards are equal, in per cent, mean over the run."""
    return 100 * _steps(logs).groupby("seed")["zero_variance"].mean()


def step_seconds(logs: pd.DataFrame) -> pd.Series:
    """CPU seconds a step, mean over the run, evaluations left out; other work on the machine tells less in them."""
    return _steps(logs).groupby("seed")["cpu_s"].first()


def memorize_drift(logs: pd.DataFrame) -> pd.Series:
    """Share of memorize groups in the first quarter of the steps less that in the last, in points."""
    steps = _steps(logs)
    share = 100 * steps["memorize"] / (steps["memorize"] + steps["explore"] + steps["mastered"])
    place = steps["step"] / steps.groupby("seed")["step"].transform("max")
    return share[place <= 0.25].groupby(steps["seed"]).mean() - share[place > 0.75].groupby(steps["seed"]).mean()


def restlessness(logs: pd.DataFrame) -> pd.Series:
    """Standard deviation of a run's last evaluations on validation, in points."""
    return 100 * _evaluations(logs).groupby("seed")["correct"].apply(lambda values: values.iloc[-LAST_EVALUATIONS:].std())


def drop_from_best(logs: pd.DataFrame) -> pd.Series:
    """A run's best evaluation on validation less its last, in points."""
    return 100 * _evaluations(logs).groupby("seed")["correct"].apply(lambda values: values.max() - values.iloc[-1])


def distance_between_seeds(logs: pd.DataFrame) -> pd.Series:
    """How far a run's last evaluation lies from the median of the seeds, in points."""
    last = 100 * _evaluations(logs).groupby("seed")["correct"].last()
    return (last - last.median()).abs()


def _steps(logs: pd.DataFrame) -> pd.DataFrame:
    return logs[logs["event"] == "step"]


def _evaluations(logs: pd.DataFrame) -> pd.DataFrame:
    return logs[logs["event"] == "eval"].sort_values("step", kind="stable")


def _series(logs: pd.DataFrame, setting: str, measure: Callable[[pd.DataFrame], pd.Series]) -> pd.Series:
    part = logs[logs["setting"] == setting]
    return measure(part).dropna().sort_index() if len(part) else pd.Series(dtype=float)


def _enough(rows: pd.DataFrame, settings: Sequence[str], split: str) -> tuple[list[pd.DataFrame], list[int]]:
    parts, seeds = selection.shared(rows, settings, split)
    if len(seeds) < MIN_SEEDS:
        raise _too_few(settings, seeds)
    return parts, seeds


def _too_few(settings: Sequence[str], seeds: Sequence[int]) -> NoRows:
    return NoRows(f"{len(seeds)} of {MIN_SEEDS} seeds so far of {', '.join(dict.fromkeys(settings))}")


def _interval(estimate: Estimate, scale: float, unit: str, digits: int = 1) -> str:
    value, low, high = (f"{round(scale * number, digits) + 0:+.{digits}f}" for number in
                        (estimate.value, estimate.low, estimate.high))  # + 0 turns -0.0 into 0.0
    return f"{value} [{low}, {high}] {unit}"


def _basis(settings: Iterable[str], seeds: Sequence[int], what: str) -> str:
    """Experiments (of the plan), settings and seeds."""
    experiments = {selection.setting_of(point): point.experiment for point in reversed(plan.points())}
    named = list(dict.fromkeys(settings))
    found = list(dict.fromkeys(experiments[setting] for setting in named))
    return f"{', '.join(found)}: {', '.join(named)}; seeds {', '.join(map(str, seeds))}; {what}"
