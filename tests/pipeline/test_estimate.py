"""The estimate's formulas against what torch counts on the mini model; the longest sample is tried before step 0."""
from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from dyme_core import config
from dyme_core.config import Engine
from dyme_core.data.datasets import mini_records
from dyme_core.models import loading, tiny_onevision
from dyme_core.models.generation import prompt_inputs
from dyme_core.pipeline import estimate
from dyme_core.pipeline.methods import Run

ROWS, SAID = 4, 32
WITHIN = 1.3  # the stated factor for memory
RECORDS = mini_records("train", 1, seed=0)


@pytest.fixture(scope="module")
def measured():
    """The mini model, an input of equal rows, and its shape."""
    processor = tiny_onevision.build_processor()
    model = tiny_onevision.build_model("svlm", processor, 0)
    loading.freeze_vision(model)
    inputs = prompt_inputs(processor, RECORDS * ROWS)
    shape = estimate.Shape.of(model, inputs["pixel_values"].shape[1] * 16, inputs["input_ids"].shape[1])
    return model, inputs, shape


@contextmanager
def training(model, checkpointing: bool) -> Iterator[None]:
    """The model as it trains, its language layers checkpointed or not; no gradient is left behind."""
    model.train()
    if checkpointing:
        model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    yield
    model.gradient_checkpointing_disable()
    model.zero_grad()


def counted_flops(model, inputs, backward: bool) -> float:
    """FLOPs of one row, as torch counts them."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not count the CPU's own kernel
        loss = estimate._loss(model, inputs, SAID, 1)
        if backward:
            loss.backward()
    model.zero_grad()
    return counter.get_total_flops() / ROWS


def test_the_weights_counted_from_a_shape_are_the_model_s(measured) -> None:
    model, _, shape = measured
    trained = sum(p.numel() for name, p in model.named_parameters() if "vision_tower" not in name and "projector" not in name)
    assert shape.language == pytest.approx(trained, rel=0.01)  # norms and biases are left out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_flops_of_an_update_are_those_that_torch_counts(measured, checkpointing: bool) -> None:
    model, inputs, shape = measured
    with training(model, checkpointing):
        counted = counted_flops(model, inputs, backward=True)
    told = estimate.update_flops(shape, SAID, full=True, checkpointing=checkpointing)
    assert told == pytest.approx(counted, rel=0.03)


def test_the_flops_of_a_forward_pass_are_those_that_torch_counts(measured) -> None:
    model, inputs, shape = measured
    model.eval()
    told = estimate.picture_flops(shape) + estimate.forward_flops(shape, shape.prompt_tokens + SAID, SAID)
    assert told == pytest.approx(counted_flops(model, inputs, backward=False), rel=0.03)


def peak_bytes(work) -> int:
    """The most that torch held at once beyond what it held before `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_takes_the_estimated_memory_within_the_stated_factor(measured, checkpointing: bool) -> None:
    model, inputs, shape = measured
    with training(model, checkpointing):
        peak = peak_bytes(lambda: estimate._loss(model, inputs, SAID, 1).backward())
    told = estimate.kept_bytes(shape, ROWS, shape.prompt_tokens + SAID, 4, checkpointing) \
        + estimate.logit_bytes(shape, ROWS, SAID, 4) + 4 * shape.language
    assert 1 / WITHIN < told / peak < WITHIN


def of_gpu(name: str = "gpu", card: str = "", processes: int = 0, **engine) -> tuple[dict[str, float], float]:
    """Seconds by part and peak GiB of a step of a profile with these engine settings, on its usual card."""
    profile = config.load_profile(name, **{f"engine.{key}": value for key, value in engine.items()})
    usual, number = estimate.USUAL[name]
    setting = profile, estimate.ONEVISION, estimate.CARDS[card or usual], processes or number
    return estimate.step_seconds(*setting), sum(estimate.step_gib(*setting).values())


def test_each_setting_that_saves_something_says_so() -> None:
    card_gib = estimate.CARDS["RTX 4090"].memory_gib
    (base_s, base), (_, more), (kept_s, kept) = of_gpu(), of_gpu(micro_batches=1), of_gpu(gradient_checkpointing=False)
    (full_s, full), (fast_s, fast), (_, four) = of_gpu(lora_rank=None), of_gpu(generation="vllm"), of_gpu(load_in_4bit=True)
    assert four < base < full and base < fast and base < card_gib < min(kept, more)
    assert kept_s["update"] < base_s["update"] < full_s["update"] and fast_s["decoding"] < base_s["decoding"]
    assert fast_s["decoding"] <= of_gpu(generation="compiled")[0]["decoding"] < base_s["decoding"]
    assert of_gpu("paper")[1] < estimate.CARDS["A100"].memory_gib
    said = estimate.describe(config.load_profile("gpu"), estimate.ONEVISION, "RTX 4090", 1)
    assert "estimate, not measured: profile gpu on 1 x RTX 4090: 25 s a step" in said


def test_rollouts_that_cannot_be_dealt_are_refused_by_the_estimate_too() -> None:
    with pytest.raises(ValueError, match="32 rows a step cannot be dealt to 64 processes evenly"):
        of_gpu(processes=64)


def test_the_table_of_docs_gpu_is_what_the_formulas_give() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:(\d) x )?([\w ]+) \(\d+ GB\) \| (\d+) \| (\d+) steps, ([\d.]+) h \| (\d+) GiB \|$",
                      (Path(__file__).parents[2] / "docs" / "gpu.md").read_text(), re.MULTILINE)
    assert {row[0] for row in rows} == set(estimate.USUAL) and len(rows) == 7
    for chosen, processes, name, step_s, steps, hours, gib in rows:
        seconds, peak = of_gpu(chosen, name, int(processes or 1))
        told, planned = sum(seconds.values()), config.load_profile(chosen).training.steps
        assert [f"{told:.0f}", f"{planned}", f"{told * planned / 3600:.1f}", f"{peak:.0f}"] == [step_s, steps, hours, gib]


@pytest.mark.parametrize(("change", "advice"), [
    ({"micro_batches": 0}, "micro_batches must be greater than or equal to 1: got 0"),
    ({"load_in_4bit": True}, "engine.lora_rank must be a number: got None"),
    ({"vllm_memory_share": 1.5}, "vllm_memory_share must be less than 1: got 1.5")])
def test_an_engine_that_cannot_be_is_refused(change: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        Engine(**change)


@pytest.fixture()
def policy():
    processor = tiny_onevision.build_processor()
    return tiny_onevision.build_model("svlm", processor, 0), processor


def one_prompt(method: str, rollouts: int, **engine) -> Run:
    """A run of one prompt a step, of so many rollouts of 8 tokens."""
    return Run(config.load_profile("smoke", **{
        "training.prompts_per_step": 1, "training.num_generations": rollouts, "training.max_completion_tokens": 8,
        **{f"engine.{name}": value for name, value in engine.items()}}), method)


def test_sft_is_tried_with_one_row_a_prompt(policy) -> None:
    assert ": 1 rows of" in estimate.check_memory(one_prompt("sft", 4), *policy, RECORDS[0])


@pytest.mark.parametrize("engine", [{}, {"gradient_checkpointing": True, "bf16": True}], ids=["plain", "saving"])
def test_the_longest_sample_goes_through_forward_and_backward_and_leaves_no_trace(policy, engine: dict) -> None:
    model, processor = policy
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backward, generator = [], torch.get_rng_state()
    model.lm_head.weight.register_hook(lambda gradient: backward.append(gradient.shape))
    model.eval()
    tried = estimate.check_memory(one_prompt("full_dyme", 2, **engine), model, processor, RECORDS[0])
    tokens = prompt_inputs(processor, RECORDS)["input_ids"].shape[1] + 8
    assert tried == (f"longest sample, item {RECORDS[0].item!r}: 2 rows of {tokens} tokens, both passes; "
                     "peak not counted on a CPU")
    assert backward == [model.lm_head.weight.shape]
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training and not model.is_gradient_checkpointing and torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_memory_that_ends_names_the_row_its_tokens_and_what_to_lower(policy, monkeypatch, where: str) -> None:
    model, processor = policy

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.52 GiB")

    monkeypatch.setattr(model if where == "forward" else torch.Tensor, where, fail)
    with pytest.raises(estimate.OutOfMemory) as caught:
        estimate.check_memory(one_prompt("full_dyme", 8, micro_batches=2, bf16=True), model, processor, RECORDS[0])
    message = str(caught.value)
    assert f"item {RECORDS[0].item!r}, 4 rows of" in message and "8 of the completion" in message
    assert "raise engine.micro_batches (now 2)" in message and "set engine.gradient_checkpointing" in message
    assert "set engine.bf16" not in message and isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert all(parameter.grad is None for parameter in model.parameters())
