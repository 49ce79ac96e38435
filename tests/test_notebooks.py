"""The notebooks as sources (no outputs, short cells, plain parameters), as code, and as published: the executed copies."""
from __future__ import annotations

import ast
import json
import re
import shutil
import symtable
import sys
from collections import Counter
from pathlib import Path

import nbformat
import papermill
import pytest
from ipykernel.ipkernel import IPythonKernel

from dyme_core import config
from dyme_core.models import loading, tiny_onevision
from dyme_core.pipeline import train
from study import report
from study.runner import run_notebooks
from study.runner.run_notebooks import Workspace

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = ROOT / "results" / "mini" / "notebooks"
SHOWN = {"02_visual_supervision": ["DATA_CARD.md", "tables/agreement_labelled.md"],  # stored results, by notebook
         "04_cost_accuracy": ["tables/main.md", "tables/cost.md"]}
MAX_LINES, MAX_DEF_LINES = 15, 5
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameters(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs]


def streams(path: Path, name: str) -> str:
    """All that an executed notebook's cells printed."""
    return "".join(output.text for output in outputs(path) if output.get("name") == name)


def test_the_five_notebooks_are_there_in_order() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_gradient_equivalence", "02_visual_supervision", "03_dyme_training",
                                                 "04_cost_accuracy", "05_your_own_model"]


@every_notebook
def test_a_notebook_is_valid_and_stores_no_outputs(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(path))
    assert nb.cells[0].cell_type == "markdown" and nb.cells[0].source.startswith(f"# {path.stem[:2]} · ")


@every_notebook
def test_opening_a_notebook_leaves_nothing_to_save(path: Path) -> None:
    """JupyterLab writes what the kernel says of itself into the metadata, where it differs."""
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata.kernelspec == {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert metadata.language_info | {"version": ""} == IPythonKernel.language_info | {"version": ""}


@every_notebook
def test_a_name_that_a_cell_takes_from_another_is_bound_in_one_cell_alone(path: Path) -> None:
    """So that cells may run twice and in any order."""
    bound, taken = Counter(), set()
    for cell in code_cells(path):
        names = symtable.symtable(cell.source, path.stem, "exec")
        own = {each.get_name() for each in names.get_symbols() if each.is_assigned() or each.is_imported()}
        scopes = [names]
        for scope in scopes:
            scopes += scope.get_children()
            taken |= {each.get_name() for each in scope.get_symbols() if each.is_global() or scope is names} - own
        bound.update(own)
    assert {name for name in taken if bound[name] > 1} == set()


@every_notebook
def test_the_first_code_cell_alone_holds_the_parameters_as_plain_literals(path: Path) -> None:
    assert parameters(path) == code_cells(path)[:1]
    names = {}
    for statement in ast.parse(code_cells(path)[0].source).body:
        assert isinstance(statement, ast.AnnAssign)
        names[statement.target.id] = ast.literal_eval(statement.value)
        assert type(names[statement.target.id]).__name__ == statement.annotation.id
    assert names["profile"] == "mini" and names["seed"] == 0


@every_notebook
def test_papermill_tells_type_and_meaning_of_every_parameter(path: Path) -> None:
    known = papermill.inspect_notebook(path)
    assert known and all(each["inferred_type_name"] in ("str", "int", "list") and each["help"] for each in known.values())


@every_notebook
def test_the_second_code_cell_refuses_a_wrong_value(path: Path) -> None:
    for name, known in papermill.inspect_notebook(path).items():
        wrong = {"str": "minni", "int": "'x'", "list": "'nope'"}[known["inferred_type_name"]]
        if name in ("profile", "backend") or known["inferred_type_name"] != "str":
            space: dict = {}
            exec(code_cells(path)[0].source, space)  # noqa: S102
            space[name] = wrong
            with pytest.raises(ValueError, match=f"{name}.*{wrong}"):
                exec(code_cells(path)[1].source, space)  # noqa: S102


@every_notebook
def test_the_wrong_kernel_is_told_in_a_sentence(path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "study", None)
    with pytest.raises(ModuleNotFoundError, match="not the repository's kernel; open the notebooks with `make lab`"):
        exec(code_cells(path)[1].source, {"repository": ""})  # noqa: S102


@every_notebook
def test_the_executed_copy_is_of_this_notebook_and_shows_the_stored_results(path: Path) -> None:
    source, copy = (nbformat.read(each, as_version=4).cells for each in (path, EXECUTED / path.name))
    kept = [cell for cell in copy if "injected-parameters" not in cell.metadata.get("tags", [])]
    assert [cell.source for cell in kept] == [cell.source for cell in source], f"publish notebook {path.stem} again"
    shown = "\n".join(output.get("data", {}).get("text/markdown", "") for output in outputs(EXECUTED / path.name))
    for table in SHOWN.get(path.stem, ()):
        assert (EXECUTED.parent / table).read_text().strip() in shown, f"publish notebook {path.stem} again"


def test_the_executed_copies_print_little_and_nothing_to_stderr() -> None:
    said = {path.stem: streams(EXECUTED / path.name, "stdout") for path in NOTEBOOKS}
    assert sum(len(text.splitlines()) for text in said.values()) < 100 and "np." not in "".join(said.values())
    assert not any(streams(EXECUTED / path.name, "stderr") for path in NOTEBOOKS)
    assert not [output for path in NOTEBOOKS for output in outputs(EXECUTED / path.name)
                if output.get("data", {}).keys() == {"text/plain"}], "a result that nothing renders"


def test_lists_are_read_as_papermill_gives_them() -> None:
    for given, read in (("[0, 1]", [0, 1]), ("2", [2]), (3, [3]), ([4], [4]), ("", []), ((), [])):
        assert config.read_list("seeds", given, range(10)) == read
    for given, read in (("full_dyme", ["full_dyme"]), ("sft, grpo", ["sft", "grpo"]), ('["sft"]', ["sft"]), ([], [])):
        assert config.read_list("methods", given, config.METHODS) == read
    for given in ("dyme", "[0.5]", [True], "-1", {"sft": 1}, "null"):
        with pytest.raises(ValueError, match="must be a list of values out of 0 to 9"):
            config.read_list("seeds", given, range(10))


@every_notebook
def test_cells_are_short_and_hold_no_long_function(path: Path) -> None:
    for cell in code_cells(path):
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef), cell.source
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < MAX_DEF_LINES, cell.source


@every_notebook
def test_every_section_says_what_it_shows_before_it_computes(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert sum(cell.cell_type == "markdown" and "\n## " in f"\n{cell.source}" for cell in cells) >= 3
    assert cells[-1].cell_type == "code", "the last word is measured"


@pytest.mark.exhaustive
def test_notebook_03_runs_top_to_bottom_as_profile_gpu_does(tmp_path: Path, monkeypatch, capsys) -> None:
    """Every cell, with the branches of a real model, on a small model in a folder, small data and rule experts."""
    processor = tiny_onevision.build_processor()
    loading.save_policy(tiny_onevision.build_model("svlm", processor, 0), processor, tmp_path / "some-model")
    (tmp_path / "pyproject.toml").touch()
    for package in ("dyme_core", "study", "scripts"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, value in {"DYME_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    small = {"model": str(tmp_path / "some-model"), "backend": "transformers", "supervision.backend": "rule",
             "data.name": "mini", "data.held_out": ["validation", "test"], "world.train_questions": 64,
             "world.validation_questions": 8, "world.test_questions": 8, "training.steps": 2, "training.evaluate_every": 1,
             "training.prompts_per_step": 2, "training.max_completion_tokens": 152, "engine.lora_rank": None}
    load = config.load_profile
    monkeypatch.setattr(config, "load_profile", lambda name: load("gpu", **small))
    monkeypatch.setattr(report, "display", lambda *shown: print(*(getattr(each, "data", "") for each in shown)))
    space: dict = {}
    for cell in code_cells(ROOT / "notebooks" / "03_dyme_training.ipynb"):
        exec(compile(cell.source.replace('profile: str = "mini"', 'profile: str = "gpu"'), "03", "exec"), space)  # noqa: S102
    shown, names = capsys.readouterr().out, [train.Run(load("gpu", **small), method).name
                                             for method in ("base", "grpo", "full_dyme")]
    run = names[-1]
    assert "estimate, not measured: profile gpu on 1 x" in shown and "longest sample, item" in shown
    assert set(space["executed"]) == set(names) and space["last"] == run and "not measured yet. 1 of 5 seeds" in shown
    assert {path.stem for path in (tmp_path / "results" / "local" / "gpu" / "runs").iterdir()} == {
        *names}
    gathered = {path.name for path in (tmp_path / "runs" / "gpu" / "gathered" / run).iterdir()}
    assert gathered == {"README.md", "log.jsonl", "manifest.json", "rows.jsonl"}
    assert f"# {run}" in (tmp_path / "runs" / "gpu" / "gathered" / run / "README.md").read_text()
    assert (tmp_path / "runs" / "gpu" / run / "policy" / "model.safetensors").is_file()


@pytest.mark.exhaustive
def test_the_notebooks_run_to_their_end_in_fresh_kernels_and_their_cells_again_in_any_order(tmp_path: Path) -> None:
    """As in a session: top to bottom, then from the last cell to the first; nothing but results stands below them."""
    for name in ("pyproject.toml", "requirements.lock", "results/mini", "bases/svlm-s0", "bases/svlm-s1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name.replace("s1", "s0"))  # building a base takes ten minutes
    (tmp_path / "notebooks").mkdir()
    for path in NOTEBOOKS:
        book = nbformat.read(path, as_version=4)
        again = [cell.source for cell in reversed(code_cells(path))][:-1]  # all but the parameters
        book.cells += map(nbformat.v4.new_code_cell, again)
        nbformat.write(book, tmp_path / "notebooks" / path.name)
    workspace, chosen = Workspace(config.Paths(tmp_path, "smoke")), {"methods": ["base", "grpo", "full_dyme"], "steps": 2}
    run_notebooks.run_jobs(workspace, run_notebooks.plan_jobs(workspace, settings={"seed": 1, **chosen}))
    results = tmp_path / "results" / "local" / "smoke"
    recorded = json.loads((results / "manifest.json").read_text())["notebooks"]
    assert {name: entry["parameters"] for name, entry in recorded.items()} == {
        path.stem: {"profile": "smoke", "seed": 1} | {name: chosen[name] for name in chosen
                                                      if name in papermill.inspect_notebook(path)} for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        cells = code_cells(workspace.target(path.stem))
        assert all(cell.execution_count for cell in cells)
        assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 1
        assert not streams(workspace.target(path.stem), "stderr"), "bars and notices have no place in a notebook"
    drawn = ["gradient_equivalence", "off_policy", "gallery", "scores"]  # by 01 and 02
    drawn += ["entropy", "forgetting", "kinds", "modes", "pairs", "performance", "stability", "thinking"]  # by 03
    assert {path.name for path in (results / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in drawn for suffix in ("pdf", "png", "csv", "md")}
    assert not (tmp_path / "paper_figures").exists(), "those are of the default profile"
    assert "Sources and licences:" in (results / "DATA_CARD.md").read_text()
    assert list((tmp_path / "runs" / "smoke" / "data").glob("*.jsonl"))
    out = tmp_path / "runs" / "smoke" / "notebook_05"
    assert len((out / "charts" / "data.jsonl").read_text().splitlines()) == 12
    assert len((out / "steps.jsonl").read_text().splitlines()) == 2
    assert sorted(page.name for page in (out / "rollouts").iterdir()) == ["step-1.html", "step-2.html"]
    said = streams(workspace.target("05_your_own_model"), "stdout")
    assert "validation: right before" in said and sum(map(int, re.findall(r"after \d+ of (\d+)", said))) == 2 * 12
    table = next(cell for cell in code_cells(workspace.target("03_dyme_training")) if "run_all" in cell.source).outputs[0]
    assert table.data["text/html"].count("took") == 3, "the summary stands where the live table was"
