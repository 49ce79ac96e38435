"""The table of promises lists the tests that are marked as promises."""
from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def promised() -> set[tuple[str, str]]:
    """(area, promise) of every mark in the tests."""
    calls = [node for path in (ROOT / "tests").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "promise"]
    return {tuple(ast.literal_eval(argument) for argument in call.args) for call in calls}


def test_the_page_lists_what_is_promised_and_all_of_it_held() -> None:
    lines = (ROOT / "results" / "RELIABILITY.md").read_text().splitlines()[6:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert {(area, promise) for area, promise, *_ in rows} == promised() and len(rows) >= 40, "run make reliability"
    assert not [row for row in rows if "failed" in row[-1] or "error" in row[-1]]
