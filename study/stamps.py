"""What a finished notebook leaves behind, and whether it has to run again: stamps, dependencies, the manifest."""
from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyme_core import config
from dyme_core.utils import PART_SUFFIX, hash_file, hash_files, hash_json, write_json

logger = logging.getLogger(__name__)
CORE = Path(__file__).resolve().parents[1]
PACKAGES = ("dyme_core", "study", "scripts")  # what a notebook may import
PRESENTED = ("notebooks", "tables", "figures")  # written for readers; no later notebook reads them


@dataclass(frozen=True)
class Job:
    """One notebook, the parameters it gets, and its number of cells with the one that sets them."""

    source: Path
    parameters: dict[str, Any]
    num_cells: int

    @property
    def name(self) -> str:
        """The file's name without its ending, for example "03_dyme_training"."""
        return self.source.stem


class Workspace:
    """Where one profile's notebooks, executed copies, stamps and manifest lie, and what they say."""

    def __init__(self, paths: config.Paths) -> None:
        self.paths = paths
        self.root = paths.root
        self.stamps = paths.results / ".stamps"
        self.manifest = paths.results / "manifest.json"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the profile's results for one run; a second one waits, and then finds finished what the first has made."""
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
        """Where the executed copy goes."""
        return self.paths.results / "notebooks" / f"{name}.ipynb"

    def last_seconds(self, name: str) -> float | None:
        """Seconds of the last finished run here, or else those of the run in the manifest that git carries."""
        recorded = self._stamp(name) or _read(self.manifest).get("notebooks", {}).get(name, {})
        return recorded.get("seconds")

    def dependencies(self, job: Job) -> dict[str, str]:
        """A hash of each thing that decides what this notebook gives, as it is now."""
        earlier = [source.stem for source in self.sources() if source.stem < job.name]
        return {"notebook": hash_file(job.source),
                "core": hash_files((path for package in PACKAGES for path in (CORE / package).rglob("*.py")), CORE),
                "lock": hash_files(self.root.glob("requirements.lock"), self.root),
                "parameters": hash_json(job.parameters),
                "bases": hash_files((path for folder in self.paths.bases.glob("*-s0") for path in _files(folder)), self.root),
                "earlier": hash_files((path for name in earlier for path in self._data(name)), self.root)}

    def is_finished(self, job: Job) -> bool:
        """Whether nothing has changed since the last finished run and all that it wrote is still there."""
        stamp = self._stamp(job.name)
        return (bool(stamp) and stamp["dependencies"] == self.dependencies(job)
                and all((self.root / output).is_file() for output in stamp["outputs"]))

    def snapshot(self) -> dict[str, int]:
        """Every result file, relative to the root, with its time of change in ns."""
        folders = (self.paths.results, self.paths.figures, self.paths.runs)
        files = {path for folder in folders for path in _files(folder)} - {self.manifest}
        return {self._relative(path): path.stat().st_mtime_ns for path in files if self.stamps not in path.parents}

    def drop_parts(self) -> None:
        """Remove what an interrupted notebook was in the middle of writing."""
        for path in self.snapshot():
            if path.endswith(PART_SUFFIX):
                (self.root / path).unlink()

    def begin(self, job: Job) -> None:
        """Forget the last run: from now on this notebook's results are in the making."""
        (self.stamps / f"{job.name}.json").unlink(missing_ok=True)

    def finish(self, job: Job, seconds: float, dependencies: dict[str, str], outputs: set[str],
               origin: dict[str, Any]) -> None:
        """Record a finished run in its stamp and in the manifest; `origin` is the run's provenance."""
        manifest = _read(self.manifest)
        entry = {"seconds": round(seconds, 1), "parameters": job.parameters, "commit": origin["commit"],
                 "dirty": origin["dirty"]}
        notebooks = dict(sorted({**manifest.get("notebooks", {}), job.name: entry}.items()))
        write_json(self.manifest, {"profile": self.paths.profile, **origin, "notebooks": notebooks})
        stamp = {"seconds": round(seconds, 1), "dependencies": dependencies, "outputs": sorted(outputs)}
        write_json(self.stamps / f"{job.name}.json", stamp)

    def outputs(self, job: Job) -> set[str]:
        """What the last finished run wrote and is still there, relative to the root."""
        return {output for output in self._stamp(job.name).get("outputs", []) if (self.root / output).is_file()}

    def _stamp(self, name: str) -> dict[str, Any]:
        return _read(self.stamps / f"{name}.json")

    def _data(self, name: str) -> list[Path]:
        folders = [self.paths.results / folder for folder in PRESENTED] + [self.paths.figures]
        files = [self.root / output for output in self._stamp(name).get("outputs", [])]
        return [path for path in files if path.is_file() and not any(folder in path.parents for folder in folders)]

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
