"""The vision feature cache changes nothing but time."""
from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

from dyme_core.data import datasets
from dyme_core.models import generation, loading, tiny_onevision
from dyme_core.models.vision_cache import _Memory, cache_vision_features

RECORDS = datasets.mini_records("train", 4, seed=0)
ROWS = [record for record in RECORDS for _ in range(3)]  # 4 pictures, 12 rows


def pair() -> tuple:
    """A policy without and one with sharing, of the same weights, each with its processor."""
    processors = tiny_onevision.build_processor(), tiny_onevision.build_processor()
    policies = [tiny_onevision.build_model("svlm", processor, 0).eval() for processor in processors]
    for policy in policies:
        loading.freeze_vision(policy)
    cache_vision_features(policies[1], processors[1])
    return *policies, *processors


def count_views(policy) -> list[int]:
    """The list grows by the number of views each time that the tower encodes."""
    views: list[int] = []
    policy.model.vision_tower.embeddings.register_forward_pre_hook(lambda module, inputs: views.append(len(inputs[0])))
    return views


def gradients(policy, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    policy(**inputs, labels=inputs["input_ids"]).loss.backward()
    return {name: weight.grad for name, weight in policy.named_parameters() if weight.grad is not None}


def test_a_prompt_has_the_same_tensors_and_a_picture_is_processed_once(monkeypatch) -> None:
    plain, shared = tiny_onevision.build_processor(), tiny_onevision.build_processor()
    cache_vision_features(tiny_onevision.build_model("svlm", shared, 0), shared)
    counted, original = [], type(shared.image_processor).process_image
    monkeypatch.setattr(type(shared.image_processor), "process_image",
                        lambda self, image, *args, **options: counted.append(1) or original(self, image, *args, **options))
    wanted = generation.prompt_inputs(plain, ROWS)
    for _ in range(2):
        made = generation.prompt_inputs(shared, ROWS)
        assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert len(counted) == len(RECORDS)


@pytest.mark.parametrize("images", [
    [[Image.new("RGB", (320, 100), "red")], [Image.new("RGB", (96, 96), "blue")]],
    [Image.new("RGB", (96, 50), "red")], Image.new("RGB", (60, 96), "red"), [[Image.new("L", (96, 96), 3)]],
    [[Image.new("RGB", (96, 96)), Image.new("RGB", (96, 96), "red")]]], ids=["sizes", "flat", "one", "grey", "two a prompt"])
@pytest.mark.parametrize("options", [{}, {"do_rescale": False}, {"return_tensors": "pt"}], ids=str)
def test_calls_of_every_sort_give_what_the_plain_processor_gives(images, options) -> None:
    plain, shared = tiny_onevision.build_processor(), tiny_onevision.build_processor()
    for processor in (plain, shared):  # a wide picture then has more views than a square one
        processor.image_processor.image_grid_pinpoints = [[96, 96], [96, 192], [96, 288]]
    cache_vision_features(tiny_onevision.build_model("svlm", shared, 0), shared)
    shared.image_processor(images)  # with other options first
    wanted, made = plain.image_processor(images, **options), shared.image_processor(images, **options)
    assert made.keys() == wanted.keys()
    for name in wanted:
        assert len(made[name]) == len(wanted[name])
        assert all((torch.as_tensor(ours) == torch.as_tensor(theirs)).all()
                   for ours, theirs in zip(made[name], wanted[name], strict=True))


def test_logits_are_the_same_and_a_view_is_encoded_once() -> None:
    plain, shared, processor, _ = pair()
    views, inputs = count_views(shared), generation.prompt_inputs(processor, ROWS)
    with torch.inference_mode():
        wanted = plain(**inputs).logits
        for _ in range(2):
            torch.testing.assert_close(shared(**inputs).logits, wanted, atol=1e-5, rtol=1e-5)
    assert views == [3 * len(RECORDS)]  # the whole and two tiles


def test_generations_are_the_same() -> None:
    plain, shared, processor, sharing = pair()
    for seed in (None, 1):
        texts = [generation.decode(policy, its, ROWS, batch_size=5, max_new_tokens=12, seed=seed)
                 for policy, its in ((plain, processor), (shared, sharing))]
        assert texts[0] == texts[1]


def test_gradients_are_the_same_with_features_cached_in_inference_mode() -> None:
    plain, shared, processor, sharing = pair()
    generation.decode(shared, sharing, ROWS, max_new_tokens=2)
    views, inputs = count_views(shared), generation.prompt_inputs(processor, ROWS)
    wanted, made = gradients(plain.train(), inputs), gradients(shared.train(), inputs)
    assert views == [] and made.keys() == wanted.keys() and "model.multi_modal_projector.linear_1.weight" in made
    for name in wanted:
        torch.testing.assert_close(made[name], wanted[name], atol=1e-6, rtol=1e-4)


def test_features_do_not_depend_on_who_is_encoded_along() -> None:
    _, shared, processor, _ = pair()
    pixels = generation.prompt_inputs(processor, datasets.mini_records("train", 64, seed=0))["pixel_values"][:, 0]
    tower = shared.model.vision_tower
    all_at_once = tower(pixels, output_hidden_states=True, return_dict=True).hidden_states[-1]
    shared.load_state_dict(shared.state_dict())  # forgets
    in_fours = torch.cat([tower(four, output_hidden_states=True, return_dict=True).hidden_states[-1]
                          for four in pixels.split(4)])
    torch.testing.assert_close(in_fours, all_at_once, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("wants", ["weights", "pixels", "dropout"])
def test_nothing_is_kept_where_features_are_no_constants(wants: str) -> None:
    _, shared, processor, _ = pair()
    views, inputs, tower = count_views(shared), generation.prompt_inputs(processor, ROWS), shared.model.vision_tower
    if wants == "weights":
        tower.post_layernorm.weight.requires_grad_(True)
    elif wants == "pixels":
        inputs["pixel_values"].requires_grad_(True)
    else:
        tower.train().config.attention_dropout = 0.5
    for _ in range(2):
        shared(**inputs).logits.sum().backward()
    assert views == [3 * len(ROWS)] * 2
    assert wants != "pixels" or inputs["pixel_values"].grad.abs().sum() > 0


def test_changed_weights_empty_the_cache() -> None:
    plain, shared, processor, _ = pair()
    inputs = generation.prompt_inputs(processor, ROWS)
    before = shared(**inputs).logits
    other = tiny_onevision.build_model("svlm", processor, 1).state_dict()
    for policy in (plain, shared):
        policy.load_state_dict(other)
    assert torch.equal(shared(**inputs).logits, plain(**inputs).logits) and not torch.equal(before, shared(**inputs).logits)


def test_a_copy_uses_its_own_tower() -> None:
    _, shared, processor, _ = pair()
    inputs, other = generation.prompt_inputs(processor, ROWS), copy.deepcopy(shared)
    wanted = shared(**inputs).logits
    with torch.no_grad():
        other.model.vision_tower.encoder.layers[0].mlp.fc1.weight.zero_()
    assert not torch.equal(other(**inputs).logits, wanted) and torch.equal(shared(**inputs).logits, wanted)


def test_memory_is_bounded_and_the_least_recently_used_go_first() -> None:
    memory, made = _Memory(1), []
    quarter = torch.zeros(2**16)  # of a megabyte

    def fetch(*keys: int) -> None:
        memory.fetch(keys, lambda places: made.extend(keys[place] for place in places) or [(quarter,)] * len(places))

    fetch(1, 2, 3, 4, 1, 2)
    fetch(1)
    fetch(5)  # drops 2
    assert made == [1, 2, 3, 4, 5] and memory.num_bytes == 2**20
    fetch(1)
    fetch(2)
    assert made == [1, 2, 3, 4, 5, 2]
    fetch(*range(10, 30))  # more than it may keep are given all the same
    assert memory.num_bytes == 2**20


def test_saving_writes_the_same_bytes(tmp_path: Path) -> None:
    plain, shared, processor, sharing = pair()
    assert list(plain.state_dict()) == list(shared.state_dict())
    for name, policy, its in (("plain", plain, processor), ("shared", shared, sharing)):
        generation.decode(policy, its, ROWS, max_new_tokens=2)  # a tokenizer saves how it was called last
        loading.save_policy(policy, its, tmp_path / name)
        its.image_processor.save_pretrained(tmp_path / name / "pictures")
    saved = [{str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*")
              if path.is_file()} for name in ("plain", "shared")]
    assert saved[0] == saved[1] and {"model.safetensors", "processor_config.json"} < saved[0].keys()


@pytest.mark.parametrize("shares", [True, False])
def test_a_loaded_policy_shares_unless_told_not_to(shares: bool, tmp_path: Path) -> None:
    processor = tiny_onevision.build_processor()
    loading.save_policy(tiny_onevision.build_model("svlm", processor, 0), processor, tmp_path / "policy")
    policy, loaded = loading.load_policy(tmp_path / "policy", engine=shares)
    views = count_views(policy)
    for _ in range(2):
        generation.decode(policy, loaded, ROWS, max_new_tokens=2)
    assert views == ([3 * len(RECORDS)] if shares else [3 * len(ROWS)] * 2)
