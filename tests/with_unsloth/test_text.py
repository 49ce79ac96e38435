"""Text models through Unsloth's own CPU back end: FastLanguageModel and TRL's trainer."""
from __future__ import annotations

import inspect

import harness

harness.import_unsloth(stub_devices=False)

import pytest  # noqa: E402
import torch  # noqa: E402
import unsloth  # noqa: E402
from family_steps import WRONG, G, answers, cross_entropy_gradient, relative_error, step  # noqa: E402
from tiny_families import make_checkpoint  # noqa: E402
from unsloth.models.llama import FastLlamaModel  # noqa: E402
from unsloth.models.loader import FastLanguageModel  # noqa: E402

from dyme_core.models import loading as model_loading  # noqa: E402


@pytest.mark.parametrize("rank", [0, 4], ids=["whole", "lora"])
def test_a_memorize_only_step_has_the_cross_entropy_gradient_and_is_saved(tmp_path, monkeypatch, rank: int) -> None:
    monkeypatch.setattr(model_loading, "_check_unsloth", lambda: None)
    asked = harness.without_gpu(unsloth.FastLanguageModel, monkeypatch)
    policy, tokenizer = model_loading.load_policy(make_checkpoint("qwen2", tmp_path / "hub"), backend="unsloth",
                                                  dtype=torch.float32, lora_rank=rank)
    assert "_cpu_init" in unsloth.FastLanguageModel.__module__, "the back end for GPUs was chosen"
    wanted = cross_entropy_gradient(policy, tokenizer, "qwen2")
    _, gradients = step(tmp_path / "run", "qwen2", policy, tokenizer, [WRONG] * 2 * G)
    assert relative_error(gradients.found, wanted) < 1e-4
    model_loading.save_policy(policy, tokenizer, tmp_path / "saved")
    plain, its_tokenizer = model_loading.load_policy(tmp_path / "saved")
    assert answers(plain, its_tokenizer, "qwen2") == answers(policy, tokenizer, "qwen2")
    loading, adding = (set(inspect.signature(method).parameters) for method in (
        FastLanguageModel.from_pretrained, FastLlamaModel.get_peft_model))  # those for GPUs
    assert asked["from_pretrained"].keys() - loading <= {"use_safetensors"}  # goes through to transformers
    assert asked.get("get_peft_model", {}).keys() <= adding
