"""One run in several processes (torchrun, accelerate): their ranks, and how their values are gathered.

The trainers deal rollouts to processes themselves. This module is for the rest: one process writes files, one makes a call.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor


def start() -> None:
    """Meet the other processes, if the launcher started any (it sets WORLD_SIZE)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=not torch.cuda.is_available())


def stop() -> None:
    """Leave the other processes; one that ends without this call counts as lost."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_writer() -> bool:
    """True in the one process that writes files and logs progress."""
    return rank() == 0


def deals_weights() -> bool:
    """Whether accelerate will shard the weights over the processes (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def device() -> torch.device:
    """This process's card, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def share(rows: Sequence[Any]) -> list[Any]:
    """This process's rows: every `size()`-th."""
    return list(rows[rank():: size()])


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of ranks; all of them must call it."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    distributed.all_gather_object(found, value)
    return found


def total(counts: Mapping[str, float]) -> dict[str, float]:
    """The sum of all processes' counts, name by name; all of them must call it."""
    found = gather(dict(counts))
    return {name: sum(each[name] for each in found) for name in counts}


def whole_state(model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The full weights of a model that is sharded over the processes (FSDP2), in the writer, and {} in the others; None where
    each process holds all weights. All of them must call it."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return None
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
