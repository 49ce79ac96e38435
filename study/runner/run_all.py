"""The whole study (`dyme study`): what `plan` declares is carried out, two runs at a time.

A run is finished when git has its rows, log and manifest, so the study can be stopped at any moment and continued on another
machine. A run is stale where its settings or base are not those of the plan, or where it is of another version of the results;
changed code alone makes none stale, the manifest names its commit. The study writes where the published results are.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from dyme_core import config
from dyme_core.pipeline.methods import Run, settings_of
from study import plan
from study.runner import scheduler
from study.runner.registry import write_registry

logger = logging.getLogger(__name__)
MODEL_SHARES = {"svlm": 1.0, "middle": 2.0, "large": 3.0}  # rough duration, for the order


@dataclass(frozen=True)
class Task:
    """A run of the plan.

    Attributes:
        experiment: the first that asks for it.
        run: what is made.
        splits: that it answers.
    """

    experiment: str
    run: Run
    splits: tuple[str, ...]

    def is_finished(self) -> bool:
        return not self.undone()

    def undone(self) -> str:
        """Why the run has to be made (again); "" where it is finished."""
        return scheduler.undone(self.run, self.splits)

    def job(self) -> scheduler.Job:
        """Its process; policies are kept of the main runs alone, which notebooks use."""
        return scheduler.run_job(self.run, self.splits, keep_policy=not self.run.variant, finished=self.is_finished)


def tasks(experiments: Sequence[str] = (), profile: str = "") -> list[Task]:
    """The runs of some experiments (all, if none is named) in the plan's order, each once, longest first in an experiment.

    Raises:
        ValueError: for an unknown experiment, or if the plan gives one name to two different runs.
    """
    found: dict[str, Task] = {}
    for point in plan.points(*experiments, profile=profile):
        for run in point.runs():
            task = found.setdefault(run.name, Task(point.experiment, run, point.splits))
            if (settings_of(task.run), task.splits) != (settings_of(run), point.splits):
                raise ValueError(f"{task.experiment} and {point.experiment} mean different runs by {run.name}; name a variant")
    order = list(plan.EXPERIMENTS)
    return sorted(found.values(), key=lambda task: (order.index(task.experiment), -_length(task.run)))


def _length(run: Run) -> float:
    return scheduler.SHARES.get(run.method, 1.0) * MODEL_SHARES[run.model] * run.profile.training.steps


def listing(experiments: Sequence[str] = (), profile: str = "") -> str:
    """A line for each run of the plan: experiment, name, and what is to do for it."""
    return "".join(f"{task.experiment:14}{task.run.name:40}{task.undone() or 'finished'}\n"
                   for task in tasks(experiments, profile))


def run_study(experiments: Sequence[str] = (), hours: float = math.inf, profile: str = "") -> int:
    """Make every run of the plan that is not finished; a failed one does not stop the others.

    Args:
        experiments: of the plan; all, if none is named.
        hours: nothing is started after these.
        profile: "smol"; the default is the plan's.
    Returns:
        exit code: 0 all is made or the time is up, 1 a run failed, 130 interrupted.
    """
    every = tasks(experiments, profile)
    waiting = [task for task in every if not task.is_finished()]
    logger.info("%d of %d runs are finished", len(every) - len(waiting), len(every))
    try:
        failures = scheduler.carry_out(scheduler.with_bases(task.job() for task in waiting), hours=hours)
    except KeyboardInterrupt:
        logger.info("stopped; finished runs stay, start the study again to go on")
        return 130
    finally:
        write_registry(config.paths("smol" if profile == "smol" else plan.PROFILE))
    if failures:
        logger.error("%d failed: %s", len(failures), ", ".join(failures))
    return int(bool(failures))
