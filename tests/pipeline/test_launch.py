"""Unsloth is imported first where a profile trains with it on a card, and nowhere else."""
from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dyme_core import config
from dyme_core.pipeline import launch
from dyme_core.pipeline.train import Run
from study import scheduler


@pytest.mark.parametrize(("arguments", "wanted"), [
    (["--profile", "gpu", "--method", "sft"], True), (["--profile", "paper"], False), ([], False),
    (["--profile", "gpu", "--set", 'backend="transformers"', "seed=1"], False),
    (["--profile", "smoke", "--set", "training.steps=1", 'backend="unsloth"'], True)])
def test_who_wants_unsloth(arguments: list[str], wanted: bool) -> None:
    assert launch.wants_unsloth(arguments) == wanted


@pytest.mark.parametrize("has_card", [True, False])
def test_unsloth_comes_first_where_there_is_a_card(monkeypatch, has_card: bool) -> None:
    imported, asked = [], []

    class Module:
        main = staticmethod(asked.append)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)
    monkeypatch.setattr(importlib, "import_module", lambda name: imported.append(name) or Module)
    launch.main(["--profile", "gpu", "--method", "sft"])
    assert imported == ["unsloth"] * has_card + ["dyme_core.pipeline.train"] and asked == [["--profile", "gpu", "--method",
                                                                                            "sft"]]


def test_the_room_loads_no_trl_by_itself() -> None:
    code = "import sys; from dyme_core.pipeline import launch; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_the_scheduler_starts_runs_of_unsloth_through_it_and_builds_no_mini_base_for_them() -> None:
    runs = [Run(config.load_profile(name), method) for name, method in (("gpu", "sft"), ("paper", "grpo"))]
    jobs = scheduler.with_bases([scheduler.run_job(run) for run in runs])
    assert [job.arguments[0] for job in jobs] == ["dyme_core.pipeline.launch", "dyme_core.pipeline.train"]
