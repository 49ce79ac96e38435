"""Every table and figure of a profile from its stored rows: `python -m dyme_core.report --profile mini` (`make figures`)."""
from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from PIL import Image

from dyme_core import config, plots, statistics, tables, traces
from dyme_core.data import mini_records
from dyme_core.figures import save_figure
from dyme_core.registry import read_manifests, write_registry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """What the main runs of a profile left, those without a variant: rows (one per item), logs (one per step), manifests (one
    per run)."""

    paths: config.Paths

    @cached_property
    def rows(self) -> pd.DataFrame:
        return statistics.load_rows(self.paths.rows, self.names)

    @cached_property
    def logs(self) -> pd.DataFrame:
        return statistics.load_logs(self.paths.logs, self.names)

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        return [manifest for manifest in read_manifests(self.paths) if not manifest.get("variant")]

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return [manifest["run"] for manifest in self.manifests]

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """The test charts by item, drawn again from their seed."""
        world = config.load_profile(self.paths.profile).world
        return {record.item: record.load_image() for record in mini_records("test", world.test_questions, 0, world.real_share)}


FIGURES: dict[str, Callable[[Stored], Any]] = {
    "stability": lambda stored: plots.stability(stored.logs),
    "modes": lambda stored: plots.modes(stored.logs),
    "thinking": lambda stored: plots.thinking(stored.logs),
    "performance": lambda stored: plots.performance(stored.rows),
    "kinds": lambda stored: plots.kinds(stored.rows),
    "pseudo_thinking": lambda stored: traces.pseudo_thinking(stored.rows, stored.pictures.__getitem__),
}
TABLES: dict[str, tuple[Callable[[Stored], pd.DataFrame], str]] = {
    "main": (lambda stored: tables.main_table(stored.rows),
             "Share of well-formed correct answers in the mini world, with 95 % bootstrap intervals over seeds and items."),
    "cost": (lambda stored: tables.cost_table(stored.logs, stored.rows, stored.manifests),
             "The poster's cost table: measured lines are of the mini world on a CPU, reported ones of ChartQA on GPUs."),
}


def draw(name: str, paths: config.Paths):
    """Draw one figure, save it as PDF, PNG and CSV, and return it."""
    figure = FIGURES[name](Stored(paths))
    save_figure(figure, figure.dyme_frame, name, paths.figures)
    return figure


def tabulate(name: str, paths: config.Paths) -> pd.DataFrame:
    """Make one table, write it as CSV, Markdown and LaTeX, and return it."""
    build, caption = TABLES[name]
    frame = build(Stored(paths))
    tables.write_table(frame, paths.tables, name, caption)
    return frame


def main(arguments: list[str] | None = None) -> None:
    """The command line: everything again, one line a piece."""
    parser = argparse.ArgumentParser(prog="python -m dyme_core.report", description="Tables and figures from stored rows.")
    parser.add_argument("--profile", default="mini")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config.load_profile(options.profile)
    paths, start = config.paths(options.profile), time.perf_counter()
    write_registry(paths)
    for name in TABLES:
        tabulate(name, paths)
    for name in FIGURES:
        draw(name, paths)
    logger.info("%d tables and %d figures in %.0f s", len(TABLES), len(FIGURES), time.perf_counter() - start)


if __name__ == "__main__":
    main()
