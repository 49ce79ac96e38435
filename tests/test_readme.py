"""README and docs/ hold: the code runs, commands, links and functions exist, the numbers are the stored ones."""
from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from dyme_core import config
from dyme_core.models import loading
from study import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text()
         for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
CODE = re.findall(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
MAX_BYTES = 10 * 1024


def test_the_code_trains_on_ones_own_chart(tmp_path: Path, monkeypatch) -> None:
    [row] = re.findall(r"<!-- data.jsonl of tests/test_readme.py -->\n```json\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_charts").mkdir()
    (tmp_path / "my_charts" / "data.jsonl").write_text(json.dumps(json.loads(row)))
    Image.new("RGB", (320, 240), "white").save(tmp_path / "my_charts" / "chart.png")
    (tmp_path / "bases").symlink_to(ROOT / "bases")
    monkeypatch.chdir(tmp_path)
    [code] = CODE
    space: dict = {}
    exec(compile(code, "README.md", "exec"), space)  # noqa: S102
    policy, _ = loading.load_policy(tmp_path / "runs" / "mine" / "policy")
    base, _ = loading.load_policy(ROOT / "bases" / "svlm-s0")
    assert space["trainer"].state.global_step == 2
    [question] = re.findall(r"<!-- asked by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)
    said = subprocess.run([sys.executable, "-c", question], check=True, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": ""})
    assert said.stdout.strip()
    assert not torch.equal(policy.lm_head.weight, base.lm_head.weight)


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= MAX_BYTES


def test_the_tally_is_that_of_the_claims() -> None:
    [tally] = re.findall(r"^Of \d+ claims: .*\.$", (ROOT / "results" / "CLAIMS.md").read_text(), re.MULTILINE)
    assert f"**{tally}**" in README


def test_the_table_of_results_is_the_stored_one() -> None:
    shown = README.split("<!-- results/mini/tables/main.md -->\n")[1].split("\n\n")[0]
    assert shown == (ROOT / "results" / "mini" / "tables" / "main.md").read_text().split("\n\n")[0]


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_and_module_named_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", PAGES[page], re.MULTILINE)) <= targets
    for module in re.findall(r"-m ((?:dyme_core|study|scripts)(?:\.\w+)+)", PAGES[page]):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


@pytest.mark.parametrize("page", PAGES)
def test_every_dyme_command_named_exists_with_its_options(page: str) -> None:
    known = {name: {option for each in command.params for option in each.opts}
             for name, command in typer.main.get_command(cli.app).commands.items()}
    text = PAGES[page].replace("\\\n", " ")
    named = re.findall(r"(?:bin/dyme|`dyme|-m study) ([a-z][a-z-]*)([^`\n]*)", text)
    assert {name for name, _ in named} <= known.keys()
    assert not [(name, rest) for name, rest in named if not set(re.findall(r" (--[a-z-]+)", rest)) <= known[name]]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)|<img src=\"([^\"]+)\"", PAGES[page])
    broken = [link for pair in links for link in pair if link and not (ROOT / page).parent.joinpath(link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES)
def test_every_function_that_is_linked_stands_in_its_file(page: str) -> None:
    missing = [(name, path) for name, path in re.findall(r"\[`(\w+)`\]\(([^)]+\.py)\)", PAGES[page])
               if name not in _names((ROOT / page).parent / path)]
    assert not missing


def test_every_profile_and_no_other_is_described() -> None:
    section = PAGES["docs/data_and_models.md"].split("## Profiles and settings")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == set(config.PROFILES)


def test_no_text_cites_a_page_that_is_not_in_the_repository() -> None:
    folders = [ROOT / name for name in ("dyme_core", "study", "scripts", "benchmarks", "tests", "docs", "notebooks", "results")]
    known = {path.name for folder in (ROOT, ROOT / "docs", ROOT / "results", ROOT / "results" / "mini")
             for path in folder.glob("*.md")} | {"REPRODUCTION.md"}  # which a run writes
    cited = {(path.name, page) for folder in folders for kind in ("py", "md", "ipynb") for path in folder.rglob(f"*.{kind}")
             for page in re.findall(r"\b[A-Z_]+\.md\b", path.read_text(encoding="utf-8"))}
    assert not {(path, page) for path, page in cited if page not in known}


def _names(path: Path) -> set[str]:
    """What a module defines at its top level: functions, classes, constants."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found
