"""Checkpoints from which training resumes exactly. The checksums of all files are written last; an incomplete one is not used.

Trainer stores weights, optimiser, schedule and random states; `Keeper` adds the state of this run. Only files that the
checksums of the run's own folder name are unpickled, and torch reads them with `weights_only`.
"""
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from dyme_core.models.loading import read_weights
from dyme_core.pipeline.estimate import OutOfMemory
from dyme_core.utils import hash_file, write_json

logger = logging.getLogger(__name__)
CHECKSUMS, TENSOR = "checksums.json", "__tensor__"


class Kept(Protocol):
    """Something whose state goes into checkpoints: JSON values and tensors, nested in dicts and lists."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Keeper(TrainerCallback):
    """Completes every checkpoint that its Trainer writes, and restores its own part when training resumes.

    Args:
        fingerprint: of everything that decides the run's result; a checkpoint with another one is not used.
        **kept: the parts by name; each process has its own.
    """

    def __init__(self, fingerprint: str, **kept: Kept) -> None:
        self.fingerprint, self.kept = fingerprint, kept

    def on_save(self, args, state, control, **kwargs):
        folder = _folder(args, state.global_step)
        if state.is_world_process_zero:
            (folder / CHECKSUMS).unlink(missing_ok=True)  # of an earlier attempt at this step
        tensors: dict[str, torch.Tensor] = {}
        values = _without_tensors({name: each.state_dict() for name, each in self.kept.items()}, tensors)
        write_json(folder / f"kept-{args.process_index}.json", values)
        save_file(tensors, folder / f"kept-{args.process_index}.safetensors")
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
        stem = folder / f"kept-{process}"
        stem = stem if stem.with_suffix(".json").is_file() else folder / "kept-0"
        values = _with_tensors(json.loads(stem.with_suffix(".json").read_text()), load_file(stem.with_suffix(".safetensors")))
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
    if checkpoint is None:
        return _train(trainer)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    logger.info("going on from step %d of %d (%s)", state.global_step, trainer.args.max_steps, checkpoint)
    if isinstance(trainer.model, PreTrainedModel):
        # Trainer (transformers 5.17) does not map the weight names in LLaVA-OneVision's files: it finds none, warns, and would
        # resume from the base.
        trainer._load_from_checkpoint = lambda folder, model=None: load_weights(trainer.model, Path(folder))
    if trainer.args.device.type == "cpu":  # "cpu:0" in several processes, which torch.load (2.13) knows no place for
        vars(trainer.args)["_setup_devices"] = torch.device("cpu")
    if state.global_step < trainer.args.max_steps:
        return _train(trainer, str(checkpoint))
    trainer._load_from_checkpoint(str(checkpoint))
    keeper.restore(checkpoint, trainer.args.process_index)
    trainer.callback_handler.on_train_end(trainer.args, state, trainer.control)
    return state.global_step


def _train(trainer: Trainer, checkpoint: str | None = None) -> int:
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


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights that `save_pretrained` wrote to a folder into a model of the same kind.

    Raises:
        ValueError, RuntimeError: where one is missing or has another shape.
    """
    model.load_state_dict(read_weights(type(model), folder, model.dtype).state_dict())


def _folder(args: Any, step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)


def _without_tensors(value: Any, tensors: dict[str, torch.Tensor], name: str = "") -> Any:
    """The value with each tensor moved into `tensors` and a mark in its place."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {TENSOR: name}
    if isinstance(value, dict):
        return {key: _without_tensors(each, tensors, f"{name}.{key}") for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(each, tensors, f"{name}.{place}") for place, each in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return tensors[value[TENSOR]] if TENSOR in value else {key: _with_tensors(each, tensors) for key, each in value.items()}
    return [_with_tensors(each, tensors) for each in value] if isinstance(value, list) else value
