"""The same seed, lock and CPU give the same bytes under any hash seed; two runs at once do not disturb each other."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dyme_core import config
from dyme_core.pipeline.methods import Run
from dyme_core.utils import read_rows

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("seconds", "generate_s", "score_s", "update_s")
SETTINGS = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 3,
            "training.evaluate_every": 3, "training.prompts_per_step": 2, "training.num_generations": 4}


def start(root: Path, *arguments: str, hash_seed: int) -> subprocess.Popen:
    environment = {**os.environ, "DYME_ROOT": str(root), "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT),
                   "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "study", *arguments], cwd=root, env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)


def finish(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said[-3000:]


def repository(place: Path, *parts: str) -> Path:
    """A repository with these parts of the real one."""
    for part in ("pyproject.toml", *parts):
        source, target = ROOT / part, place / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    return place


@pytest.mark.exhaustive
@pytest.mark.promise("determinism", "two runs at once, under different hash seeds, leave the same rows, logs, bank and weights")
def test_a_run_is_the_same_under_any_hash_seed(tmp_path: Path) -> None:
    roots = [repository(tmp_path / f"with a space ü {seed}", "bases/svlm-s0") for seed in (0, 1)]
    options = ("--profile", "smoke", "--method", "full_dyme",
               *(f"--set={name}={json.dumps(value)}" for name, value in SETTINGS.items()))
    finish([start(root, "train", *options, hash_seed=seed) for seed, root in enumerate(roots)])
    made = []
    for root in roots:
        name = Run(config.load_profile("smoke", **SETTINGS), "full_dyme").name
        results, runs = root / "results" / "local" / "smoke", root / "runs" / "smoke" / name
        log = [{name: value for name, value in row.items() if name not in TIMES}
               for row in read_rows(results / "logs" / f"{name}.jsonl.xz")]
        made.append([(results / "rows" / f"{name}.jsonl.xz").read_bytes(), log, (runs / "bank.json").read_bytes(),
                     (runs / "policy" / "model.safetensors").read_bytes()])
    assert made[0] == made[1] and len(made[0][1]) == 3 + 2


@pytest.mark.exhaustive
@pytest.mark.promise("determinism", "every committed table, figure and claim comes out of the committed rows, byte for byte")
def test_tables_and_figures_are_those_in_the_repository_under_any_hash_seed(tmp_path: Path) -> None:
    root = repository(tmp_path / "copy", "results/mini", "results/CLAIMS.md", "README.md", "paper_figures")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    finish([start(root, "figures", hash_seed=1)])
    drawn = root / "results" / "local" / "mini" / "published"
    places = {"tables": "results/mini/tables", "figures": "paper_figures", ".": "results"}
    pairs = {path: ROOT / place / path.name for folder, place in places.items()
             for path in (drawn / folder).iterdir() if path.is_file()}
    pairs[drawn / "registry.csv"] = ROOT / "results" / "mini" / "registry.csv"
    published = {path.stem for folder in ("paper_figures", "results/mini/tables") for path in (ROOT / folder).iterdir()}
    assert published - {path.stem for path in pairs} == {
        "gallery", "scores", "gradient_equivalence", "off_policy", "agreement_held_out", "agreement_labelled"}, "the notebooks'"
    changed = [path.name for path, published in pairs.items() if path.read_bytes() != published.read_bytes()]
    assert not changed, f"{changed}: run make publish and commit what it wrote"
    assert before == {path: path.read_bytes() for path in before}, "what is published was written to"
