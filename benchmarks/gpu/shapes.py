"""Stage `shapes`: seconds and memory of a step at true sizes, by phase, beside what the estimate's formulas say.

Every step has the same work: half of the groups are all wrong and memorize, in the others every second rollout is right; all
rollouts have as many tokens as the limit allows.
"""
from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PrinterCallback
from trl import GRPOConfig

from benchmarks.gpu import networks
from benchmarks.gpu.stages import Part, Setting, check
from dyme_core import config
from dyme_core.data.datasets import to_dataset
from dyme_core.data.schema import Record
from dyme_core.models.loading import FAMILIES
from dyme_core.models.processors import end_ids, suppressed_ids
from dyme_core.pipeline import estimate
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer

SHOWS = ("seconds and memory of a step by phase, for TRL's GRPO, TRL's GRPO with our caches, and DyME; every weight and LoRA; "
         "with and without gradient checkpointing; tokens a second, share of the card's peak; the estimate beside them")
ARMS = {"TRL GRPO": (False, False), "TRL GRPO, our caches": (False, True), "DyME": (True, True)}  # is DyME, has caches
STEPS, TARGET_TOKENS = 2, 100  # the first step warms up
PHASES = ("generate_s", "score_s", "update_s")


@dataclass(frozen=True)
class Work:
    """A step's size: `prompts` groups of `generations` rollouts of `tokens` tokens, in so many micro-batches."""

    prompts: int = 4
    generations: int = 8
    tokens: int = 300
    micro_batches: int = 8

    @property
    def rows(self) -> int:
        return self.prompts * self.generations


TOY = Work(prompts=2, generations=2, tokens=6, micro_batches=1)


def parts(is_dry: bool = False) -> dict[str, Part]:
    """Every model's usual way first (LoRA, checkpointing), then the others; at toy size one way of each model but the first."""
    families = [family for family in networks.SIZES if family != "qwen2"]
    ways = list(itertools.product((True, False), (True, False)))  # LoRA, checkpointing
    chosen = [(family, arm, lora, saves) for lora, saves in ways for family in families for arm in ARMS]
    if is_dry:
        chosen = [(family, arm, True, True) for family in families for arm in ARMS if family == families[0] or arm == "DyME"]
        chosen.append((families[0], "DyME", False, False))
    return {_name(*way): partial(step, *way) for way in chosen}


def _name(family: str, arm: str, lora: bool, saves: bool) -> str:
    return f"{FAMILIES[family].name}, {arm}, {'LoRA' if lora else 'every weight'}, {'checkpointing' if saves else 'all kept'}"


def step(family: str, arm: str, lora: bool, saves: bool, setting: Setting) -> dict[str, Any]:
    """Phases, memory and pace of the step after the warm-up."""
    work, (is_dyme, has_caches) = TOY if setting.is_dry else Work(), ARMS[arm]
    is_short = setting.device.type == "cuda"
    model, processor = networks.build(family, setting.device, is_tiny=setting.is_dry, savings=has_caches,
                                      lora_rank=16 * lora, dtype=torch.bfloat16 if lora and is_short else torch.float32)
    rows = networks.questions(work.prompts * STEPS, setting.pictures, setting.is_dry)
    shape = networks.shape(model, processor, rows)
    if is_short:
        torch.cuda.reset_peak_memory_stats(setting.device)
    log = _train(model, processor, rows, work, is_dyme, saves, is_short)[-1]
    seconds = {name: log[name] for name in PHASES}
    found = {"millions": round(sum(weight.numel() for weight in model.parameters()) / 1e6),
             "prompt_tokens": shape.prompt_tokens, "s_per_step": sum(seconds.values()), **seconds,
             "rows": log.get("rows", work.rows), "tokens_per_s": work.rows * work.tokens / log["generate_s"],
             "checks": [check("seconds a step that are not positive", sum(value <= 0 for value in seconds.values()), 0)]}
    if is_short:
        found["peak_gib"] = torch.cuda.max_memory_allocated(setting.device) / estimate.GIB
    return found | _estimated(shape, work, lora, saves, found, setting)


def _train(model: Any, processor: Any, rows: list[Record], work: Work, is_dyme: bool, saves: bool, is_short: bool
           ) -> list[dict[str, float]]:
    """The log of every step."""
    never = [*suppressed_ids(model, processor), *end_ids(model, processor)]
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(output_dir=folder, use_cpu=not is_short, bf16=is_short, max_steps=STEPS,
                        num_generations=work.generations,
                        per_device_train_batch_size=work.rows // work.micro_batches,
                        gradient_accumulation_steps=work.micro_batches, max_completion_length=work.tokens, learning_rate=1e-6,
                        gradient_checkpointing=saves, gradient_checkpointing_kwargs={"use_reentrant": False}, beta=0.0,
                        loss_type="grpo", report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, seed=0,
                        dataloader_pin_memory=False, shuffle_dataset=False,
                        generation_kwargs={"suppress_tokens": never})
        shared = dict(train_dataset=to_dataset(rows), processing_class=processor, reward_funcs=_rewards(work))
        if is_dyme:
            arguments = DyMEConfig(**settings, memorize_weight="group")
            trainer = DyMETrainer(model, args=arguments, refiner=lambda rows: [_target(work)] * len(rows), **shared)
        else:
            trainer = MeasuredGRPOTrainer(model, args=GRPOConfig(**settings), **shared)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _target(work: Work) -> str:
    """A target of at most TARGET_TOKENS tokens: a letter is one."""
    return "v" * (min(TARGET_TOKENS, work.tokens) - 1)


def _rewards(work: Work) -> list[Any]:
    """[format, accuracy, thinking] by a rollout's place alone: every second group is all wrong."""
    def accuracy(completions: list[Any], **columns: Any) -> list[float]:
        return [float(place // work.generations % 2 and place % 2) for place in range(len(completions))]

    def format_(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    def thinking(completions: list[Any], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    format_.role, thinking.role = "format", "thinking"
    return [format_, accuracy, thinking]


def _estimated(shape: estimate.Shape, work: Work, lora: bool, saves: bool, found: dict[str, Any], setting: Setting
               ) -> dict[str, Any]:
    """The formulas' seconds and GiB, and the share of the card's peak that the update reached; {} for a card without data
    sheet. The share counts the work of a plain step, so that what was saved counts as speed."""
    card = next((name for name in estimate.CARDS if name.lower() in setting.card), "H100" if setting.is_dry else None)
    if card is None:
        return {}
    profile = config.load_profile("gpu", backend="transformers", **{
        "training.prompts_per_step": work.prompts, "training.num_generations": work.generations,
        "training.max_completion_tokens": work.tokens, "engine.micro_batches": work.micro_batches,
        "engine.gradient_checkpointing": saves, "engine.lora_rank": 16 if lora else None})
    seconds, gib = (each(profile, shape, estimate.CARDS[card]) for each in (estimate.step_seconds, estimate.step_gib))
    update = work.rows * estimate.update_flops(shape, work.tokens, full=not lora, checkpointing=saves)
    return {"share_of_peak": update / found["update_s"] / (estimate.CARDS[card].tflops * 1e12),
            "estimated": {"s_per_step": sum(seconds.values()), **seconds, "peak_gib": sum(gib.values()), **gib}}
