"""Facts for questions that come without: each picture is looked at once, by OCR or a model that sees, and never again."""
from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dyme_core.data.datasets import png_bytes
from dyme_core.data.schema import Record, facts_to_rows, item_of
from dyme_core.supervision.fact_extraction import FactBackend, FactsError, FactStore, Picture
from dyme_core.supervision.fact_readers import ImageFacts
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import SupervisionError

logger = logging.getLogger(__name__)
TELL_S = 10.0


def backend_of(name: str, client: Client | None) -> FactBackend:
    """The back end of a name of engine.FACTS: "ocr" reads offline, "vlm" asks the supervising model, which must see pictures.

    Raises:
        ValueError: for "vlm" without a client.
    """
    if name == "ocr":
        return importlib.import_module("dyme_core.supervision.chart_ocr.ocr").OcrFacts()  # an extra
    if client is None:
        raise ValueError("data.facts='vlm' asks a model about pictures: set supervision.backend='api' and an endpoint that "
                         "sees pictures, or data.facts='ocr'")
    return ImageFacts(client)


def with_facts(records: Sequence[Record], backend: FactBackend, folder: Path, at_once: int = 1) -> list[Record]:
    """The records, those without facts given what the back end sees in their picture.

    A picture that it cannot read is told of, and its question stays without facts: no target, no thinking score.

    Args:
        folder: of the store; what lies there is not extracted again.
        at_once: pictures under way together.
    """
    store, start, told = FactStore(folder), time.monotonic(), time.monotonic()
    blind = {place: record for place, record in enumerate(records)
             if record.image is not None and not item_of(record.row).facts}
    seen, faults = list(records), 0
    with ThreadPoolExecutor(at_once) as pool:
        looks = pool.map(lambda record: _look(record, backend, store), blind.values())
        for number, (place, found) in enumerate(zip(blind, looks, strict=True), 1):
            faults += isinstance(found, Exception)
            if isinstance(found, Exception):
                logger.warning("%s: no facts: %s", records[place].item, found)
            else:
                known = json.loads(records[place].supervision) | {"facts": found}
                seen[place] = dataclasses.replace(records[place], supervision=json.dumps(known))
            if time.monotonic() - told > TELL_S:
                told, left_s = time.monotonic(), (time.monotonic() - start) / number * (len(blind) - number)
                logger.info("facts: %d of %d pictures, %d without, about %.0f s left", number, len(blind), faults, left_s)
    if blind:
        logger.info("facts by %s: %d pictures looked at now, %d known, %d without", backend.name, store.misses, store.hits,
                    faults)
    return seen


def _look(record: Record, backend: FactBackend, store: FactStore) -> list[dict] | Exception:
    try:
        return facts_to_rows(store.get(Picture(record.item, png_bytes(record.load_image())), backend).facts)
    except (FactsError, SupervisionError) as fault:
        return fault
