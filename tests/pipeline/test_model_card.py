"""The model card says what the manifest says, and a gathered folder stands on its own."""
from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dyme_core import config, utils
from dyme_core.pipeline import model_card

MANIFEST = {
    "run": "svlm-full_dyme-s3", "method": "full_dyme", "variant": "", "model": "svlm", "seed": 3, "profile": "gpu",
    "base": "llava-hf/some-model", "processes": 2, "steps": 7, "rollouts": 224, "tokens": 54321, "train_s": 99.0,
    "started": "2026-01-02T03:04:05+00:00", "commit": "abc123", "dirty": True, "cpu": "a CPU, 2 cores", "hardware": None,
    "platform": "Linux", "versions": {"python": "3.11.9", "torch": "2.13.0"},
    "results": {"validation": {"num_items": 100, "correct": 0.5, "has_format": 1.0, "groundedness": None}},
    "supervision": {"backend": "api", "model": "a-judge"},
    "settings": {"steps": 7, "prompts_per_step": 4, "num_generations": 8, "max_completion_tokens": 300, "switch": "binary",
                 "memorize_weight": "group", "mastered": "skip", "reward_gate": "sum", "correct_needs_format": True,
                 "learning_rate": [1e-5], "warmup_steps": 10, "world": {"train_questions": 4096},
                 "data": {"name": "chartqa", "source": "some/data"}, "engine": {"lora_rank": 16, "bf16": True}}}


def test_a_card_says_what_the_manifest_says_and_no_number_of_the_paper() -> None:
    text = model_card.model_card(MANIFEST)
    for said in ("# svlm-full_dyme-s3", "`llava-hf/some-model` with Full DyME", "chartqa (some/data)", "a-judge (api)",
                 "adapters of rank 16", "16 bits, seed 3", "num_generations 8", "learning_rate [1e-05]",
                 "| validation | 100 | 50.0 [40.4, 59.6] | 100.0 |", "commit abc123 with changes that were not committed",
                 "a CPU, 2 cores", "torch 2.13.0", "99 s, 2 processes"):
        assert said in text, said
    for reported in ("67.5", "64.9", "60.8", "55.6", "66.8", "68.5"):
        assert reported not in text
    rules = model_card.model_card({**MANIFEST, "supervision": {"backend": "rule"}, "dirty": False, "hardware": "one card"})
    assert "deterministic rules" in rules and "not committed" not in rules and "; one card, Linux;" in rules


def test_the_cards_code_asks_the_policy_beside_it(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[2] / "bases" / "svlm-s0", tmp_path / "policy")
    Image.new("RGB", (96, 96), "white").save(tmp_path / "policy" / "chart.png")
    [code] = re.findall(r"```python\n(.*?)```", model_card.model_card(MANIFEST), re.DOTALL)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path / "policy",
                          env=os.environ | {"PYTHONPATH": ""})
    assert said.stdout.strip()


def test_a_run_that_is_on_file_has_a_card() -> None:
    path = next(iter(sorted((Path(__file__).parents[2] / "results" / "mini" / "runs").glob("svlm-full_dyme-s0.json"))))
    text = model_card.model_card(json.loads(path.read_text()))
    assert "the mini charts drawn by this repository" in text and "| unseen | 400 |" in text and "1 processes" in text


@pytest.mark.parametrize(("share", "count", "said"), [(0.5, 100, "50.0 [40.4, 59.6]"), (0.0, 10, "0.0 [0.0, 27.8]"),
                                                      (1.0, 10, "100.0 [72.2, 100.0]")])
def test_the_interval_is_wilson_s(share: float, count: int, said: str) -> None:
    results = {"test": {"num_items": count, "correct": share, "has_format": 1.0}}
    assert f"| test | {count} | {said} |" in model_card.model_card({**MANIFEST, "results": results})  # as tables of it have it


def test_a_gathered_folder_holds_all_of_a_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    paths = config.paths("gpu")
    with pytest.raises(FileNotFoundError, match="no manifest svlm-full_dyme-s3.json"):
        model_card.gather(paths, MANIFEST["run"], tmp_path / "out")
    (paths.results / "runs").mkdir(parents=True)
    (paths.results / "runs" / f"{MANIFEST['run']}.json").write_text(json.dumps(MANIFEST))
    utils.write_rows(utils.run_file(paths.rows, MANIFEST["run"]), [{"item": "a"}])
    utils.write_rows(utils.run_file(paths.logs, MANIFEST["run"]), [{"event": "step"}])
    (paths.runs / MANIFEST["run"]).mkdir(parents=True)
    (paths.runs / MANIFEST["run"] / "ledger.jsonl").write_text("{}\n")
    assert model_card.gather(paths, MANIFEST["run"], tmp_path / "out") == tmp_path / "out"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "ledger.jsonl", "log.jsonl", "manifest.json", "rows.jsonl"]
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text()) == {"item": "a"}
    assert (tmp_path / "out" / "README.md").read_text() == model_card.model_card(MANIFEST)
