"""The reproduction report: each method of the main table, a run of one's own beside the published one, and what explains a
difference.

`make paper` ends with it; `results/local/<profile>/REPRODUCTION.md` keeps it.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dyme_core import config
from dyme_core.config import METHOD_NAMES
from dyme_core.pipeline.runs import differences
from dyme_core.store import read_rows, run_file
from dyme_core.utils import provenance, write_atomic
from study import statistics
from study.registry import read_manifests
from study.statistics import Estimate
from study.tables import MODEL_NAMES

IDENTICAL, INSIDE, OUTSIDE = "identical to the last bit", "inside", "outside"
FILE = "REPRODUCTION.md"
SPLIT, METRIC = "test", "correct"


@dataclass(frozen=True)
class Line:
    """One method on one model, on the seeds that were run here and are published.

    Attributes:
        own, published: share of well-formed correct answers on the test set, with 95 % intervals over seeds and items (of one
            seed: over items).
        verdict: IDENTICAL where all rows of all seeds are equal; else whether the own value lies in the published interval.
        reasons: what may explain a difference: another CPU, another version of a package, of the results, of the base.
    """

    model: str
    method: str
    seeds: tuple[int, ...]
    own: Estimate
    published: Estimate
    verdict: str
    reasons: tuple[str, ...] = ()

    @property
    def is_unexplained(self) -> bool:
        """Whether the rows differ although nothing that they depend on does."""
        return self.verdict != IDENTICAL and not self.reasons


@dataclass(frozen=True)
class Report:
    """All lines, with what made the two sides."""

    lines: tuple[Line, ...]
    own: Mapping[str, Any]
    published: Sequence[Mapping[str, Any]]

    @property
    def exit_code(self) -> int:
        """1 where a method is not what it should be and nothing explains it."""
        return int(any(line.is_unexplained for line in self.lines))

    def frame(self) -> pd.DataFrame:
        """One row a line, as text: Model, Method, Seeds, Own (%), Published (%), Reproduced, Explained by."""
        return pd.DataFrame([{
            "Model": MODEL_NAMES[line.model], "Method": METHOD_NAMES[line.method],
            "Seeds": " ".join(map(str, line.seeds)), "Own (%)": f"{100 * line.own.value:.2f}",
            "Published (%)": "{:.2f} [{:.1f}, {:.1f}]".format(*(100 * value for value in (
                line.published.value, line.published.low, line.published.high))),
            "Reproduced": line.verdict, "Explained by": _reasons(line)} for line in self.lines])

    def text(self) -> str:
        """The report for a terminal: the table, both origins, and one sentence."""
        return f"{self.frame().to_string(index=False)}\n\n" + "\n".join([*self._origins(), self._sentence()])

    def markdown(self) -> str:
        """The report as Markdown."""
        frame = self.frame()
        rows = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
        table = "\n".join("| " + " | ".join(cell or "–" for cell in row) + " |" for row in rows)
        origins = "\n".join(f"- {line}" for line in self._origins())
        return "\n\n".join(["# Reproduction report", self._sentence(), table, origins,
                            "Well-formed correct answers on the test set. The interval resamples seeds and items of the "
                            "published runs of the same seeds; \"inside\": the own value lies in it."]) + "\n"

    def _origins(self) -> list[str]:
        return [f"Own: {_origin([self.own])}", f"Published: {_origin(self.published)}"]

    def _sentence(self) -> str:
        same = sum(line.verdict == IDENTICAL for line in self.lines)
        strange = [METHOD_NAMES[line.method] for line in self.lines if line.is_unexplained]
        end = (f"; {', '.join(strange)}: same code, CPU and versions as published, other rows. Please report it"
               if strange else "")
        return f"{same} of {len(self.lines)} methods are identical to the published runs, to the last bit{end}."


def reproduction(profile: str) -> Report | None:
    """Compare the own runs of the main table with the published ones; None where there is nothing to compare."""
    own = dataclasses.replace(config.paths(profile), is_published=False)
    published = dataclasses.replace(own, is_published=True)
    mine, theirs = ({made["run"]: made for made in read_manifests(paths) if not made["variant"]} for paths in (own, published))
    lines = tuple(_lines(own, published, mine, theirs))
    compared = [theirs[run] for run in mine if run in theirs]
    return Report(lines, provenance(own.root), compared) if lines else None


def write_report(profile: str) -> Report | None:
    """`reproduction`, left as REPRODUCTION.md beside the own results."""
    report = reproduction(profile)
    if report:
        write_atomic(dataclasses.replace(config.paths(profile), is_published=False).results / FILE, report.markdown())
    return report


def _lines(own: config.Paths, published: config.Paths, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Line]:
    for model in MODEL_NAMES:
        for method in config.METHODS:
            runs = sorted((made["seed"], name) for name, made in mine.items()
                          if name in theirs and (made["model"], made["method"]) == (model, method)
                          and SPLIT in made["results"])
            if not runs:
                continue
            names = [name for _, name in runs]
            is_same = all(_rows(own, name) == _rows(published, name) for name in names)
            sides = [statistics.bootstrap(statistics.score_matrix(frame[frame["split"] == SPLIT], METRIC))
                     for frame in (statistics.load_rows(paths.rows, names) for paths in (own, published))]
            is_inside = sides[1].low <= sides[0].value <= sides[1].high
            reasons = dict.fromkeys(reason for name in names for reason in explanations(mine[name], theirs[name]))
            yield Line(model, method, tuple(seed for seed, _ in runs), *sides,
                       IDENTICAL if is_same else INSIDE if is_inside else OUTSIDE, tuple(reasons))


def _rows(paths: config.Paths, name: str) -> list[dict[str, Any]]:
    return read_rows(run_file(paths.rows, name))


def explanations(own: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """What two manifests differ in of all that rows depend on, in words; [] where the rows should be the same."""
    found = []
    kinds = [made.get("cpu_kind") for made in (own, published)]
    if None in kinds:  # published before the kind was noted
        kinds = [made["cpu"].rpartition(",")[0] for made in (own, published)]
    if kinds[0] != kinds[1]:
        found.append(f"another CPU ({kinds[0]}; published: {kinds[1]})")
    packages = [f"{name} {own['versions'].get(name, 'none')} ({published['versions'].get(name, 'none')})"
                for name in sorted(own["versions"].keys() | published["versions"].keys())
                if own["versions"].get(name) != published["versions"].get(name)]
    if packages:
        found.append(f"other versions than published: {', '.join(packages)}")
    versions = [made.get("results_version", 1) for made in (own, published)]
    if versions[0] != versions[1]:
        found.append(f"version {versions[0]} of the results (published: {versions[1]})")
    if changed := differences(published["settings"], own["settings"]):
        found.append(f"other settings: {', '.join(changed)}")
    return found


def _reasons(line: Line) -> str:
    if line.verdict == IDENTICAL:
        return ""
    return "; ".join(line.reasons) or "nothing: it should be identical"


def _origin(made: Sequence[Mapping[str, Any]]) -> str:
    """Commit, CPU and versions of some manifests (or of this machine), each once."""
    commits = dict.fromkeys(f"{(each['commit'] or 'unknown')[:7]}{' and changes' if each['dirty'] else ''}" for each in made)
    cpus = dict.fromkeys(each.get("cpu_kind") or each["cpu"] for each in made)
    versions = dict.fromkeys(", ".join(f"{name} {number}" for name, number in each["versions"].items()) for each in made)
    return f"commit {', '.join(commits)}; {' or '.join(cpus)}; {' or '.join(versions)}"
