"""Memory for the longest sample, tried before step 0 and not found missing hours later."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core.data.schema import Record
from dyme_core.engine import Engine
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.processors import tokenizer_of

ADAM_BYTES = 8  # two moments of 32 bits for each trained weight, which the first step allocates


class OutOfMemory(RuntimeError):
    """The longest sample, or a step, does not fit the device; says which and what to lower."""


@dataclass(frozen=True)
class Headroom:
    """What the longest sample took.

    Attributes:
        item: its id.
        rows: of it that were in one micro-batch.
        tokens: of one row, completion included.
        peak_bytes: most that the card held at once, the optimiser's moments added; None on a CPU, which counts nothing.
    """

    item: str
    rows: int
    tokens: int
    peak_bytes: int | None

    def __str__(self) -> str:
        peak = "not counted on a CPU" if self.peak_bytes is None else f"{self.peak_bytes / 2**30:.1f} GiB"
        return f"longest sample, item {self.item!r}: {self.rows} rows of {self.tokens} tokens, both passes; peak {peak}"


def try_longest(model: PreTrainedModel, processor: ProcessorMixin, record: Record, *, rows: int, max_completion_tokens: int,
                engine: Engine) -> Headroom:
    """One forward and backward pass of a micro-batch in which every row is the longest sample; changes no weight.

    Args:
        record: with the longest prompt (`preflight` names it); its completion is made as long as a rollout may be.
        rows: of a micro-batch on one card.
        max_completion_tokens: of a rollout.
        engine: precision and checkpointing, as training will have them.
    Raises:
        OutOfMemory: with the row, its tokens and what to lower.
    """
    on_card, was_training = model.device.type == "cuda", model.training
    inputs = prompt_inputs(processor, [record] * rows).to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    tokens = prompt_tokens + max_completion_tokens
    if on_card:
        torch.cuda.reset_peak_memory_stats(model.device)
    model.train()
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=engine.bf16):
            loss = _loss(model, inputs, max_completion_tokens, tokenizer_of(processor).eos_token_id)
        loss.backward()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_advice(record, rows, prompt_tokens, max_completion_tokens, engine)) from error
    finally:
        model.zero_grad(set_to_none=True)
        if engine.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.train(was_training)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    peak = torch.cuda.max_memory_allocated(model.device) + ADAM_BYTES * trained if on_card else None
    if on_card and peak > torch.cuda.get_device_properties(model.device).total_memory:
        raise OutOfMemory(_advice(record, rows, prompt_tokens, max_completion_tokens, engine))
    return Headroom(record.item, rows, tokens, peak)


def _loss(model: PreTrainedModel, inputs: dict[str, torch.Tensor], length: int, token: int) -> torch.Tensor:
    """The mean negative log-probability of a completion of one repeated token, as GRPO computes it for its rows."""
    inputs = dict(inputs)
    said = torch.full((len(inputs["input_ids"]), length), token, device=model.device)
    ids = torch.cat([inputs.pop("input_ids"), said], dim=1)
    mask = torch.cat([inputs.pop("attention_mask"), torch.ones_like(said)], dim=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(said)], dim=1)
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=length + 1, use_cache=False, **inputs).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), said.flatten())


def _advice(record: Record, rows: int, prompt: int, completion: int, engine: Engine) -> str:
    steps = [f"raise engine.micro_batches (now {engine.micro_batches}) until one row is left of a micro-batch"] * (rows > 1)
    steps += ["set engine.gradient_checkpointing"] * (not engine.gradient_checkpointing)
    steps += ["set engine.bf16"] * (not engine.bf16)
    steps += ["set engine.lora_rank, for example to 16"] * (engine.lora_rank is None)
    steps += [f"lower training.max_completion_tokens (now {completion})", "make the pictures smaller"]
    return (f"the longest sample does not fit the device: item {record.item!r}, {rows} rows of {prompt + completion} tokens "
            f"({prompt} of the prompt with its picture, {completion} of the completion); in this order: {'; '.join(steps)}")
