"""The files around the code: pins that agree, a lock that any index can serve, nothing that names one machine."""
from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from scripts import weights

ROOT = Path(__file__).resolve().parents[1]
PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*")
TARGETS = ("paper", "study", "figures", "page", "base", "test", "test-all", "test-gpu", "lab", "llm", "audit", "doctor",
           "clean", "help")
TEXT_ENDINGS = set(".py .html .md .toml .yml .yaml .lock .cff .json .jsonl .csv .tex .ipynb .txt .svg .cfg".split()) | {""}
# Paths and hosts of one machine: none of them may be in a file that git carries.
MACHINE_SPECIFIC = re.compile("|".join((
    r"(?<![\w.~/}-])/(?:root|home|work|opt|Users|private|tmp|mnt|srv)/[\w.-]",  # absolute paths
    r"[A-Z]:\\\\?Users", r"file" r"://", r"https?://[^\s\"'/)]*(?:pypi|pythonhosted|artifactory|nexus|devpi|mirror)",
    r"--(?:extra-)?index" r"-url", r"--find" r"-links")))


def canonical(pin: str) -> str:
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lock(name: str = "requirements.lock") -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def carried_files() -> list[Path]:
    """What git carries or would carry; without git, everything but what make and the tools write."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    made = {".venv", ".venv-unsloth", "__pycache__", "runs", "dyme.egg-info", ".pytest_cache", ".hypothesis", ".ruff_cache",
            ".stamps"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not made & set(path.relative_to(ROOT).parts)]


def test_every_direct_dependency_is_pinned_exactly() -> None:
    extras = project()["optional-dependencies"]
    assert extras.keys() == {"gpu", "llm", "ocr", "dev"}
    pins = [*project()["dependencies"], *(pin for group in extras.values() for pin in group)]
    assert [pin for pin in pins if not PIN.fullmatch(pin)] == []


def test_the_lock_pins_everything_that_pyproject_asks_for_on_a_cpu() -> None:
    extras = project()["optional-dependencies"]
    asked = {canonical(pin) for pin in [*project()["dependencies"], *extras["dev"]]}
    assert asked <= {canonical(pin) for pin in lock()}


def test_the_lock_of_the_model_server_adds_to_the_lock_and_changes_none_of_it() -> None:
    added = {canonical(pin) for pin in lock("requirements-llm.lock")}
    assert {canonical(pin) for pin in project()["optional-dependencies"]["llm"]} <= added
    assert f"{weights.SMOLLM2.package}=={weights.SMOLLM2.version}" in added
    assert not {pin.split("==")[0] for pin in added} & {canonical(pin).split("==")[0] for pin in lock()}


def test_make_installs_the_model_server_without_dependencies() -> None:
    shown = subprocess.run(["make", "--dry-run", "--always-make", "llm"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install --quiet --no-deps --requirement requirements-llm.lock" in shown.stdout
    assert "-m study judge-server" in shown.stdout


@pytest.mark.promise("security", "every package of the locks is pinned to one version; no pin is a link, a path or a range")
def test_the_lock_resolves_from_any_index() -> None:
    every = [*lock(), *lock("requirements-llm.lock")]
    assert [line for line in every if not PIN.fullmatch(line)] == [], "only NAME==VERSION: no suffix, host, path or -e"
    assert "torch==2.13.0" in lock()
    names = [canonical(line).split("==")[0] for line in lock()]
    assert len(names) == len(set(names))
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))], "torch brings its own"


@pytest.mark.parametrize(("answer", "code", "said"), [
    ({"dependencies": [{"name": "x", "version": "1", "vulns": []}, {"name": "y", "skip_reason": "unknown"}]}, 0, "No known"),
    ({"dependencies": [{"name": "x", "version": "1", "vulns": [{"id": "A-1"}, {"id": "B-2"}]}]}, 1, "x 1: A-1, B-2"),
    (None, 0, "Not audited: the advisory service is out of reach")])
def test_the_audit_fails_for_a_known_fault_and_says_so_where_it_could_not_ask(tmp_path: Path, answer, code: int,
                                                                            said: str) -> None:
    stub = tmp_path / "pip_audit.py"
    stub.write_text("import sys, pathlib\nassert '--no-deps' in sys.argv and 'requirements' in sys.argv[-1]\n" + (
        "sys.exit('ConnectionError')" if answer is None else
        f"pathlib.Path(sys.argv[sys.argv.index('--output') + 1]).write_text({json.dumps(answer)!r})\nsys.exit({code})"))
    command = [sys.executable, str(ROOT / ".ci" / "audit.py"), sys.executable, str(stub)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == code and said in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-llm.lock"])
def test_no_pin_of_a_lock_is_another_than_that_of_pyproject(name: str) -> None:
    extras = project()["optional-dependencies"]
    pins = [*project()["dependencies"], *(pin for group in extras.values() for pin in group)]
    asked, locked = (dict(canonical(pin).split("==") for pin in some) for some in (pins, lock(name)))
    shared = asked.keys() & locked.keys()
    assert shared and {package: locked[package] for package in shared} == {package: asked[package] for package in shared}


def test_environment_and_pyproject_hold_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    extras = project()["optional-dependencies"]
    expected = [*project()["dependencies"], *(pin for group in extras.values() for pin in group)]
    assert sorted(pip) == sorted(expected)
    assert "python=3.11" in environment["dependencies"] and project()["requires-python"] == ">=3.11"


def test_the_citation_names_the_project_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["license"] == project()["license"] == "Apache-2.0"
    assert citation["version"] == project()["version"]
    paper = citation["references"][0]
    assert paper["title"] == "Empowering Small VLMs to Think with Dynamic Memorization and Exploration"
    assert "2506.23061" in paper["url"]


def test_the_license_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
    assert "The dyme authors" in text and "[name of copyright owner]" not in text


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_make_passes_profile_and_arguments_on() -> None:
    command = ["make", "--dry-run", "paper", "PROFILE=smoke", "ARGS=--only 03"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert '-m study paper --profile "smoke" --only 03' in shown


def test_make_refuses_a_python_that_is_too_old_with_one_sentence(tmp_path: Path) -> None:
    old = tmp_path / "old python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'Python 3.8.1'\nexit 1\n")
    old.chmod(0o755)
    (tmp_path / "checkout").mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "checkout")
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tmp_path / "checkout", capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr and "Python 3.8.1" in done.stderr
    assert not (tmp_path / "checkout" / ".venv").exists()


def test_continuous_integration_runs_the_tests_and_asks_git_what_they_changed() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o100, "git must carry it as executable"
    text = script.read_text()
    assert "set -euo pipefail" in text and "make test-all" in text and "git status --porcelain" in text


@pytest.mark.parametrize("text", ["cd /home/ada/dyme", "'/tmp/x.json'", "file" + "://disk/x", "C:\\Users\\ada"])
def test_a_path_of_one_machine_is_seen(text: str) -> None:
    assert MACHINE_SPECIFIC.search(text)


@pytest.mark.parametrize("text", ["../shared", "https://arxiv.org/abs/2506.23061", "#!/usr/bin/env bash", "x/tmp/y"])
def test_a_path_that_holds_everywhere_is_not(text: str) -> None:
    assert not MACHINE_SPECIFIC.search(text)


def test_no_file_names_one_machine_or_its_registry() -> None:
    found = []
    for path in carried_files():
        if path.suffix not in TEXT_ENDINGS or path == Path(__file__).resolve():
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := MACHINE_SPECIFIC.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()}")
    assert found == []
