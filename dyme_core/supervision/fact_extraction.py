"""Facts for questions that have none: extracted from each picture once, and stored with their provenance.

A back end is anything with the members of `FactBackend`. Here: `TableFacts` (the data set's own table) and `ImageFacts` (a
model that reads pictures). `chart_ocr.ocr.OcrFacts` reads the picture offline, `deplot.DePlotFacts` by a chart-to-table model.
"""
from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from dyme_core.data.benchmarks.tabular import csv_facts
from dyme_core.data.datasets import png_bytes
from dyme_core.data.numbers import clean_label
from dyme_core.data.schema import DataError, Fact, Record, facts_from_rows, item_of, write_supervision
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.judge import PARAMETERS as DEFAULTS
from dyme_core.supervision.llm.parsing import Request, SupervisionError
from dyme_core.supervision.llm.prompts import FACTS_SYSTEM, FactsReply, facts_messages
from dyme_core.utils import hash_json, write_json

MAX_STORED = 2**24  # bytes of a picture's facts
PARAMETERS = {"temperature": 0.0, "max_tokens": 2000}  # of a request for facts, in place of the default's 400 tokens
PROGRESS_S = 10.0  # between log lines
logger = logging.getLogger(__name__)


class FactsError(ValueError):
    """Facts could not be extracted; names the item, what was expected, what came, what to do."""


@dataclass(frozen=True)
class Picture:
    """What a back end may read of one picture.

    Attributes:
        item: id, for messages only.
        image: the bytes of its file.
        table: the data set's table as CSV text, "" where there is none.
    """

    item: str
    image: bytes = field(repr=False)
    table: str = field(default="", repr=False)

    @classmethod
    def of_files(cls, image: Path, table: Path | None = None) -> Picture:
        """Read a picture and, where it exists, its table from files; the image's stem is the item."""
        text = table.read_bytes().decode("utf-8-sig") if table is not None and table.is_file() else ""
        return cls(image.stem, image.read_bytes(), text)


class FactBackend(Protocol):
    """One way to facts.

    Attributes:
        name: short and unique, the folder that its facts are stored in.
        version: everything that may change its facts: packages, model, prompt, rules.
        reads: the fields of `Picture` that it uses; a change of any of them means a new extraction.
    """

    name: str
    version: str
    reads: tuple[str, ...]

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Return the facts, () where the picture shows none; raise where extraction fails (never () for a failure)."""


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


class ImageFacts:
    """The back end "vlm": facts that a model reads in the picture, which is sent inside the message.

    Args:
        client: asks the model.
        parameters: sent with each request; they and the prompt are part of the version.
    """

    name = "vlm"
    reads = ("image",)

    def __init__(self, client: Client, parameters: Mapping[str, Any] = PARAMETERS) -> None:
        self.client, self.parameters = client, dict(parameters)
        self.version = f"{client.endpoint.name}-{hash_json([FACTS_SYSTEM, self.parameters])[:8]}"

    def extract(self, picture: Picture) -> tuple[Fact, ...]:
        """Ask for the facts; rows without an entity are left out, because no trace can be checked against them.

        Raises:
            SupervisionError: where the model gives no valid reply.
            FactsError: where the picture's bytes are no picture.
        """
        try:
            kind = Image.open(io.BytesIO(picture.image)).get_format_mimetype()
        except (UnidentifiedImageError, OSError) as error:
            raise FactsError(f"item {picture.item!r}: expected a picture, got {len(picture.image)} bytes that are none; "
                             "restore the file or remove the row") from error
        messages = facts_messages(f"data:{kind};base64,{base64.b64encode(picture.image).decode()}")
        reply = self.client.submit(Request("facts", picture.item, messages, FactsReply, self.parameters)).result()
        return tuple(Fact(clean_label(row.entity), clean_label(row.attribute), float(row.value), row.unit.strip())
                     for row in reply.facts if clean_label(row.entity))


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
        folder: holds <back end>/<key>.json; safe to share between runs and processes.
        clock: seconds, for the time an extraction took.
        hits, misses: extractions that were found, and that were made.
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
        write_json(path, dataclasses.asdict(made))
        self.misses += 1
        return made


def store_key(picture: Picture, backend: FactBackend) -> str:
    """The file name of an extraction: SHA-256 of the image, the back end's name and version, and what else it reads."""
    read = {name: _sha256(getattr(picture, name)) for name in {"image", *backend.reads}}
    return hash_json({"backend": backend.name, "version": backend.version, **read})


def backend_of(name: str, client: Client | None, parameters: Mapping[str, Any] = DEFAULTS) -> FactBackend:
    """The back end called "ocr" (offline), "deplot" (the hub's chart-to-table model, "deplot:FOLDER" for a saved one) or "vlm"
    (asks the supervising model, which must read pictures).

    Args:
        parameters: of the requests to this endpoint (`supervision.parameters`); the defaults get room for a whole chart.
    Raises:
        ValueError: for "vlm" without a client.
    """
    if name == "ocr":
        return importlib.import_module("dyme_core.supervision.chart_ocr.ocr").OcrFacts()  # an extra
    if name.startswith("deplot"):
        return importlib.import_module("dyme_core.supervision.deplot").DePlotFacts(*filter(None, [name[len("deplot:"):]]))
    if client is None:
        raise ValueError("data.facts='vlm' asks a model about pictures: set supervision.backend='api' and an endpoint that "
                         "sees pictures, or data.facts='ocr' or 'deplot'")
    return ImageFacts(client, PARAMETERS if parameters == DEFAULTS else parameters)


def with_facts(records: Sequence[Record], backend: FactBackend, folder: Path, at_once: int = 1) -> list[Record]:
    """The records, those without facts given what the back end reads in their picture.

    A picture that it cannot read is logged, and its question stays without facts: no target, no thinking score.

    Args:
        folder: of the store; what lies there is not extracted again.
        at_once: pictures that are read at the same time.
    """
    store, start, said, num_failed = FactStore(folder), time.monotonic(), time.monotonic(), 0
    without = [place for place, record in enumerate(records) if record.image is not None and not item_of(record.row).facts]
    extended = list(records)
    with ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda place: _facts_or_error(records[place], backend, store), without)
        for number, (place, facts) in enumerate(zip(without, found, strict=True), 1):
            if isinstance(facts, Exception):
                num_failed += 1
                logger.warning("%s: no facts: %s", records[place].item, facts)
            else:
                item = dataclasses.replace(item_of(records[place].row), facts=facts)
                extended[place] = dataclasses.replace(records[place], supervision=write_supervision(item))
            if time.monotonic() - said > PROGRESS_S:
                said, left_s = time.monotonic(), (time.monotonic() - start) / number * (len(without) - number)
                logger.info("facts: %d of %d pictures, %d without, about %.0f s left", number, len(without), num_failed, left_s)
    if without:
        logger.info("facts by %s: %d pictures read now, %d stored before, %d without", backend.name, store.misses, store.hits,
                    num_failed)
    return extended


def _facts_or_error(record: Record, backend: FactBackend, store: FactStore) -> tuple[Fact, ...] | Exception:
    try:
        return store.get(Picture(record.item, png_bytes(record.load_image())), backend).facts
    except (FactsError, SupervisionError, DataError) as error:
        return error


def _sha256(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _read(path: Path) -> Extraction:
    try:
        if path.stat().st_size > MAX_STORED:
            raise ValueError(f"more than {MAX_STORED} bytes")
        row = json.loads(path.read_bytes())
        return Extraction(facts_from_rows(row["facts"]), row["backend"], row["version"], row["image_sha256"], row["seconds"])
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FactsError(f"stored facts {path.name} cannot be read ({error!r}); remove the file to make them anew") from error
