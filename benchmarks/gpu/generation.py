"""Stage `generation`: tokens a second of every way to write rollouts that the stack offers; without a card, on a CPU's shapes.

TRL has continuous batching for text alone, and vLLM where it is installed. `compiled` is transformers' cache of fixed size
with a compiled decoding step.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import util
from typing import Any

import torch
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu import networks
from benchmarks.gpu.stages import NotHere, Part, Setting, check
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.processors import end_ids, suppressed_ids, tokenizer_of

SHOWS = ("tokens a second of a step's rollouts: eager, with shared prefixes, with a cache of fixed size, compiled, by "
         "continuous batching (text alone), by vLLM where it is installed")
SMALL = {"text_config": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 8,
                         "num_key_value_heads": 4}}  # of a CPU's models; the tiny twins have 2 layers of 32


@dataclass(frozen=True)
class Load:
    """`prompts` x `generations` rollouts of `tokens` tokens."""

    prompts: int
    generations: int
    tokens: int

    @property
    def rows(self) -> int:
        return self.prompts * self.generations


def load_of(setting: Setting) -> Load:
    """The gpu profile's step on a card, a small one on a CPU, a toy's when dry."""
    return Load(1, 2, 4) if setting.is_dry else Load(4, 8, 300) if setting.device.type == "cuda" else Load(2, 8, 64)


def parts(is_dry: bool = False) -> dict[str, Part]:
    """Ways for the model that reads pictures, then for text alone."""
    ways = {"eager": {}, "eager, shared prefixes": {"savings": True}, "cache of fixed size": {"cache": "static"},
            "compiled": {"cache": "static", "is_compiled": True}}
    found = {f"pictures, {way}": partial(transformers_way, "llava_onevision", **options) for way, options in ways.items()}
    found |= {f"text, {way}": partial(transformers_way, "qwen2", **options) for way, options in ways.items()}
    found |= {"text, continuous batching": continuous_batching, "text, vLLM": vllm}
    return {name: part for name, part in found.items() if not is_dry or not name.startswith("text, c") or "contin" in name}


def transformers_way(family: str, setting: Setting, savings: bool = False, cache: str | None = None, is_compiled: bool = False
                     ) -> dict[str, Any]:
    """`generate` as TRL calls it."""
    model, processor, inputs, load = _prepare(family, setting, savings)
    settings = _settings(model, processor, load)
    settings.cache_implementation, settings.disable_compile = cache, not is_compiled or setting.is_dry
    if is_compiled and setting.device.type == "cpu" and not setting.is_dry:  # transformers compiles on cards alone
        settings.compile_config = CompileConfig(fullgraph=False, mode="default")
        settings.compile_config._compile_all_devices = True

    def write() -> list[list[int]]:
        return model.generate(**inputs, generation_config=settings)[:, -load.tokens:].tolist()

    with torch.no_grad():
        return _timed(load, setting, write)


def continuous_batching(setting: Setting) -> dict[str, Any]:
    """transformers' continuous batching over a paged cache, as TRL offers it for text."""
    model, processor, inputs, load = _prepare("qwen2", setting, False)
    settings = _settings(model, processor, load)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    paged = ContinuousBatchingConfig() if setting.device.type == "cuda" else ContinuousBatchingConfig(
        num_blocks=16 if setting.is_dry else 128, max_batch_tokens=256)  # a CPU has no memory of its own to measure

    def write() -> list[list[int]]:
        outputs = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=paged,
                                       progress_bar=False)
        return [output.generated_tokens for output in outputs.values()]

    with torch.no_grad():
        return _timed(load, setting, write)


def vllm(setting: Setting) -> dict[str, Any]:
    """vLLM on random weights of the text model, prompts of 5,000 tokens: its pace, not its pictures."""
    if not util.find_spec("vllm"):
        raise NotHere("vLLM is not installed")
    import tempfile
    from pathlib import Path

    from vllm import LLM, SamplingParams

    load = load_of(setting)
    with tempfile.TemporaryDirectory() as place:
        folder = networks.write_folder("qwen2", False, Path(place) / "model")
        engine = LLM(str(folder), load_format="dummy", skip_tokenizer_init=True, gpu_memory_utilization=0.3)
    sampling = SamplingParams(max_tokens=load.tokens, min_tokens=load.tokens, temperature=1.0, detokenize=False)
    prompts = [{"prompt_token_ids": [5] * 5000} for _ in range(load.rows)]
    return _timed(load, setting, lambda: [output.outputs[0].token_ids for output in engine.generate(prompts, sampling)])


def _prepare(family: str, setting: Setting, savings: bool) -> tuple[Any, Any, Any, Load]:
    load, on_card = load_of(setting), setting.device.type == "cuda"
    changes = {} if on_card or setting.is_dry else SMALL if family != "qwen2" else SMALL["text_config"]
    model, processor = networks.build(family, setting.device, is_tiny=not on_card, savings=savings,
                                      dtype=torch.bfloat16 if on_card else torch.float32, **changes)
    rows = networks.questions(load.prompts, setting.pictures, not on_card, family != "qwen2")
    rows = [row for row in rows for _ in range(load.generations)]
    return model.eval(), processor, prompt_inputs(processor, rows).to(setting.device, model.dtype), load


def _settings(model: Any, processor: Any, load: Load) -> GenerationConfig:
    """Sampling at temperature 1, always to the limit."""
    tokenizer = tokenizer_of(processor)
    return GenerationConfig(max_new_tokens=load.tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, disable_compile=True,
                            suppress_tokens=[*suppressed_ids(model, processor), *end_ids(model, processor)])


def _timed(load: Load, setting: Setting, write: Callable[[], list[list[int]]]) -> dict[str, Any]:
    """Seconds of the first call (compiling included) and the best of the next ones; on a CPU, which others may use, its own."""
    seconds, clock = [], time.perf_counter if setting.device.type == "cuda" else time.process_time
    for _ in range(1 if setting.is_dry else 3):
        start = clock()
        rollouts = write()
        if setting.device.type == "cuda":
            torch.cuda.synchronize(setting.device)
        seconds.append(clock() - start)
    short = sum(len(ids) != load.tokens for ids in rollouts) + abs(load.rows - len(rollouts))
    return {"rows": load.rows, "tokens": load.tokens, "first_s": seconds[0], "best_s": min(seconds),
            "tokens_per_s": load.rows * load.tokens / min(seconds),
            "checks": [check("rollouts that are missing or short", short, 0)]}
