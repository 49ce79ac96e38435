"""Files of a run that cannot be written: a full disk, a limit, a place that is not to be written to; why, and what to do."""
from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class CannotWrite(OSError):
    """A run's files cannot be written; says where, why and what to do."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Tell of what the block cannot write in words; other errors pass as they are.

    Args:
        folder: of the run, where its checkpoints lie.
    Raises:
        CannotWrite: in the place of an OSError, or of what torch and safetensors raise.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        place = next(each for each in (folder, *folder.parents) if each.exists())
        free_mib = shutil.disk_usage(place).free / 2**20
        raise CannotWrite(f"the files of {folder.name} cannot be written: {reason}; {free_mib:,.0f} MiB are free in {place}. "
                          "Make room, or make the place writable: nothing earlier is lost, the same command goes on from the "
                          f"last checkpoint ({error})") from error


def _reason(error: Exception) -> str | None:
    """Why it could not be written; None for an error of another kind."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in WRITING else None
    code = re.search(r"\(os error (\d+)\)", str(error))
    if isinstance(error, SafetensorError) and code and int(code[1]) in WRITING:
        return os.strerror(int(code[1]))
    is_torch = "inline_container" in str(error) and "PytorchStreamReader" not in str(error)
    return "torch wrote a file in part only" if is_torch else None  # its writer does not say why
