"""A stage is a list of parts; each part's result is on disk as soon as the part ends.

A part returns a dict that JSON can hold. Its `checks` are comparisons with a limit. A part that raises is "failed" and does not
stop the others. A part that ended well is not repeated while code, versions and card stay the same.
"""
from __future__ import annotations

import gc
import json
import logging
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dyme_core import utils

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[2]
OK, WRONG, FAILED, NOT_RUN, NOT_REACHED = "ok", "wrong", "failed", "not run", "not reached"
IDENTITY = ("code", "versions", "card", "dry")  # what a result depends on
ORDER = (NOT_REACHED, NOT_RUN, FAILED, WRONG)  # of what the next call goes on with
MAX_ERROR = 1500  # characters


class NotHere(RuntimeError):
    """This machine lacks what a part needs; says what."""


class OutOfTime(RuntimeError):
    """The time box ended inside a part, which can be repeated."""


@dataclass(frozen=True)
class Setting:
    """Where and how parts run.

    Attributes:
        device: a card, or the CPU.
        is_dry: toy size.
        scratch: a folder for checkpoints and the like.
        pictures: a folder of real charts (.png); None draws some.
        deadline: of `time.monotonic`; no part starts after it.
    """

    device: torch.device
    is_dry: bool
    scratch: Path
    pictures: Path | None = None
    deadline: float = float("inf")

    @property
    def left_s(self) -> float:
        """Seconds that are left of the time box."""
        return self.deadline - time.monotonic()

    @property
    def card(self) -> str:
        """The card's name as part of a path: "nvidia-h100-80gb-hbm3", or "cpu"."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


Part = Callable[[Setting], dict[str, Any]]


def check(what: str, found: float, limit: float) -> dict[str, Any]:
    """A comparison: it holds where `found` is at most `limit`; NaN holds nowhere."""
    return {"what": what, "found": found, "limit": limit, "holds": bool(found <= limit)}


def run_stage(name: str, parts: Mapping[str, Part], setting: Setting, folder: Path) -> dict[str, Any]:
    """Run the parts that are not done; returns what `folder`/<stage>.json then holds.

    Args:
        folder: of this card's results.
    """
    path, head = folder / f"{name}.json", _head(name, setting)
    known = _known(path, head)
    states = {part: known.get(part, {}).get("state", NOT_REACHED) for part in parts}
    found = {part: known.get(part, {"state": NOT_REACHED}) for part in parts}
    todo = sorted((part for part in parts if states[part] != OK), key=lambda part: ORDER.index(states[part]))
    logger.info("%s: %d of %d parts to do", name, len(todo), len(parts))
    result = {}
    for part in todo:
        if setting.left_s > 0:
            found[part] = _run(parts[part], setting)
            logger.info("  %-60s %s, %.1f s", part, found[part]["state"], found[part]["seconds"])
        result = _write(path, head, found)
    return result or _write(path, head, found)


def summary(result: Mapping[str, Any]) -> dict[str, int]:
    """How many parts of a stage are in each state."""
    states = [part["state"] for part in result["parts"].values()]
    return {state: states.count(state) for state in (OK, *ORDER) if state in states}


def identity(setting: Setting) -> dict[str, Any]:
    """What a result depends on: the code, the versions, the card, whether it is of toy size."""
    code = [path for folder in ("dyme_core", "benchmarks/gpu") for path in (ROOT / folder).rglob("*.py")]
    return {"code": utils.hash_files(code, ROOT), "versions": utils.versions(), "card": setting.card, "dry": setting.is_dry}


def _head(name: str, setting: Setting) -> dict[str, Any]:
    """What a stage's file says besides its parts."""
    memory = torch.cuda.get_device_properties(setting.device).total_memory if setting.device.type == "cuda" else None
    return {"stage": name, **utils.provenance(ROOT), **identity(setting), "cuda": torch.version.cuda,
            "memory_gib": memory and round(memory / 2**30, 1)}


def _known(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """The parts of an earlier call with the same code, versions and card."""
    if not path.is_file():
        return {}
    stored = json.loads(path.read_text())
    return stored["parts"] if all(stored.get(name) == head[name] for name in IDENTITY) else {}


def _run(part: Part, setting: Setting) -> dict[str, Any]:
    """A part's result with its state and seconds; a part may fail in any way, and the others must still run."""
    start = time.monotonic()
    try:
        found = part(setting)
        found["state"] = OK if all(each["holds"] for each in found.get("checks", ())) else WRONG
    except NotHere as error:
        found = {"state": NOT_RUN, "error": str(error)}
    except OutOfTime as error:
        found = {"state": NOT_REACHED, "error": str(error)}
    except Exception as error:  # noqa: BLE001
        logger.info("%s", traceback.format_exc())
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = {"state": FAILED, "error": utils.redact(f"{type(error).__name__}: {error}")[:MAX_ERROR],
                 "at": f"{Path(place.filename).name}:{place.lineno}"}
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    return {**found, "seconds": round(time.monotonic() - start, 2)}


def _write(path: Path, head: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    seconds = round(sum(part.get("seconds", 0.0) for part in parts.values()), 1)
    result = {**head, "seconds": seconds, "parts": parts}
    utils.write_json(path, result)
    return result
