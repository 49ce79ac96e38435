"""The study: what is left to do, cut and gone on with, failures, registry; real runs of two steps in profile smoke."""
from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dyme_core import config, plan, registry, scheduler, store, study
from dyme_core.plan import Point

ROOT = Path(__file__).resolve().parents[1]
TINY = {"world.train_questions": 16, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 2,
        "training.prompts_per_step": 2, "training.num_generations": 2}
PLAN = """
from dyme_core import plan, scheduler, study
from dyme_core.plan import Point

plan.PROFILE, scheduler.POLL_S, study.TELL_S = "smoke", 0.1, 0.5
plan.EXPERIMENTS = {"first": lambda: iter([Point("first", "a", "sft", "a", %(tiny)r, (0,), ("validation",))]),
                    "second": lambda: iter([Point("second", "b", "sft", "b", %(tiny)r | {"training.steps": %(steps)d}, (0,))])}
study.main()
"""


def point(experiment: str, variant: str, method: str = "sft", seeds: tuple[int, ...] = (0,), **changes) -> Point:
    return Point(experiment, variant, method, variant, TINY | changes, seeds, ("validation",))


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A repository with the core's sources and seed 0's base, and nothing run in it yet."""
    shutil.copytree(ROOT / "dyme_core", tmp_path / "dyme_core", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "svlm-s0").symlink_to(ROOT / "bases" / "svlm-s0")
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    monkeypatch.setattr(scheduler, "POLL_S", 0.05)
    monkeypatch.setattr(plan, "PROFILE", "smoke")
    yield tmp_path


def declare(monkeypatch, *points: Point) -> None:
    """Make these the whole plan."""
    names = dict.fromkeys(each.experiment for each in points)
    monkeypatch.setattr(plan, "EXPERIMENTS", {
        name: lambda name=name: iter([each for each in points if each.experiment == name]) for name in names})


def finish(task: study.Task, **changes) -> None:
    """Leave what a finished run leaves."""
    run, paths = task.run, task.run.paths
    for folder in (paths.rows, paths.logs):
        store.write_rows(store.run_file(folder, run.name), [{**run.columns}])
    manifest = {**run.columns, "base": f"{run.model}-s{run.seed}", "settings": study.settings_of(run), "steps": 2,
                "seconds": 36.0, "cpu": "a CPU, 2 cores", "results": {split: {"correct": 0.5} for split in task.splits}}
    path = paths.results / "runs" / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest | changes))


def study_process(root: Path, *arguments: str, steps: int = 2) -> subprocess.Popen:
    code = PLAN % {"tiny": TINY, "steps": steps}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=root, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(root)})


def manifest_of(root: Path, name: str) -> dict:
    path = root / "results" / "smoke" / "runs" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_a_killed_study_goes_on_without_repeating_what_is_finished(root: Path) -> None:
    first, second, start = "svlm-sft-a-s0", "svlm-sft-b-s0", time.monotonic()
    killed = study_process(root, steps=300)  # the second run is far from its end when the first has ended
    while not manifest_of(root, first) and time.monotonic() - start < 120:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = manifest_of(root, first)
    assert made and not manifest_of(root, second)
    ended = study_process(root, "--hours", "0")
    assert ended.wait(60) == 0 and "1 of 2 runs are finished" in (said := ended.stderr.read()) and "1 not started" in said
    output = root / "runs" / "smoke" / second / "output.log"
    assert "of 300" in output.read_text() or not output.read_text(), "the process that was left behind is still at work"
    orphans = subprocess.run(["pgrep", "-f", f"--variant b --splits .*{TINY['training.prompts_per_step']}"],
                             capture_output=True, text=True).stdout.split()
    for number in orphans:
        if Path(f"/proc/{number}/cwd").resolve() == root.resolve():
            os.kill(int(number), signal.SIGKILL)
    resumed = study_process(root)
    said = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0, said
    assert f"{second} is finished" in said and f"{first} is finished" not in said
    assert manifest_of(root, first) == made and manifest_of(root, second)["steps"] == 2
    assert set(made["results"]) == {"validation"} and set(manifest_of(root, second)["results"]) == {
        "validation", "test", "unseen"}
    assert not (root / "runs" / "smoke" / first / "policy").exists(), "policies of variants are not kept"
    with (root / "results" / "smoke" / "registry.csv").open() as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == [first, second]
    assert (lines[first]["experiments"], lines[first]["steps"], lines[first]["base"]) == ("first", "2", "svlm-s0")
    assert lines[first]["validation"] == str(made["results"]["validation"]["correct"]) and lines[first]["test"] == ""
    assert float(lines[first]["learning_rate"]) == made["settings"]["learning_rate"][0] and "cores" in lines[first]["hardware"]
