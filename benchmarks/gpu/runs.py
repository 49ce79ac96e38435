"""Stages `study` and `processes`, and the runs that `correct` kills: whole runs in processes of their own.

As a command the file is such a process: it trains with torch's deterministic kernels and, with --scripted, with rollouts from
a script; or it builds a base.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib import util
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.gpu import script
from benchmarks.gpu.stages import ROOT, NotHere, OutOfTime, Part, Setting, check
from dyme_core import config, ranks, utils
from dyme_core.pipeline.checkpointing import CHECKSUMS
from dyme_core.pipeline.methods import Run
from dyme_core.pipeline.train import execute
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.utils import read_rows
from scripts import pretrain

STUDY_SHOWS = "the main arms of the mini world on the card, three seeds each from its own base, beside the CPU's results"
PROCESSES_SHOWS = ("two processes (gloo) against one, NCCL with one process, FSDP2 and ZeRO-2 with one process")
ARMS = ("sft", "grpo", "sft_grpo", "pure_dyme", "full_dyme")
SHORT = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.num_generations": 4,
         "training.prompts_per_step": 2, "training.steps": 4, "training.evaluate_every": 4, "training.probe_every": 1,
         "save_every": 2}
TIMES = ("_s", "seconds", "time", "runtime", "_per_second")  # endings of logged numbers that no two runs share
SAME = 1e-4  # relative difference of two processes' sums from one's
POLL_S = 0.02


def study_parts() -> dict[str, Part]:
    return {"bases of seeds 1 and 2": build_bases, **{f"seed {seed}": partial(arms, seed) for seed in range(3)},
            "smol": smol}


def process_parts() -> dict[str, Part]:
    return {"two processes against one": two_against_one, "NCCL with one process": nccl,
            "FSDP2 with one process": partial(sharded, "fsdp2"), "ZeRO-2 with one process": partial(sharded, "zero2")}


def repository(setting: Setting, name: str, is_kept: bool = False) -> Path:
    """A folder that a run takes for the repository, with the mini base of seed 0; emptied unless it `is_kept`."""
    folder = setting.scratch / name
    if not is_kept:
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        (folder / "bases").mkdir(parents=True)
        (folder / "pyproject.toml").touch()
        (folder / "bases" / script.BASE.name).symlink_to(script.BASE)
    return folder


def command(method: str, settings: dict[str, Any], *launcher: str, profile: str = "smoke", seed: int = 0) -> list[str]:
    """A run of `dyme train` in this file's process, started by `launcher` (arguments of Python)."""
    start = [sys.executable, *(launcher or ("-m",)), "benchmarks.gpu.runs"]
    changes = [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]
    return [*start, "train", "--profile", profile, "--method", method, "--seed", str(seed), *changes]


SCRIPTED = {"SCRIPTED": "1"}  # environment of a run whose rollouts are the script's


def start(folder: Path, arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """Start a process that takes `folder` for the repository; what it says goes to <folder>/said.txt."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(arguments, stdout=said, stderr=said, cwd=ROOT, start_new_session=True, env=os.environ | {
            "DYME_ROOT": str(folder), "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"}
            | environment)


def wait(setting: Setting, processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until all have ended well.

    Raises:
        OutOfTime: at the deadline; they are ended, and their runs go on from their checkpoints the next time.
        RuntimeError: where one fails, with what it said last.
    """
    try:
        for process in processes:
            if process.wait(None if setting.left_s == float("inf") else max(0.1, setting.left_s)):
                said = (folder / "said.txt").read_text(errors="replace").strip().splitlines()
                raise RuntimeError(f"exit code {process.returncode}: {' | '.join(said[-6:])}")
    except subprocess.TimeoutExpired as error:
        raise OutOfTime("the time box ended; it goes on from the last checkpoint") from error
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def trained(setting: Setting, folder: Path, method: str = "full_dyme", *launcher: str, **environment: str) -> Path:
    """Train a short run to its end; returns its repository."""
    wait(setting, [start(folder, command(method, SHORT, *launcher), **environment)], folder)
    return folder


def kill_at_first_checkpoint(setting: Setting, folder: Path) -> None:
    """Start a short run and kill it with SIGKILL as soon as it has a checkpoint."""
    process = start(folder, command("full_dyme", SHORT))
    while process.poll() is None and not any((folder / "runs").glob(f"smoke/*/phase-0/checkpoint-*/{CHECKSUMS}")):
        if setting.left_s < 0:
            break
        time.sleep(POLL_S)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finished(folder: Path, profile: str = "smoke") -> dict[str, Any]:
    """Manifest, logged steps and answers of the only run of a repository."""
    results = folder / "results" / "local" / profile
    [manifest] = (results / "runs").glob("*.json")
    log, rows = (read_rows(results / part / f"{manifest.stem}.jsonl.xz") for part in ("logs", "rows"))
    return {"manifest": json.loads(manifest.read_text()), "rows": rows, "log": [row for row in log if row["event"] == "step"]}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> int:
    """How many logged numbers (times left out), and answers, of two runs differ."""
    steps = [(left, right, name) for left, right in zip(found["log"], wanted["log"], strict=True)
             for name in left.keys() | right.keys() if not name.endswith(TIMES)]
    answers = zip(found["rows"], wanted["rows"], strict=True)
    return (sum(left.get(name) != right.get(name) for left, right, name in steps)
            + sum(left["prediction"] != right["prediction"] for left, right in answers))


def build_bases(setting: Setting) -> dict[str, Any]:
    """The bases of the other two seeds, at the same time (minutes on many cores); at toy size copies of seed 0's."""
    folder = repository(setting, "study", is_kept=True)
    missing = [seed for seed in (1, 2) if not (folder / "bases" / f"svlm-s{seed}" / "manifest.json").is_file()]
    if setting.is_dry:
        for seed in missing:
            (folder / "bases" / f"svlm-s{seed}").symlink_to(script.BASE)
        return {"built": 0}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)), "CUDA_VISIBLE_DEVICES": ""}
    commands = [[sys.executable, "-m", "benchmarks.gpu.runs", "base", "--seed", str(seed)] for seed in missing]
    wait(setting, [start(folder, command, **environment) for command in commands], folder)
    return {"built": len(missing)}


def arms(seed: int, setting: Setting) -> dict[str, Any]:
    """Every main arm of a seed, side by side on the card; beside each score that of the published study on a CPU."""
    folder = repository(setting, "study", is_kept=True)
    if not (folder / "bases" / f"svlm-s{seed}" / "model.safetensors").is_file():
        raise NotHere(f"the base of seed {seed} is missing: the part before builds it")
    profile, settings = ("smoke", SHORT) if setting.is_dry else ("mini", {})
    methods = ARMS[-1:] if setting.is_dry else ARMS
    wait(setting, [start(folder, command(method, settings, profile=profile, seed=seed)) for method in methods], folder)
    made = [json.loads(path.read_text()) for path in sorted((folder / "results" / "local" / profile / "runs").glob("*.json"))]
    return {"scores": {manifest["method"]: _scores(manifest) for manifest in made if manifest["seed"] == seed}}


def _scores(manifest: dict[str, Any]) -> dict[str, Any]:
    name = f"{manifest['model']}-{manifest['method']}-s{manifest['seed']}"
    path = ROOT / "results" / manifest["profile"] / "runs" / f"{name}.json"
    known = json.loads(path.read_text())["results"] if path.is_file() else {}
    made, published = ({split: scores["correct"] for split, scores in results.items()}
                       for results in (manifest["results"], known))
    return {"s_per_step": manifest["s_per_step"], "correct": made, "correct on the CPU": published}


def smol(setting: Setting) -> dict[str, Any]:
    """Full DyME in the smol world, from the base that `dyme base --profile smol` has left."""
    bases = ROOT / "bases" / "smol"
    if not (bases / "svlm-s0" / "config.json").is_file():
        raise NotHere("its base is missing; build it first: dyme base --profile smol")
    folder = repository(setting, "study", is_kept=True)
    if not (folder / "bases" / "smol").exists():
        (folder / "bases" / "smol").symlink_to(bases)
    wait(setting, [start(folder, command("full_dyme", {}, profile="smol"))], folder)
    return {"scores": _scores(finished(folder, "smol")["manifest"])}


def two_against_one(setting: Setting) -> dict[str, Any]:
    """A run with scripted rollouts in one process and in two, on the CPU by gloo: the same gradients and modes."""
    found = []
    for name, launcher in (("one", ()), ("two", _torchrun(2))):
        folder = trained(setting, repository(setting, name), "full_dyme", *launcher, **SCRIPTED, CUDA_VISIBLE_DEVICES="")
        found.append(finished(folder)["log"])
    return {"checks": [check(f"relative difference of {name}", script.largest_difference(*found, name), SAME)
                       for name in ("memorize_norm", "explore_norm", "memorize", "explore", "mastered")]}


def nccl(setting: Setting) -> dict[str, Any]:
    """A run under torchrun with one process, whose back end on a card is NCCL."""
    folder = trained(setting, repository(setting, "nccl"), "full_dyme", *_torchrun(1), **SCRIPTED)
    return {"backend": (folder / "backend.txt").read_text(), **_finite(finished(folder)["log"])}


def sharded(name: str, setting: Setting) -> dict[str, Any]:
    """A run under configs/<name>.yaml with one process."""
    if name == "zero2" and not util.find_spec("deepspeed"):
        raise NotHere("deepspeed is not installed")
    if setting.device.type == "cpu" and name == "fsdp2":
        raise NotHere("accelerate's FSDP2 asks for a card")
    folder = repository(setting, name)
    settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text()) | {"num_processes": 1}
    utils.write_atomic(folder / "accelerate.yaml", yaml.safe_dump(settings))
    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(folder / "accelerate.yaml"), "-m")
    trained(setting, folder, "full_dyme", *launcher, **SCRIPTED)
    return _finite(finished(folder)["log"])


def _torchrun(count: int) -> tuple[str, ...]:
    return "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), "-m"


def _finite(log: list[dict[str, Any]]) -> dict[str, Any]:
    bad = sum(not math.isfinite(row[name]) for row in log for name in ("entropy", "memorize_norm", "explore_norm"))
    return {"steps": len(log), "checks": [check("norms and entropies that are not finite", bad, 0),
                                          check("steps that are missing", SHORT["training.steps"] - len(log), 0)]}


def main() -> None:
    """Train a run, or build the base of a seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("train", "base"))
    for name in ("profile", "method"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if options.task == "base":
        pretrain.build_bases(options.seed, ["svlm"], threads)
        return
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if os.environ.get("SCRIPTED"):
        DyMETrainer._generate_single_turn = _scripted
    ranks.start()
    profile = config.load_profile(options.profile, **dict(map(config.read_setting, options.set)))
    execute(Run(profile, options.method, "svlm", options.seed))
    ranks.stop()


def _scripted(trainer: DyMETrainer, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
    """In place of sampling; leaves the back end's name beside the results."""
    is_open = torch.distributed.is_initialized()
    utils.write_atomic(config.paths("smoke").root / "backend.txt", torch.distributed.get_backend() if is_open else "none")
    return script.rollouts(trainer, script.by_turns, len(prompt_ids)), None


if __name__ == "__main__":
    main()
