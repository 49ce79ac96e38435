"""The command `dyme`: imports, refusals, arguments that it passes on, and the output of `doctor`."""
from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dyme_core import config
from dyme_core.data.benchmarks import sources
from dyme_core.pipeline import train
from study import cli, doctor

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("train", "evaluate", "paper", "publish", "study", "figures", "page", "base", "judge-server", "card", "doctor")


def run(*arguments: str) -> int:
    """Run a command here; its exit code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return ended.value.code


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """What `train` would have trained: run, splits and options of each call."""
    calls: list[tuple] = []
    monkeypatch.setattr(train, "execute", lambda run, splits, **options: calls.append((run, splits, options)))
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_each_of_its_options(command: str, capsys) -> None:
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    assert len(shown.split("Options:")[0].split()) > 8, "a sentence on what the command does"
    assert not re.search(r"^  --[\w-]+( \S+)?\s*(\[default.*)?\n(  --|$)", shown, re.MULTILINE), "an option without help"


def test_help_version_and_completion_load_no_heavy_library() -> None:
    code = ("import sys\nfrom study import cli\ntry:\n    cli.main(sys.argv[1:])\nexcept SystemExit as ended:\n"
            "    assert not ended.code\n"
            "heavy = {'torch', 'transformers', 'trl', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)\n"
            "sys.exit(f'loaded {heavy}' if heavy else 0)")
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # make's own shell has no completion
    for asked in (["--help"], ["train", "--help"], ["--version"], ["--show-completion", "bash"]):
        done = subprocess.run([sys.executable, "-c", code, *asked], cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (asked, done.stderr)


def test_python_m_dyme_core_is_the_command() -> None:
    asked = [sys.executable, "-m", "dyme_core", "train", "--method", "luck"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "full_dyme" in done.stderr


def test_the_data_sets_to_choose_from_are_those_that_are_known() -> None:
    assert set(cli.DATA) == set(sources.KNOWN)


def test_a_setting_may_be_given_many_times_and_all_are_kept(trained) -> None:
    assert run("train", "--method", "grpo", "--profile", "smoke", "--set", "training.steps=9", "--set", "world.real_share=0.25",
               "--set=supervision.policy=raise", "--seed", "3", "--split", "test", "--split", "validation", "--no-policy") == 0
    [(made, splits, options)] = trained
    assert (made.profile.training.steps, made.profile.world.real_share, made.profile.supervision.policy) == (9, 0.25, "raise")
    assert (made.seed, splits, options) == (3, ("test", "validation"), {"keep_policy": False, "force": False})


@pytest.mark.parametrize("arguments", [
    ["train", "--method", "sft", "--set", "training.stepz=3"], ["train", "--method", "sft", "--set", "training.steps"],
    ["train", "--method", "dpo"], ["train"], ["train", "--method", "sft", "--profile", "huge"], ["study", "--only", "nothing"],
    ["paper", "--only", "99"], ["paper", "--set", "sped=2"], ["figures", "--profile", "huge"], ["no-such-command"],
    ["card", "--run", "no-such-run", "--out", "nowhere"],
    ["train", "--method", "sft", "--set", "training.steps=3", "--set", "training.steps=4"],
    ["paper", "--set", "a=1", "--set=a=2"],
    ["train", "--method", "sft", "--profile", "smoke", "--variant", "../elsewhere"],
    ["train", "--method", "sft", "--seed", "-1"], ["base", "--threads", "0"],
    *(["evaluate", "--model", "no/such-model", "--data", "mini", "--out", "nowhere", "--options", options]
      for options in ("{bad", "[1]", "7", '{"images": "coco"}', '{"limit": 3}', '{"bad": null}')),
    ["evaluate", "--model", "no/such-model", "--data", "chartqa", "--source", "no-such-folder", "--out", "nowhere"]],
    ids=" ".join)
def test_a_wrong_request_is_answered_without_a_traceback_and_with_exit_code_2(arguments: list[str], capsys) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.strip() and "Traceback" not in said


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch) -> None:
    monkeypatch.setattr(train, "execute", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        cli.main(["train", "--method", "sft", "--profile", "smoke"])


@pytest.mark.parametrize("has_card", [True, False])
@pytest.mark.parametrize("settings", [["--profile", "gpu"], ["--profile", "smoke", "--set", "backend=unsloth"],
                                      ["--profile", "gpu", "--set", "backend=transformers"], ["--profile", "smoke"]],
                         ids=" ".join)
def test_unsloth_is_imported_first_where_the_profile_trains_with_it_on_a_card(monkeypatch, trained, has_card: bool,
                                                                             settings: list[str]) -> None:
    imported, load = [], importlib.import_module
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_card)
    monkeypatch.setattr(importlib, "import_module", lambda name, *rest: imported.append(name) if name == "unsloth"
                        else load(name, *rest))
    monkeypatch.setattr(train, "execute", lambda *_, **__: imported.append("trained"))
    assert run("train", "--method", "sft", *settings) == 0
    wants_it = has_card and settings in (["--profile", "gpu"], ["--profile", "smoke", "--set", "backend=unsloth"])
    assert imported == ["unsloth"] * wants_it + ["trained"]


def test_a_command_works_in_its_own_repository_wherever_it_is_called(tmp_path: Path, monkeypatch, trained: list,
                                                                     caplog) -> None:
    monkeypatch.delenv("DYME_ROOT", raising=False)
    caplog.set_level("INFO")
    (tmp_path / "pyproject.toml").touch()  # of another project
    monkeypatch.chdir(tmp_path)
    assert run("train", "--method", "sft") == 0
    assert trained[0][0].paths.root == ROOT and f"dyme works in {ROOT}" in caplog.messages


def test_doctor_says_what_can_run_and_what_to_type_and_never_the_key(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("DYME_ROOT", str(ROOT))
    monkeypatch.setenv("OPENAI_BASE_URL", "https://user:sk-planted-0123@models.example:8000/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123")
    assert run("doctor") == 0
    said = capsys.readouterr().out
    for word in ("python", "CPU", "memory", "disk", "CUDA card", "Unsloth", "vLLM", "extra ocr", "extra llm",
                 "models.example", "published results", "next "):
        assert word in said
    assert "planted" not in said
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=22 * 2**30))
    (tmp_path / "notebooks").mkdir()
    assert "NVIDIA L4, 22 GiB" in doctor.examine(config.Paths(tmp_path, "mini"))
    assert doctor._next(config.Paths(tmp_path, "mini"), ("NVIDIA L4", 22.0), "2026.10.9").startswith("dyme train --profile gpu")
    (tmp_path / "notebooks" / "01_a.ipynb").touch()
    assert doctor._next(config.Paths(tmp_path, "mini"), None, "").startswith("dyme paper")
