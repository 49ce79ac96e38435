"""Unsloth on a machine without a GPU. Must be imported before anything that imports trl.

`stub_devices` lets the CUDA-shaped path load models and train with its compiled GRPO trainer on the CPU: no Triton kernel, no
torch.compile and no CUDA code is exercised. Without it Unsloth chooses its own CPU back end, for text alone.
"""
from __future__ import annotations

import os
import tempfile
import types
from collections.abc import Callable

import torch

_DEVICE = types.SimpleNamespace(name="stub", total_memory=16 * 2**30, major=8, minor=0, multi_processor_count=1)
_PROBES = {"get_device_properties": _DEVICE, "get_device_capability": (8, 0), "mem_get_info": (12 * 2**30, 16 * 2**30),
           **dict.fromkeys(("memory_reserved", "max_memory_reserved", "memory_allocated", "max_memory_allocated",
                            "current_device"), 0), "synchronize": None, "empty_cache": None}
OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def import_unsloth(stub_devices: bool) -> None:
    """Import Unsloth, with TRL's trainer rewritten and device probes stubbed, or with its CPU back end."""
    os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_COMPILE_DISABLE="1", TORCHDYNAMO_DISABLE="1",
                      UNSLOTH_RETURN_LOGITS="1",  # Unsloth's own losses are Triton's
                      UNSLOTH_COMPILE_LOCATION=tempfile.mkdtemp(prefix="unsloth_compiled_"))
    if not hasattr(torch.ops.torchvision, "nms"):  # a torchvision for CUDA beside a torch for CPUs: none of them loads
        for name in ("nms", "qnms"):
            OPERATORS.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
    if stub_devices:
        os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    import unsloth  # noqa: F401
    if stub_devices:
        import unsloth.models.rl as rl
        for name, value in _PROBES.items():
            setattr(torch.cuda, name, lambda *args, _value=value, **options: _value)
        os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # while it is 1 the trainers are left alone
        rl.patch_trl_disable_gradient_checkpointing()
        rl.patch_trl_fused_lm_head_devices()
        rl.patch_trl_fused_lm_head_kernel()
        rl._patch_trl_rl_trainers("grpo_trainer")
        os.environ["UNSLOTH_ALLOW_CPU"] = "1"


def without_gpu(fast: type, monkeypatch, **changes: object) -> dict[str, dict]:
    """Let `fast` load on a CPU, whatever loading.py asks for; the returned dict fills with what it asked for, by method."""
    asked: dict[str, dict] = {}
    for method in ("from_pretrained", "get_peft_model"):
        monkeypatch.setattr(fast, method, staticmethod(_noting(getattr(fast, method), method, asked, changes)))
    return asked


def _noting(plain: Callable, method: str, asked: dict[str, dict], changes: dict[str, object]) -> Callable:
    def call(*args: object, **options: object) -> object:
        asked[method] = options
        wanted = changes if method == "from_pretrained" else {}
        return plain(*args, **options | wanted | {"use_gradient_checkpointing": False})  # Unsloth's needs pinned memory

    return call
