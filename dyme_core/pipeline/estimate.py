"""Seconds and memory of a step on a card, before a long run: estimated from formulas, and tried on the longest sample.

FLOPs: 2 per weight and token forward, twice that backward (Kaplan et al. 2020, arXiv 2001.08361, 2.1), half of the backward
where only adapters are trained, one more forward with checkpointing (Chen et al. 2016, arXiv 1604.06174). Attention: 4 x
width x context per token and layer (PaLM, arXiv 2204.02311, appendix B). AdamW in mixed precision: 16 bytes per trained weight
(ZeRO, arXiv 1910.02054, 3.1). Savings that depend on the rollouts (idle rows, shared prompts) are left out.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core import ranks
from dyme_core.config import Engine, Profile
from dyme_core.data.schema import Record
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.loading import is_vision
from dyme_core.models.processors import tokenizer_of
from dyme_core.pipeline.methods import Run
from dyme_core.pipeline.preflight import PreflightReport

GIB = 2**30
UTILISATION = 0.35  # assumed: of the card's peak in prefill and update (PaLM reports 0.46 for far larger layers)
LAYER_S = 1e-3  # assumed: seconds of a decoding step of one layer in transformers, whose kernels are too small to fill a card
KEPT_HIDDEN, KEPT_INNER = 12, 4  # numbers kept for backward per token and layer: x width, x width of the MLP (Qwen2's forward)
LOGIT_COPIES = 3  # logits, scaled logits, their gradient
FIXED_BYTES = GIB  # assumed: CUDA context and kernels
SLACK = 1.1  # assumed: lost to fragmentation
ADAM_BYTES = 8  # two moments of 32 bits per trained weight, allocated by the first step


@dataclass(frozen=True)
class Card:
    """A data sheet's numbers: GiB, TFLOP/s in 16 bits (dense), GB/s of memory."""

    memory_gib: float
    tflops: float
    gb_per_s: float


CARDS = {"RTX 3090": Card(24, 71, 936), "RTX 4090": Card(24, 165, 1008), "L4": Card(24, 121, 300),  # NVIDIA's data sheets
         "A100": Card(80, 312, 2039), "H100": Card(80, 989, 3350)}
USUAL = {"gpu": ("RTX 4090", 1), "paper": ("A100", 8)}  # the paper's eight cards are not named


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that decide the costs.

    Attributes:
        layers, hidden, inner, key_value: of the language model; `inner` is the MLP's width, `key_value` that of the keys.
        vocabulary: tokens; their embeddings are also the output layer.
        vision: weights of the vision tower, which are frozen.
        patches: of one picture in the tower, all its views together.
        prompt_tokens: of the longest prompt, the picture's tokens included.
    """

    layers: int
    hidden: int
    inner: int
    key_value: int
    vocabulary: int
    vision: int
    patches: int
    prompt_tokens: int

    @property
    def stack(self) -> int:
        """Weights of the language model's layers."""
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * self.key_value + 3 * self.hidden * self.inner)

    @property
    def language(self) -> int:
        """Weights that a full training changes, the projector left out."""
        return self.stack + self.vocabulary * self.hidden


# From the checkpoint's config. A ChartQA picture of 850 x 600 pixels gives a base view and 3 x 2 tiles of 729 patches each,
# about 4,900 picture tokens once the padding is cut, and the text some 100.
ONEVISION = Shape(layers=24, hidden=896, inner=4864, key_value=128, vocabulary=152000, vision=400_000_000, patches=7 * 729,
                  prompt_tokens=5000)


@dataclass(frozen=True)
class Estimate:
    """Seconds of the parts of a step, and peak GiB of one card, by part. `str()` is the text to show."""

    profile: str
    card: str
    processes: int
    steps: int
    seconds: dict[str, float]
    gib: dict[str, float]

    @property
    def step_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def peak_gib(self) -> float:
        return sum(self.gib.values())

    @property
    def fits(self) -> bool:
        return self.peak_gib <= CARDS[self.card].memory_gib

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        memory = ", ".join(f"{name} {gib:.1f}" for name, gib in self.gib.items())
        return (f"estimate, not measured: profile {self.profile} on {self.processes} x {self.card}: {self.step_s:.0f} s a step "
                f"({parts}), {self.steps} steps in {self.steps * self.step_s / 3600:.1f} h without judges and evaluation; "
                f"{self.peak_gib:.1f} of {CARDS[self.card].memory_gib:.0f} GiB a card ({memory})")


def shape_of(model_config: Any, patches: int, prompt_tokens: int, vision: int) -> Shape:
    """The shape of a loaded model, from its config; the last three as in Shape."""
    text = model_config.get_text_config()
    head = text.hidden_size // text.num_attention_heads
    return Shape(text.num_hidden_layers, text.hidden_size, text.intermediate_size, head * text.num_key_value_heads,
                 text.vocab_size, vision, patches, prompt_tokens)


def forward_flops(shape: Shape, tokens: int, scored: int) -> float:
    """FLOPs of one row of `tokens` through the language model, with the logits of the last `scored`."""
    attention = 4 * shape.layers * shape.hidden * tokens**2
    return 2 * shape.stack * tokens + attention + 2 * shape.vocabulary * shape.hidden * scored


def update_flops(shape: Shape, completion_tokens: int, *, full: bool, checkpointing: bool) -> float:
    """FLOPs of one row in the update: picture, forward, backward, and the recomputation of checkpointing."""
    tokens = shape.prompt_tokens + completion_tokens
    forward = forward_flops(shape, tokens, completion_tokens)
    # A layer is not recomputed to its end: backward does not need the output of the MLP's last product, and torch stops there.
    again = forward_flops(shape, tokens, 0) - 2 * shape.layers * shape.hidden * shape.inner * tokens
    return picture_flops(shape) + forward * (3 if full else 2) + again * checkpointing


def picture_flops(shape: Shape) -> float:
    """FLOPs of one picture through the tower; its attention, a ninth of it at 729 patches a view, is left out."""
    return 2 * shape.vision * shape.patches


def kept_bytes(shape: Shape, rows: int, tokens: int, width: int, checkpointing: bool) -> float:
    """Bytes of activations kept for the backward pass; `width` is a number's bytes."""
    layer = rows * tokens * (KEPT_HIDDEN * shape.hidden + KEPT_INNER * shape.inner) * width
    return rows * tokens * shape.layers * shape.hidden * width + layer if checkpointing else shape.layers * layer


def logit_bytes(shape: Shape, rows: int, completion_tokens: int, width: int) -> float:
    """Bytes of the completions' logits in the update."""
    return LOGIT_COPIES * rows * (completion_tokens + 1) * shape.vocabulary * width


def estimate(profile: Profile, shape: Shape = ONEVISION, card: str | None = None, processes: int | None = None) -> Estimate:
    """Seconds and memory of a DyME step of this profile.

    Args:
        profile: with its training and engine settings.
        shape: of the model and its longest prompt.
        card: a name in CARDS.
        processes: cards that share a step; both by default as in USUAL.
    """
    usual = USUAL.get(profile.name, USUAL["gpu"])
    card, processes = card or usual[0], processes or usual[1]
    training, engine, facts = profile.training, profile.engine, CARDS[card]
    own = training.prompts_per_step * training.num_generations // processes
    rows = engine.batch(own, 1)["per_device_train_batch_size"]
    said, width, full = training.max_completion_tokens, 2 if engine.bf16 else 4, engine.lora_rank is None
    tokens, pace = shape.prompt_tokens + said, facts.tflops * 1e12 * UTILISATION
    weights = shape.language + shape.vision
    cache = own * tokens * 2 * shape.layers * shape.key_value * width
    read_s = (weights * width + cache) / (facts.gb_per_s * 1e9)
    seconds = {"prefill": own * (picture_flops(shape) + forward_flops(shape, shape.prompt_tokens, 1)) / pace,
               "decoding": said * (read_s if engine.use_vllm else max(read_s, LAYER_S * shape.layers)),
               "update": own * update_flops(shape, said, full=full, checkpointing=engine.gradient_checkpointing) / pace}
    stored = 4 if full else 0.5 if engine.load_in_4bit else 2  # trained weights stay in 32 bits
    trained = shape.language if full else engine.lora_rank * shape.layers * (
        6 * shape.hidden + 2 * shape.key_value + 3 * (shape.hidden + shape.inner))
    update = kept_bytes(shape, rows, tokens, width, engine.gradient_checkpointing) + logit_bytes(shape, rows, said, width)
    prefill = own * shape.prompt_tokens * (4 * shape.hidden + 3 * shape.inner) * width  # of one layer, all rows at once
    parts = {"weights": weights * stored, "gradients and moments": 12 * trained, "work": max(update, cache + prefill)}
    gib = {name: part / GIB for name, part in parts.items()}
    total = sum(gib.values())
    return Estimate(profile.name, card, processes, training.steps, seconds,
                    {**gib, "the rest": (SLACK - 1) * total + FIXED_BYTES / GIB
                     + engine.use_vllm * engine.vllm_memory_share * facts.memory_gib})

def estimate_run(run: Run, model: PreTrainedModel, checked: PreflightReport) -> Estimate:
    """Seconds and memory of a step of the run, from its model and its longest prompt; on this card where CARDS has it."""
    vision = sum(weight.numel() for name, weight in model.named_parameters() if is_vision(name))
    shape = shape_of(model.config, checked.image_tokens[1], checked.longest_tokens - checked.longest_target, vision)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return estimate(run.profile, shape, next((card for card in CARDS if card in name), None), ranks.size())


class OutOfMemory(RuntimeError):
    """The longest sample, or a step, does not fit the device; says which and what to lower."""


@dataclass(frozen=True)
class Headroom:
    """The cost of the longest sample.

    Attributes:
        item: its id.
        rows: copies of it in one micro-batch.
        tokens: of one row, completion included.
        peak_bytes: peak memory of the card, plus the optimiser's moments; None on a CPU.
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


def check_memory(run: Run, model: PreTrainedModel, processor: ProcessorMixin, longest: Record) -> Headroom:
    """Try the longest sample in a micro-batch like those of training, and log its cost.

    Raises:
        OutOfMemory: where it does not fit, with what to lower.
    """
    training, engine = run.profile.training, run.profile.engine
    rows = engine.batch(training.prompts_per_step * training.num_generations, ranks.size())["per_device_train_batch_size"]
    return try_longest(model, processor, longest, rows=rows, max_completion_tokens=training.max_completion_tokens,
                       engine=engine)


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
