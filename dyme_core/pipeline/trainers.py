"""Every method's trainer, with the settings that all of them share."""
from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from trl import SFTConfig

from dyme_core import config, ranks
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.datasets import fill_step, sft_dataset, to_dataset
from dyme_core.data.schema import Record
from dyme_core.models.resuming import ResumableSFTTrainer
from dyme_core.pipeline.methods import Run
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.factory import Experts
from dyme_core.supervision.refiner import LearningChecker
from dyme_core.trainer.config import DyMEConfig, RefillConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.rewards import dyme_rewards


@dataclass(frozen=True)
class Session:
    """The parts of a run, from its start to its rows.

    Attributes:
        run: what is trained.
        experts: who checks and refines.
        model, processor: the policy, trained in place.
        records: to train on, with the facts that supervision works from.
        held_out: records of every other split, by its name; the first split is evaluated during training.
        bad_rows: the rows that were left out.
        started: time of the start, for the manifest.
    """

    run: Run
    experts: Experts
    model: Any
    processor: Any
    records: list[Record]
    held_out: dict[str, list[Record]]
    bad_rows: BadRows
    started: datetime

    @property
    def watched(self) -> list[Record]:
        """The records that are evaluated during training."""
        return next(iter(self.held_out.values()))


def shared_arguments(run: Run, steps: int, learning_rate: float, folder: Path) -> dict[str, Any]:
    """The settings that every method's trainer shares; a single step has no warm-up, which starts at a learning rate of 0."""
    engine, warmup_steps = run.profile.engine, run.profile.warmup_steps[run.method] if steps > 1 else 0
    return dict(output_dir=str(folder), max_steps=steps, learning_rate=learning_rate, seed=run.seed, optim="adamw_torch",
                lr_scheduler_type="linear", warmup_steps=warmup_steps, weight_decay=0.0,
                max_grad_norm=1.0, logging_steps=1, save_strategy="steps" if run.profile.save_every else "no",
                save_steps=run.profile.save_every or 1, save_total_limit=2, report_to=run.profile.report_to, disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(), bf16=engine.bf16, gradient_checkpointing=engine.gradient_checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False}, dataloader_pin_memory=False,
                remove_unused_columns=False)


def grpo_arguments(run: Run) -> dict[str, Any]:
    """GRPO's and DyME's settings."""
    training, engine = run.profile.training, run.profile.engine
    generation = {"eager": {}, "compiled": {"cache_implementation": "static"},
                  "vllm": dict(use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=engine.vllm_memory_share)}
    return dict(**engine.batch(training.prompts_per_step * training.num_generations, ranks.size()),
                num_generations=training.num_generations, max_completion_length=training.max_completion_tokens,
                temperature=1.0, beta=0.0, loss_type="grpo", num_iterations=1,
                **generation[engine.generation])


def sft_trainer(session: Session, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
    """CoT-SFT with TRL's SFTTrainer on the refined targets, one target per prompt, as many prompts a step as elsewhere."""
    profile, records, prompts = session.run.profile, session.records, session.run.profile.training.prompts_per_step
    settings = SFTConfig(**arguments, max_length=None, **profile.engine.batch(prompts, ranks.size()))
    rows = fill_step(sft_dataset(records, session.experts.offline(records)), prompts)
    return ResumableSFTTrainer(session.model, args=settings, train_dataset=rows, processing_class=session.processor,
                               callbacks=callbacks)


def grpo_trainer(session: Session, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
    """GRPO as TRL has it, on format and accuracy; the checker's score is measured with weight 0 (it is DyME's supervision)."""
    settings = RefillConfig(**arguments, **grpo_arguments(session.run), reward_weights=[1.0, 1.0, 0.0],
                            refill=session.run.profile.training.refill)
    return MeasuredGRPOTrainer(session.model, args=settings, train_dataset=to_dataset(session.records),
                               processing_class=session.processor, callbacks=callbacks,
                               reward_funcs=dyme_rewards(RuleChecker(), session.experts.accuracy),
                               correct_needs_format=session.run.profile.training.correct_needs_format)


def dyme_trainer(session: Session, arguments: dict[str, Any], callbacks: list[TrainerCallback]) -> Trainer:
    """DyME. Pure: targets written once, before training, thinking scored by rule. Full: checker and refiner at work during
    training, the template bank learning from rollouts rated "high"."""
    run, experts, training = session.run, session.experts, session.run.profile.training
    settings = DyMEConfig(**arguments, **grpo_arguments(run), switch=training.switch,
                          switch_value=training.switch_value, thinking_weight=training.thinking_weight,
                          probe_every=training.probe_every, memorize_weight=training.memorize_weight,
                          mastered=training.mastered, reward_gate=training.reward_gate, refill=training.refill,
                          likeliest_target=training.likeliest_target,
                          correct_needs_format=training.correct_needs_format)
    supervision = supervise_online(experts, training) if run.method == "full_dyme" else {
        "reward_funcs": dyme_rewards(RuleChecker(), experts.accuracy), "refiner": experts.offline(session.records)}
    return DyMETrainer(session.model, args=settings, train_dataset=to_dataset(session.records),
                       processing_class=session.processor, callbacks=callbacks, **supervision)


def supervise_online(experts: Experts, training: config.Training) -> dict[str, Any]:
    """Full DyME: `reward_funcs`, `refiner`, `watch` and `on_scored` of a DyMETrainer, which supervise during training.

    A language model rates only mixed groups, and writes targets at the same time, both as rollouts end. Rules cost nothing:
    they score every trace, and so measure it, too. Each process asks about its own rollouts; the bank is shared.
    """
    checker = LearningChecker(experts.checker, experts.bank)
    if experts.client is None:
        return {"reward_funcs": dyme_rewards(checker, experts.accuracy), "refiner": experts.refiner, "watch": None,
                "on_scored": experts.share_bank}
    rewards = dyme_rewards(checker, experts.accuracy, group_size=training.num_generations, mastered=training.mastered,
                           correct_needs_format=training.correct_needs_format, on_all_wrong=experts.prefetch)
    return {"reward_funcs": rewards, "refiner": experts.refiner, "watch": rewards[-1].watch,
            "on_scored": experts.share_bank}


TRAINERS = {"sft": sft_trainer, "grpo": grpo_trainer, "sft_grpo": grpo_trainer, "pure_dyme": dyme_trainer,
            "full_dyme": dyme_trainer}  # by method of a phase
