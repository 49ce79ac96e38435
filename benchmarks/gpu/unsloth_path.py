"""Stage `unsloth`: profile gpu's way through Unsloth and the same through transformers, on one Qwen2.5-VL of small depth.

Unsloth replaces TRL's trainers and must be imported first, so each way runs in a process of its own:
    python -m benchmarks.gpu.unsloth_path BACKEND FOLDER OUT STEPS
"""
from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.stages import ROOT, NotHere, Part, Setting, check

SHOWS = ("Unsloth's compiled trainer on a Qwen2.5-VL of small depth with random weights: steps, memory, losses and gradient "
         "norms beside those of the transformers path from the same adapters")
FAMILY, RANK = "qwen2_5_vl", 16
DEPTH = {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "vocab_size": 4096,
         "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
         "vision_config": {"depth": 4, "out_hidden_size": 512, "fullatt_block_indexes": [3]}}
STEPS = 10
CLOSE = 5e-2  # relative, of gradient norms and entropies: both ways train in 16 bits, with other kernels


def parts() -> dict[str, Part]:
    """Each way, then their comparison."""
    return {"transformers": lambda setting: way("transformers", setting), "unsloth": lambda setting: way("unsloth", setting),
            "unsloth against transformers": compare}


def way(backend: str, setting: Setting) -> dict[str, Any]:
    """Steps, seconds, memory and log of one way; kept for the comparison."""
    if backend == "unsloth" and not util.find_spec("unsloth"):
        raise NotHere("Unsloth is not installed")
    if backend == "unsloth" and setting.device.type != "cuda":
        raise NotHere("Unsloth needs a card (`make test-unsloth` runs its code without one)")
    folder, out = _folder(setting), setting.scratch / "unsloth" / f"{backend}.json"
    steps = 2 if setting.is_dry else STEPS
    if setting.device.type == "cpu":
        found = measure(backend, folder, steps)
        out.write_text(json.dumps(found))
        return found
    command = [sys.executable, "-m", "benchmarks.gpu.unsloth_path", backend, str(folder), str(out), str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, min(setting.left_s, 1e6)))
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {' | '.join(done.stderr.strip().splitlines()[-6:])}")
    return json.loads(out.read_text())


def compare(setting: Setting) -> dict[str, Any]:
    """Entropies and gradient norms of both ways, step by step."""
    paths = [setting.scratch / "unsloth" / f"{backend}.json" for backend in ("unsloth", "transformers")]
    if missing := [path.stem for path in paths if not path.is_file()]:
        raise NotHere(f"nothing to compare: {' and '.join(missing)} did not run")
    unsloth, plain = (json.loads(path.read_text()) for path in paths)
    shared = sorted({"grad_norm", "entropy", "loss"} & set(unsloth["log"][0]) & set(plain["log"][0]))
    return {"speed-up": plain["s_per_step"] / unsloth["s_per_step"], "peak_gib": [unsloth["peak_gib"], plain["peak_gib"]],
            "checks": [check(f"relative difference of {name}", max(
                abs(left[name] - right[name]) / max(abs(right[name]), 1e-6)
                for left, right in zip(unsloth["log"], plain["log"], strict=True)), CLOSE) for name in shared]}


def measure(backend: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train the model in `folder` with adapters that start the same whichever way; call it before TRL is imported."""
    if backend == "unsloth":
        importlib.import_module("unsloth")
    from benchmarks.gpu import script
    from dyme_core.models import loading

    model, processor = loading.load_policy(folder, backend, lora_rank=RANK)
    on_card = torch.cuda.is_available()
    if on_card:
        model = model.to("cuda")
        torch.cuda.reset_peak_memory_stats()
    _same_adapters(model)
    start = time.perf_counter()
    log, _ = script.train(model, processor, script.by_turns, steps, bf16=on_card, max_completion_length=200)
    kept = [{name: row[name] for name in ("loss", "grad_norm", "entropy") if name in row} for row in log]
    bad = sum(not math.isfinite(value) for row in kept for value in row.values())
    return {"steps": len(log), "s_per_step": (time.perf_counter() - start) / steps, "log": kept,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_card else None,
            "checks": [check("logged numbers that are not finite", bad, 0),
                       check("steps without a gradient", sum(not row["grad_norm"] for row in kept), 0)]}


@torch.no_grad()
def _same_adapters(model: torch.nn.Module) -> None:
    """Give every adapter's first matrix weights that depend on its place alone."""
    found = {name.split("language_model.")[-1]: weight for name, weight in model.named_parameters() if ".lora_A." in name}
    for number, (_, weight) in enumerate(sorted(found.items())):
        generator = torch.Generator().manual_seed(number)
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)


def _folder(setting: Setting) -> Path:
    """The model's folder with random weights, written once."""
    from benchmarks.gpu import networks
    from dyme_core.models import loading

    folder = setting.scratch / "unsloth" / "model"
    if not (folder / "config.json").is_file():
        changes = {} if setting.is_dry else DEPTH
        model, processor = networks.build(FAMILY, torch.device("cpu"), is_tiny=True, savings=False, **changes)
        folder.parent.mkdir(parents=True, exist_ok=True)
        loading.save_policy(model, processor, folder, torch.bfloat16)
    return folder


if __name__ == "__main__":
    way_, folder_, out_, steps_ = sys.argv[1:]
    Path(out_).write_text(json.dumps(measure(way_, Path(folder_), int(steps_))))
