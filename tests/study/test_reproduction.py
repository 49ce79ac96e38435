"""Own runs and published ones: names, no silent replacement, the report that compares them, published rows reproduced."""
from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from dyme_core import config, utils
from dyme_core.pipeline import train
from dyme_core.pipeline.methods import RESULTS_VERSION, Run, RunExists, fingerprint, settings_of
from study import cli, plan, report, reproduction
from study.runner import run_notebooks

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("svlm-sft-s0", "svlm-sft-s1", "svlm-grpo-s0")


@pytest.mark.parametrize(("settings", "label"), [
    ({}, ""), ({"training.steps": 240, "save_every": 10}, ""), ({"training.steps": 100}, "steps100"),
    ({"learning_rates.sft": 3e-4}, "lr0.0003"), ({"learning_rates.grpo": 3e-4}, ""),
    ({"supervision.backend": "api"}, "api"), ({"world.left_out_kinds": ["gap", "count"]}, "gapcount"),
])
def test_a_runs_name_says_what_differs_from_its_profile(settings: dict, label: str) -> None:
    name = Run(config.load_profile("mini", **settings), "sft").name
    assert name == "-".join(filter(None, ("svlm-sft", label, "s0")))


def test_own_data_and_many_settings_get_names_of_their_own() -> None:
    own, other = (Run(config.load_profile("mini", **{"data.name": "own", "data.source": folder}), "sft").name
                  for folder in ("/data/charts of mine", "/data/others"))
    assert own.startswith("svlm-sft-own-source-") and own != other
    many = {"training.steps": 7, "training.evaluate_every": 7, "training.prompts_per_step": 2, "world.train_questions": 9}
    first, second = (Run(config.load_profile("mini", **many | {"training.steps": steps}), "sft").name for steps in (7, 8))
    assert len(first) < 40 and first != second
    assert Run(config.load_profile("mini", **many), "sft", variant="mine").name == "svlm-sft-mine-s0"


def test_a_run_depends_on_its_settings_base_and_the_version_of_the_results(root: Path, monkeypatch) -> None:
    run = Run(config.load_profile("smoke"), "sft")
    before = fingerprint(run)
    assert fingerprint(dataclasses.replace(run, seed=0)) == before
    assert fingerprint(Run(config.load_profile("smoke", **{"training.steps": 5}), "sft")) != before
    monkeypatch.setattr("dyme_core.pipeline.methods.RESULTS_VERSION", RESULTS_VERSION + 1)
    assert fingerprint(run) != before
    monkeypatch.undo()
    monkeypatch.setenv("DYME_ROOT", str(root))
    (root / "bases" / "svlm-s0" / "config.json").write_text("{}")
    assert fingerprint(run) != before


def test_a_finished_run_with_other_settings_is_replaced_only_by_force(root: Path, capsys) -> None:
    run = Run(config.load_profile("smoke", **{"training.steps": 5}), "sft", variant="mine")
    older = settings_of(Run(config.load_profile("smoke"), "sft"))
    utils.write_json(run.manifest, {"settings": older})
    with pytest.raises(RunExists, match=r"finished, with other settings \(steps\).*--variant.*--force"):
        train.execute(run)
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--profile=smoke", "--method=sft", "--variant=mine", "--set=training.steps=5"])
    assert caught.value.code == 2 and "--force" in capsys.readouterr().err
    utils.write_json(run.manifest, {"settings": {name: value for name, value in older.items() if name != "probe_every"}})
    with pytest.raises(RunExists, match=r"\(steps\)"):  # a setting that is newer than the run has its default there
        train.execute(run)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch) -> Path:
    """A repository with a few published runs, and the same as own runs."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    for run in RUNS:
        for folder, name in (("rows", f"{run}.jsonl.xz"), ("logs", f"{run}.jsonl.xz"), ("runs", f"{run}.json")):
            for place in ("mini", "local/mini"):
                target = tmp_path / "results" / place / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / "results" / "mini" / folder / name, target)
    return tmp_path


def change(root: Path, run: str, *, flips: int = 0, **manifest) -> None:
    """Change an own run: turn `flips` right answers of its test set wrong, and fields of its manifest."""
    rows_file = root / "results" / "local" / "mini" / "rows" / f"{run}.jsonl.xz"
    rows = utils.read_rows(rows_file)
    for row in [row for row in rows if row["split"] == "test" and row["correct"]][:flips]:
        row["correct"] = 0
    utils.write_rows(rows_file, rows)
    path = root / "results" / "local" / "mini" / "runs" / f"{run}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))


def test_equal_rows_are_identical_whatever_made_them(copied: Path) -> None:
    change(copied, "svlm-grpo-s0", cpu_kind="another")
    report = reproduction.write_report("mini")
    assert [(line.method, line.seeds, line.verdict) for line in report.lines] == [
        ("sft", (0, 1), reproduction.IDENTICAL), ("grpo", (0,), reproduction.IDENTICAL)]
    assert report.exit_code == 0 and report.lines[0].own == report.lines[0].published
    written = (copied / "results" / "local" / "mini" / "REPRODUCTION.md").read_text()
    assert "2 of 2 methods are identical" in written and written.count("| SVLM |") == 2


def test_other_rows_with_nothing_to_explain_them_are_an_error(copied: Path, caplog) -> None:
    change(copied, "svlm-sft-s1", flips=1)
    report = reproduction.write_report("mini")
    assert report.lines[0].verdict == reproduction.INSIDE and report.lines[0].is_unexplained and report.exit_code == 1
    assert "CoT-SFT: same code, CPU and versions" in report.markdown()
    with caplog.at_level("INFO"):
        assert run_notebooks.compare("mini") == 1
    assert "Reproduction report" in caplog.text and "should be identical" in caplog.text


@pytest.mark.parametrize(("changed", "reason"), [
    ({"cpu_kind": "Another CPU, family 1"}, "another CPU (Another CPU, family 1"),
    ({"cpu": "Another CPU, 2 cores"}, "another CPU"),
    ({"results_version": 99}, "version 99 of the results"),
    ({"versions": {"python": "3.12.1"}}, "python 3.12.1 (3.11.7)"),
])
def test_another_cpu_or_version_explains_other_rows(copied: Path, changed: dict, reason: str) -> None:
    for place in ("", "local"):
        path = copied / "results" / place / "mini" / "runs" / "svlm-grpo-s0.json"
        made = json.loads(path.read_text())
        path.write_text(json.dumps(made | {"cpu_kind": None if "cpu" in changed else "A CPU"}))
    change(copied, "svlm-grpo-s0", flips=120, **changed)
    line = reproduction.write_report("mini").lines[1]
    assert line.verdict == reproduction.OUTSIDE and not line.is_unexplained and reason in "; ".join(line.reasons)
    assert reproduction.write_report("mini").exit_code == 0


def test_runs_with_other_settings_are_not_compared(copied: Path) -> None:
    for run in RUNS:
        change(copied, run, variant="steps100")
    assert reproduction.write_report("mini") is None and reproduction.write_report("smoke") is None


def test_own_runs_of_other_settings_alone_leave_out_what_they_cannot_show(copied: Path, caplog) -> None:
    caplog.set_level("INFO")
    for run in RUNS:
        change(copied, run, variant="steps100")
    report.write_all("mini", own=True)
    assert "main left out: no run with the profile's own settings has been made" in caplog.messages


def test_what_make_paper_trains_is_published_by_this_version_of_the_code() -> None:
    manifests = ROOT / "results" / "mini" / "runs"
    for run in [*(f"svlm-{method}-s0" for method in config.METHODS), "svlm-sft-short-s0"]:
        assert json.loads((manifests / f"{run}.json").read_text())["results_version"] == RESULTS_VERSION, run


@pytest.mark.parametrize("method", ["full_dyme", *(pytest.param(method, marks=pytest.mark.exhaustive)
                                                   for method in ("sft", "grpo", "pure_dyme"))])
def test_the_code_gives_the_published_rows(method: str, root: Path) -> None:
    """A few steps of each trainer, once more; on another kind of CPU or with other versions rows may differ."""
    point = next(point for point in plan.points("short") if point.method == method)
    run = point.runs()[0]
    published = dataclasses.replace(run.paths, root=ROOT, is_published=True)
    stored = json.loads((published.manifests / f"{run.name}.json").read_text())
    made = train.execute(run, point.splits, keep_policy=False)
    rows = [utils.read_rows(utils.run_file(paths.rows, run.name)) for paths in (run.paths, published)]
    reasons = reproduction.explanations(made, stored)
    if rows[0] != rows[1] and reasons:
        pytest.skip(f"other rows, as may be: {'; '.join(reasons)}")
    assert rows[0] == rows[1], "the code gives other rows: mend it, or raise RESULTS_VERSION and publish anew"


@pytest.mark.exhaustive
def test_the_readmes_commands_in_order_leave_git_clean(tmp_path: Path) -> None:
    """`make paper` (smoke), then `make test` (what reads the results), in a clone whose folder's name is as bad as names get;
    then a session that leaves outputs."""
    clone = tmp_path / "-a clone {0} {braces} %41%s #1 'q' \"q\" $HOME [ab]* ü;&"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (clone / ".venv" / "bin" / "python").chmod(0o755)
    (clone / ".venv" / ".ready").touch()

    def make(*arguments: str) -> None:
        done = subprocess.run(["make", "-o", ".venv/.ready", *arguments], cwd=clone, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(clone), "DYME_ROOT": ""})
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True, check=True).stdout
        assert status == "", f"make {' '.join(arguments)} changed what git tracks:\n{status}"

    make("paper", "PROFILE=smoke")
    make("figures")
    make("test", "ARGS=-n 0 tests/test_readme.py")
    make("lab", "ARGS=--version")  # copies the notebooks
    path = clone / "results" / "local" / "notebooks" / "04_cost_accuracy.ipynb"
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = 1, [nbformat.v4.new_output("stream", text="said")]
    book.metadata["language_info"] |= {"version": "3.99.0", "file_extension": ".py"}
    nbformat.write(book, path)
    make("lab", "ARGS=--version")
    assert "said" in path.read_text(), "a session's outputs stay in its copy"
    assert (clone / "results" / "local" / "smoke" / "notebooks" / "04_cost_accuracy.ipynb").is_file()
