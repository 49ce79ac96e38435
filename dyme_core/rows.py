"""Rows of a data set, from the hub or from files: read, their fields checked, their pictures kept inside their folder.

Nothing of a data set is run: `datasets` 4 has no loading scripts, and lists kept as text are read as literals.
"""
from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import datasets

from dyme_core.data import DataError

Row = dict[str, Any]
SPLITS = {"val": "validation", "testmini": "test", "testmini_text_only": "test", "qa_tuning": "train"}  # theirs to ours


def read_rows(source: Path | str, split: str, columns: Sequence[str], files: Sequence[str] = (), config: str | None = None
              ) -> list[Row]:
    """The rows of one split, pictures of a column `image` as the bytes of their files.

    Args:
        source: a hub id ("owner/name"), a folder in the hub's layout, or a folder that holds one of `files`.
        split: as the data set calls it.
        columns: that a hub data set must have.
        files: names of the official JSON or JSONL file of this split; the first that is there is read.
        config: of a hub data set.
    Raises:
        DataError: where nothing is found, it cannot be read, or a column is missing.
    """
    for name in files:
        if (Path(source) / name).is_file():
            return read_json(Path(source) / name)
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


def read_json(file: Path) -> list[Row]:
    """The objects of a JSON list, or of a JSONL file whose name ends so.

    Raises:
        DataError: naming the file, and the line of a JSONL file.
    """
    text = file.read_text(encoding="utf-8-sig")
    is_lines = file.suffix == ".jsonl"
    pieces = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()] if is_lines else [(1, text)]
    rows: list[Row] = []
    for number, piece in pieces:
        where = f"line {number} of {file.name}" if is_lines else file.name
        try:
            read = json.loads(piece)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: expected JSON, got {error}; correct it") from error
        for row in [read] if is_lines or not isinstance(read, list) else read:
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object a row, got {type(row).__name__}; write {{...}}")
            rows.append(row)
    return rows


def text_of(row: Row, name: str, item: str) -> str:
    """A field that must hold text or a number, stripped.

    Raises:
        DataError: where it is missing, empty, or a list or object.
    """
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise DataError.of(item, f"text in the field {name!r}", repr(value), "fill it in or remove the row")
    return str(value).strip()


def list_of(row: Row, name: str, item: str) -> list[Any]:
    """A field that holds a list, or the Python literal of one as text (A-OKVQA on the hub).

    Raises:
        DataError: where it is missing, empty or neither.
    """
    value = row.get(name)
    try:
        read = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise DataError.of(item, f"a list in the field {name!r}", repr(value), "correct it or remove the row") from error
    if not isinstance(read, list | tuple) or not read:
        raise DataError.of(item, f"a list in the field {name!r}", repr(value), "fill it in or remove the row")
    return list(read)


def picture_of(image: Any, item: str, folder: Path | str | None = None) -> bytes | Path:
    """A row's picture: its bytes (hub), or the file that the row names inside `folder`.

    Raises:
        DataError: for no picture, a name that leads out of the folder, a file that is not there, or no folder to look in.
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
    if not path.is_file():
        raise DataError.of(item, f"the picture {path}", "no such file", "restore it or remove the row")
    return path
