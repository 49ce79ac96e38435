"""One line per run, from the manifests: settings, machine, commit, base, duration and scores."""
from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from dyme_core import config
from dyme_core.utils import read_json, write_atomic
from study import plan

COLUMNS = ("run", "experiments", "method", "model", "variant", "seed", "commit", "dirty", "results_version", "hardware",
           "started", "train_s", "cpu_s", "tokens", "rollouts", "steps", "learning_rate", "warmup_steps", "base",
           *config.HELD_OUT)


def read_manifests(paths: config.Paths) -> list[dict[str, Any]]:
    """The manifests of all runs of a profile, in order of their names."""
    return [read_json(path) for path in sorted(paths.manifests.glob("*.json"))]


def write_registry(paths: config.Paths, target: Path | None = None) -> None:
    """Write registry.csv (or `target`) from the manifests. The last columns are shares of well-formed correct answers."""
    experiments = experiments_by_run(paths.profile) if paths.profile in (plan.PROFILE, *plan.WORLDS) else {}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_line(manifest, experiments) for manifest in read_manifests(paths))
    write_atomic(target or paths.results / "registry.csv", text.getvalue())


def experiments_by_run(profile: str = "") -> dict[str, list[str]]:
    """The experiments of the plan (of a profile's own, where it has one) that use a run, by its name."""
    found: dict[str, list[str]] = {}
    for point in plan.points(profile=profile):
        for run in point.runs():
            found.setdefault(run.name, []).append(point.experiment)
    return found


def _line(manifest: dict[str, Any], experiments: dict[str, list[str]]) -> dict[str, Any]:
    settings = manifest["settings"]
    rates, names = settings["learning_rate"], experiments.get(manifest["run"], [])
    results = {split: scores["correct"] for split, scores in manifest.get("results", {}).items()}
    computed = {"experiments": " ".join(dict.fromkeys(names)), "hardware": manifest["cpu"], **results,
                "results_version": manifest.get("results_version", 1),
                "learning_rate": " ".join(f"{rate:g}" for rate in rates), "warmup_steps": settings.get("warmup_steps")}
    return {column: computed.get(column, manifest.get(column)) for column in COLUMNS}
