"""Unsloth's CUDA-shaped path, its compiled GRPO trainer included, on a machine without a GPU: device probes are stubbed.

No Triton kernel, no torch.compile and no CUDA code is exercised. Must be imported before anything that imports trl.
"""
from __future__ import annotations

import os
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.update(UNSLOTH_ALLOW_CPU="1", HF_HUB_OFFLINE="1", UNSLOTH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1")
os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", tempfile.mkdtemp(prefix="unsloth_compiled_"))

import torch  # noqa: E402

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
if not hasattr(torch.ops.torchvision, "nms"):  # torchvision's CUDA build beside a torch for CPUs: its operators do not load
    for _name in ("nms", "qnms"):
        OPERATORS.define(f"{_name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

import unsloth  # noqa: E402, F401  (before trl)

_DEVICE = types.SimpleNamespace(name="stub", total_memory=16 * 2**30, major=8, minor=0, multi_processor_count=1)
_PROBES = {"get_device_properties": _DEVICE, "get_device_capability": (8, 0), "mem_get_info": (12 * 2**30, 16 * 2**30),
           **dict.fromkeys(("memory_reserved", "max_memory_reserved", "memory_allocated", "max_memory_allocated",
                            "current_device"), 0), "synchronize": None, "empty_cache": None}


def stub_devices() -> None:
    """Let FastVisionModel believe in a GPU, and write Unsloth's GRPO trainer over TRL's."""
    import unsloth.models.rl as rl
    for name, value in _PROBES.items():
        setattr(torch.cuda, name, lambda *args, _value=value, **options: _value)
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # while it is 1 the trainers are left alone
    rl.patch_trl_disable_gradient_checkpointing()
    rl.patch_trl_fused_lm_head_devices()
    rl.patch_trl_fused_lm_head_kernel()
    rl._patch_trl_rl_trainers("grpo_trainer")
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"


@contextmanager
def on_cpu(fast: type, monkeypatch) -> Iterator[None]:
    """`fast.from_pretrained` puts weights on the CPU; models.py asks for nothing of the kind, a GPU being Unsloth's default."""
    plain = fast.from_pretrained
    monkeypatch.setattr(fast, "from_pretrained", staticmethod(lambda *args, **options: plain(
        *args, device_map={"": "cpu"}, **options)))
    yield
