"""The README holds: its code runs, its rooms are those of the house, its commands exist."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from dyme_core import config
from dyme_core.models import loading, tiny_onevision

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
CODE = re.findall(r"<!-- run by tests/test_readme.py -->\n```python\n(.*?)```", README, re.DOTALL)


def test_the_code_trains_on_a_record_of_ones_own(tmp_path: Path, monkeypatch, capsys) -> None:
    processor = tiny_onevision.build_processor()
    loading.save_policy(tiny_onevision.build_model("svlm", processor, 0), processor, tmp_path / "bases" / "svlm-s0")
    Image.new("RGB", (320, 240), "white").save(tmp_path / "my_chart.png")
    monkeypatch.chdir(tmp_path)
    assert len(CODE) == 2
    space: dict = {}
    for block in CODE:
        exec(compile(block, "README.md", "exec"), space)  # noqa: S102
    shown = capsys.readouterr().out
    assert "format_rate: 0.0" in shown and "Comparing 62 - 36 = 26 < 65 - 35 = 30, the greater gap is in 2012." in shown
    policy, _ = loading.load_policy(tmp_path / "runs" / "mine" / "policy")
    base, _ = loading.load_policy(tmp_path / "bases" / "svlm-s0")
    assert space["trainer"].state.global_step == 2
    assert not torch.equal(policy.lm_head.weight, base.lm_head.weight)


def test_every_module_is_listed_and_those_that_load_torch_have_a_star() -> None:
    heavy = {"torch", "transformers", "trl", "accelerate", "peft", "unsloth", "torchvision"}
    section = README.split("## How to read the code")[1].split("\n## ")[0]
    listed = dict(re.findall(r"^\| `([\w/]+)`(\*?) \|", section, re.MULTILINE))
    modules = {path.relative_to(ROOT).with_suffix("").as_posix(): ast.parse(path.read_text())
               for package in ("dyme_core", "study", "scripts") for path in (ROOT / package).rglob("*.py")
               if path.stem != "__init__"}
    assert listed.keys() == modules.keys()
    for name, source in modules.items():
        loaded = {alias.name.split(".")[0] for node in ast.walk(source) if isinstance(node, ast.Import) for alias in node.names}
        loaded |= {node.module.split(".")[0] for node in ast.walk(source) if isinstance(node, ast.ImportFrom) and node.module}
        assert (listed[name] == "*") == bool(loaded & heavy), name


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`make (\w+)", README))))
def test_every_make_target_named_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_profile_module_and_file_named_exists() -> None:
    profiles = README.split("## Profiles")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", profiles, re.MULTILINE)) == set(config.PROFILES)
    for module in re.findall(r"-m ((?:dyme_core|study|scripts)(?:\.\w+)+)", README):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for link in re.findall(r"\]\((?!https)([^)]+)\)", README):
        assert (ROOT / link).is_file(), link


def test_the_table_of_results_is_the_stored_one() -> None:
    shown = README.split("<!-- results/mini/tables/main.md -->\n")[1].split("\n\n")[0]
    assert shown == (ROOT / "results" / "mini" / "tables" / "main.md").read_text().split("\n\n")[0]
