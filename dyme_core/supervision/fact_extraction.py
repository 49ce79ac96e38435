"""Visual facts of a picture from a back end, made once a picture and stored with their provenance.

A back end is anything with the members of `FactBackend`. Here: `TableFacts` (the data set's own table). `ocr.OcrFacts` reads
the picture offline; a language model reading a hint or the picture is one more class with the same members.
"""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.schema import Fact, facts_from_rows, facts_to_rows
from dyme_core.utils import hash_json, write_json

MAX_STORED = 2**24  # bytes of a picture's facts


class FactsError(ValueError):
    """Facts that cannot be had: names the item, what was expected, what came, what to do."""


@dataclass(frozen=True)
class Picture:
    """What a back end may read of one picture.

    Attributes:
        item: id for messages; does not decide where facts are stored.
        image: the bytes of its file.
        table: the data set's table as CSV text, "" where there is none.
        hint: a text about the picture (caption, description), "" where there is none.
    """

    item: str
    image: bytes = field(repr=False)
    table: str = field(default="", repr=False)
    hint: str = field(default="", repr=False)

    @classmethod
    def of_files(cls, image: Path, table: Path | None = None, hint: str = "") -> Picture:
        """Read a picture and, where it exists, its table from files; the image's stem is the item."""
        text = table.read_bytes().decode("utf-8-sig") if table is not None and table.is_file() else ""
        return cls(image.stem, image.read_bytes(), text, hint)


class FactBackend(Protocol):
    """One way to facts.

    Attributes:
        name: short and unique, the folder that its facts are stored in.
        version: everything that may change its facts: packages, model, prompt, rules.
        reads: the fields of `Picture` that it looks at; a change of any of them makes the facts anew.
    """

    name: str
    version: str
    reads: tuple[str, ...]

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Return the facts, () where the picture shows none; raise where they cannot be had (never () for a failure)."""


class TableFacts:
    """The back end "table": facts of the data set's own table."""

    name = "table"
    version = "1"
    reads = ("table",)

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Facts of the table.

        Raises:
            FactsError: where the picture has no table.
        """
        if not picture.table:
            raise FactsError(f"item {picture.item!r}: expected a table, got none; give one or use another back end")
        return csv_facts(picture.table)


@dataclass(frozen=True)
class Extraction:
    """Facts with their provenance: which back end made them from which image, in how many seconds."""

    facts: tuple[Fact, ...]
    backend: str
    version: str
    image_sha256: str
    seconds: float


@dataclass
class FactStore:
    """Facts on disk: one JSON file a picture and back end, written whole or not at all, never computed twice.

    Attributes:
        folder: where they lie, as <back end>/<key>.json; safe to share between runs and processes.
        clock: seconds, for the time an extraction took.
        hits, misses: how often a stored extraction was found, or made.
    """

    folder: Path
    clock: Callable[[], float] = time.perf_counter
    hits: int = 0
    misses: int = 0

    def get(self, picture: Picture, backend: FactBackend) -> Extraction:
        """The facts of `picture` by `backend`: the stored ones, else extracted now and stored.

        Raises:
            FactsError: if the stored file cannot be read; what the back end raises is passed on and nothing is stored.
        """
        path = self.folder / backend.name / f"{store_key(picture, backend)}.json"
        if path.is_file():
            self.hits += 1
            return _read(path)
        start = self.clock()
        facts = backend.extract(picture)
        made = Extraction(facts, backend.name, backend.version, _sha256(picture.image), round(self.clock() - start, 4))
        write_json(path, _row(made))
        self.misses += 1
        return made


def store_key(picture: Picture, backend: FactBackend) -> str:
    """The file name of an extraction: SHA-256 of the image, the back end's name and version, and what else it reads."""
    read = {name: _sha256(getattr(picture, name)) for name in {"image", *backend.reads}}
    return hash_json({"backend": backend.name, "version": backend.version, **read})


def _sha256(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _row(made: Extraction) -> dict[str, Any]:
    return {"backend": made.backend, "version": made.version, "image_sha256": made.image_sha256, "seconds": made.seconds,
            "facts": facts_to_rows(made.facts)}


def _read(path: Path) -> Extraction:
    try:
        if path.stat().st_size > MAX_STORED:
            raise ValueError(f"more than {MAX_STORED} bytes")
        row = json.loads(path.read_text(encoding="utf-8"))
        return Extraction(facts_from_rows(row["facts"]), row["backend"], row["version"], row["image_sha256"], row["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise FactsError(f"stored facts {path.name} cannot be read ({error!r}); remove the file to make them anew") from error
