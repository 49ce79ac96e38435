"""Several runs side by side: one process each, two at a time, with progress and time left; finished ones are not repeated."""
from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dyme_core import provenance
from dyme_core.experiment import Run, base_folder

logger = logging.getLogger(__name__)
PROCESSES = 2  # cores of the machine that the mini profile is made for; each process keeps to one thread
POLL_S = 1.0
NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # the last line is shown live
SHARES = {"base": 0.08, "sft": 0.35, "sft_grpo": 0.7}  # rough duration of a method against a GRPO run, for the order


class RunFailed(RuntimeError):
    """A run ended with an error; the message holds the end of its output."""


def fingerprint(run: Run) -> str:
    """What a run's result depends on: its settings, the core's sources and the base."""
    root = run.paths.root
    sources = [*rooms_of("experiment", root / "dyme_core"), *base_folder(run.paths, run.model, run.seed).glob("*")]
    return provenance.hash_json([repr(run), provenance.hash_files(sources, root)])


def rooms_of(room: str, folder: Path) -> set[Path]:
    """The sources of a room and of every room that it loads, itself or through another, read from their imports: what only
    reads a run's rows, draws or orders them may change without training again."""
    found: set[Path] = set()
    waiting = [room]
    while waiting:
        path = folder / f"{waiting.pop()}.py"
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "dyme_core":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dyme_core."):
                waiting.append(node.module.removeprefix("dyme_core."))
    return found


def is_finished(run: Run) -> bool:
    """True where this machine holds the run's policy, rows, log and manifest, made by the same code, settings and base."""
    stamp, folder = _stamp(run), run.paths.runs / run.name
    stored = [run.paths.rows / f"{run.name}.jsonl", run.paths.logs / f"{run.name}.jsonl",
              run.paths.results / "runs" / f"{run.name}.json", folder / "policy" / "config.json"]
    return stamp.is_file() and stamp.read_text() == fingerprint(run) and all(path.is_file() for path in stored)


def run_all(runs: Iterable[Run], processes: int = PROCESSES) -> list[str]:
    """Execute runs, longest first, `processes` at a time; those already finished are skipped.

    Returns:
        the names of the runs that were executed.
    Raises:
        RunFailed: as soon as one run fails, after the others have been ended.
    """
    waiting = sorted((run for run in runs if not is_finished(run)), key=lambda run: -SHARES.get(run.method, 1.0))
    total, started = len(waiting), time.monotonic()
    running: list[_Running] = []
    names, said = [run.name for run in waiting], 0.0
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                running.append(_start(waiting.pop(0)))
            time.sleep(POLL_S)
            for ended in [other for other in running if other.process.poll() is not None]:
                running.remove(ended)
                _finish(ended)
            if time.monotonic() - said > 10 * POLL_S:
                said = time.monotonic()
                done = total - len(waiting) - len(running)
                logger.info("%d of %d runs done in %.0f s; %s", done, total, said - started,
                            "; ".join(_last_line(_output(other.run)) for other in running))
    finally:
        for other in running:
            other.process.terminate()
        for other in running:
            other.process.wait()
    return names


@dataclass(frozen=True)
class _Running:
    """A run's process, and the run's fingerprint when it was started: what changes later is not in its result."""

    run: Run
    process: subprocess.Popen
    fingerprint: str


def _stamp(run: Run) -> Path:
    return run.paths.runs / run.name / "fingerprint"


def _output(run: Run) -> Path:
    return run.paths.runs / run.name / "output.log"


def _start(run: Run) -> _Running:
    _output(run).parent.mkdir(parents=True, exist_ok=True)
    _stamp(run).unlink(missing_ok=True)  # from now on the run's results are in the making
    overrides = [f"{key}={json.dumps(value)}" for key, value in run.profile.overrides]
    command = [sys.executable, "-m", "dyme_core.experiment", "--profile", run.profile.name, "--method", run.method,
               "--model", run.model, "--seed", str(run.seed), "--variant", run.variant, "--set", *overrides]
    with _output(run).open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=run.paths.root,
                                   env=os.environ | NO_BARS)
    return _Running(run, process, fingerprint(run))


def _finish(ended: _Running) -> None:
    run, code = ended.run, ended.process.returncode
    if code:
        raise RunFailed(f"run {run.name} ended with code {code}; the end of {_output(run)}:\n"
                        + "\n".join(_output(run).read_text(errors="replace").splitlines()[-15:]))
    provenance.write_atomic(_stamp(run), ended.fingerprint)


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return lines[-1][:110] if lines else "starting"
