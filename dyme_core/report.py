"""Every table, figure and claim of a profile from its stored rows (`make figures`).

    python -m dyme_core.report --profile mini
"""
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

from dyme_core import config, contrasts, findings, mechanism, plots, statistics, sweeps, tables, traces
from dyme_core.data import mini_records
from dyme_core.figures import save_figure
from dyme_core.provenance import write_atomic
from dyme_core.registry import read_manifests, write_registry
from dyme_core.statistics import NoRows
from dyme_core.verdicts import Evidence

logger = logging.getLogger(__name__)
README_MARK = "<!-- results/mini/tables/main.md -->\n"  # the README's table of results follows it


@dataclass(frozen=True)
class Stored:
    """What the runs of a profile left: rows (one per item), logs (one per step), manifests (one per run).

    The main runs are those without a variant: what figures and tables of methods show.
    """

    paths: config.Paths

    @cached_property
    def rows(self) -> pd.DataFrame:
        return statistics.load_rows(self.paths.rows, _names(self.manifests))

    @cached_property
    def logs(self) -> pd.DataFrame:
        return statistics.load_logs(self.paths.logs, _names(self.manifests))

    @cached_property
    def main_rows(self) -> pd.DataFrame:
        return statistics.load_rows(self.paths.rows, _names(self.main_manifests))

    @cached_property
    def main_logs(self) -> pd.DataFrame:
        return statistics.load_logs(self.paths.logs, _names(self.main_manifests))

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        return read_manifests(self.paths)

    @cached_property
    def main_manifests(self) -> list[dict[str, Any]]:
        return [manifest for manifest in self.manifests if not manifest.get("variant")]

    @cached_property
    def evidence(self) -> Evidence:
        """What the claims rest on."""
        gradients = self.paths.tables / "gradient_equivalence.csv"
        return Evidence(self.rows, self.logs, self.manifests, pd.read_csv(gradients) if gradients.is_file() else None)

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """The test charts by item, drawn again from their seed."""
        world = config.load_profile(self.paths.profile).world
        return {record.item: record.load_image() for record in mini_records("test", world.test_questions, 0, world.real_share)}


def _names(manifests: list[dict[str, Any]]) -> list[str]:
    return [manifest["run"] for manifest in manifests]


FIGURES: dict[str, Callable[[Stored], Any]] = {
    "stability": lambda stored: plots.stability(stored.main_logs),
    "modes": lambda stored: plots.modes(stored.main_logs),
    "thinking": lambda stored: plots.thinking(stored.main_logs),
    "performance": lambda stored: plots.performance(stored.main_rows),
    "kinds": lambda stored: plots.kinds(stored.main_rows),
    "pseudo_thinking": lambda stored: traces.pseudo_thinking(stored.main_rows, stored.pictures.__getitem__),
    "switches": lambda stored: sweeps.switches(stored.rows),
    "ablation": lambda stored: sweeps.ablation(stored.rows),
    "rollouts": lambda stored: sweeps.rollouts(stored.rows),
    "prompts": lambda stored: sweeps.prompts(stored.rows),
    "data": lambda stored: sweeps.data(stored.rows),
    "supervision": lambda stored: sweeps.supervision(stored.rows),
    "length": lambda stored: sweeps.length(stored.rows),
    "transfer": lambda stored: mechanism.transfer(stored.rows),
    "mechanism": lambda stored: mechanism.mechanism(stored.logs, stored.manifests),
}
TABLES: dict[str, tuple[Callable[[Stored], pd.DataFrame], str]] = {
    "main": (lambda stored: tables.main_table(stored.main_rows),
             "Share of well-formed correct answers in the mini world, with 95 % bootstrap intervals over seeds and items."),
    "cost": (lambda stored: tables.cost_table(stored.main_logs, stored.main_rows, stored.main_manifests),
             "The poster's cost table: measured lines are of the mini world on a CPU (medians over seeds, per run), reported "
             "ones of ChartQA on GPUs."),
    "ablation": (lambda stored: contrasts.ablation_table(stored.rows),
                 "Full DyME with one part taken away, mini world; differences to Full DyME on shared seeds. Reported: the "
                 "paper's averages, of real models and data."),
    "switches": (lambda stored: contrasts.switch_table(stored.rows),
                 "Switches between memorizing and exploring, mini world; differences to the binary one on shared seeds. "
                 "Reported: the paper's, LLaVA-OV-0.5B on charts."),
    "tuning": (lambda stored: contrasts.tuning_table(stored.rows, stored.manifests),
               "What was tried on validation, at equal budgets; \"used\" is what all other runs have."),
}


def draw(name: str, paths: config.Paths, stored: Stored | None = None):
    """Draw one figure, save it as PDF, PNG and CSV, and return it.

    Raises:
        NoRows: if its runs have not been made.
    """
    figure = FIGURES[name](stored or Stored(paths))
    save_figure(figure, figure.dyme_frame, name, paths.figures)
    return figure


def tabulate(name: str, paths: config.Paths, stored: Stored | None = None) -> pd.DataFrame:
    """Make one table, write it as CSV, Markdown and LaTeX, and return it.

    Raises:
        NoRows: if its runs have not been made.
    """
    build, caption = TABLES[name]
    frame = build(stored or Stored(paths))
    tables.write_table(frame, paths.tables, name, caption)
    return frame


def claim(paths: config.Paths, stored: Stored | None = None) -> pd.DataFrame:
    """Check every claim, write CLAIMS.md, and return the table of claims."""
    evidence = (stored or Stored(paths)).evidence
    # The default profile's claims are the repository's, as its figures are.
    folder = paths.results.parent if paths.profile == config.DEFAULT else paths.results
    frame = findings.table(evidence)
    write_atomic(folder / "CLAIMS.md", findings.markdown(frame, findings.findings(evidence)))
    logger.info("claims in %s", folder / "CLAIMS.md")
    return frame


def refresh_readme(paths: config.Paths) -> None:
    """Put the default profile's main table where the README shows it."""
    readme, table = paths.root / "README.md", paths.tables / "main.md"
    if paths.profile == config.DEFAULT and readme.is_file() and table.is_file():
        before, after = readme.read_text(encoding="utf-8").split(README_MARK)
        shown, (_, rest) = table.read_text(encoding="utf-8").split("\n\n")[0], after.split("\n\n", 1)
        write_atomic(readme, f"{before}{README_MARK}{shown}\n\n{rest}")


def main(arguments: list[str] | None = None) -> None:
    """The command line: everything again, one line a piece."""
    parser = argparse.ArgumentParser(prog="python -m dyme_core.report", description="Tables and figures from stored rows.")
    parser.add_argument("--profile", default="mini")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config.load_profile(options.profile)
    paths, start = config.paths(options.profile), time.perf_counter()
    write_registry(paths)
    stored, made = Stored(paths), 0
    for make, names in ((tabulate, TABLES), (draw, FIGURES)):
        for name in names:
            try:
                make(name, paths, stored)
                made += 1
            except NoRows as missing:
                logger.info("%s left out: %s", name, missing)
    claim(paths, stored)
    refresh_readme(paths)
    logger.info("%d of %d tables and figures in %.0f s", made, len(TABLES) + len(FIGURES), time.perf_counter() - start)


if __name__ == "__main__":
    main()
