"""Models that read pictures through FastVisionModel and Unsloth's compiled GRPO trainer, device probes stubbed."""
from __future__ import annotations

import inspect
import sys

import harness

harness.import_unsloth(stub_devices=True)

import pytest  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
import unsloth  # noqa: E402
from family_steps import WRONG, G, answers, cross_entropy_gradient, records_for, refine, relative_error, step  # noqa: E402
from tiny_families import PREPROCESSOR, make_checkpoint  # noqa: E402
from transformers import AutoProcessor  # noqa: E402
from unsloth.models.vision import FastBaseModel  # noqa: E402

from dyme_core.models import loading, processors  # noqa: E402
from dyme_core.models.loading import is_vision  # noqa: E402
from dyme_core.trainer.dyme_trainer import DyMETrainer  # noqa: E402

LOADING = unsloth.FastVisionModel.from_pretrained  # before a test changes it
READ = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch"}
OVERRIDDEN = {"_prepare_inputs": ["generation_batch"], "_generate_and_score_completions": ["inputs"],
              "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields"],
              "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"]}


def load(folder, monkeypatch, rank: int):
    monkeypatch.setattr(loading, "_check_unsloth", lambda: None)
    asked = harness.without_gpu(unsloth.FastVisionModel, monkeypatch, device_map={"": "cpu"})
    policy, processor = loading.load_policy(folder, backend="unsloth", dtype=torch.float32, lora_rank=rank)
    return policy, processor, asked


@pytest.mark.parametrize(("family", "rank"), [("llava_onevision", 0), *((family, 4) for family in PREPROCESSOR)])
def test_a_memorize_only_step_of_the_compiled_trainer_has_the_cross_entropy_gradient(
        tmp_path, monkeypatch, family, rank) -> None:
    policy, processor, _ = load(make_checkpoint(family, tmp_path / "hub"), monkeypatch, rank)
    trained = {name for name, weight in policy.named_parameters() if weight.requires_grad}
    assert trained and not [name for name in trained if is_vision(name)]
    wanted = cross_entropy_gradient(policy, processor, family)
    trainer, gradients = step(tmp_path / "run", family, policy, processor, [WRONG] * 2 * G)
    assert "UnslothGRPOTrainer" in [base.__name__ for base in type(trainer).__mro__]
    assert relative_error(gradients.found, wanted) < 1e-4
    assert trainer.keys >= READ


@pytest.mark.parametrize("family", PREPROCESSOR)
def test_a_step_with_both_modes_moves_no_vision_and_what_is_saved_answers_the_same_in_transformers(
        tmp_path, monkeypatch, family) -> None:
    policy, processor, _ = load(make_checkpoint(family, tmp_path / "hub"), monkeypatch, rank=4)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    target = refine([records_for(family)[1].row])[0]
    trainer, _ = step(tmp_path / "run", family, policy, processor, [WRONG] * G + [target, WRONG, WRONG, WRONG])
    assert trainer.advantages[0][:G] == [1, 0, 0, 0] and trainer.advantages[0][G] > 0 > trainer.advantages[0][G + 1]
    moved = {name for name, weight in policy.named_parameters() if not weight.equal(before[name])}
    assert moved == {name for name in before if ".lora_B." in name}
    loading.save_policy(policy, processor, tmp_path / "saved")
    plain, its_processor = loading.load_policy(tmp_path / "saved")
    assert answers(plain, its_processor, family) == answers(policy, processor, family)


def test_unsloth_knows_every_argument_that_models_passes(tmp_path, monkeypatch) -> None:
    *_, asked = load(make_checkpoint("llava_onevision", tmp_path / "hub"), monkeypatch, rank=4)
    loading = set(inspect.signature(LOADING).parameters)
    assert asked["from_pretrained"].keys() - loading <= {"use_safetensors"}  # goes through to transformers
    assert asked["get_peft_model"].keys() <= set(inspect.signature(FastBaseModel.get_peft_model).parameters)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_the_compiled_trainer_has_the_methods_that_ours_extends(name: str) -> None:
    compiled = next(base for base in DyMETrainer.__mro__ if base.__name__ == "UnslothGRPOTrainer")
    parameters = list(inspect.signature(getattr(compiled, name)).parameters)[1:]
    assert parameters[: len(OVERRIDDEN[name])] == OVERRIDDEN[name] or parameters == ["args", "kwargs"]  # wrapped


def test_a_processor_saved_without_its_video_part_has_it_again_where_torchvision_is_installed(tmp_path) -> None:
    for family, plain in processors.VIDEO_PROCESSORS.items():
        folder = make_checkpoint(family, tmp_path / family)
        processors.without_video(plain).from_pretrained(folder).save_pretrained(folder)
        loaded = AutoProcessor.from_pretrained(folder)
        assert type(loaded) is plain and loaded.video_processor is not None


def test_unsloth_came_first() -> None:
    assert list(sys.modules).index("unsloth") < list(sys.modules).index("dyme_core.trainer.dyme_trainer")
    assert trl.GRPOTrainer.__name__ == "UnslothGRPOTrainer"
