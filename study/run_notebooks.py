"""The notebooks in order (`dyme paper`).

A notebook is skipped when nothing it depends on has changed since it last ran to its end: its own source, dyme_core,
the lock, its parameters, the base checkpoints, and the data that the notebooks before it wrote.
"""
from __future__ import annotations

import ast
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import nbformat

from dyme_core import config
from dyme_core.utils import provenance
from study.execution import NotebookError, execute_notebook, known_parameters
from study.progress import Progress, clock
from study.reproduction import FILE, write_report
from study.stamps import Job, Workspace

logger = logging.getLogger(__name__)


def plan_jobs(workspace: Workspace, only: Sequence[str] = (), settings: dict[str, Any] | None = None) -> list[Job]:
    """The notebooks whose names begin with one of `only` (all, if empty), each with the settings that it declares.

    Raises:
        ValueError: no notebook begins so, no selected notebook declares a setting, or its default is of another type.
    """
    settings = settings or {}
    chosen = [source for source in workspace.sources() if not only or source.stem.startswith(tuple(only))]
    if not chosen:
        names = ", ".join(source.stem for source in workspace.sources()) or "none"
        raise ValueError(f"no notebook begins with {' or '.join(only)!r}; those in notebooks/ are: {names}")
    declared = {source: known_parameters(source) for source in chosen}
    _check_settings(settings, declared.values())
    always = {"profile": workspace.paths.profile}
    return [Job(source, {**always, **{name: settings[name] for name in settings if name in declared[source]}},
                num_cells=len(nbformat.read(source, as_version=4).cells) + 1) for source in chosen]


def _check_settings(settings: dict[str, Any], declared: Iterable[dict[str, str]]) -> None:
    defaults = {name: _literal(default) for known in declared for name, default in known.items()}
    for name, value in settings.items():
        if name == "profile":
            raise ValueError("the profile is chosen with --profile, not with --set")
        if name not in defaults:
            listed = ", ".join(sorted(defaults.keys() - {"profile"})) or "none"
            raise ValueError(f"unknown parameter {name!r}; the selected notebooks know: {listed}")
        default = defaults[name]
        is_whole_float = isinstance(default, float) and type(value) is int
        if default is not None and type(value) is not type(default) and not is_whole_float:
            raise ValueError(f"parameter {name!r} takes a {type(default).__name__} such as {default!r}, got {value!r}")


def run_jobs(workspace: Workspace, jobs: Sequence[Job], force: bool = False) -> None:
    """Run what is not finished, one notebook after the other; each is recorded as soon as it ends.

    Raises:
        NotebookError: a notebook failed; those before it are finished and stay so.
    """
    origin = provenance(workspace.root)
    # One that will most likely be skipped takes no time.
    expected = [0.0 if not force and workspace.is_finished(job) else workspace.last_seconds(job.name) for job in jobs]
    progress = Progress([(job.name, job.num_cells, seconds) for job, seconds in zip(jobs, expected, strict=True)])
    for job in jobs:
        if not force and workspace.is_finished(job):
            logger.info("%s: skipped, nothing it depends on has changed", job.name)
            continue
        last_s = workspace.last_seconds(job.name)
        timed = f"{clock(last_s)} last time" if last_s is not None else "never timed"
        logger.info("%s: %d cells, %s", job.name, job.num_cells, timed)
        seconds = _run_job(workspace, job, progress, origin)
        logger.info("%s: finished in %s", job.name, clock(seconds))
    logger.info("results: %s, figures: %s", workspace.paths.results, workspace.paths.figures)


def _run_job(workspace: Workspace, job: Job, progress: Progress, origin: dict[str, Any]) -> float:
    before, dependencies, earlier_outputs = workspace.snapshot(), workspace.dependencies(job), workspace.outputs(job)
    workspace.begin(job)
    start = time.monotonic()
    try:
        with progress.notebook(job.name):
            execute_notebook(job.source, workspace.target(job.name), job.parameters, root=workspace.root,
                             scratch=workspace.stamps, on_cell=progress.cell, on_line=progress.note)
    finally:
        workspace.drop_parts()
    seconds = time.monotonic() - start
    written = {path for path, changed in workspace.snapshot().items() if before.get(path) != changed}
    # The bases count as they are now, for a notebook may build them; everything else as it was when the run began.
    dependencies["bases"] = workspace.dependencies(job)["bases"]
    workspace.finish(job, seconds, dependencies, written | earlier_outputs, origin)
    return seconds


def _literal(text: str) -> Any:
    """The Python literal that a text spells, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _compare(profile: str) -> int:
    """Say how the own runs compare with the published ones; 1 where a difference is not explained."""
    report = write_report(profile)
    if report is None:
        return 0
    logger.info("\nReproduction report (%s):\n%s", config.paths(profile).results / FILE, report.markdown())
    return report.exit_code


def run(profile: str, only: Sequence[str] = (), settings: dict[str, Any] | None = None, force: bool = False) -> int:
    """Run a profile's notebooks, and compare own runs with the published ones.

    Returns:
        exit code: 0 done, 1 a notebook failed or a method came out otherwise than published with nothing to explain it,
        130 interrupted.
    Raises:
        ValueError: for an unknown profile, notebook or parameter.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it repeats what is said here
    config.load_profile(profile)
    workspace = Workspace(config.paths(profile))
    jobs = plan_jobs(workspace, only, settings)
    try:
        with workspace.alone():
            run_jobs(workspace, jobs, force)
    except NotebookError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; nothing half-written is left, finished notebooks stay finished")
        return 130
    return 0 if workspace.paths.is_published else _compare(profile)
