"""Rows on disk: one JSON line each, whole files or none; `.xz` files are compressed, the same rows always to the same bytes."""
from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dyme_core.utils import write_atomic

SUFFIX = ".jsonl.xz"  # of a run's rows and log
MAX_MIB = 1024  # of a file's rows, unpacked: a few kilobytes of .xz can become more than any memory


def run_file(folder: Path, run: str) -> Path:
    """Where a run's rows (or its log) lie in the folder of all rows (or logs)."""
    return folder / f"{run}{SUFFIX}"


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows whole or not at all, compressed if the name ends in ".xz"."""
    lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    write_atomic(path, lzma.compress(lines) if path.suffix == ".xz" else lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read what `write_rows` wrote; texts stay texts (item "1e5", answer "007").

    Raises:
        ValueError: naming a file that holds no such rows, or more than MAX_MIB of them.
    """
    try:
        with (lzma.open(path) if path.suffix == ".xz" else path.open("rb")) as file:
            content = file.read(MAX_MIB * 2**20 + 1)
        if len(content) > MAX_MIB * 2**20:
            raise ValueError(f"more than {MAX_MIB} MiB of them")
        text = content.decode()
        rows = [json.loads(line) for line in text.split("\n") if line]
    except (ValueError, RecursionError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path}: expected JSON rows, got {error}; remove it and make it again") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected an object a row, got another value; remove it and make it again")
    return rows
