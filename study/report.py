"""Every table, figure and claim of a profile from its stored rows (`make figures`).

    dyme figures --profile mini

The published study's are drawn again in results/local/<profile>/published/ and compared with the published ones; `make publish`
draws the published ones.
"""
from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from PIL import Image

from dyme_core import config
from dyme_core.data.chart_audit import luck
from dyme_core.data.datasets import of_profile
from dyme_core.data.schema import Record
from dyme_core.utils import write_atomic
from study import claims, statistics, tables
from study.claims import Claim, Evidence
from study.figures import comparisons, mechanism, plots, sweeps, traces
from study.figures.theme import save_figure
from study.runner.registry import read_manifests, write_registry
from study.statistics import NoRows

logger = logging.getLogger(__name__)
README_MARK = "<!-- results/mini/tables/main.md -->\n"  # the README's table of results follows it


@dataclass(frozen=True)
class Stored:
    """What the runs of a profile left: rows (one per item), logs (one per step), manifests (one per run).

    Attributes:
        paths: where the rows are read.
        folder: where tables, figures and claims are written; None: where those of `paths` are.
        runs: names of the runs that count, all of them main runs (those that figures and tables of methods show); None: all,
            those with the profile's own settings being the main runs.
    """

    paths: config.Paths
    folder: Path | None = None
    runs: tuple[str, ...] | None = None

    @property
    def tables(self) -> Path:
        return self.folder / "tables" if self.folder else self.paths.tables

    @property
    def figures(self) -> Path:
        return self.folder / "figures" if self.folder else self.paths.figures

    @property
    def claims(self) -> Path:
        return self.folder / "CLAIMS.md" if self.folder else self.paths.claims

    @property
    def registry(self) -> Path:
        return (self.folder or self.paths.results) / "registry.csv"

    @cached_property
    def manifests(self) -> list[dict[str, Any]]:
        return [made for made in read_manifests(self.paths) if self.runs is None or made["run"] in self.runs]

    @cached_property
    def main_manifests(self) -> list[dict[str, Any]]:
        return [made for made in self.manifests if self.runs is not None or not made.get("variant")]

    @cached_property
    def rows(self) -> pd.DataFrame:
        return statistics.load_rows(self.paths.rows, [made["run"] for made in self.manifests])

    @cached_property
    def logs(self) -> pd.DataFrame:
        return statistics.load_logs(self.paths.logs, [made["run"] for made in self.manifests])

    @property
    def main_rows(self) -> pd.DataFrame:
        return self._main(self.rows)

    @property
    def main_logs(self) -> pd.DataFrame:
        return self._main(self.logs)

    def _main(self, frame: pd.DataFrame) -> pd.DataFrame:
        if not self.main_manifests:
            raise NoRows("no run with the profile's own settings has been made")
        return frame[frame["run"].isin([made["run"] for made in self.main_manifests])]

    @cached_property
    def evidence(self) -> Evidence:
        """What the claims rest on."""
        gradients = self.paths.tables / "gradient_equivalence.csv"
        return Evidence(self.rows, self.logs, self.manifests, pd.read_csv(gradients) if gradients.is_file() else None)

    @cached_property
    def questions(self) -> dict[str, list[Record]]:
        """The questions of both test sets and the training questions of seed 0, drawn again from their seeds."""
        profile = config.load_profile(self.paths.profile)
        return {split: of_profile(profile, split, 0) for split in ("train", "test", "unseen")}

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """The test charts by item."""
        return {record.item: record.load_image() for record in self.questions["test"]}

    @cached_property
    def luck(self) -> dict[tuple[str, str], float]:
        """By test set and kind of question ("all": all kinds): the share of answers that the best blind guess gets right. Known
        of the mini charts alone."""
        if config.load_profile(self.paths.profile).data.name != "mini":
            return {}
        return {(split, kind): share for split in ("test", "unseen")
                for kind, share in luck(self.questions[split], self.questions["train"]).items()}

    @property
    def gaps(self) -> pd.DataFrame:
        """How far each set of a teacher's traces lies from what the bases say (`python -m scripts.learnability`)."""
        file = self.paths.results / "learnability.csv"
        return pd.read_csv(file) if file.is_file() else pd.DataFrame(columns=["model", *comparisons.DIALS, "gap"])


FIGURES: dict[str, Callable[[Stored], Figure]] = {
    "stability": lambda stored: plots.stability(stored.main_logs),
    "modes": lambda stored: plots.modes(stored.main_logs),
    "thinking": lambda stored: plots.thinking(stored.main_logs),
    "performance": lambda stored: plots.performance(stored.main_rows, stored.luck),
    "kinds": lambda stored: plots.kinds(stored.main_rows, stored.luck),
    "failures": lambda stored: traces.failures(stored.main_rows, stored.pictures.__getitem__),
    "pseudo_thinking": lambda stored: traces.pseudo_thinking(stored.main_rows, stored.pictures.__getitem__),
    "switches": lambda stored: sweeps.switches(stored.rows),
    "ablation": lambda stored: sweeps.ablation(stored.rows),
    "memorized": lambda stored: sweeps.memorized(stored.rows),
    "targets": lambda stored: mechanism.targets(stored.logs),
    "pairs": lambda stored: comparisons.pairs(stored.rows),
    "expense": lambda stored: comparisons.expense(stored.rows, stored.manifests),
    "learnability": lambda stored: comparisons.learnability(stored.rows, stored.gaps),
    "rollouts": lambda stored: sweeps.sweep(stored.rows, "rollouts"),
    "prompts": lambda stored: sweeps.sweep(stored.rows, "prompts"),
    "supervision": lambda stored: sweeps.supervision(stored.rows),
    "transfer": lambda stored: mechanism.transfer(stored.rows),
    "gradients": lambda stored: mechanism.gradients(stored.logs),
    "entropy": lambda stored: mechanism.entropy(stored.logs),
    "forgetting": lambda stored: mechanism.forgetting(stored.manifests),
}
TABLES: dict[str, tuple[Callable[[Stored], pd.DataFrame], str]] = {
    "main": (lambda stored: tables.main_table(stored.main_rows),
             "Mini world, means over seeds with 95 % intervals. Thinking is right where the checker rates it high; an answer "
             "counts with or without thinking. \"Unseen\": styles and values; all else is of the test set. The large VLM has "
             "the SVLM's learning rates."),
    "kinds": (lambda stored: tables.kinds_table(stored.main_rows, stored.luck),
              "By kind of question, mini world, SVLM, test set, with 95 % intervals. Luck: what the best guess learned on the "
              "training questions gets right without a look at any value."),
    "cost": (lambda stored: tables.cost_table(stored.main_logs, stored.main_rows, stored.main_manifests),
             "The poster's cost table: measured lines are of the mini world on a CPU (medians over seeds, per run), reported "
             "ones of ChartQA on GPUs."),
    "ablation": (lambda stored: tables.ablation_table(stored.rows),
                 "Full DyME with one part taken away, mini world; differences to Full DyME on shared seeds. Reported: the "
                 "paper's averages, of real models and data."),
    "switches": (lambda stored: tables.switch_table(stored.rows),
                 "Switches between memorizing and exploring, mini world; differences to the binary one on shared seeds. "
                 "Reported: the paper's, LLaVA-OV-0.5B on charts."),
    "tuning": (lambda stored: tables.tuning_table(stored.rows, stored.manifests),
               "What was tried on validation, at equal budgets; \"used\" is what all other runs have."),
}


def study_of(profile: str) -> Stored:
    """The profile's published study, its tables and figures drawn again beside the own results (a maintainer's command draws
    the published ones); the own runs, where a profile has no published study."""
    paths = config.paths(profile)
    published = dataclasses.replace(paths, is_published=True)
    if paths.is_published or not any(published.manifests.glob("*.json")):
        return Stored(paths)
    return Stored(published, paths.results / "published")


def draw(name: str, stored: Stored) -> Figure:
    """Draw one figure, save it as PDF, PNG and CSV, and return it.

    Raises:
        NoRows: if its runs have not been made.
    """
    figure = FIGURES[name](stored)
    save_figure(figure, name, stored.figures)
    return figure


def show(stored: Stored, *names: str) -> None:
    """Display figures in a notebook, each with its caption below; those whose runs have not been made are named."""
    for name in names:
        try:
            figure = draw(name, stored)
        except NoRows as missing:
            display(Markdown(f"*{name}: {missing}.*"))
        else:
            show_figure(figure)


def show_figure(figure: Figure) -> None:
    """Display a figure in a notebook, its caption below."""
    display(figure, Markdown(figure.dyme_caption))


def show_claims(stored: Stored, *checked: Claim) -> None:
    """Display claims in a notebook, each with its verdict and numbers."""
    display(Markdown("\n".join(f"- {each.sentence(stored.evidence)}" for each in checked)))


def tabulate(name: str, stored: Stored) -> pd.DataFrame:
    """Make one table, write it as CSV, Markdown and LaTeX, and return it.

    Raises:
        NoRows: if its runs have not been made.
    """
    build, caption = TABLES[name]
    frame = build(stored)
    tables.write_table(frame, stored.tables, name, caption)
    return frame


def claim(stored: Stored) -> pd.DataFrame:
    """Check every claim, write CLAIMS.md, and return the table of claims."""
    frame = claims.table(stored.evidence)
    write_atomic(stored.claims, claims.markdown(frame, claims.findings(stored.evidence), stored.manifests))
    logger.info("claims in %s", stored.claims)
    return frame


def refresh_readme(stored: Stored) -> None:
    """Put the default profile's published main table where the README shows it."""
    readme, table = stored.paths.root / "README.md", stored.tables / "main.md"
    if stored.paths.profile == config.DEFAULT and readme.is_file() and table.is_file():
        before, after = readme.read_text(encoding="utf-8").split(README_MARK)
        shown, (_, rest) = table.read_text(encoding="utf-8").split("\n\n")[0], after.split("\n\n", 1)
        write_atomic(readme, f"{before}{README_MARK}{shown}\n\n{rest}")


def redraw(stored: Stored) -> int:
    """Make every table, figure and claim that has rows; returns how many tables and figures."""
    write_registry(stored.paths, stored.registry)
    made = 0
    for make, names in ((tabulate, TABLES), (draw, FIGURES)):
        for name in names:
            try:
                make(name, stored)
                made += 1
            except NoRows as missing:
                logger.info("%s left out: %s", name, missing)
    claim(stored)
    return made


def compare(stored: Stored) -> str:
    """How much of what was drawn again is what is published, byte for byte, in a sentence."""
    original = Stored(stored.paths)
    pairs = [(path, folder / path.name) for place, folder in ((stored.tables, original.tables),
                                                              (stored.figures, original.figures))
             for path in sorted(place.iterdir())]
    pairs += [(stored.claims, original.claims), (stored.registry, original.registry)]
    changed = [path.name for path, other in pairs if not other.is_file() or path.read_bytes() != other.read_bytes()]
    return (f"{len(pairs) - len(changed)} of {len(pairs)} files are the published ones, byte for byte"
            + (f"; others: {', '.join(changed)}" if changed else ""))


def write_all(profile: str, own: bool = False) -> None:
    """Draw every table, figure and claim again, and say how long it took.

    Args:
        profile: whose published study is drawn, beside the own results.
        own: draw the own runs instead.
    """
    config.load_profile(profile)
    start = time.perf_counter()
    stored = Stored(config.paths(profile)) if own else study_of(profile)
    made = redraw(stored)
    if stored.folder:
        logger.info("%s", compare(stored))
    if stored.paths.is_published and not stored.folder:
        refresh_readme(stored)
    logger.info("%d of %d tables and figures in %.0f s, in %s and %s", made, len(TABLES) + len(FIGURES),
                time.perf_counter() - start, stored.tables, stored.figures)
