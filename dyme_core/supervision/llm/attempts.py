"""The ledger of a run that may be interrupted: every attempt books into a file of its own, and the end puts them together.

A run that goes on from a checkpoint asks again what it has asked since, and the recording answers. So that the ledger is that
of a run that was never stopped, such a reply is booked as the call that it was (`Attempts.paid`), and of each step the rows
of the last attempt count (`settled`). A call that was under way when its process was killed is in no ledger: no reply came.
"""
from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyme_core.store import write_rows
from dyme_core.supervision.llm.usage import identity, is_call

logger = logging.getLogger(__name__)
LEDGER_FILE = "ledger.jsonl"


class Attempts:
    """What earlier attempts at a run have booked, and the file of this one; several processes may share it, if all of them are
    made before one books.

    Attributes:
        path: of this attempt's ledger.
        paid: calls of earlier attempts that got a reply, by `identity`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._is_over, earlier = folder, False, _read_all(folder)
        self.path = folder / f"attempt-{len(earlier)}.jsonl"
        self.paid = {identity(row): row for rows in earlier for row in rows if is_call(row) and row["outcome"] == "ok"}

    def rows(self) -> list[dict[str, Any]]:
        """The run's ledger up to now."""
        return settled(_read_all(self._folder))

    def write(self) -> None:
        """Write the run's ledger, whole or not at all."""
        write_rows(self._folder / LEDGER_FILE, self.rows())
        self._is_over = True

    def close(self) -> None:
        """Remove the attempts' files where the ledger is written; else the next attempt needs them."""
        for file in _files(self._folder) if self._is_over else ():
            file.unlink()


def settled(attempts: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One ledger of all attempts, by step, purpose, item and request: of each step the rows of the last attempt that has some,
    and calls of those before which it did not make again, for they were paid (sampling on a GPU may differ)."""
    last = {row["step"]: number for number, rows in enumerate(attempts) for row in rows}
    whole = [row for number, rows in enumerate(attempts) for row in rows if last[row["step"]] == number]
    known = {identity(row) for row in whole if is_call(row)}
    lost = {identity(row): row for rows in attempts for row in rows if is_call(row) and identity(row) not in known}
    return sorted([*whole, *lost.values()], key=lambda row: (row["step"], row["purpose"], row["item"], row["key"], row["hit"]))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*[0-9].jsonl"), key=lambda path: int(path.stem.rpartition("-")[2]))


def _read_all(folder: Path) -> list[list[dict[str, Any]]]:
    return [_read(file) for file in _files(folder)]


def _read(file: Path) -> list[dict[str, Any]]:
    rows = []
    for line in filter(None, file.read_text(encoding="utf-8", errors="replace").split("\n")):
        try:
            rows.append(json.loads(line))
        except ValueError:
            logger.warning("%s: a line was torn when the run was interrupted; one call is not in the ledger", file)
    return rows
