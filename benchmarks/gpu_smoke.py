"""The first thing to run on a machine with a CUDA card (`make test-gpu`): a few DyME steps, measured, into results/gpu/.

Checked on the mini model: training in 16 bits, with and without checkpointing, has finite losses and changes the weights; its
memorize gradient is that of 32 bits; greedy answers on the card are those of the CPU. Then the profile's own model takes steps
and is evaluated, where its weights are available. Without a card it says so and ends with code 2.
"""
from __future__ import annotations

import argparse
import json
import logging
import math
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dyme_core import config, utils
from dyme_core.data import datasets, schema
from dyme_core.models import loading
from dyme_core.models.generation import decode
from dyme_core.pipeline import train
from dyme_core.pipeline.estimate import CARDS, ONEVISION, USUAL, step_gib, step_seconds
from dyme_core.pipeline.trainers import grpo_arguments, shared_arguments
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer import rewards
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer

NO_CARD = 2  # exit code
STEPS = 3
BASE = ("bases", "svlm-s0")


def settings(**changes: Any) -> config.Profile:
    """Profile smoke, short, with `changes`."""
    return config.load_profile("smoke", **{"training.steps": STEPS, "training.max_completion_tokens": 32, **changes})


def steps_of(profile: config.Profile, model: Any, processor: Any, records: list[schema.Record]) -> dict[str, Any]:
    """DyME steps, rule experts: losses, seconds of each, peak GiB of the card, and the largest change of a weight."""
    run = train.Run(profile, "full_dyme")
    before = next(p for p in reversed(list(model.parameters())) if p.requires_grad).detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        arguments = DyMEConfig(
            **shared_arguments(run, profile.training.steps, 1e-4, Path(folder)),
            **grpo_arguments(run), memorize_weight=profile.training.memorize_weight)
        trainer = DyMETrainer(model, args=arguments, train_dataset=datasets.to_dataset(records), processing_class=processor,
                              reward_funcs=rewards.dyme_rewards(RuleChecker()),
                              refiner=RuleRefiner())
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
    after = next(p for p in reversed(list(model.parameters())) if p.requires_grad).detach()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"losses": losses, "is_finite": all(map(math.isfinite, losses)), "s_per_step": seconds / len(losses),
            "peak_gib": peak, "change": float((after - before.to(after.device)).abs().max())}


def mini(folder: Path, device: torch.device) -> dict[str, Any]:
    """The checks on the mini base, each with its result."""
    records = datasets.mini_records("train", 16, seed=0)
    found: dict[str, Any] = {}
    answers = []
    for where in (torch.device("cpu"), device):
        model, processor = loading.load_policy(folder)
        answers.append([said.text for said in decode(model.to(where), processor, records[:8], max_new_tokens=24)])
    found["greedy answers equal the CPU's"] = sum(map(str.__eq__, *answers)) / len(answers[0])
    for name, changes in {"32 bits": {}, "16 bits": {"engine.bf16": True}, "16 bits, checkpointing, micro-batches": {
            "engine.bf16": True, "engine.gradient_checkpointing": True, "engine.micro_batches": 2}}.items():
        model, processor = loading.load_policy(folder)
        found[name] = steps_of(settings(**changes), model.to(device), processor, records)
    return found


def real(profile: config.Profile, device: torch.device) -> dict[str, Any]:
    """A few steps of the profile's own model on mini charts, beside the estimate; the reason where it cannot be loaded."""
    try:
        model, processor = train.load_start(train.Run(profile, "full_dyme"))
    except (OSError, RuntimeError, ImportError) as error:
        return {"not run": f"{type(error).__name__}: {error}"[:300]}
    shape = ONEVISION, CARDS[USUAL["gpu"][0]]
    return {"model": profile.model, **steps_of(profile, model, processor, datasets.mini_records("train", 16, seed=0)),
            "estimated_s_per_step_on_chartqa": sum(step_seconds(profile, *shape).values()),
            "estimated_peak_gib_on_chartqa": sum(step_gib(profile, *shape).values())}


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is 0 where every check holds, 1 where one does not, 2 without a card."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_smoke.py", description="A smoke test for a CUDA card.")
    parser.add_argument("--profile", default="gpu", help="whose model is tried after the mini one")
    parser.add_argument("--mini-only", action="store_true", help="no real model")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA card found: this test is for a machine with one; `make test` checks all else on a CPU\n")
        return NO_CARD
    paths, card = config.paths("gpu"), torch.cuda.get_device_name()
    found = {"card": card, "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30, "cuda": torch.version.cuda,
             **utils.provenance(paths.root), "mini": mini(paths.root.joinpath(*BASE), torch.device("cuda"))}
    if not options.mini_only:
        profile = config.load_profile(options.profile, **{"training.steps": STEPS, "backend": "transformers"})
        found["real"] = real(profile, torch.device("cuda"))
    place = paths.results / f"{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.json"
    utils.write_json(place, found)
    sys.stdout.write(f"{json.dumps(found, indent=2)}\n{place}\n")
    return verdict(found)


def verdict(found: dict[str, Any]) -> int:
    """0 where every training's losses are finite and moved a weight and the answers are the CPU's, else 1."""
    trained = [part for part in [*found["mini"].values(), found.get("real", {})] if isinstance(part, dict) and "losses" in part]
    return int(not (found["mini"]["greedy answers equal the CPU's"] >= 0.9  # a tie may fall the other way
                    and all(part["is_finite"] and part["change"] > 0 for part in trained)))


if __name__ == "__main__":
    sys.exit(main())
