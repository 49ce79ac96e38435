"""The longest sample is tried before step 0: it leaves no trace, and where memory ends it says what to do."""
from __future__ import annotations

import pytest
import torch

from dyme_core.data.datasets import mini_records
from dyme_core.engine import Engine
from dyme_core.models import tiny_onevision
from dyme_core.pipeline import headroom

RECORD = mini_records("train", 1, seed=0)[0]


@pytest.fixture()
def policy():
    processor = tiny_onevision.build_processor()
    return tiny_onevision.build_model("svlm", processor, 0), processor


@pytest.mark.parametrize("engine", [Engine(), Engine(gradient_checkpointing=True, bf16=True)], ids=["plain", "saving"])
def test_the_longest_sample_goes_through_forward_and_backward_and_leaves_no_trace(policy, engine: Engine) -> None:
    model, processor = policy
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    backward, generator = [], torch.get_rng_state()
    model.lm_head.weight.register_hook(lambda gradient: backward.append(gradient.shape))
    model.eval()
    tried = headroom.try_longest(model, processor, RECORD, rows=2, max_completion_tokens=8, engine=engine)
    prompt = processor(images=[RECORD.load_image()], text=["<image>"])["input_ids"]
    assert (tried.item, tried.rows, tried.peak_bytes) == (RECORD.item, 2, None) and tried.tokens > len(prompt[0]) + 8
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
    with pytest.raises(headroom.OutOfMemory) as caught:
        headroom.try_longest(model, processor, RECORD, rows=4, max_completion_tokens=8,
                             engine=Engine(micro_batches=2, bf16=True))
    message = str(caught.value)
    assert f"item {RECORD.item!r}, 4 rows of" in message and "8 of the completion" in message
    assert "raise engine.micro_batches (now 2)" in message and "set engine.gradient_checkpointing" in message
    assert "set engine.bf16" not in message and isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert all(parameter.grad is None for parameter in model.parameters())
