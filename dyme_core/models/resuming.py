"""Trainers that resume exactly: `train(resume_from_checkpoint=...)` ends where a run without the interruption would have ended.

Trainer stores weights, optimiser, schedule and random states. Added here is what it forgets, or reads wrongly.
"""
from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput
from trl import GRPOTrainer, SFTTrainer

from dyme_core.models.loading import load_weights

logger = logging.getLogger(__name__)
STATE = "trainer_state.json"  # Trainer writes it last
NEEDED = (STATE, "optimizer.pt", "scheduler.pt", "state-0.pt")
SUMS = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged", "_total_train_tokens")  # Trainer's and TRL's, for the log


class ExactResume:
    """Goes before a trainer of TRL in the bases of a class."""

    epochs_done = 0  # whole epochs before the checkpoint that training resumes from

    def train(self, resume_from_checkpoint: Path | str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as Trainer does.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest complete one in `output_dir`. One of the last
                step is read and nothing trained.
        Raises:
            ValueError: where there is no complete checkpoint, it is of a later step than the last one to train, or the data
                set has too few rows for one step.
        """
        if resume_from_checkpoint in (None, False):
            self.epochs_done = 0
            output = super().train(None, *args, **kwargs)
            if not self.state.global_step and self.state.max_steps > 0:  # a stream, whose length nobody knows
                raise ValueError("no step was taken: the data set ended before the prompts of one; give more rows, or lower "
                                 "per_device_train_batch_size or gradient_accumulation_steps")
            return output
        folder = self._newest() if resume_from_checkpoint is True else Path(resume_from_checkpoint)
        if missing := self._missing(folder):
            raise ValueError(f"expected a complete checkpoint in {folder}: it has no {', '.join(missing)}; take another one, "
                             "or leave resume_from_checkpoint out to train from the start")
        state = TrainerState.load_from_json(str(folder / STATE))
        is_finished = self._num_steps(state) == state.global_step
        if self.args.device.type == "cpu":  # "cpu:0" in several processes, which torch.load (2.13) does not know
            vars(self.args)["_setup_devices"] = torch.device("cpu")
        return self._read(folder, state) if is_finished else super().train(str(folder), *args, **kwargs)

    def _newest(self) -> Path:
        folders = sorted(Path(self.args.output_dir).glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.split("-")[-1]))
        for folder in reversed(folders):
            if not (missing := self._missing(folder)):
                return folder
            logger.warning("%s is not used: it has no %s", folder, ", ".join(missing))
        raise ValueError(f"expected a checkpoint to resume from in {self.args.output_dir}: got {len(folders)} incomplete ones; "
                         "leave resume_from_checkpoint out to train from the start")

    def _missing(self, folder: Path) -> list[str]:
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled  # these have an optimiser of their own form
        return [name for name in NEEDED if not (folder / name).is_file() and not (is_sharded and name == "optimizer.pt")]

    def _num_steps(self, state: TrainerState) -> int:
        """Steps to train in all; sets `epochs_done`."""
        steps_per_epoch = max(1, round(state.global_step / state.epoch))
        self.epochs_done = state.global_step // steps_per_epoch
        steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * steps_per_epoch)
        if steps < state.global_step:
            raise ValueError(f"expected a checkpoint of at most step {steps}, the last one to train: got one of step "
                             f"{state.global_step}; take an earlier checkpoint, or raise max_steps or num_train_epochs")
        if steps != state.max_steps:
            logger.warning("the run of this checkpoint was to take %d steps, this one %d: the learning rate follows the new "
                           "schedule from here on", state.max_steps, steps)
        return steps

    def _read(self, folder: Path, state: TrainerState) -> TrainOutput:
        """Read a checkpoint of the last step, from which Trainer would take one more."""
        self._load_from_checkpoint(str(folder))
        self._load_rng_state(str(folder))
        self.state = state
        self.control = self.callback_handler.on_train_begin(self.args, state, self.control)
        self.control = self.callback_handler.on_train_end(self.args, state, self.control)
        return TrainOutput(state.global_step, (self._total_loss_scalar + float(self._tr_loss)) / state.global_step, {})

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints keep of this process beside Trainer's own files: numbers, texts and tensors in dicts and lists."""
        sums = {name: getattr(self, name) for name in SUMS if hasattr(self, name)}
        return {"sums": sums, "metrics": {mode: dict(values) for mode, values in self._metrics.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state["sums"])
        for mode, values in state["metrics"].items():
            self._metrics[mode].update(values)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        torch.save(self.state_dict(), Path(output_dir) / f"state-{self.args.process_index}.pt")

    def _load_rng_state(self, checkpoint: str) -> None:
        """Trainer calls it after everything else is set up and read, before the first step."""
        super()._load_rng_state(checkpoint)
        path = Path(checkpoint) / f"state-{self.args.process_index}.pt"
        if not path.is_file():
            logger.warning("%s was written by fewer processes: training goes on, but not exactly as it would have", checkpoint)
            path = path.with_name("state-0.pt")
        self.load_state_dict(torch.load(path, map_location=self.args.device, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if model is None and isinstance(self.model, PreTrainedModel):
            # Trainer (transformers 5.17) does not map the weight names in LLaVA-OneVision's files: it finds none, warns, and
            # would go on from the base.
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            load_weights(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()


class ResumableSFTTrainer(ExactResume, SFTTrainer):
    """TRL's SFTTrainer, which resumes exactly."""


class ResumableGRPOTrainer(ExactResume, GRPOTrainer):
    """TRL's GRPOTrainer, which resumes exactly, also past an epoch and between two updates of one generation."""

    def state_dict(self) -> dict[str, Any]:
        is_used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        return {**super().state_dict(), "step": self._step, "rollouts": None if is_used_up else self._buffered_inputs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._step, self._buffered_inputs = state["step"], state["rollouts"]

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self.epochs_done if sampler.shuffle else 0):  # it draws the order of each epoch after that of the last
            torch.randperm(sampler.num_samples, generator=sampler.generator)
        return sampler
