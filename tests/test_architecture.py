"""The layout, read from the source: imports point one way, torch is loaded only in listed modules, no unsafe call."""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dyme_core", "study", "scripts")
# A module may import what stands in its own layer or in an earlier one. `study` and `scripts` do not know each other.
LAYERS = ("utils", "data", "models", "supervision", "trainer", "pipeline", "study")
TORCH_LAYERS = {"models", "trainer", "pipeline"}
# Modules of the other layers that load torch themselves.
TORCH_ELSEWHERE = {"dyme_core/ranks", "dyme_core/supervision/deplot", "study/doctor", "study/gradients", "scripts/curriculum",
                   "scripts/judge_agreement", "scripts/learnability", "scripts/pretrain", "scripts/smol", "scripts/weights"}
HEAVY = {"torch", "transformers", "trl", "accelerate", "peft", "unsloth", "torchvision"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "print", "breakpoint"}


def module_name(path: Path) -> str:
    """For example "dyme_core/data/schema"."""
    return path.relative_to(ROOT).with_suffix("").as_posix()


SOURCES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
every_module = pytest.mark.parametrize("name", SOURCES)


def layer(name: str) -> str:
    """The layer of a module: its folder in dyme_core ("utils" for those at its top), or "study" for study and scripts."""
    parts = name.split("/")
    if parts[0] != "dyme_core":
        return "study"
    if name == "dyme_core/__init__":
        return "pipeline"  # the public API names what lies in every layer
    return parts[1] if len(parts) > 2 else "utils"


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(source: ast.Module) -> Iterator[str]:
    """Every module that a source imports, at any depth, `from x import y` giving "x.y" as well as "x"."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(source: ast.Module) -> set[str]:
    """The modules of this repository that a source imports, by their names in SOURCES."""
    return {name.replace(".", "/") for name in imported(source)} & SOURCES.keys()


def broken_rules(source: ast.Module) -> list[str]:
    """Unsafe or unwanted constructs of one module, each with its line."""
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


def test_every_folder_of_dyme_core_is_a_layer() -> None:
    assert {layer(name) for name in SOURCES} == set(LAYERS)


def test_imports_point_to_the_same_layer_or_an_earlier_one() -> None:
    found = {(name, target) for name, path in SOURCES.items() for target in own_imports(tree(path))
             if LAYERS.index(layer(target)) > LAYERS.index(layer(name))}
    assert found == set()


@every_module
def test_study_and_scripts_do_not_know_each_other(name: str) -> None:
    other = {"study": "scripts/", "scripts": "study/"}.get(name.split("/")[0]) if name != "study/cli" else None
    assert other is None or not [target for target in own_imports(tree(SOURCES[name])) if target.startswith(other)]


@every_module
def test_torch_is_loaded_only_in_listed_modules(name: str) -> None:
    heavy = {module.split(".")[0] for module in imported(tree(SOURCES[name]))} & HEAVY
    assert not heavy or layer(name) in TORCH_LAYERS or name in TORCH_ELSEWHERE, f"{name} imports {sorted(heavy)}"


@every_module
def test_a_module_is_safe_and_quiet(name: str) -> None:
    assert broken_rules(tree(SOURCES[name])) == []


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
    assert set(imported(ast.parse("def f():\n    from dyme_core import config\n    import study.plan"))) == {
        "dyme_core", "dyme_core.config", "study.plan"}
