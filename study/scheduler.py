"""Several runs side by side: one process each, two at a time, with progress; bases that are missing are built first.

A process holds its output file's lock to its end, whoever started it: no run and no base is ever made twice at a time, even
where an earlier scheduler was killed and left its processes behind.
"""
from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dyme_core import config, utils
from dyme_core.pipeline.methods import HELD_OUT, Run, base_folder, fingerprint
from dyme_core.store import run_file

logger = logging.getLogger(__name__)
PROCESSES = 2  # cores of the machine that the mini profile is made for; each process keeps to one thread
POLL_S = 1.0
TELL_S = 10.0
NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}  # the last line is shown live
SHARES = {"base": 0.08, "sft": 0.35, "sft_grpo": 0.7}  # rough duration of a method against a GRPO run, for the order
BASE_MINUTES = {"svlm": 10, "large": 13}  # to build one, on one thread


class RunFailed(RuntimeError):
    """A run ended with an error; the message holds the end of its output."""


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: the run's, or "base <model>-s<seed>".
        arguments: of the command `dyme`.
        output: file of what it says.
        root: the folder it works in.
        is_finished: whether all that it makes is there.
        needs: names of jobs that must have ended before it starts.
        run: what it trains; None for a base.
        minutes: that a base takes on one thread.
    """

    name: str
    arguments: tuple[str, ...]
    output: Path
    root: Path
    is_finished: Callable[[], bool]
    needs: tuple[str, ...] = ()
    run: Run | None = None
    minutes: int = 0


def stored_files(run: Run) -> list[Path]:
    """Rows, log and manifest of a run."""
    return [run_file(run.paths.rows, run.name), run_file(run.paths.logs, run.name), run.manifest]


def is_finished(run: Run) -> bool:
    """True where this machine holds the run's policy, rows, log and manifest, made by the same code, settings and base."""
    stamp, policy = _stamp(run), run.paths.runs / run.name / "policy" / "config.json"
    return (stamp.is_file() and stamp.read_text() == fingerprint(run)
            and all(path.is_file() for path in [policy, *stored_files(run)]))


def run_all(runs: Iterable[Run], processes: int = PROCESSES) -> list[str]:
    """Execute runs, longest first, `processes` at a time; those already finished are skipped, missing bases are built.

    Returns:
        the names of the runs that were executed.
    Raises:
        RunFailed: as soon as one run fails, after the others have been ended.
    """
    waiting = sorted((run for run in runs if not is_finished(run)), key=lambda run: -SHARES.get(run.method, 1.0))
    _do_all(with_bases([run_job(run) for run in waiting]), processes)
    return [run.name for run in waiting]


def build_base(paths: config.Paths, model: str, seed: int) -> Path:
    """The folder of a seed's base, which is built now where it is missing.

    Raises:
        RunFailed: if that fails.
    """
    _do_all(_missing_bases(paths, model, seed), 1)
    return base_folder(paths, model, seed)


def _do_all(jobs: Sequence[Job], processes: int) -> None:
    started = time.monotonic()

    def stop_at_failure(job: Job, failure: str) -> None:
        if failure:
            raise RunFailed(failure)

    def tell(left: list[Job], running: list[Job]) -> None:
        logger.info("%d of %d done in %.0f s; %s", len(jobs) - len(left) - len(running), len(jobs),
                    time.monotonic() - started, "; ".join(map(last_line, running)))

    carry_out(jobs, stop_at_failure, tell, processes)


def run_job(run: Run, splits: Sequence[str] = HELD_OUT, keep_policy: bool = True,
            finished: Callable[[], bool] | None = None) -> Job:
    """The process of one run; `finished` is by default this room's `is_finished`."""
    arguments = ("train", "--profile", run.profile.name, "--method", run.method, "--model", run.model, "--seed", str(run.seed),
                 "--variant", run.variant, *(f"--split={split}" for split in splits),
                 *([] if keep_policy else ["--no-policy"]),
                 *(f"--set={key}={json.dumps(value)}" for key, value in run.profile.overrides))
    return Job(run.name, arguments, run.paths.runs / run.name / "output.log", run.paths.root,
               finished or (lambda: is_finished(run)), (_base_name(run.model, run.seed),), run)


def base_job(paths: config.Paths, model: str, seed: int) -> Job:
    """The process that builds one base, on one thread; the large one takes its vision tower from the small one."""
    folder = base_folder(paths, model, seed)
    arguments = ("base", "--seed", str(seed), "--model", model, "--threads", "1")
    return Job(_base_name(model, seed), arguments, paths.root / "runs" / "bases" / folder.name / "output.log", paths.root,
               lambda: _is_built(folder), () if model == "svlm" else (_base_name("svlm", seed),),
               minutes=BASE_MINUTES[model])


def with_bases(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in their order, each missing base before the first run that starts from it."""
    found: dict[str, Job] = {}
    for job in jobs:
        for base in _missing_bases(job.run.paths, job.run.model, job.run.seed) if job.run.profile.model == "mini" else ():
            found.setdefault(base.name, base)
        found[job.name] = job
    return list(found.values())


def _missing_bases(paths: config.Paths, model: str, seed: int) -> list[Job]:
    bases = [base_job(paths, size, seed) for size in dict.fromkeys(("svlm", model))]
    return [] if bases[-1].is_finished() else [base for base in bases if not base.is_finished()]


def _base_name(model: str, seed: int) -> str:
    return f"base {model}-s{seed}"


def _is_built(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def carry_out(jobs: Iterable[Job], on_end: Callable[[Job, str], None], tell: Callable[[list[Job], list[Job]], None],
              processes: int = PROCESSES, may_start: Callable[[], bool] = lambda: True, tell_s: float = TELL_S) -> list[Job]:
    """Work jobs off in their order, several at a time; one that needs another waits for it, one that somebody else is at
    work on is left to him and taken up again if he does not finish it.

    Args:
        jobs: of different names.
        on_end: called with each job that ended and why it failed ("": it did not). What it raises ends all processes.
        tell: called every `tell_s` seconds with the jobs that wait and those that run.
        processes: at a time.
        may_start: once it is false, what runs is finished and nothing else started.
    Returns:
        the jobs that were not started.
    """
    waiting, running, failed, told = list(jobs), list[_Running](), set[str](), time.monotonic()
    try:
        while running or (waiting and may_start()):
            for job in list(waiting):
                if len(running) == processes or not may_start():
                    break
                undone = {other.name for other in (*waiting, *(process.job for process in running))}
                if failed.intersection(job.needs):
                    waiting.remove(job)
                    failed.add(job.name)
                    on_end(job, f"{job.name} was not started: {' and '.join(failed.intersection(job.needs))} failed")
                elif not undone.intersection(job.needs) and (process := _start(job)):
                    waiting.remove(job)
                    running.append(process)
            time.sleep(POLL_S)
            for process in [other for other in running if other.has_ended()]:
                running.remove(process)
                failure = process.failure()
                failed.update([process.job.name] if failure else [])
                on_end(process.job, failure)
            if time.monotonic() - told > tell_s:
                told = time.monotonic()
                tell(waiting, [process.job for process in running])
    finally:
        for process in running:
            process.end()
    return waiting


def last_line(job: Job) -> str:
    """The last line that a job wrote, shortened."""
    lines = job.output.read_text(errors="replace").splitlines() if job.output.is_file() else []
    return lines[-1][:110] if lines else f"{job.name}: starting"


@dataclass(frozen=True)
class _Running:
    """A job's process (None: somebody else had finished it), and its run's fingerprint when it was started: what changes
    later is not in its result."""

    job: Job
    process: subprocess.Popen | None = None
    fingerprint: str = ""

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def failure(self) -> str:
        """Why it failed, with the end of its output; "" where it did not. A run that did gets its stamp."""
        code = self.process.returncode if self.process else 0
        if code:
            return (f"{self.job.name} ended with code {code}; the end of {self.job.output}:\n"
                    + "\n".join(self.job.output.read_text(errors="replace").splitlines()[-15:]))
        if self.fingerprint:
            utils.write_atomic(_stamp(self.job.run), self.fingerprint)
        return ""

    def end(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()


def _start(job: Job) -> _Running | None:
    """Start a job, unless another process is at work on it."""
    with _opened(job.output) as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it with its output
        except BlockingIOError:
            return None
        if job.is_finished():
            return _Running(job)
        output.truncate(0)
        if job.run:
            _stamp(job.run).unlink(missing_ok=True)  # from now on the run's results are in the making
        else:
            logger.info("%s is missing: building it takes about %d minutes of one thread", job.name, job.minutes)
        made_of = fingerprint(job.run) if job.run else ""
        process = subprocess.Popen([sys.executable, "-m", "study", *job.arguments], stdout=output, stderr=subprocess.STDOUT,
                                   cwd=job.root, env=os.environ | NO_BARS)
        return _Running(job, process, made_of)


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _stamp(run: Run) -> Path:
    return run.paths.runs / run.name / "fingerprint"
