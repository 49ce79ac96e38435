"""The house's rules, read from the source: imports point back, torch in starred rooms only, no unsafe call."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parents[1] / "dyme_core"
# The rooms in reading order; an import may only point to an earlier one.
ROOMS = ("settings", "engine", "config", "provenance", "store", "disk", "prompts", "asking", "rubric", "replies", "recording",
         "ledger", "attempts", "endpoint", "limits", "transport", "calls", "bulk", "client", "charts", "drawing", "quantities",
         "arithmetic", "wording", "conclusions", "facts", "tabular", "tokens", "layout", "series", "extraction", "readers",
         "ocr", "matching", "questions", "supervision", "judges", "drafts", "rewards", "pictures", "data", "badrows",
         "degrade", "rows", "chartqa", "aokvqa", "gsm8k", "slake", "geometry", "own", "sources", "scoring", "decontamination",
         "splits", "sighting", "phrasings", "labelled", "heldout", "agreement", "ranks", "objective", "looks", "prefixes",
         "families", "processors", "mini", "models", "decoding", "preflight", "headroom", "lessons", "batches", "pretrain",
         "switches", "assembly", "measured", "watching", "trainer", "checkpoints", "collapse", "gradients", "evaluate",
         "estimate", "card", "experts", "runs", "steplog", "recipes", "experiment", "launch", "plan", "scheduler", "registry",
         "study", "statistics", "selection", "tables", "contrasts", "figures", "plots", "traces", "sweeps", "mechanism",
         "verdicts", "claims", "findings", "report", "reproduction",
         "progress", "execution", "stamps", "weights", "serving", "runner")
LOADS_TORCH = {"ranks", "objective", "looks", "prefixes", "families", "processors", "mini", "models", "decoding", "preflight",
               "headroom", "batches", "pretrain", "switches", "assembly", "measured", "watching", "trainer", "checkpoints",
               "collapse", "gradients", "evaluate", "experts", "steplog", "recipes", "experiment", "launch", "weights"}
HEAVY = {"torch", "transformers", "trl", "accelerate", "peft", "unsloth", "torchvision"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "print", "breakpoint"}


def rooms() -> list[Path]:
    return sorted(path for path in CORE.glob("*.py") if path.stem != "__init__")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(source: ast.Module) -> Iterator[str]:
    """Every module that a source imports, at any depth, `from x import y` giving "x.y" as well as "x"."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["dyme_core" if node.level else "", node.module or ""]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def broken_rules(source: ast.Module) -> list[str]:
    """Unsafe or unwanted constructs of one room, each with its line."""
    found = []
    for node in ast.walk(source):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
                found.append(f"line {node.lineno}: calls {node.func.id}()")
            if any(word.arg == "trust_remote_code" and not _is_false(word.value) for word in node.keywords):
                found.append(f"line {node.lineno}: runs code that a model brings along")
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type):
            found.append(f"line {node.lineno}: catches everything")
    found += [f"imports {name}" for name in imported(source) if name.split(".")[0] in FORBIDDEN_MODULES]
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _is_broad(caught: ast.expr | None) -> bool:
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(name is None or isinstance(name, ast.Name) and name.id.endswith("Exception") for name in names)


def test_every_room_is_listed() -> None:
    assert {path.stem for path in rooms()} <= set(ROOMS), "add the new room to ROOMS, where it stands in reading order"


@pytest.mark.parametrize("path", rooms(), ids=lambda path: path.stem)
def test_a_room_imports_only_earlier_rooms(path: Path) -> None:
    own = {name.split(".")[1] for name in imported(tree(path)) if name.startswith("dyme_core.")} & set(ROOMS)
    later = [room for room in own if path.stem in ROOMS and ROOMS.index(room) >= ROOMS.index(path.stem)]
    assert not later, f"{path.name} imports {later}, which stand later in the house"


@pytest.mark.parametrize("path", rooms(), ids=lambda path: path.stem)
def test_only_starred_rooms_load_torch(path: Path) -> None:
    heavy = {name.split(".")[0] for name in imported(tree(path))} & HEAVY
    assert path.stem in LOADS_TORCH or not heavy, f"{path.name} imports {sorted(heavy)}"


@pytest.mark.parametrize("path", rooms(), ids=lambda path: path.stem)
def test_a_room_is_safe_and_quiet(path: Path) -> None:
    assert broken_rules(tree(path)) == []


@pytest.mark.parametrize(("source", "rule"), [
    ("def f(x):\n    return eval(x)", "calls eval()"),
    ("print('hello')", "calls print()"),
    ("def f():\n    import pickle", "imports pickle"),
    ("from pickle import loads", "imports pickle"),
    ("load(name, trust_remote_code=True)", "code that a model brings along"),
    ("load(name, trust_remote_code=trust)", "code that a model brings along"),
    ("try:\n    f()\nexcept Exception:\n    pass", "catches everything"),
    ("try:\n    f()\nexcept (ValueError, BaseException):\n    pass", "catches everything"),
    ("try:\n    f()\nexcept:\n    pass", "catches everything"),
])
def test_the_checks_see_what_they_forbid(source: str, rule: str) -> None:
    assert any(rule in found for found in broken_rules(ast.parse(source)))


def test_the_checks_leave_good_code_alone() -> None:
    good = "model.eval()\nload(name, trust_remote_code=False)\ntry:\n    f()\nexcept (ValueError, OSError):\n    pass"
    assert broken_rules(ast.parse(good)) == []
    assert set(imported(ast.parse("def f():\n    from dyme_core import config\n    from . import rewards"))) == {
        "dyme_core", "dyme_core.config", "dyme_core.rewards"}
