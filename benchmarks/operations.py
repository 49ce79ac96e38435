"""Operations done in a step against those that the same gradient needs: the roofline note of `step_cost`."""
from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from arms import Arm, Clock, Shape, build
from torch.utils.flop_counter import FlopCounterMode

logger = logging.getLogger(__name__)
FORWARD, UPDATE = 1, 3  # a backward pass costs two forward passes


def operations(arms: Sequence[Arm], shape: Shape) -> list[dict[str, Any]]:
    """One line per arm: operations (two a multiply-add) counted in a step, and needed, in 10^9.

    Counted by torch in matrix products, convolutions and (eager) attention of the second step, when pictures of the first may
    be known; needed: every picture once ever (so none here), every prompt once in generation and once in the update, where a
    group teaches, every token generated once, every completion that teaches once; backward passes twice their forward.
    """
    lines, peak = [], matrix_peak()
    for arm in arms:
        trainer, batches = build(arm, shape, 1, questions=shape.prompts), []
        trainer.model.set_attn_implementation("eager")  # torch counts no other attention on a CPU
        trainer.train()  # pictures are known from here on; the gradient and optimiser exist
        loss = trainer._compute_loss
        trainer._compute_loss = lambda model, inputs, loss=loss, seen=batches: seen.append(inputs) or loss(model, inputs)
        torch.manual_seed(0)
        through = []
        hook = trainer.model.model.language_model.layers[0].register_forward_pre_hook(
            lambda module, inputs, through=through: through.append(inputs[0].shape[:2].numel()))
        clock, counter, start = Clock(trainer), FlopCounterMode(display=False), time.process_time()
        with counter:
            trainer.train()
        cpu_s, counted = time.process_time() - start, counter.get_total_flops() / 1e9
        hook.remove()
        need = needed(trainer.model, shape, batches[-1], clock.tokens) / 1e9
        lines.append({"arm": arm.name, "image_tokens": shape.image_tokens, "counted_gflop": round(counted, 2),
                      "needed_gflop": round(need, 2), "share_needed": round(need / counted, 3),
                      "tokens_through": sum(through), "cpu_s_counted": round(cpu_s, 3),
                      "matrix_peak_gflop_per_s": round(peak, 1)})
        logger.info("  %-18s %d image tokens: %.1f GFLOP counted, %.1f needed", arm.name, shape.image_tokens, counted, need)
    return lines


def needed(model: torch.nn.Module, shape: Shape, batch: dict[str, Any], tokens: int) -> float:
    """The operations that a step needs, by the sizes of the language model; it generated `tokens`."""
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
    return (FORWARD * through(shape.prompts, rollouts, tokens / rollouts)
            + UPDATE * through(len(asked), len(lengths), lengths.float().mean().item()))


def matrix_peak(size: int = 1024, times: int = 5) -> float:
    """10^9 operations a second of a square matrix product in 32 bits on this thread, best of several."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    best = 0.0
    for _ in range(times):
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best
