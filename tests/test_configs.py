"""The files for several cards are read by accelerate as they stand, and name the command of docs/gpu.md."""
from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_file_for_eight_cards(name: str) -> None:
    read = load_config_from_file(str(CONFIGS / f"{name}.yaml"))  # an unknown key is an error of its own
    assert (read.distributed_type.value, read.num_processes, read.mixed_precision) == (KINDS[name], 8, "bf16")
    assert f"accelerate launch --config_file configs/{name}.yaml -m study train --profile paper" in (
        CONFIGS / f"{name}.yaml").read_text()


def test_every_file_is_named_here() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(KINDS)
