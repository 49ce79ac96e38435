"""Tables of settings: ablation, switches, and the grid from which learning rate, warm-up and switch values were chosen."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from dyme_core import config
from dyme_core.config import METHOD_NAMES
from study import plan, selection, statistics

# Paper, LLaVA-OV-0.5B on charts (docs/method.md; second-hand): correct in % by switch. Reported, never measured here.
REPORTED_SWITCHES = {"DyME (binary)": 64.9, "HPT gate": 52.4, "SFT budget": 59.6, "Cosine annealing": 64.0}
# Paper, average of its data sets (docs/method.md; second-hand). Reported.
REPORTED_ABLATION = {"Full DyME": 55.4, "without memorize": 43.9, "without explore": 50.4, "without refiner": 51.6,
                     "without checker": 52.8}


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Full DyME and its ablations: correct on both test sets, the difference to Full DyME, and the paper's averages."""
    return _against(rows, "ablation", "Full DyME", REPORTED_ABLATION)


def switch_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The switches: correct on both test sets, the difference to the paper's binary switch, and the paper's numbers."""
    return _against(rows, "switch", plan.SWITCH_NAMES["binary"], REPORTED_SWITCHES)


def _against(rows: pd.DataFrame, experiment: str, reference: str, reported: Mapping[str, float]) -> pd.DataFrame:
    """One line per point that has rows; differences are on the seeds that both settings have, in points.

    Raises:
        NoRows: if the experiment adds nothing to the main runs yet.
    """
    chosen = selection.points(experiment)
    selection.need(rows, [point for point in chosen if point.variant])
    rows, (base,) = selection.with_setting(rows), [point for point in chosen if point.label == reference]
    scores = selection.scores(rows, chosen, ("test", "unseen"))
    grounded = selection.scores(rows, chosen, metric="groundedness").set_index("setting")["value"]
    lines = []
    for point in chosen:
        setting = selection.setting_of(point)
        own = scores[scores["setting"] == setting].set_index("split")
        if own.empty:
            continue
        line = {"Setting": point.label, "Seeds": own["num_seeds"].max(), "Items": own["num_items"].max()}
        for split, name in (("test", "Test (%)"), ("unseen", "Unseen (%)")):
            line |= {f"{name}{suffix}": own[column].get(split) for suffix, column in
                     (("", "value"), (" low", "low"), (" high", "high"))}
        line |= _difference(rows, setting, selection.setting_of(base))
        lines.append(line | {"Groundedness (%)": grounded.get(setting), "Reported (%)": reported.get(point.label)})
    return pd.DataFrame(lines).astype({"Reported (%)": float})


def _difference(rows: pd.DataFrame, setting: str, base: str) -> dict[str, float | None]:
    name = "Difference on test (% points)"
    parts, seeds = selection.shared(rows, (setting, base), "test")
    if setting == base or not seeds:
        return dict.fromkeys((name, f"{name} low", f"{name} high"))
    estimate = statistics.paired_bootstrap(*(statistics.score_matrix(part, "correct") for part in parts))
    return {name: 100 * estimate.value, f"{name} low": 100 * estimate.low, f"{name} high": 100 * estimate.high}


def tuning_table(rows: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The grids on validation: learning rate x warm-up of every method, learning rate x own number of every switch.

    Returns:
        One line per point that has rows, the best of its grid (of those with most seeds) marked "best", what the profile
        uses "used".
    """
    chosen = selection.points("tuning") + selection.points("switch_tuning")
    scores = selection.scores(rows, chosen, ("validation",)).set_index("setting")
    steps = {manifest["run"]: manifest["steps"] for manifest in manifests}
    lines = []
    for point in chosen:
        setting = selection.setting_of(point)
        if setting in scores.index:
            (run, *_), score = point.runs(), scores.loc[setting]
            profile = run.profile
            grid = METHOD_NAMES[point.method] if point.experiment == "tuning" else f"Pure DyME, {point.label}"
            lines.append({"Grid": grid, "Learning rate": f"{profile.learning_rates[point.method]:g}",
                          "Warm-up (steps)": profile.warmup_steps[point.method],
                          "Switch value": _switch_value(point),
                          "Steps": steps.get(run.name), "Seeds": score["num_seeds"], "Items": score["num_items"],
                          "Validation (%)": score["value"], "Validation (%) low": score["low"],
                          "Validation (%) high": score["high"], "is_used": _is_used(point)})
    table = pd.DataFrame(lines)
    final = table["Validation (%)"].where(table["Seeds"] == table.groupby("Grid")["Seeds"].transform("max"))
    best = final == final.groupby(table["Grid"]).transform("max")  # among those that all seeds have judged
    used = table.pop("is_used")
    table["Chosen"] = [", ".join(word for word, holds in (("best", is_best), ("used", is_used)) if holds) or None
                       for is_best, is_used in zip(best, used, strict=True)]
    return table.astype({"Steps": "Int64"})


def _switch_value(point: plan.Point) -> str | None:
    return None if point.experiment == "tuning" or point.value is None else f"{point.value:g}"


def _is_used(point: plan.Point) -> bool:
    """Whether the study's other runs have this point's settings."""
    if point.experiment == "switch_tuning":
        return plan.CHOSEN_SWITCHES[point.settings["training.switch"]] == (
            point.value, point.settings["learning_rates.pure_dyme"])
    profile, (run, *_) = config.load_profile(plan.PROFILE), point.runs()
    return all(getattr(run.profile, name)[point.method] == getattr(profile, name)[point.method]
               for name in ("learning_rates", "warmup_steps"))
