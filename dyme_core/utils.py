"""Files that are whole or absent, rows on disk, what to do where a disk is full; content hashes; and where a number comes from:
the commit, versions and the CPU."""
from __future__ import annotations

import errno
import hashlib
import json
import lzma
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PACKAGES = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "numpy", "pandas", "unsloth")
MIN_SECRET_CHARS = 8  # a shorter "key" ("none", "EMPTY") is no secret, and removing it would spoil texts
PART_SUFFIX = ".part"  # a file that is still being written; the runner removes those of an interrupted notebook
SUFFIX = ".jsonl.xz"  # of a run's rows and log
MAX_MIB = 1024  # of a file's rows, unpacked: a few kilobytes of .xz can become more than any memory
NO_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def hash_file(path: Path) -> str:
    """SHA-256 of one file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], root: Path) -> str:
    """One SHA-256 over names (relative to `root`) and contents; the order of `paths` does not matter."""
    listing = {path.relative_to(root).as_posix(): hash_file(path) for path in paths}
    return hash_json(listing)


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or none: beside it first, then renamed over it. Makes missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}{PART_SUFFIX}")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        ValueError: naming a file that holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no JSON ({error}); delete it, and it is made again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {value!r:.100}; delete it, and it is made again")
    return value


def run_file(folder: Path, run: str) -> Path:
    """Where a run's rows (or its log) lie in the folder of all rows (or logs)."""
    return folder / f"{run}{SUFFIX}"


def json_line(row: Any) -> bytes:
    """One line of JSON in UTF-8; half of a surrogate pair, which UTF-8 does not have, is escaped."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows, one JSON line each, whole or not at all; where the name ends in ".xz", compressed, the same rows to the same
    bytes."""
    lines = b"".join(map(json_line, rows))
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


class CannotWrite(OSError):
    """A run's files cannot be written; says where, why and what to do."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in words why the block cannot write; other errors pass as they are.

    Args:
        folder: of the run, where its checkpoints lie.
    Raises:
        CannotWrite: in the place of an OSError, or of what torch and safetensors raise.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _why_not(error)
        if reason is None:
            raise
        place = next(each for each in (folder, *folder.parents) if each.exists())
        free_mib = shutil.disk_usage(place).free / 2**20
        raise CannotWrite(f"the files of {folder.name} cannot be written: {reason}; {free_mib:,.0f} MiB are free in {place}. "
                          "Make room, or make the place writable: nothing earlier is lost, the same command goes on from the "
                          f"last checkpoint ({error})") from error


def _why_not(error: Exception) -> str | None:
    """Why it could not be written; None for an error of another kind."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in NO_WRITE else None
    code = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, SafetensorError) and code and int(code[1]) in NO_WRITE:
        return os.strerror(int(code[1]))
    is_torch = "inline_container" in str(error) and "PytorchStreamReader" not in str(error)
    return "torch wrote a file in part only" if is_torch else None  # its writer does not say why


def git_state(root: Path) -> dict[str, Any]:
    """The commit and whether sources differ from it: {"commit": str | None, "dirty": bool | None}.

    Results, figures and bases do not count as sources: a run rewrites them and would call every later run dirty. Both are
    None without git, outside a repository, or before the first commit.
    """
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    status = _git(root, "status", "--porcelain", "--", ".", ":(exclude)results", ":(exclude)paper_figures",
                  ":(exclude)bases")
    return {"commit": commit, "dirty": status != ""}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Python and the packages that decide a number, where installed; none of them is imported."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The CPU's name and how many cores this process may use, for example "AMD EPYC 7B13, 2 cores"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_name()}, {cores} cores"


def cpu_kind() -> str:
    """What decides how a CPU rounds: name, family, model and vector instructions, "AMD EPYC, family 25, model 17, avx512f"."""
    info = _cpu_info()
    vector = [flag for flag in ("avx512f", "avx2") if flag in info.get("flags", "").split()]
    numbers = [f"{name.removeprefix('cpu ')} {info[name]}" for name in ("cpu family", "model") if name in info]
    return ", ".join([_cpu_name(), *numbers, *vector[:1]])


def _cpu_name() -> str:
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_info() -> dict[str, str]:
    """Linux's description of the first processor; {} elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def provenance(root: Path) -> dict[str, Any]:
    """The provenance of a stored number: commit, dirty, versions, cpu, cpu_kind, platform."""
    return {**git_state(root), "versions": versions(), "cpu": cpu_model(), "cpu_kind": cpu_kind(),
            "platform": platform.platform()}


def redact(text: str) -> str:
    """The text without the API key, $OPENAI_API_KEY."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return text.replace(key, "[api key]") if len(key) >= MIN_SECRET_CHARS else text


def redact_error(error: BaseException) -> BaseException:
    """The same error, without the API key in its texts and in those of its causes (servers echo requests)."""
    link: BaseException | None = error
    while link is not None:
        link.args = tuple(redact(part) if isinstance(part, str) else part for part in link.args)
        if hasattr(link, "message") and hasattr(link, "body"):  # openai.APIError
            link.message, link.body = redact(link.message), None
        link = link.__cause__ or link.__context__
    return error
