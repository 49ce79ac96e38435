"""A line that shows how far long work is: written over on a terminal, elsewhere a line of the log now and then."""
from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)
TERMINAL_S, LOG_S = 0.2, 15.0  # between two lines


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


def clock(seconds: float) -> str:
    """Minutes and seconds, for example 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
