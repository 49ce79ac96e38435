"""One notebook, run by papermill in a fresh kernel of this interpreter: it leaves a whole executed copy or none."""
from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import nbformat
import papermill
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from dyme_core.utils import redact, redact_error, write_atomic

RUN_VARIABLE = "DYME_RUN"  # inherited by all that a kernel starts, so that nothing is left behind
START_TIMEOUT_S = 180  # a busy two-core machine can take half a minute to bring a kernel up
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CELL_FILE = re.compile(r"/[^\s\"':]*/ipykernel_\d+/\d+\.py")


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message holds the error and the failing cell's source."""


class InterpreterKernelManager(AsyncKernelManager):
    """Starts kernels from this interpreter, whatever kernels the user has registered; their own stderr goes to `noise`."""

    environment: dict[str, str]
    noise: BinaryIO

    @property
    def kernel_spec(self) -> KernelSpec:
        """Python, as it runs here."""
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python",
                          display_name="Python (this interpreter)", env=self.environment)

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel."""
        await super().start_kernel(stderr=self.noise, **options)


def execute_notebook(source: Path, target: Path, parameters: dict[str, Any], *, root: Path, scratch: Path,
                     on_cell: Callable[..., None], output: TextIO) -> None:
    """Run `source` in its own folder and write the executed copy to `target`, whole or not at all.

    Args:
        source: the notebook without outputs.
        target: where the executed copy goes, without volatile metadata.
        parameters: injected after the cell tagged `parameters`.
        root: the repository; the kernel gets it as DYME_ROOT, and paths under it lose it in the copy.
        scratch: an existing folder; the copy of a failed run stays there as NAME.failed.ipynb.
        on_cell: called with `cell` and `cell_index` as each cell starts.
        output: takes what the kernel prints.
    Raises:
        NotebookError: a cell failed or the kernel died.
    """
    run_id, noise = uuid.uuid4().hex, tempfile.TemporaryFile()
    failed, is_failed = scratch / f"{source.stem}.failed.ipynb", False
    environment = {**kernel_environment(root), RUN_VARIABLE: run_id}
    kernels = type("Kernels", (InterpreterKernelManager,), {"environment": environment, "noise": noise})
    try:
        papermill.execute_notebook(
            nbformat.read(source, as_version=4), str(failed).replace("{", "{{").replace("}", "}}"),  # it formats the path
            parameters, kernel_name="python3", language="python", progress_bar=False, request_save_on_cell_execute=False,
            cwd=str(source.parent), start_timeout=START_TIMEOUT_S, kernel_manager_class=kernels,
            stdout_file=output, stderr_file=output, on_cell_start=on_cell)
        write_atomic(target, clean_copy(nbformat.read(failed, as_version=4), root))
    except PapermillExecutionError as error:
        is_failed = True
        write_atomic(failed, redact(failed.read_text(encoding="utf-8")))
        error.evalue, error.traceback = redact(error.evalue), [redact(line) for line in error.traceback]
        said = redact(_describe(source.stem, error))
        raise NotebookError(f"{said}\n\nThe notebook as far as it ran: {failed}") from redact_error(error)
    except DeadKernelError as error:
        noise.seek(0)
        words = redact(noise.read().decode(errors="replace"))[-2000:].strip() or "none"
        raise NotebookError(f"{source.stem}: the kernel died, most often for lack of memory; close other programs or use a "
                            f"smaller profile, then run again. Its last words: {words}") from error
    finally:
        end_processes(run_id)
        noise.close()
        if not is_failed:
            failed.unlink(missing_ok=True)


def kernel_environment(root: Path) -> dict[str, str]:
    """Variables of every kernel: where the repository is, this dyme_core first, one thread a process unless set."""
    search = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    places = {"DYME_ROOT": str(root), "PYTHONPATH": os.pathsep.join(search)}
    return {**{name: place.replace("$", "$$") for name, place in places.items()},  # jupyter_client expands $NAME
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false")}


def end_processes(run_id: str) -> None:
    """End every process that carries this run's id: the kernel, and whatever its cells started."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == run_id:
                process.kill()
                process.wait(timeout=5)
        except (psutil.Error, OSError):  # it has just ended, or belongs to another user
            continue


def clean_copy(nb: nbformat.NotebookNode, root: Path) -> str:
    """The executed notebook as text, without what differs from run to run or from machine to machine.

    Papermill's and the kernel's times and paths are taken out, and the random id of the injected cell; in texts the
    repository becomes ".", the home folder "~", Python's own library "python" and the API key "[api key]".
    """
    nb.metadata.pop("papermill", None)
    for index, cell in enumerate(nb.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        cell["id"] = f"cell-{index}"
    text = redact(CELL_FILE.sub("cell", nbformat.writes(nb)))
    for folder, name in ((root, "."), (f"{sys.base_prefix}/lib", "python/lib"), (Path.home(), "~")):
        # A letter, slash or plus before it would be the middle of another path, or of a picture in base 64.
        text = re.sub(rf"(?<![\w/+.]){re.escape(json.dumps(str(folder), ensure_ascii=False)[1:-1])}(?![\w+-])", name, text)
    return text + "\n"


def _describe(name: str, error: PapermillExecutionError) -> str:
    source = "\n".join(f"    {line}" for line in error.source.rstrip().splitlines())
    where = ANSI.sub("", "\n".join(error.traceback)).rstrip()
    return f"{name} failed in cell In[{error.exec_count}]: {error.ename}: {error.evalue}\n\nThe cell:\n{source}\n\n{where}"
