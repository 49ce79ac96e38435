"""Rows of a data set, from the hub or from files: read, their fields checked, their pictures kept inside their folder.

No code of a data set is run: `datasets` 4 has no loading scripts, and lists stored as text are read as literals.
"""
from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from dyme_core.data.bad_rows import MAX_CHARS, BadRows
from dyme_core.data.schema import DataError

Row = dict[str, Any]
PATTERN = re.compile(r"[*?\[\]$]|::")  # `datasets` globs paths, fills in $NAME, and chains file systems with "::"


def read_hub(source: Path | str, split: str, columns: Sequence[str], files: Sequence[str], config: str | None) -> list[Row]:
    """The rows of one split, pictures of a column `image` as the bytes of their files.

    Args:
        source: a hub id ("owner/name"), or a folder in the hub's layout.
        split: as the data set calls it.
        columns: that it must have.
        files: names of the official files that were looked for in `source`.
        config: of the data set on the hub.
    Raises:
        DataError: where nothing is found, it cannot be read, or a column is missing.
    """
    if (pattern := PATTERN.search(str(Path(source).resolve()))) and Path(source).is_dir():
        raise DataError(f"{source}: the datasets library takes {pattern.group()!r} in a path for a pattern and may read "
                        "another folder; rename the folder, or move it")
    try:
        found = datasets.load_dataset(str(source), config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        wanted = f"a hub data set with split {split!r}" + (f", or a folder with {' or '.join(files)}" if files else "")
        raise DataError(f"{source}: expected {wanted}; got {type(error).__name__}: {error}; check the name, or download the "
                        "data set and give its folder") from error
    missing = [name for name in columns if name not in found.column_names]
    if missing:
        raise DataError(f"{source}, split {split!r}: expected the columns {', '.join(columns)}, got "
                        f"{', '.join(found.column_names)}; without {', '.join(missing)} it is another data set")
    if isinstance(found.features.get("image"), datasets.Image):
        found = found.cast_column("image", datasets.Image(decode=False))  # pixels of all pictures would not fit the memory
    return list(found)


def read_json(file: Path, bad: BadRows | None = None) -> list[Row | None]:
    """The objects of a JSON list, or of a JSONL file whose name ends so; both UTF-8, with or without a byte order mark.

    Args:
        bad: takes the lines of a JSONL file that hold no object, each of which is then None.
    Raises:
        DataError: naming the file, and the line of a JSONL file.
    """
    content, bad = file.read_bytes().removeprefix(b"\xef\xbb\xbf"), bad or BadRows()
    is_lines = file.suffix == ".jsonl"
    if not is_lines:
        read = _read_piece(content, file.name)
        return [_object(row, file.name) for row in (read if isinstance(read, list) else [read])]
    rows: list[Row | None] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file.name}"
        try:
            rows.append(_object(_read_piece(line, where), where))
        except DataError as error:
            bad.note(error)
            rows.append(None)
    return rows


def _read_piece(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.decode(), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise DataError.of(where, "JSON", "brackets nested too deep to be read", "write it flatter") from error
    except ValueError as error:  # no JSON, no UTF-8, a number of too many digits, a repeated key
        raise DataError.of(where, "JSON in UTF-8", error, "correct it") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> Row:
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        raise ValueError(f"the key {max(names, key=names.count)!r} twice")
    return dict(pairs)


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise DataError.of(where, "an object a row", type(row).__name__, "write {...}")
    return row


def text_of(row: Row, name: str, item: str) -> str:
    """A field that must hold text or a number, stripped.

    Raises:
        DataError: where it is missing, empty, no finite number, longer than MAX_CHARS, or a list or object.
    """
    value = row.get(name)
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool) and bool(str(value).strip())
    if not is_text or isinstance(value, float) and not math.isfinite(value):
        raise DataError.of(item, f"text in the field {name!r}", repr(value), "fill it in or remove the row")
    if len(str(value)) > MAX_CHARS:
        raise DataError.of(item, f"at most {MAX_CHARS} characters in the field {name!r}", len(str(value)), "shorten it")
    return str(value).strip()


def list_of(row: Row, name: str, item: str) -> list[Any]:
    """A field that holds a list, or the Python literal of one as text (A-OKVQA on the hub).

    Raises:
        DataError: where it is missing, empty or neither.
    """
    value = row.get(name)
    try:
        read = ast.literal_eval(value) if isinstance(value, str) and len(value) <= MAX_CHARS else value
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DataError.of(item, f"a list in the field {name!r}", repr(value), "correct it or remove the row") from error
    if not isinstance(read, list | tuple) or not read:
        raise DataError.of(item, f"a list in the field {name!r}", repr(value), "fill it in or remove the row")
    return list(read)


def picture_of(image: Any, item: str, folder: Path | str | None = None) -> bytes | Path:
    """A row's picture: its bytes (hub), or the file that the row names inside `folder`.

    Raises:
        DataError: for no picture, a name or link that leads out of the folder, a file that is not there, or no folder.
    """
    if isinstance(image, dict) and isinstance(image.get("bytes"), bytes):
        return image["bytes"]
    name = image.get("path") if isinstance(image, dict) else image
    if not isinstance(name, str) or not name.strip():
        raise DataError.of(item, "a picture", repr(image), "add it or remove the row")
    if folder is None:
        raise DataError.of(item, f"a folder that holds the picture {name}", "none",
                           "unpack the data set's pictures and give images=FOLDER")
    relative = PurePosixPath(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError.of(item, "a picture inside its folder", repr(name), "give a path relative to the folder, without ..")
    path = Path(folder) / relative
    try:
        is_there = path.is_file()
    except OSError:  # a name that no file can have
        is_there = False
    if not is_there:
        raise DataError.of(item, f"the picture {path!s:.300}", "no such file", "restore it or remove the row")
    file = path.resolve()
    if not any(file.is_relative_to(place) for place in _own_places(Path(folder).resolve())):
        raise DataError.of(item, "a picture inside its folder", f"{name!r}, a link that leads out of it",
                           "put the file itself there")
    return path


def _own_places(folder: Path) -> list[Path]:
    """The folders that a data set's files may lie in: its own, and for a snapshot of the hub the repository's blob store, which
    snapshots link to."""
    return [folder, *(above.parent / "blobs" for above in folder.parents if above.name == "snapshots")]
