"""One notebook, run through papermill in a fresh kernel of this interpreter, leaving a whole executed copy or none.

The kernel is started from `sys.executable`, never from a kernel the user has registered, and every process that it
starts is ended with it.
"""
from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import nbformat
import papermill
import psutil
from jupyter_client.client import KernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator

from dyme_core.utils import redact, redact_error, write_atomic

RUN_VARIABLE = "DYME_RUN"  # inherited by all that a kernel starts, so that nothing is left behind
START_TIMEOUT_S = 180  # a busy two-core machine can take half a minute to bring a kernel up
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CELL_FILE = re.compile(r"/[^\s\"':]*/ipykernel_\d+/\d+\.py")


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message holds the error and the failing cell's source."""


class InterpreterKernelManager(AsyncKernelManager):
    """Starts a kernel from this interpreter, with the given variables and without the user's IPython history.

    What the kernel process itself writes to stderr (a crash in native code, noise at its end) goes to `log`.
    """

    def __init__(self, environment: dict[str, str], log: BinaryIO) -> None:
        super().__init__(kernel_name="python3")
        self._log = log
        self._clients: list[KernelClient] = []
        arguments = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        self._kernel_spec = KernelSpec(argv=[sys.executable, *arguments], language="python", env=environment,
                                       display_name="Python (this interpreter)")

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel, its stderr going to the log."""
        await super().start_kernel(stderr=self._log, **options)

    def client(self, **options: Any) -> KernelClient:
        """A client of the kernel, kept so that its channels can be closed."""
        self._clients.append(super().client(**options))
        return self._clients[-1]

    def close(self) -> None:
        """Close the clients' channels and remove the connection file."""
        for client in self._clients:
            client.stop_channels()
        self.cleanup_connection_file()


class _Output:
    """What papermill takes for the file that a kernel prints to: hands each non-empty line on."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", ANSI.sub("", text)) if line.strip()]
        if lines:
            self._on_line(redact(lines[-1]))

    def flush(self) -> None:
        """Nothing is buffered here."""


def known_parameters(notebook: Path) -> dict[str, str]:
    """Names and default values, as written, of a notebook's cell tagged `parameters`; {} where it has none."""
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return {found.name: found.default for cell in tagged for found in PythonTranslator.inspect(cell)}


def execute_notebook(source: Path, target: Path, parameters: dict[str, Any], *, root: Path, scratch: Path,
                     on_cell: Callable[[int], None], on_line: Callable[[str], None]) -> None:
    """Run `source` in its own folder and write the executed copy to `target`, whole or not at all.

    Args:
        source: the notebook without outputs.
        target: where the executed copy goes; whole, without volatile metadata.
        parameters: injected after the cell tagged `parameters`.
        root: the repository; the kernel gets it as DYME_ROOT, and paths under it lose it in the copy.
        scratch: a folder for the copy while it is not whole; that of a failed run stays there as NAME.failed.ipynb.
        on_cell: called with each cell's index as it starts.
        on_line: called with the last line of each piece of text that the kernel prints.
    Raises:
        NotebookError: a cell failed or the kernel died.
    """
    run_id = uuid.uuid4().hex
    scratch.mkdir(parents=True, exist_ok=True)
    aside, failed = (scratch / f"{source.stem}.{state}.ipynb" for state in ("running", "failed"))
    failed.unlink(missing_ok=True)
    log = tempfile.TemporaryFile()
    manager = InterpreterKernelManager({**kernel_environment(root), RUN_VARIABLE: run_id}, log)
    output = _Output(on_line)
    try:
        papermill.execute_notebook(
            str(source), str(aside), parameters, kernel_name="python3", language="python", progress_bar=False,
            cwd=str(source.parent), request_save_on_cell_execute=False, start_timeout=START_TIMEOUT_S, km=manager,
            stdout_file=output, stderr_file=output, on_cell_start=lambda cell, cell_index: on_cell(cell_index))
        run_sync(manager.shutdown_kernel)()
        write_atomic(target, clean_copy(nbformat.read(aside, as_version=4), root))
    except PapermillExecutionError as error:
        write_atomic(failed, redact(aside.read_text(encoding="utf-8")))
        error.evalue, error.traceback = redact(error.evalue), [redact(line) for line in error.traceback]
        said = redact(_describe(source.stem, error))
        raise NotebookError(f"{said}\n\nThe notebook as far as it ran: {failed}") from redact_error(error)
    except DeadKernelError as error:
        raise NotebookError(f"{source.stem}: the kernel died, most often for lack of memory; close other programs or "
                            f"use a smaller profile, then run again. Its last words: {redact(_last_words(log))}") from error
    finally:
        end_processes(run_id)
        manager.close()
        log.close()
        aside.unlink(missing_ok=True)


def kernel_environment(root: Path) -> dict[str, str]:
    """Variables of every kernel: where the repository is, this dyme_core first, one thread a process unless set."""
    package_root = str(Path(__file__).resolve().parents[1])
    search = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"DYME_ROOT": str(root), "PYTHONPATH": os.pathsep.join(search),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "false"),
            # No bars in executed copies, nor tqdm's remark that it cannot draw them.
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore:IProgress not found")}


def end_processes(run_id: str) -> None:
    """End every process that still carries this run's id: the kernel, and whatever its cells started."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == run_id:
                process.kill()
                process.wait(timeout=5)
        except (psutil.Error, OSError):  # it has just ended, or belongs to somebody else
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
        text = re.sub(rf"(?<![\w/+.]){re.escape(json.dumps(str(folder))[1:-1])}(?![\w+-])", name, text)
    return text + "\n"


def _last_words(log: BinaryIO) -> str:
    log.seek(0)
    return log.read().decode(errors="replace").strip()[-2000:] or "none"


def _describe(name: str, error: PapermillExecutionError) -> str:
    source = "\n".join(f"    {line}" for line in error.source.rstrip().splitlines())
    where = ANSI.sub("", "\n".join(error.traceback)).rstrip()
    what = f"{name} failed in cell In[{error.exec_count}]: {error.ename}: {error.evalue}"
    return f"{what}\n\nThe cell:\n{source}\n\n{where}"
