"""Seconds and memory of a step on a card, before a long run: estimated from formulas, and tried on the longest sample.

FLOPs: 2 per weight and token forward, twice that backward (Kaplan et al. 2020, arXiv 2001.08361, 2.1), half of the backward
where only adapters are trained, one more forward with checkpointing (Chen et al. 2016, arXiv 1604.06174). Attention: 4 x
width x context per token and layer (PaLM, arXiv 2204.02311, appendix B). AdamW in mixed precision: 16 bytes per trained weight
(ZeRO, arXiv 1910.02054, 3.1). Savings that depend on the rollouts (idle rows, shared prompts) are left out.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core import ranks
from dyme_core.config import Engine, Profile
from dyme_core.data.schema import Record
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.loading import is_vision
from dyme_core.models.processors import turn_end
from dyme_core.pipeline.methods import Run
from dyme_core.pipeline.preflight import PreflightReport

GIB = 2**30
UTILISATION = 0.35  # assumed: of the card's peak in prefill and update (PaLM reports 0.46 for far larger layers)
LAYER_S = 1e-3  # assumed: seconds of a decoding step of one layer in transformers, whose kernels are too small to fill a card
COMPILED_S = 3e-3  # assumed: seconds of a decoding step whose layers are one compiled graph, sampling included
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
         "A100": Card(80, 312, 2039), "H100": Card(80, 989, 3350), "H200": Card(141, 989, 4800)}
USUAL = {"gpu": ("RTX 4090", 1), "paper": ("A100", 8)}  # card and number of them; the paper's eight are not named


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

    @classmethod
    def of(cls, model: PreTrainedModel, patches: int, prompt_tokens: int) -> Shape:
        """The shape of a loaded model."""
        text = model.config.get_text_config()
        vision = sum(weight.numel() for name, weight in model.named_parameters() if is_vision(name))
        key_value = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
        return cls(text.num_hidden_layers, text.hidden_size, text.intermediate_size, key_value, text.vocab_size, vision,
                   patches, prompt_tokens)

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


def step_seconds(profile: Profile, shape: Shape, card: Card, processes: int = 1) -> dict[str, float]:
    """Seconds of a DyME step by part: "prefill", "decoding" and "update".

    Args:
        profile: with its training and engine settings.
        shape: of the model and its longest prompt.
        card: what each process has.
        processes: cards that share a step.
    """
    engine, said = profile.engine, profile.training.max_completion_tokens
    own, _ = _rows(profile, processes)
    pace = card.tflops * 1e12 * UTILISATION
    read = (shape.language + shape.vision) * _width(engine) + _cache_bytes(profile, shape, own)
    read_s = read / (card.gb_per_s * 1e9)
    update = update_flops(shape, said, full=engine.lora_rank is None, checkpointing=engine.gradient_checkpointing)
    launch_s = {"eager": LAYER_S * shape.layers, "compiled": COMPILED_S, "vllm": 0.0}
    return {"prefill": own * (picture_flops(shape) + forward_flops(shape, shape.prompt_tokens, 1)) / pace,
            "decoding": said * max(read_s, launch_s[engine.generation]),
            "update": own * update / pace}


def step_gib(profile: Profile, shape: Shape, card: Card, processes: int = 1) -> dict[str, float]:
    """Peak memory of one card in a DyME step by part, in GiB: "weights", "gradients and moments", "work" (activations and
    logits, or the cache of generation, whichever is larger) and "the rest".

    Args:
        profile, shape, card, processes: as for `step_seconds`.
    """
    engine, said, width = profile.engine, profile.training.max_completion_tokens, _width(profile.engine)
    own, rows = _rows(profile, processes)
    full = engine.lora_rank is None
    stored = 4 if full else 0.5 if engine.load_in_4bit else 2  # trained weights stay in 32 bits
    trained = shape.language if full else engine.lora_rank * shape.layers * (
        6 * shape.hidden + 2 * shape.key_value + 3 * (shape.hidden + shape.inner))
    update = kept_bytes(shape, rows, shape.prompt_tokens + said, width, engine.gradient_checkpointing) \
        + logit_bytes(shape, rows, said, width)
    prefill = own * shape.prompt_tokens * (4 * shape.hidden + 3 * shape.inner) * width  # of one layer, all rows at once
    parts = {"weights": (shape.language + shape.vision) * stored, "gradients and moments": 12 * trained,
             "work": max(update, _cache_bytes(profile, shape, own) + prefill)}
    gib = {name: part / GIB for name, part in parts.items()}
    return {**gib, "the rest": (SLACK - 1) * sum(gib.values()) + FIXED_BYTES / GIB
            + (engine.generation == "vllm") * engine.vllm_memory_share * card.memory_gib}


def _rows(profile: Profile, processes: int, group_size: int | None = None) -> tuple[int, int]:
    """Rows of one process in a step, and in one of its micro-batches; `group_size` of each prompt, None for the rollouts."""
    training = profile.training
    dealt = profile.engine.batch(training.prompts_per_step * (group_size or training.num_generations), processes)
    rows = dealt["per_device_train_batch_size"]
    return rows * dealt["gradient_accumulation_steps"], rows


def _width(engine: Engine) -> int:
    """Bytes of a number in the forward pass."""
    return 2 if engine.bf16 else 4


def _cache_bytes(profile: Profile, shape: Shape, rows: int) -> int:
    """Bytes of the keys and values of so many rollouts at their end."""
    tokens = shape.prompt_tokens + profile.training.max_completion_tokens
    return rows * tokens * 2 * shape.layers * shape.key_value * _width(profile.engine)


def describe(profile: Profile, shape: Shape, card: str, processes: int) -> str:
    """The estimate as a sentence; `card` is a name in CARDS."""
    seconds, gib = (step(profile, shape, CARDS[card], processes) for step in (step_seconds, step_gib))
    step_s, steps = sum(seconds.values()), profile.training.steps
    parts, memory = (", ".join(f"{name} {each:.1f}" for name, each in values.items()) for values in (seconds, gib))
    return (f"estimate, not measured: profile {profile.name} on {processes} x {card}: {step_s:.0f} s a step ({parts}), {steps} "
            f"steps in {steps * step_s / 3600:.1f} h without judges and evaluation; {sum(gib.values()):.1f} of "
            f"{CARDS[card].memory_gib:.0f} GiB a card ({memory})")


def estimate_run(run: Run, model: PreTrainedModel, checked: PreflightReport) -> str:
    """`describe` for a run, from its model and its longest prompt; on this card where CARDS has it."""
    shape = Shape.of(model, checked.image_tokens[1], checked.longest_tokens - checked.longest_target)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    usual = USUAL.get(run.profile.name, USUAL["gpu"])[0]
    return describe(run.profile, shape, next((card for card in CARDS if card in name), usual), ranks.size())


class OutOfMemory(RuntimeError):
    """The longest sample, or a step, does not fit the device; says which and what to lower."""


def check_memory(run: Run, model: PreTrainedModel, processor: ProcessorMixin, longest: Record) -> str:
    """One forward and backward pass of a micro-batch like those of training, each row the longest sample; changes no weight.

    Args:
        longest: the record with the longest prompt (`preflight` names it); its completion is made as long as a rollout may be.
    Returns:
        the item, rows, tokens of a row, and the card's peak with the optimiser's moments, as a sentence.
    Raises:
        OutOfMemory: where it does not fit, with the row, its tokens and what to lower.
    """
    engine, said, on_card = run.profile.engine, run.profile.training.max_completion_tokens, model.device.type == "cuda"
    _, rows = _rows(run.profile, ranks.size(), 1 if run.method == "sft" else None)
    inputs, was_training = prompt_inputs(processor, [longest] * rows).to(model.device), model.training
    prompt = inputs["input_ids"].shape[1]
    if on_card:
        torch.cuda.reset_peak_memory_stats(model.device)
    model.train()
    if engine.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=engine.bf16):
            loss = _loss(model, inputs, said, turn_end(processor))
        loss.backward()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(_advice(longest, rows, prompt, said, engine)) from error
    finally:
        model.zero_grad(set_to_none=True)
        if engine.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        model.train(was_training)
    told = f"longest sample, item {longest.item!r}: {rows} rows of {prompt + said} tokens, both passes; peak"
    if not on_card:
        return f"{told} not counted on a CPU"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    peak = torch.cuda.max_memory_allocated(model.device) + ADAM_BYTES * trained
    if peak > torch.cuda.get_device_properties(model.device).total_memory:
        raise OutOfMemory(_advice(longest, rows, prompt, said, engine))
    return f"{told} {peak / GIB:.1f} GiB"


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
