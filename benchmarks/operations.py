"""The roofline of a step, by phase: operations done, operations that the same gradient needs, and their pace."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from arms import Arm, Clock, Shape, build
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer

logger = logging.getLogger(__name__)
BACKWARD_TOO = 3  # a backward pass costs two forward passes
ATTENTION = {  # sdpa's kernels on a CPU, which torch does not count by itself
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)}
MATRIX = {"mm", "addmm", "bmm", "baddbmm", *(str(kernel).removeprefix("aten.") for kernel in ATTENTION)}


def operations(arms: Sequence[Arm], shape: Shape) -> list[dict[str, Any]]:
    """One line per arm and phase ("generate": rollouts; "update": the rest of a step).

    gflop is 10^9 operations, two a multiply-add, counted by torch in matrix products, convolutions and attention in a step
    when pictures of an earlier one may be known. Needed: every picture once ever (so none here), every prompt once in
    generation and once in the update, where a group teaches, every token generated once, every completion that teaches once;
    backward passes twice their forward. cpu_s is of the same step without counting; `operators` are of a profile of it.
    """
    lines, peak = [], matrix_peak()
    for arm in arms:
        trainer, batches = build(arm, shape, 1, questions=shape.prompts), []
        trainer.train()  # pictures are known from here on; the gradient and optimiser exist
        clock, loss = Clock(trainer), trainer._compute_loss
        trainer._compute_loss = lambda model, inputs, loss=loss, seen=batches: seen.append(inputs) or loss(model, inputs)
        cpu_s, counts = by_phase(trainer, time.process_time), clock.take(0.0)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            counted = by_phase(trainer, counter.get_total_flops)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            by_phase(trainer, time.process_time)
        called = operators(profiled.events())
        need = needed(trainer.model, shape, batches[0], counts["generated"])
        for phase in cpu_s:
            pace = counted[phase] / cpu_s[phase] / 1e9
            lines.append({"arm": arm.name, "phase": phase, "image_tokens": shape.image_tokens,
                          "mean_tokens": round(counts["generated"] / (shape.prompts * shape.generations)),
                          "counted_gflop": round(counted[phase] / 1e9, 2),
                          "needed_gflop": round(need[phase] / 1e9, 2), "share_needed": round(need[phase] / counted[phase], 3),
                          "cpu_s": round(cpu_s[phase], 3), "gflop_per_s": round(pace, 1),
                          "matrix_peak_gflop_per_s": round(peak, 1), "share_of_peak": round(pace / peak, 3),
                          **called[phase]})
            logger.info("  %-18s %-8s %.2f GFLOP counted, %.2f needed; %.1f GFLOP/s of %.1f; %.3f s, profiled %s", arm.name,
                        phase, counted[phase] / 1e9, need[phase] / 1e9, pace, peak, cpu_s[phase], called[phase])
    return lines


def operators(events: Iterable[Any]) -> dict[str, dict[str, float]]:
    """By phase, of a profile of `by_phase`: operators called, seconds in those of MATRIX, and in all others. What a phase takes
    beside these goes into Python; the profiler itself slows small operators."""
    spans = {event.name: event.time_range for event in events if event.name in ("_generate", "training_step")}
    found = {phase: {"calls": 0, "matrix_s": 0.0, "other_operators_s": 0.0} for phase in ("generate", "update")}
    for event in events:
        start = event.time_range.start
        if event.name.startswith("aten::") and spans["training_step"].start <= start <= spans["training_step"].end:
            sums = found["generate" if spans["_generate"].start <= start <= spans["_generate"].end else "update"]
            sums["calls"] += 1
            kind = "matrix_s" if event.name.removeprefix("aten::") in MATRIX else "other_operators_s"
            sums[kind] += event.self_cpu_time_total
    return {phase: {name: value if name == "calls" else round(value / 1e6, 3) for name, value in sums.items()}
            for phase, sums in found.items()}


def by_phase(trainer: Trainer, read: Callable[[], float]) -> dict[str, float]:
    """Train once more with the same seed: how much a counter grows in each phase of the training step."""
    methods, grown = {name: getattr(trainer, name) for name in ("_generate", "training_step")}, {}
    for name, method in methods.items():
        def counted(*args, name=name, method=method, **kwargs):
            before = read()
            with record_function(name):
                found = method(*args, **kwargs)
            grown[name] = read() - before
            return found
        setattr(trainer, name, counted)
    torch.manual_seed(0)
    trainer.train()
    for name, method in methods.items():
        setattr(trainer, name, method)
    return {"generate": grown["_generate"], "update": grown["training_step"] - grown["_generate"]}


def needed(model: torch.nn.Module, shape: Shape, batch: dict[str, Any], tokens: int) -> dict[str, float]:
    """The operations that each phase needs, by the sizes of the language model; the step generated `tokens`."""
    config, layers = model.config.get_text_config(), model.model.language_model.layers
    weights = sum(weight.numel() for weight in layers.parameters() if weight.ndim == 2)
    prompt = batch["prompt_mask"].sum(dim=1).float().mean().item()
    teaches = (batch["advantages"] != 0).reshape(len(batch["advantages"]), -1).any(dim=1)
    lengths = batch["completion_mask"].sum(dim=1)[teaches]
    asked = {tuple(ids) for ids in batch["prompt_ids"][teaches].tolist()}

    def through(prompts: int, completions: int, length: float) -> float:
        """Prompts once and completions behind them, through the layers; logits for completions alone."""
        seen = prompts * prompt**2 / 2 + completions * length * (prompt + length / 2)
        passed = prompts * prompt + completions * length
        return (2 * weights * passed + 4 * config.hidden_size * len(layers) * seen
                + 2 * config.hidden_size * config.vocab_size * completions * length)

    rollouts = shape.prompts * shape.generations
    return {"generate": through(shape.prompts, rollouts, tokens / rollouts),
            "update": BACKWARD_TOO * through(len(asked), len(lengths), lengths.float().mean().item())}


def matrix_peak(size: int = 1024, times: int = 5) -> float:
    """10^9 operations a second of a square matrix product in 32 bits on this thread, best of several."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    best = 0.0
    for _ in range(times):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best
