"""Several runs side by side: one process each, two at a time, with progress; bases that are missing are built first.

A process holds the lock of its output file to its end: no run and no base is made twice at a time, even after an earlier
scheduler was killed and left its processes behind.
"""
from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from IPython import get_ipython

from dyme_core import config, utils
from dyme_core.pipeline.methods import RESULTS_VERSION, Run, base_folder, differences, fingerprint, settings_of
from dyme_core.utils import run_file
from study.notebook import NO_BARS
from study.runner.live import LiveLine, LiveTable, table
from study.runner.registry import read_manifests

logger = logging.getLogger(__name__)
PROCESSES = 2  # cores of the machine that the mini profile is made for; each process keeps to one thread
POLL_S = 1.0
SHARES = {"base": 0.08, "sft": 0.35, "sft_grpo": 0.7}  # rough duration of a method against a GRPO run, for the order
FIRST_BASE = ("svlm", 0)  # with which the start that all bases share is built, where it is missing
BASE_MINUTES = (10, 30)  # to build one on one thread, with and without 16-bit instructions


class RunFailed(RuntimeError):
    """A run ended with an error; the message holds the end of its output."""


@dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: the run's, or "base <model>-s<seed>".
        arguments: of the command `dyme`.
        output: file of its output.
        paths: of the profile; it works in their root.
        is_finished: whether all its results exist.
        needs: name of the job that must have ended before it starts, or "".
        run: what it trains; None for a base.
    """

    name: str
    arguments: tuple[str, ...]
    output: Path
    paths: config.Paths
    is_finished: Callable[[], bool]
    needs: str = ""
    run: Run | None = None

    def last_line(self) -> str:
        """The last line that it wrote, shortened."""
        lines = self.output.read_text(errors="replace").splitlines() if self.output.is_file() else []
        return lines[-1][:110] if lines else f"{self.name}: starting"


def stored_files(run: Run) -> list[Path]:
    """Rows, log and manifest of a run."""
    return [run_file(run.paths.rows, run.name), run_file(run.paths.logs, run.name), run.manifest]


def is_finished(run: Run) -> bool:
    """True where this machine has the run's policy, rows, log and manifest, made by the same code, settings and base. Of a
    published run what git has is enough, all but the policy."""
    if run.paths.is_published:
        return not undone(run, config.HELD_OUT)
    stamp, policy = _stamp(run), run.paths.runs / run.name / "policy" / "config.json"
    return (stamp.is_file() and stamp.read_text() == fingerprint(run)
            and all(path.is_file() for path in [policy, *stored_files(run)]))


def undone(run: Run, splits: Sequence[str]) -> str:
    """Why a run that git may have is to be made (again), by its rows, log and manifest; "" where it is finished."""
    *files, manifest = stored_files(run)
    if not manifest.is_file():
        return "to do"
    made, base = utils.read_json(manifest), f"{run.model}-s{run.seed}"
    if made["base"] != base:
        return f"made from base {made['base']}, not {base}"
    if missing := [path.name for path in files if not path.is_file()]:
        return f"lacks {' and '.join(missing)}"
    if changed := differences(made["settings"], settings_of(run)):
        return f"made with other settings: {', '.join(changed)}"
    if made["results_version"] != RESULTS_VERSION:
        return f"made by version {made['results_version']} of the code, not {RESULTS_VERSION}"
    closed = [split for split in splits if split not in made.get("results", {})]
    return f"did not answer {' and '.join(closed)}" if closed else ""


def run_all(runs: Iterable[Run], processes: int = PROCESSES) -> list[str]:
    """Execute runs, longest first, `processes` at a time; those already finished are skipped, missing bases are built.

    Returns:
        the names of the runs that were executed.
    Raises:
        RunFailed: as soon as one run fails, after the others have been ended.
    """
    waiting = sorted((run for run in runs if not is_finished(run)), key=lambda run: -SHARES.get(run.method, 1.0))
    carry_out(with_bases(map(run_job, waiting)), processes, stop_at_failure=True)
    return [run.name for run in waiting]


def build_base(paths: config.Paths, model: str, seed: int) -> Path:
    """The folder of a seed's base; a missing one is built first.

    Raises:
        RunFailed: if that fails.
    """
    carry_out(_missing_bases(paths, model, seed), 1, stop_at_failure=True)
    return base_folder(paths, model, seed)


def run_job(run: Run, splits: Sequence[str] = config.HELD_OUT, keep_policy: bool = True,
            finished: Callable[[], bool] | None = None) -> Job:
    """The process of one run; `finished` is by default this module's `is_finished`."""
    arguments = ("train", "--profile", run.profile.name, "--method", run.method, "--model", run.model, "--seed", str(run.seed),
                 "--variant", run.variant, *(f"--split={split}" for split in splits),
                 *([] if keep_policy else ["--no-policy"]),
                 *(f"--set={key}={json.dumps(value)}" for key, value in run.profile.overrides))
    return Job(run.name, arguments, run.paths.runs / run.name / "output.log", run.paths,
               finished or (lambda: is_finished(run)), _base_name(run.model, run.seed), run)


def base_job(paths: config.Paths, model: str, seed: int) -> Job:
    """The process that builds one base, on one thread; the first one also what all start from, where that is missing."""
    folder = base_folder(paths, model, seed)
    world = ("--profile", "smol") if paths.profile == "smol" else ()
    arguments = ("base", *world, "--seed", str(seed), "--model", model, "--threads", "1")
    return Job(_base_name(model, seed), arguments, paths.root / "runs" / folder.relative_to(paths.root) / "output.log", paths,
               (folder / "config.json").is_file, "" if (model, seed) == FIRST_BASE else _base_name(*FIRST_BASE))


def with_bases(jobs: Iterable[Job]) -> list[Job]:
    """Jobs in their order, each missing base before the first run that starts from it."""
    found: dict[str, Job] = {}
    for job in jobs:
        for base in _missing_bases(job.paths, job.run.model, job.run.seed) if job.run.profile.model == "mini" else ():
            found.setdefault(base.name, base)
        found[job.name] = job
    return list(found.values())


def _missing_bases(paths: config.Paths, model: str, seed: int) -> list[Job]:
    bases = [base_job(paths, *base) for base in dict.fromkeys((FIRST_BASE, (model, seed)))]
    return [] if bases[-1].is_finished() else [base for base in bases if not base.is_finished()]


def _base_name(model: str, seed: int) -> str:
    return f"base {model}-s{seed}"


def carry_out(jobs: Iterable[Job], processes: int = PROCESSES, hours: float = math.inf,
              stop_at_failure: bool = False) -> dict[str, str]:
    """Make jobs in their order, several at a time; a job that another process is making is left to that process.

    Args:
        jobs: of different names.
        processes: at a time.
        hours: after these no job is started; running ones are finished.
        stop_at_failure: end all processes as soon as one has failed; else the others go on.
    Returns:
        why the failed ones failed, by name.
    Raises:
        RunFailed: where `stop_at_failure` is set.
    """
    queue, end = _Queue(list(jobs), stop_at_failure), time.monotonic() + 3600 * hours
    if not queue.waiting:
        return {}
    line = LiveTable(queue.table) if get_ipython() else LiveLine()
    try:
        while queue.running or (queue.waiting and time.monotonic() < end):
            if time.monotonic() < end:
                queue.start(processes)
            line.show(queue.progress)
            time.sleep(POLL_S)
            line.wipe()
            queue.collect()
    finally:
        for process in queue.running:
            process.end()
        line.end()
    if queue.waiting:
        logger.info("the time is up: %d not started, %s; start again to go on", len(queue.waiting),
                    time_left(expected_seconds(queue.waiting).values()))
    return queue.failures


class _Queue:
    """Jobs that wait, those that run, and why some failed."""

    def __init__(self, jobs: list[Job], stop_at_failure: bool) -> None:
        self.waiting, self.running, self.failures = list(jobs), list[_Running](), dict[str, str]()
        self._jobs, self._stop_at_failure, self._seconds = jobs, stop_at_failure, expected_seconds(jobs)
        self._took: dict[str, float] = {}  # seconds of what has ended, by name

    def start(self, processes: int) -> None:
        """Start what may start, until `processes` run."""
        for job in list(self.waiting):
            undone = {other.name for other in (*self.waiting, *(process.job for process in self.running))}
            if len(self.running) == processes:
                break
            if job.needs in self.failures:
                self.waiting.remove(job)
                self._end(job, f"{job.name} was not started: {job.needs} failed")
            elif job.needs not in undone and (process := _start(job)):
                self.waiting.remove(job)
                self.running.append(process)

    def collect(self) -> None:
        """Take out what has ended."""
        for process in [other for other in self.running if other.has_ended()]:
            self.running.remove(process)
            self._took[process.job.name] = time.monotonic() - process.started
            self._end(process.job, process.failure())
            self._seconds = expected_seconds([*(other.job for other in self.running), *self.waiting])

    def _end(self, job: Job, failure: str) -> None:
        if not failure:
            logger.info("%s is finished", job.name)
            return
        if self._stop_at_failure:
            raise RunFailed(failure)
        self.failures[job.name] = failure
        logger.error("%s", failure)

    def progress(self) -> str:
        """How much is done, the time left, and what each process wrote last."""
        running = [process.job for process in self.running]
        done = len(self._jobs) - len(self.waiting) - len(running)
        spent_s = sum(time.monotonic() - process.started for process in self.running)
        seconds = [self._seconds[job.name] for job in (*running, *self.waiting)]
        return (f"{done} of {len(self._jobs)} done, {time_left(seconds, spent_s)}; "
                + "; ".join(job.last_line() for job in running))

    def table(self) -> str:
        """HTML: how far each job is."""
        started = {process.job.name: process.started for process in self.running}
        return table((job.name, job.run, started.get(job.name), self._took.get(job.name)) for job in self._jobs)


@dataclass(frozen=True)
class _Running:
    """A job's process (None: another process has finished it), and its run's fingerprint at the start: later changes are not
    in its result."""

    job: Job
    process: subprocess.Popen | None = None
    fingerprint: str = ""
    started: float = field(default_factory=time.monotonic)

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def failure(self) -> str:
        """Why it failed, with the end of its output; "" where it did not. A run that did not gets its stamp."""
        code = self.process.returncode if self.process else 0
        if code:
            lines = self.job.output.read_text(errors="replace").splitlines()[-15:]
            return "\n".join([f"{self.job.name} ended with code {code}; the end of {self.job.output}:", *lines])
        if self.fingerprint:
            utils.write_atomic(_stamp(self.job.run), self.fingerprint)
        return ""

    def end(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()


def _start(job: Job) -> _Running | None:
    """Start a job, unless another process is making it."""
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with job.output.open("a") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the process inherits it with its output
        except BlockingIOError:
            return None
        if job.is_finished():
            return _Running(job)
        output.truncate(0)
        if job.run:
            _stamp(job.run).unlink(missing_ok=True)  # from now on the run's results are incomplete
        else:
            logger.info("%s is missing: building it takes %d to %d minutes of one thread", job.name, *BASE_MINUTES)
        made_of = fingerprint(job.run) if job.run else ""
        process = subprocess.Popen([sys.executable, "-m", "study", *job.arguments], stdout=output, stderr=subprocess.STDOUT,
                                   cwd=job.paths.root, env=os.environ | NO_BARS)
        return _Running(job, process, made_of)


def _stamp(run: Run) -> Path:
    return run.paths.runs / run.name / "fingerprint"


def expected_seconds(jobs: Sequence[Job]) -> dict[str, float | None]:
    """How long each job takes, by its name: by the pace of the finished runs of the same method and model, those here or else
    the published ones; None where there are none."""
    own = read_manifests(jobs[0].paths) if jobs else []
    published = read_manifests(replace(jobs[0].paths, is_published=True)) if jobs else []
    return {job.name: 60 * fmean(BASE_MINUTES) if job.run is None else
            expected_s(job.run, own) or expected_s(job.run, published) for job in jobs}


def time_left(seconds: Iterable[float | None], spent_s: float = 0.0) -> str:
    """How long jobs of so many seconds (None: unknown) take side by side, in words. Of it `spent_s` is over: the seconds of the
    jobs under way."""
    seconds = list(seconds)
    known = [value for value in seconds if value is not None]
    if seconds and not known:
        return "time left unknown"
    unknown = f" and {len(seconds) - len(known)} runs of unknown length" if len(known) < len(seconds) else ""
    minutes = max(sum(known) - spent_s, 0) / 60 / PROCESSES
    return f"about {minutes / 60:.1f} h left{unknown}" if minutes >= 60 else f"about {minutes:.0f} min left{unknown}"


def expected_s(run: Run, manifests: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean seconds of the finished runs of the same method and model, scaled to this one's steps; None if there are none."""
    steps = run.profile.training.steps
    measured = [made["seconds"] * (steps / made["steps"] if made["steps"] else 1) for made in manifests
                if (made["method"], made["model"]) == (run.method, run.model) and "seconds" in made]
    return fmean(measured) if measured else None
