"""The one live line of a run: which notebook and cell, how long so far, about how long still."""
from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO


def estimate_remaining(elapsed_s: float, cells_done: int, num_cells: int, last_s: float | None,
                       later: Sequence[tuple[int, float | None]]) -> float | None:
    """Seconds until the whole run ends, or None while nothing is known.

    Args:
        elapsed_s: seconds since the present notebook began.
        cells_done: cells of it that have ended, of `num_cells`.
        last_s: seconds that it took the last time, or None.
        later: (cells, seconds the last time or None) of each notebook still to come.
    A notebook that has run before takes as long as it did then; of the others every cell takes as long as those of the
    present notebook have so far.
    """
    cell_s = elapsed_s / cells_done if cells_done else None
    if last_s is not None:
        present = max(last_s - elapsed_s, 0.0)
    elif cell_s is not None:
        present = cell_s * (num_cells - cells_done)
    else:
        return None
    rest = [seconds if seconds is not None else cell_s and cell_s * cells for cells, seconds in later]
    known = [seconds for seconds in rest if seconds is not None]
    return present + sum(known) if len(known) == len(rest) else None


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress:
    """Shows a run's progress: one line kept up to date on a terminal, a line now and then in a log.

    `plan` holds name, number of cells and seconds of the last time (or None) of every notebook that will run, in order.
    """

    def __init__(self, plan: Sequence[tuple[str, int, float | None]], stream: TextIO | None = None) -> None:
        self._plan = list(plan)
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._interval_s = 1.0 if self._is_terminal else 20.0
        self._index, self._cell, self._note, self._start = 0, 0, "", 0.0

    @contextmanager
    def notebook(self, name: str) -> Iterator[None]:
        """Show `name` as the notebook that runs, until the block ends."""
        self._index = [planned for planned, _, _ in self._plan].index(name)
        self._cell, self._note, self._start = 0, "", time.monotonic()
        done = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(done,), daemon=True)
        ticker.start()
        try:
            yield
        finally:
            done.set()
            ticker.join()
            if self._is_terminal:
                self._stream.write("\r\x1b[K")
                self._stream.flush()

    def cell(self, index: int) -> None:
        """Say that the cell `index` (from 0) has started."""
        self._cell = index

    def note(self, line: str) -> None:
        """Show a notebook's own latest line of output behind the progress."""
        self._note = line

    def line(self) -> str:
        """The present line: notebook, cell, time so far, time left, the notebook's own latest line."""
        name, num_cells, last_s = self._plan[self._index]
        elapsed_s = time.monotonic() - self._start
        later = [(cells, seconds) for _, cells, seconds in self._plan[self._index + 1:]]
        left_s = estimate_remaining(elapsed_s, self._cell, num_cells, last_s, later)
        left = "time left not known yet" if left_s is None else f"about {clock(left_s)} left"
        parts = [f"{name}  cell {self._cell + 1}/{num_cells}  {clock(elapsed_s)}, {left}", self._note]
        return "  | ".join(part for part in parts if part)

    def _tick(self, done: threading.Event) -> None:
        while not done.wait(self._interval_s):
            width = shutil.get_terminal_size().columns if self._is_terminal else 160
            line = self.line()[: width - 1]
            self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
            self._stream.flush()
