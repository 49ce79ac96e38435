"""The notebooks in order (`dyme paper`); a finished one is skipped.

A notebook runs again where its source, the packages' sources, the lock, its parameters or the base checkpoints have changed
since it last finished, where an earlier notebook has run with other ones, or where one of its results is missing.
"""
from __future__ import annotations

import ast
import dataclasses
import fcntl
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from papermill.translators import PythonTranslator

from dyme_core import config
from dyme_core.utils import PART_SUFFIX, hash_files, hash_json, provenance, read_json, redact, write_json
from study.reproduction import FILE, write_report
from study.runner.execution import ANSI, NotebookError, execute_notebook
from study.runner.live import LiveLine, clock

logger = logging.getLogger(__name__)
CODE = Path(__file__).resolve().parents[2]
PACKAGES = ("dyme_core", "study", "scripts")  # what a notebook may import
CLOCK_NS = 20_000_000  # a file's time of change may lag behind the clock by this much


@dataclass(frozen=True)
class Job:
    """One notebook and the parameters it gets."""

    source: Path
    parameters: dict[str, Any]

    @property
    def name(self) -> str:
        """The file's name without its ending, for example "03_dyme_training"."""
        return self.source.stem


class Workspace:
    """One profile's notebooks, executed copies, stamps and manifest.

    A stamp, .stamps/NAME.json, holds `seconds`, `dependencies` and `outputs` of a notebook's last finished run.
    """

    def __init__(self, paths: config.Paths) -> None:
        self.paths, self.root = paths, paths.root
        self.stamps, self.manifest = paths.results / ".stamps", paths.results / "manifest.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the profile's results for one run; a second one waits, and then finds the first one's notebooks finished."""
        self.stamps.mkdir(parents=True, exist_ok=True)
        with (self.stamps / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("another run writes %s; waiting for its end", self.paths.results)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def sources(self) -> list[Path]:
        """All notebooks, in the order of their names."""
        return sorted((self.root / "notebooks").glob("*.ipynb"))

    def target(self, name: str) -> Path:
        """The path of the executed copy."""
        return self.paths.results / "notebooks" / f"{name}.ipynb"

    def stamp(self, name: str) -> dict[str, Any]:
        """What the last finished run left; {} without one."""
        return _read(self.stamps / f"{name}.json")

    def last_seconds(self, name: str) -> float | None:
        """Seconds of the last finished run here, or else of the published one."""
        published = dataclasses.replace(self.paths, is_published=True).results / "manifest.json"
        made = [self.stamp(name), *(_read(path).get("notebooks", {}).get(name, {}) for path in (self.manifest, published))]
        return next((each["seconds"] for each in made if each), None)

    def dependencies(self, job: Job) -> dict[str, str]:
        """A hash of what a notebook's result depends on, as it is now; outputs that a session left in it are no part."""
        cells = [[cell.cell_type, cell.source, cell.metadata.get("tags")] for cell in _cells(job.source)]
        earlier = [self.stamp(source.stem).get("dependencies") for source in self.sources() if source.stem < job.name]
        code = hash_files((path for package in PACKAGES for path in (CODE / package).rglob("*.py")), CODE)
        lock = hash_files(self.root.glob("requirements.lock"), self.root)
        bases = (path for path in self.paths.bases.glob("*-s0/**/*") if path.is_file())
        return {"sources": hash_json([cells, job.parameters, earlier, code, lock]), "bases": hash_files(bases, self.root)}

    def is_finished(self, job: Job) -> bool:
        """Whether nothing has changed since the last finished run and all its results still exist."""
        stamp = self.stamp(job.name)
        return bool(stamp) and stamp["dependencies"] == self.dependencies(job) and all(
            (self.root / output).is_file() for output in stamp["outputs"])

    def files(self) -> set[Path]:
        """Every result."""
        found = {path for folder in (self.paths.results, self.paths.figures, self.paths.runs) for path in folder.rglob("*")}
        return {path for path in found - {self.manifest} if path.is_file() and self.stamps not in path.parents}

    def record(self, job: Job, seconds: float, dependencies: dict[str, str], outputs: set[str],
               origin: dict[str, Any]) -> None:
        """Write a finished run's stamp and its entry in the manifest; `origin` is the run's provenance."""
        entry = {"seconds": round(seconds, 1), "parameters": job.parameters, "commit": origin["commit"],
                 "dirty": origin["dirty"]}
        notebooks = dict(sorted({**_read(self.manifest).get("notebooks", {}), job.name: entry}.items()))
        write_json(self.manifest, {"profile": self.paths.profile, **origin, "notebooks": notebooks})
        write_json(self.stamps / f"{job.name}.json", {"seconds": entry["seconds"], "dependencies": dependencies,
                                                      "outputs": sorted(outputs)})


class Progress:
    """Shows which cell runs, how long all the rest will take, and the notebook's last line of output."""

    def __init__(self, job: Job, expected_s: float | None, later_s: float) -> None:
        self._name, self._num_cells = job.name, len(_cells(job.source)) + 1  # papermill adds the parameters
        self._expected_s, self._later_s, self._cell, self._start = expected_s, later_s, 0, time.monotonic()
        self._line, self._said = LiveLine(), ""
        logger.info("%s: %d cells, %s", self._name, self._num_cells,
                    f"{clock(expected_s)} last time" if expected_s else "never timed")

    def on_cell(self, cell_index: int, **_: Any) -> None:
        """Papermill calls it when a cell starts."""
        self._cell, self._said = cell_index + 1, ""
        self._line.show(self._text)

    def write(self, text: str) -> None:
        """Papermill calls it with each piece of the kernel's output."""
        if lines := [line.strip() for line in re.split(r"[\r\n]", ANSI.sub("", text)) if line.strip()]:
            self._said = f"  | {redact(lines[-1])}"
            self._line.show(self._text)

    def flush(self) -> None:
        """Nothing is buffered here."""

    def end(self) -> float:
        """Wipe the line; returns the seconds since the start."""
        self._line.wipe()
        return time.monotonic() - self._start

    def _text(self) -> str:
        elapsed_s = time.monotonic() - self._start
        left_s = self._expected_s and max(self._expected_s - elapsed_s, 0) + self._later_s
        left = f", about {clock(left_s)} left" if left_s is not None else ""
        return f"{self._name}: cell {self._cell} of {self._num_cells}, {clock(elapsed_s)}{left}{self._said}"


def plan_jobs(workspace: Workspace, only: Sequence[str] = (), settings: Mapping[str, Any] | None = None) -> list[Job]:
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
    _check_settings(settings, {name: default for known in declared.values() for name, default in known.items()})
    return [Job(source, {"profile": workspace.paths.profile, **{name: settings[name] for name in settings if name in known}})
            for source, known in declared.items()]


def known_parameters(notebook: Path) -> dict[str, Any]:
    """Names and defaults of a notebook's cell tagged `parameters`, whose values are plain literals."""
    tagged = [cell for cell in _cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    try:
        return {found.name: ast.literal_eval(found.default) for cell in tagged for found in PythonTranslator.inspect(cell)}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{notebook}: the parameters' defaults must be plain values such as 3 or [0, 1] ({error})") from error


def _check_settings(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
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
    with workspace.alone():
        origin = provenance(workspace.root)
        for index, job in enumerate(jobs):
            if not force and workspace.is_finished(job):
                logger.info("%s: skipped, nothing it depends on has changed", job.name)
                continue
            is_changed = workspace.stamp(job.name).get("dependencies") != workspace.dependencies(job)  # so are later ones then
            later = [each for each in jobs[index + 1:] if force or is_changed or not workspace.is_finished(each)]
            _run_job(workspace, job, sum(workspace.last_seconds(each.name) or 0 for each in later), origin)
    logger.info("results: %s, figures: %s", workspace.paths.results, workspace.paths.figures)


def _run_job(workspace: Workspace, job: Job, later_s: float, origin: dict[str, Any]) -> None:
    started_ns, dependencies = time.time_ns(), workspace.dependencies(job)
    earlier = set(workspace.stamp(job.name).get("outputs", []))  # what it finds done, it does not write again
    progress = Progress(job, workspace.last_seconds(job.name), later_s)
    (workspace.stamps / f"{job.name}.json").unlink(missing_ok=True)  # from now on its results are incomplete
    try:
        execute_notebook(job.source, workspace.target(job.name), job.parameters, root=workspace.root,
                         scratch=workspace.stamps, on_cell=progress.on_cell, output=progress)
    finally:
        seconds = progress.end()
        for path in workspace.files():
            if path.name.endswith(PART_SUFFIX):
                path.unlink()  # half-written by an interrupted notebook
    found = {path.relative_to(workspace.root).as_posix(): path.stat().st_mtime_ns for path in workspace.files()}
    outputs = {name for name, changed_ns in found.items() if name in earlier or changed_ns >= started_ns - CLOCK_NS}
    # The bases count as they are now, for a notebook may build them; everything else as it was when the run began.
    workspace.record(job, seconds, {**dependencies, "bases": workspace.dependencies(job)["bases"]}, outputs, origin)
    logger.info("%s: finished in %s", job.name, clock(seconds))


def run(profile: str, only: Sequence[str] = (), settings: Mapping[str, Any] | None = None, force: bool = False) -> int:
    """Run a profile's notebooks, and compare own runs with the published ones.

    Returns:
        exit code: 0 done, 1 a notebook failed or a method came out otherwise than published with nothing to explain it,
        130 interrupted.
    Raises:
        ValueError: for an unknown profile, notebook or parameter.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it repeats these messages
    config.load_profile(profile)
    workspace = Workspace(config.paths(profile))
    jobs = plan_jobs(workspace, only, settings)
    for job in jobs:
        if (saved := known_parameters(job.source)["profile"]) not in (profile, config.DEFAULT):
            logger.warning("%s: a session saved profile %r in it; profile %r is run", job.name, saved, profile)
    try:
        run_jobs(workspace, jobs, force)
    except NotebookError as error:
        logger.error("%s", error)
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; nothing half-written is left, finished notebooks stay finished")
        return 130
    return 0 if workspace.paths.is_published else compare(profile)


def compare(profile: str) -> int:
    """Say how the own runs compare with the published ones; 1 where a difference is not explained."""
    report = write_report(profile)
    if report is None:
        return 0
    logger.info("\nReproduction report (%s):\n%s", config.paths(profile).results / FILE, report.markdown())
    return report.exit_code


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _cells(notebook: Path) -> list[nbformat.NotebookNode]:
    try:
        return nbformat.read(notebook, as_version=4).cells
    except (ValueError, AttributeError, KeyError, TypeError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is no notebook ({str(error):.300}); restore it from git") from error
