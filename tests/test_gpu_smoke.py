"""The smoke test for a card, as far as it can be tested without one: it refuses, measures, and judges its measurements."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dyme_core import config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import gpu_smoke

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_it_says_so_with_its_own_exit_code(capsys) -> None:
    assert gpu_smoke.main([]) == 2
    assert "no CUDA card found" in capsys.readouterr().err


def test_what_it_measures_on_a_card_it_measures_on_a_cpu_too() -> None:
    found = gpu_smoke.mini(ROOT / "bases" / "svlm-s0", torch.device("cpu"))
    assert found.pop("greedy answers equal the CPU's") == 1.0
    assert list(found) == ["32 bits", "16 bits", "16 bits, checkpointing, micro-batches"]
    for told in found.values():
        assert len(told["losses"]) == gpu_smoke.STEPS and told["is_finite"] and told["change"] > 0 < told["s_per_step"]


def test_a_model_that_is_not_available_is_reported_and_is_no_failure() -> None:
    profile = config.load_profile("gpu", backend="transformers", model="no/such-model", **{"engine.lora_rank": None})
    assert "not run" in gpu_smoke.real(profile, torch.device("cpu"))


@pytest.mark.parametrize(("change", "code"), [({}, 0), ({"is_finite": False}, 1), ({"change": 0.0}, 1)])
def test_losses_must_be_finite_weights_must_move_and_answers_be_the_cpu_s(change: dict, code: int) -> None:
    part = {"losses": [1.0], "is_finite": True, "change": 0.1}
    found = {"mini": {"greedy answers equal the CPU's": 1.0, "16 bits": part | change}, "real": {"not run": "no weights"}}
    assert gpu_smoke.verdict(found) == code
    assert gpu_smoke.verdict({"mini": {"greedy answers equal the CPU's": 0.5, "16 bits": part}}) == 1
    assert gpu_smoke.verdict({**found, "real": part | {"is_finite": False}}) == 1
