"""`@pytest.mark.promise("area", "what a user may rely on")` marks a test that injects a fault, or brings about what it forbids.

`pytest -m promise --reliability=FILE` runs these alone and writes what is promised and whether it held (`make reliability`).
"""
from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

HEAD = """# What can be relied on

Each line is a test that brings the fault about. Written by `make reliability`; not by hand.

| | promise | test | cases | held |
| --- | --- | --- | ---: | --- |
"""
OUTCOMES = pytest.StashKey[Counter]()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with the real base and nothing run, which $DYME_ROOT names."""
    (tmp_path / "pyproject.toml").touch()
    shutil.copytree(Path(__file__).resolve().parents[1] / "bases" / "svlm-s0", tmp_path / "bases" / "svlm-s0")
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    return tmp_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, help="write the table of promises that were put to the test to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    mark = item.get_closest_marker("promise")
    if mark and (report.when == "call" or report.outcome != "passed"):
        item.config.stash[OUTCOMES][(*mark.args, f"{item.path.name}::{item.originalname}", report.outcome)] += 1
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("reliability")
    if path:
        path.write_text(HEAD + "".join(f"{line}\n" for line in table(session.config.stash[OUTCOMES])))


def table(outcomes: Counter) -> list[str]:
    """A line for each promise, in the order of areas and of tests."""
    tests = dict.fromkeys(key[:3] for key in sorted(outcomes, key=lambda key: key[0]))
    lines = []
    for area, promise, test in tests:
        counts = {key[3]: count for key, count in outcomes.items() if key[:3] == (area, promise, test)}
        held = "yes" if set(counts) == {"passed"} else ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        lines.append(f"| {area} | {promise} | `{test}` | {sum(counts.values())} | {held} |")
    return lines
