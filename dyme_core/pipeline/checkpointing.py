"""Checkpoints from which training resumes exactly. The checksums of all files are written last; an incomplete one is not used.

Trainer stores weights, optimiser, schedule and random states; `Keeper` adds the state of this run. Only files that the
checksums of the run's own folder name are unpickled, and torch reads them with `weights_only`.
"""
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from dyme_core.pipeline.estimate import OutOfMemory
from dyme_core.utils import hash_file, write_json

logger = logging.getLogger(__name__)
CHECKSUMS = "checksums.json"


class Keeper(TrainerCallback):
    """Completes every checkpoint that its Trainer writes, and restores its own part when training resumes.

    Args:
        fingerprint: of everything that decides the run's result; a checkpoint with another one is not used.
        **kept: by name, parts with `state_dict` (JSON values) and `load_state_dict`; each process has its own.
    """

    def __init__(self, fingerprint: str, **kept: Any) -> None:
        self.fingerprint, self.kept = fingerprint, kept

    def on_save(self, args, state, control, **kwargs):
        folder = _folder(args, state.global_step)
        if state.is_world_process_zero:
            (folder / CHECKSUMS).unlink(missing_ok=True)  # of an earlier attempt at this step
        write_json(folder / f"kept-{args.process_index}.json", {name: each.state_dict() for name, each in self.kept.items()})
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its files
        if state.is_world_process_zero:
            files = {path.relative_to(folder).as_posix(): hash_file(path) for path in _files(folder)}
            write_json(folder / CHECKSUMS, {"fingerprint": self.fingerprint, "files": files})

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            self.restore(_folder(args, state.global_step), args.process_index)

    def restore(self, folder: Path, process: int = 0) -> None:
        """Restore the state of this process, or that of the first where there were fewer processes."""
        path = folder / f"kept-{process}.json"
        values = json.loads((path if path.is_file() else folder / "kept-0.json").read_text())
        for name, each in self.kept.items():
            each.load_state_dict(values[name])

    def latest(self, folder: Path) -> Path | None:
        """The newest complete checkpoint in a Trainer's folder, or None; the log says why others are not used."""
        for path in sorted(folder.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
            fault = self.fault(path)
            if fault is None:
                return path
            logger.warning("%s is not used: %s; the one before it is, or training starts anew", path, fault)
        return None

    def fault(self, folder: Path) -> str | None:
        """Why training cannot resume from a checkpoint; None where it can."""
        try:
            told = json.loads((folder / CHECKSUMS).read_text())
            wanted, fingerprint = dict(told["files"]), told["fingerprint"]
        except FileNotFoundError:
            return f"it has no {CHECKSUMS}, so it was still being written, or is not from here"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return f"its {CHECKSUMS} cannot be read"
        if fingerprint != self.fingerprint:
            return "it is of other settings, sources or another base"
        found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
        if wanted.keys() != found.keys():
            return f"files are missing or foreign: {', '.join(sorted(wanted.keys() ^ found.keys()))}"
        changed = [name for name, path in found.items() if hash_file(path) != wanted[name]]
        return f"files were changed or torn: {', '.join(changed)}" if changed else None


class Untrained(RuntimeError):
    """Training ended before its last step; says how far it came."""


def train_from(trainer: Trainer, checkpoint: Path | None, keeper: Keeper) -> int:
    """Train, from a checkpoint where one is given; one of the last step is only read.

    Returns:
        steps taken, those before the checkpoint included.
    Raises:
        Untrained: where training ended early.
        OutOfMemory: where a step runs out of memory, with what to lower.
    """
    trainer.add_callback(keeper)
    if checkpoint is not None:
        logger.info("going on from %s", checkpoint)
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        step, steps = trainer.state.global_step + 1, trainer.args.max_steps
        raise OutOfMemory(f"step {step} of {steps} ran out of memory ({error}); raise engine.micro_batches or lower "
                          "training.max_completion_tokens (the run then starts anew), or make room: the same command goes on "
                          "from the last checkpoint") from error
    if (taken := trainer.state.global_step) < trainer.args.max_steps:
        raise Untrained(f"training ended after {taken} of {trainer.args.max_steps} steps; give it more rows, or lower "
                        "training.prompts_per_step")
    return taken


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
