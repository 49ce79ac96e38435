"""Replies on disk: the cache of a live client and the recording that replay serves from.

The cache is one SQLite file of JSON texts, safe for several processes at once and whole after a crash. Exported as JSONL,
sorted by key, it can be committed and read in a diff; replay serves from either form.
"""
from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dyme_core.utils import json_line, write_atomic

MAX_ROW = 2**20  # bytes; a reply is a few sentences or a table's cells
FIELDS = ("key", "purpose", "item", "model", "reply", "tokens_in", "tokens_out")


class Recording(AbstractContextManager):
    """Recorded replies by request key; each is a dict with FIELDS, `reply` being the JSON object that was valid.

    Args:
        path: a SQLite file, made where it is missing; or a `.jsonl` export, which is read-only.
        read_only: refuse to make or change the file.
    Raises:
        FileNotFoundError: for a missing export or a missing read-only file.
        ValueError: for a file that is no recording.
    """

    def __init__(self, path: Path | str, read_only: bool = False) -> None:
        self.path, self._lock = Path(path), threading.Lock()
        is_export = self.path.suffix == ".jsonl"
        self.is_read_only = read_only or is_export
        if self.is_read_only and not self.path.is_file():
            raise FileNotFoundError(f"no recording at {self.path}; record one with a live client, or check the path")
        if not self.is_read_only:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        place = ":memory:" if is_export else f"{self.path.resolve().as_uri()}{'?mode=ro' if read_only else ''}"
        self._database = sqlite3.connect(place, timeout=60, isolation_level=None, check_same_thread=False, uri=not is_export)
        try:
            if is_export or not read_only:
                self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, row TEXT NOT NULL)")
            self._database.execute("SELECT key, row FROM replies LIMIT 1")
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise ValueError(f"{self.path} is no recording ({error}); move it away, or name another file") from error
        if is_export:
            self._insert(_read_export(self.path))

    def get(self, key: str) -> dict[str, Any] | None:
        """The recorded row, or None.

        Raises:
            ValueError: where what is stored is no row.
        """
        with self._lock:
            found = self._database.execute("SELECT row FROM replies WHERE key = ?", (key,)).fetchone()
        return _read_row(found[0], f"{self.path}, key {key}") if found else None

    def put(self, row: dict[str, Any]) -> None:
        """Store a row with FIELDS under its key; on return it is on disk. A row of the same key is replaced."""
        if self.is_read_only:
            raise ValueError(f"{self.path} is read-only; record into a SQLite file and export it as JSONL")
        self._insert([row])

    def export_jsonl(self, path: Path | str) -> int:
        """Write one JSON line per reply, sorted by key: the same replies give the same bytes. The number of rows."""
        with self._lock:
            lines = [f"{row}\n" for (row,) in self._database.execute("SELECT row FROM replies ORDER BY key")]
        write_atomic(Path(path), "".join(lines))
        return len(lines)

    def close(self) -> None:
        self._database.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _insert(self, rows: Iterable[dict[str, Any]]) -> None:
        texts = [(row["key"], json_line({name: row[name] for name in FIELDS}).decode().rstrip()) for row in rows]
        with self._lock, self._database:  # commits, or rolls back on an error
            self._database.execute("BEGIN IMMEDIATE")  # waits its turn; a later upgrade of the lock would not
            self._database.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", texts)


def _read_export(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_ROW + 1), b""), 1):
            yield _read_row(line, f"{path}, line {number}")


def _read_row(text: bytes | str, where: str) -> dict[str, Any]:
    if len(text) > MAX_ROW:
        raise ValueError(f"{where}: expected a reply of at most {MAX_ROW} bytes, got more; remove it and ask again")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of too many digits; brackets too deep
        raise ValueError(f"{where}: expected a JSON object, got {text!r:.80}; export it again") from error
    is_row = isinstance(row, dict) and not set(FIELDS) - row.keys()
    if not is_row or not isinstance(row["key"], str) or not isinstance(row["reply"], dict):
        raise ValueError(f"{where}: expected a row with {FIELDS}, the key a text, the reply an object, got {text!r:.80}; "
                         "export it again")
    return row
