"""Every family, from a checkpoint in the hub's layout to a step, a saved policy and its scores; on a CPU."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_steps import WRONG, G, answers, cross_entropy_gradient, records_for, refine, relative_error, step
from peft import PeftModel
from safetensors import safe_open
from tiny_families import PREPROCESSOR, SPECIAL, TEMPLATES, make_checkpoint

from dyme_core import config
from dyme_core.data import datasets
from dyme_core.models import engine, generation, loading, processors, vision_cache
from dyme_core.models.loading import FAMILIES, freeze_vision
from dyme_core.pipeline.estimate import check_memory
from dyme_core.pipeline.methods import Run
from dyme_core.pipeline.preflight import preflight

SHARING = {"llava_onevision", "qwen2"}  # prompts
every_family = pytest.mark.parametrize("family", TEMPLATES)


@every_family
def test_a_step_moves_all_but_the_vision_tower_and_the_saved_policy_answers_the_same(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    [model_class] = json.loads((tmp_path / "hub" / "config.json").read_text())["architectures"]
    assert type(policy).__name__ == model_class and policy.dtype == torch.float32
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    untrained = answers(policy, processor, family)
    target = refine([records_for(family)[1].row])[0]
    trainer, _ = step(tmp_path / "run", family, policy, processor, [WRONG] * G + [target, WRONG, WRONG, WRONG])
    assert trainer.advantages[0][:G] == [1, 0, 0, 0] and trainer.advantages[0][G] > 0 > trainer.advantages[0][G + 1]
    moved = {name for name, weight in policy.named_parameters() if not weight.equal(before[name])}
    parts = FAMILIES[family]
    vision = {name for name in before if parts.vision and f".{parts.vision}." in name and parts.projector not in name}
    assert not moved & vision and bool(vision) == (family in PREPROCESSOR)
    assert {name for name in before if ".layers." in name and name not in vision} <= moved
    assert not parts.projector or any(parts.projector in name for name in moved)

    loading.save_policy(policy, processor, tmp_path / "saved")
    again, its_processor = loading.load_policy(tmp_path / "saved")
    trained = answers(policy, processor, family)
    assert answers(again, its_processor, family) == trained != untrained
    hub, saved = _keys(tmp_path / "hub", tmp_path / "saved")
    assert saved == hub


@every_family
def test_a_memorize_only_step_has_the_cross_entropy_gradient(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    wanted = cross_entropy_gradient(policy, processor, family)
    _, gradients = step(tmp_path / "run", family, policy, processor, [WRONG] * 2 * G)
    assert relative_error(gradients.found, wanted) < 1e-5


@every_family
def test_sampled_rollouts_go_through_a_step(tmp_path: Path, family: str) -> None:
    """A random policy would say <image> sooner or later: nothing special may be among 8 x 40 tokens but the end."""
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    trainer, gradients = step(tmp_path / "run", family, policy, processor, None, max_completion_length=40)
    said = {token for ids in trainer.sampled for token in ids}
    assert len(trainer.sampled) == 2 * G and len(said) > 50 and not said & {*processors.suppressed_ids(policy, processor)}
    assert gradients.found and trainer.advantages[0] == [1, 0, 0, 0] * 2


@every_family
def test_preflight_checks_a_data_set_with_every_family(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    report = preflight(records_for(family), processor, policy, rollouts=2, max_new_tokens=300)
    assert report.num_images == (2 if family in PREPROCESSOR else 0)
    assert (report.image_tokens[0] > 0) == (family in PREPROCESSOR)
    [longest] = [record for record in records_for(family) if record.item == report.longest_item]
    target = processors.tokenizer_of(processor)(refine([longest.row])[0], add_special_tokens=False)["input_ids"]
    assert report.longest_tokens == generation.prompt_inputs(processor, [longest])["input_ids"].shape[1] + len(target) + 1


@every_family
def test_the_longest_sample_is_tried_with_every_family(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    record = records_for(family)[0]
    profile = config.load_profile("smoke", **{"training.prompts_per_step": 1, "training.num_generations": 2,
                                              "training.max_completion_tokens": 20})
    tried = check_memory(Run(profile, "grpo"), policy, processor, record)
    assert f'2 rows of {generation.prompt_inputs(processor, [record])["input_ids"].shape[1] + 20} tokens' in tried


@every_family
def test_pictures_and_prompts_are_shared_by_the_families_that_can(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    assert engine.shares_prefixes(policy) == (family in SHARING)
    shared = [part for part in (policy.model, *policy.model.children()) if isinstance(
        getattr(part.forward, "__self__", None), vision_cache._Tower)]
    assert bool(shared) == (family == "llava_onevision")
    plain, _ = loading.load_policy(tmp_path / "hub", engine=False)
    assert answers(plain, processor, family) == answers(policy, processor, family)


@every_family
def test_of_the_special_tokens_only_those_that_end_may_be_sampled(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    tokenizer = processors.tokenizer_of(processor)
    suppressed = tokenizer.convert_ids_to_tokens(processors.suppressed_ids(policy, processor))
    assert set(suppressed) == {*SPECIAL[family]} - {tokenizer.eos_token, "<|endoftext|>"}, "generation_config has two"


def test_a_placeholder_of_pictures_is_never_sampled_even_where_its_tokenizer_calls_it_a_word(tmp_path: Path) -> None:
    folder = make_checkpoint("llava_onevision", tmp_path / "hub")
    content = json.loads((folder / "tokenizer.json").read_text())
    [token] = [token for token in content["added_tokens"] if token["content"] == "<image>"]
    token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    policy, processor = loading.load_policy(folder)
    assert not processor.tokenizer.added_tokens_decoder[token["id"]].special
    assert token["id"] in processors.suppressed_ids(policy, processor)


@pytest.mark.parametrize("family", PREPROCESSOR)
def test_a_model_that_reads_pictures_is_also_asked_without_one(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"))
    seen = records_for(family)
    blind = [replace(record, image=None) for record in seen]
    alone = [generation.decode(policy, processor, [record], max_new_tokens=4)[0] for record in (*seen, *blind)]
    together = generation.decode(policy, processor, [seen[0], blind[0], blind[1], seen[1]], max_new_tokens=4)
    assert together == [alone[0], alone[2], alone[3], alone[1]]
    with pytest.raises(ValueError, match="every record or with none"):
        generation.prompt_inputs(processor, [seen[0], blind[0]])


def test_a_text_model_refuses_a_picture(tmp_path: Path) -> None:
    _, tokenizer = loading.load_policy(make_checkpoint("qwen2", tmp_path / "hub"))
    with pytest.raises(ValueError, match="train-.* has a picture, and this model reads text alone"):
        generation.prompt_inputs(tokenizer, datasets.mini_records("train", 1, seed=0))


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl", "qwen2"])
def test_lora_moves_nothing_else_and_merges_into_plain_weights(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / "hub"), lora_rank=4, lora_alpha=8)
    assert isinstance(policy, PeftModel)
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    layers = {name.split(".lora_")[0].split(".")[-1] for name in before if ".lora_" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not [name for name in before if ".lora_" in name and {"visual", "vision_tower"} & set(name.split("."))]
    step(tmp_path / "run", family, policy, processor, [WRONG] * 2 * G)
    moved = {name for name, weight in policy.named_parameters() if not weight.equal(before[name])}
    assert moved == {name for name in before if ".lora_B." in name}  # the first step: A's gradient is 0 while B is

    loading.save_policy(policy, processor, tmp_path / "merged")
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} == {".json", ".jinja", ".safetensors"}
    hub, merged = _keys(tmp_path / "hub", tmp_path / "merged")
    assert merged == hub
    plain, its_processor = loading.load_policy(tmp_path / "merged")
    inputs = generation.prompt_inputs(processor, records_for(family))
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(**inputs).logits, policy.eval()(**inputs).logits, atol=1e-4, rtol=1e-4)
    untouched, _ = loading.load_policy(tmp_path / "hub")
    with torch.no_grad():
        assert not torch.allclose(plain(**inputs).logits, untouched.eval()(**inputs).logits, atol=1e-2)
    assert answers(plain, its_processor, family) == answers(policy, processor, family)


def test_lora_on_weights_in_4_bits_is_not_merged_but_advised_on(tmp_path: Path) -> None:
    policy, tokenizer = loading.load_policy(make_checkpoint("qwen2", tmp_path / "hub"), lora_rank=4)
    policy.get_base_model().config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    with pytest.raises(ValueError, match="save_pretrained_merged"):
        loading.save_policy(policy, tokenizer, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_padding_has_a_token_of_its_own(tmp_path: Path) -> None:
    """As in Qwen2.5's bases, whose end token pads."""
    folder = make_checkpoint("qwen2", tmp_path / "hub", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    policy, tokenizer = loading.load_policy(folder)
    assert tokenizer.padding_side == "left" and tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert policy.generation_config.pad_token_id == tokenizer.pad_token_id in processors.suppressed_ids(policy, tokenizer)
    assert policy.get_input_embeddings().num_embeddings == len(tokenizer)
    loading.save_policy(policy, tokenizer, tmp_path / "saved")
    again, its_tokenizer = loading.load_policy(tmp_path / "saved")
    assert its_tokenizer.pad_token == tokenizer.pad_token
    assert answers(again, its_tokenizer, "qwen2") == answers(policy, tokenizer, "qwen2")


def test_a_folder_without_processor_files_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("idefics3", tmp_path / "hub")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    with pytest.raises(OSError, match="load image processor"):
        loading.load_policy(folder)
    with pytest.raises(TypeError, match="expected a processor for pictures in .*: got a Qwen2Tokenizer"):
        processors.load_processor(make_checkpoint("qwen2", tmp_path / "text"), "llava")  # AutoProcessor gives a bare tokenizer


def test_weights_that_are_no_safetensors_are_not_read(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen2", tmp_path / "hub")
    policy, _ = loading.load_policy(folder)
    (folder / "model.safetensors").unlink()
    torch.save(policy.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        loading.load_policy(folder)


def test_a_hub_id_is_distinguished_from_a_missing_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bases").mkdir()
    with pytest.raises(FileNotFoundError, match="no model in bases/svlm-s0"):
        loading.load_policy("bases/svlm-s0")
    with pytest.raises(FileNotFoundError, match="no model in"):
        loading.load_policy(Path("Qwen/Qwen2.5-0.5B-Instruct"))
    asked = []
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda source, **_: asked.append(source) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loading.load_policy("Qwen/Qwen2.5-0.5B-Instruct")
    assert asked == ["Qwen/Qwen2.5-0.5B-Instruct"]


@pytest.mark.parametrize(("options", "error", "advice"), [
    (dict(load_in_4bit=True), RuntimeError, "backend 'unsloth' on a CUDA GPU"),
    (dict(load_in_4bit=True, backend="unsloth", lora_rank=0), ValueError, "give a lora_rank above 0"),
    (dict(backend="unsloth"), RuntimeError, "needs a CUDA GPU, and none was found"),
    (dict(backend="jax"), ValueError, "'transformers' or 'unsloth': got 'jax'")], ids=str)
def test_what_cannot_be_loaded_is_refused_with_advice(tmp_path: Path, monkeypatch, options, error, advice) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(error, match=advice):
        loading.load_policy(tmp_path, **options)


def test_unsloth_imported_too_late_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="put `import unsloth` into the first cell"):
        loading.load_policy(tmp_path, backend="unsloth")


def test_a_family_whose_vision_part_was_renamed_is_refused(tmp_path: Path) -> None:
    policy, _ = loading.load_policy(make_checkpoint("internvl", tmp_path / "hub"))
    policy.model.eyes = policy.model.vision_tower
    del policy.model.vision_tower
    with pytest.raises(RuntimeError, match="no part of this InternVL3-1B is called 'vision_tower'"):
        freeze_vision(policy)


def test_a_saved_processor_is_the_familys_own_where_torchvision_is_installed(tmp_path: Path) -> None:
    for family in PREPROCESSOR:
        policy, processor = loading.load_policy(make_checkpoint(family, tmp_path / family))
        loading.save_policy(policy, processor, tmp_path / f"{family}-saved")
        saved = json.loads((tmp_path / f"{family}-saved" / "processor_config.json").read_text())
        assert saved["processor_class"] == PREPROCESSOR[family]["processor_class"]
        assert "Pil" not in saved["image_processor"]["image_processor_type"]


def _keys(*folders: Path) -> list[set[str]]:
    """Names of the weights in each folder."""
    found = []
    for folder in folders:
        with safe_open(folder / "model.safetensors", "pt") as weights:
            found.append(set(weights.keys()))
    return found
