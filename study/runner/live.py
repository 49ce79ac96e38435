"""How far long work is: a line that is written over on a terminal, a table that is replaced below a notebook's cell, or else a
line of the log now and then."""
from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from html import escape

from IPython.display import HTML, clear_output, display

from dyme_core.pipeline.methods import LIVE_FILE, Run, phase_steps
from dyme_core.utils import read_rows

logger = logging.getLogger(__name__)
SHOWN = ("loss", "memorize", "explore", "mastered")  # of a run's last step
HEAD = ("run", "", "step", *SHOWN, "right on validation", "time")
TERMINAL_S, NOTEBOOK_S, LOG_S = 0.2, 2.0, 15.0  # between two lines


class LiveLine:
    """Shows the latest text; one that comes too soon after the last is left out, and not even made."""

    def __init__(self) -> None:
        self._is_live, self._shown = sys.stderr.isatty(), time.monotonic()

    def show(self, make: Callable[[], str]) -> None:
        """Show the text that `make` gives, cut off at the terminal's width."""
        now = time.monotonic()
        if now - self._shown < (TERMINAL_S if self._is_live else LOG_S):
            return
        self._shown, text = now, make()
        if self._is_live:
            sys.stderr.write(f"\r\x1b[K{text[:shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()
        else:
            logger.info("%.160s", text)

    def wipe(self) -> None:
        """Leave the terminal's line empty, for what is written next."""
        if self._is_live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """The work is over."""
        self.wipe()


class LiveTable(LiveLine):
    """Shows the latest line and, below it, a table (HTML) under the notebook's cell that runs; in the end the table alone."""

    def __init__(self, table: Callable[[], str]) -> None:
        self._table, self._shown = table, -NOTEBOOK_S

    def show(self, make: Callable[[], str]) -> None:
        if time.monotonic() - self._shown >= NOTEBOOK_S:
            self._shown = time.monotonic()
            self._replace(make())

    def wipe(self) -> None:
        """Nothing: the next line takes its place."""

    def end(self) -> None:
        self._replace()

    def _replace(self, *lines: str) -> None:
        clear_output(wait=True)
        sys.stdout.writelines(f"{line}\n" for line in lines)
        display(HTML(self._table()))


def table(runs: Iterable[tuple[str, Run | None, float | None, float | None]]) -> str:
    """How far runs are, as HTML.

    Args:
        runs: of each its name, what is trained (None: a base), when it started by the monotonic clock, the seconds it took;
            None as long as it has not started, or not ended.
    """
    lines = [("th", HEAD), *(("td", (escape(name), *_cells(*known))) for name, *known in runs)]
    rows = "".join(f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in cells)}</tr>" for tag, cells in lines)
    return f"<table>{rows}</table>"


def _cells(run: Run | None, started: float | None, took_s: float | None) -> list[str]:
    """The cells of a run below HEAD, all but the first."""
    file = run.folder / LIVE_FILE if run and (started or took_s) else None
    logged = read_rows(file) if file and file.is_file() else []
    step, scored = ({name: value for row in logged if row["event"] == event for name, value in row.items()}
                    for event in ("step", "eval"))
    done, steps = step.get("step", 0), sum(count for _, count in phase_steps(run)) if run else 0
    if took_s is not None:
        bar, words = "", f"took {clock(took_s)}"
    elif started is None:
        bar, words = "", "waits"
    else:
        left = (time.monotonic() - started) / done * (steps - done) if done else None
        bar = f"<progress value={done} max={steps or 1}></progress>"
        words = "starting" if left is None else f"about {clock(left)} left"
    numbers = [f"{step[name]:.2g}" if name in step else "" for name in SHOWN]
    return [bar, f"{done} of {steps}" if steps else "", *numbers, f"{100 * scored['correct']:.1f} %" if scored else "", words]


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
