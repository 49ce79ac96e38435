"""The reproduction report: each method of the main table, your own run beside the published one, and what explains a
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
from dyme_core.config import METHOD_NAMES, MODEL_NAMES
from dyme_core.pipeline.methods import differences
from dyme_core.utils import provenance, read_rows, run_file, write_atomic
from study.runner.registry import read_manifests
from study.statistics import Estimate, interval, load_rows, score_matrix
from study.tables import markdown_table

IDENTICAL, INSIDE, OUTSIDE = "identical to the last bit", "inside", "outside"
FILE = "REPRODUCTION.md"
SPLIT, METRIC = "test", "right"
Manifests = Mapping[str, Mapping[str, Any]]  # by name of the run


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
    reasons: tuple[str, ...]

    @property
    def is_unexplained(self) -> bool:
        """Whether the rows differ although everything that they depend on is equal."""
        return self.verdict != IDENTICAL and not self.reasons

    def cells(self) -> dict[str, str]:
        """As a line of a table."""
        value, low, high = (100 * number for number in (self.published.value, self.published.low, self.published.high))
        explained = "" if self.verdict == IDENTICAL else "; ".join(self.reasons) or "nothing: it should be identical"
        return {"Model": MODEL_NAMES[self.model], "Method": METHOD_NAMES[self.method],
                "Seeds": " ".join(map(str, self.seeds)), "Own (%)": f"{100 * self.own.value:.2f}",
                "Published (%)": f"{value:.2f} [{low:.1f}, {high:.1f}]", "Reproduced": self.verdict, "Explained by": explained}


@dataclass(frozen=True)
class Report:
    """All lines, and the manifests of both sides."""

    lines: tuple[Line, ...]
    own: Mapping[str, Any]
    published: Sequence[Mapping[str, Any]]

    @property
    def exit_code(self) -> int:
        """1 where a difference is not explained."""
        return int(any(line.is_unexplained for line in self.lines))

    def markdown(self) -> str:
        """One sentence, the table of lines, and the origin of both sides."""
        same = sum(line.verdict == IDENTICAL for line in self.lines)
        strange = ", ".join(METHOD_NAMES[line.method] for line in self.lines if line.is_unexplained)
        end = f"; {strange}: same code, CPU and versions as published, other rows. Please report it" if strange else ""
        return "\n\n".join([
            "# Reproduction report",
            f"{same} of {len(self.lines)} methods are identical to the published runs, to the last bit{end}.",
            markdown_table(pd.DataFrame([line.cells() for line in self.lines])),
            f"- Own: {_origin([self.own])}\n- Published: {_origin(self.published)}",
            "Right answers after right thinking on the test set. The interval is that of the published runs of the "
            "same seeds; \"inside\": the own value lies in it."]) + "\n"


def write_report(profile: str) -> Report | None:
    """Compare the own runs of the main table with the published ones, and leave the report beside the own results; None where
    there is nothing to compare."""
    own = dataclasses.replace(config.paths(profile), is_published=False)
    published = dataclasses.replace(own, is_published=True)
    mine, theirs = ({made["run"]: made for made in read_manifests(paths) if not made["variant"]} for paths in (own, published))
    lines = tuple(_lines(own, published, mine, theirs))
    if not lines:
        return None
    report = Report(lines, provenance(own.root), [theirs[run] for run in mine if run in theirs])
    write_atomic(own.results / FILE, report.markdown())
    return report


def _lines(own: config.Paths, published: config.Paths, mine: Manifests, theirs: Manifests) -> Iterator[Line]:
    for model in MODEL_NAMES:
        for method in config.METHODS:
            runs = {made["seed"]: name for name, made in mine.items() if name in theirs and SPLIT in made["results"]
                    and (made["model"], made["method"]) == (model, method)}
            if not runs:
                continue
            is_same = all(read_rows(run_file(own.rows, name)) == read_rows(run_file(published.rows, name))
                          for name in runs.values())
            here, there = (interval(score_matrix(rows[rows["split"] == SPLIT], METRIC))
                           for rows in (load_rows(paths.rows, runs.values()) for paths in (own, published)))
            verdict = IDENTICAL if is_same else INSIDE if there.low <= here.value <= there.high else OUTSIDE
            reasons = dict.fromkeys(reason for name in runs.values() for reason in explanations(mine[name], theirs[name]))
            yield Line(model, method, tuple(sorted(runs)), here, there, verdict, tuple(reasons))


def explanations(own: Mapping[str, Any], published: Mapping[str, Any]) -> list[str]:
    """The differences of two manifests that may change rows, in words; [] where the rows should be the same."""
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


def _origin(made: Sequence[Mapping[str, Any]]) -> str:
    """Commit, CPU and versions of some manifests (or of this machine), each once."""
    commits = dict.fromkeys(f"{(each['commit'] or 'unknown')[:7]}{' and changes' if each['dirty'] else ''}" for each in made)
    cpus = dict.fromkeys(each.get("cpu_kind") or each["cpu"] for each in made)
    versions = dict.fromkeys(", ".join(f"{name} {number}" for name, number in each["versions"].items()) for each in made)
    return f"commit {', '.join(commits)}; {' or '.join(cpus)}; {' or '.join(versions)}"
