"""Stage `correct`: what holds on a CPU holds on the card, each as a comparison with a limit."""
from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from trl import GRPOConfig

from benchmarks.gpu import runs, script
from benchmarks.gpu.stages import Part, Setting, check
from dyme_core import config
from dyme_core.data import datasets
from dyme_core.models import loading, processors, tiny_onevision
from dyme_core.models.generation import decode, prompt_inputs
from dyme_core.pipeline.estimate import OutOfMemory, check_memory
from dyme_core.pipeline.methods import Run
from dyme_core.supervision.checker import RuleChecker
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.rewards import dyme_rewards
from study import gradients

SHOWS = ("memorize gradient = cross entropy, vision cache and shared prefixes against the plain model, savings on against off, "
         "20 DyME steps against the CPU, exact resume after SIGKILL, no special token sampled, advice when memory ends")
LIMITS = {"32 bits": 1e-4, "16 bits": 3e-2}  # relative; 16 bits have 8 of mantissa, and the two sides sum in another order
SAME = 1e-3  # relative difference of two ways to compute a step in 32 bits
DRIFT = 5e-2  # of the change of the weights: AdamW turns a gradient near 0 into a whole step of either sign
SAMPLES, SAMPLED_TOKENS = 64, 48
NAMED = ("engine.micro_batches", "training.max_completion_tokens", "tokens")


def parts() -> dict[str, Part]:
    """Every comparison by its name."""
    return {**{f"memorize gradient, {name}": partial(memorize_gradient, name) for name in LIMITS},
            **{f"cache and prefixes, {name}": partial(caches, name) for name in ("eager", "sdpa")},
            "savings on against off": savings, "steps against the CPU": steps_against_the_cpu,
            "greedy answers of the CPU": greedy_answers, "resume after SIGKILL": resume,
            "nothing suppressed is sampled, eager": partial(suppressed, None),
            "nothing suppressed is sampled, compiled": partial(suppressed, "static"), "out of memory": out_of_memory}


def memorize_gradient(precision: str, setting: Setting) -> dict[str, Any]:
    """The gradient of a step that only memorizes, against torch's cross entropy on the targets, each row read alone."""
    is_short, rows = precision == "16 bits", script.records()
    model, processor = script.policy(setting.device)
    _, kept = script.train(model, processor, script.all_wrong, 1, rows, learning_rate=0.0, bf16=is_short)
    plain, _ = script.policy(setting.device, savings=False)
    batch = gradients.batch_of(processor, rows, script.target([row.row for row in rows]), torch.float32)
    batch = {name: value.to(setting.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    with torch.autocast(setting.device.type, torch.bfloat16, enabled=is_short):
        wanted = gradients.sft_gradient(plain, batch)
    wanted = {name: value.float() / script.G for name, value in wanted.items()}
    return {"checks": [check("relative error of the gradient", script.relative_error(kept.first, wanted), LIMITS[precision])]}


def caches(attention: str, setting: Setting) -> dict[str, Any]:
    """Three steps with vision cache and shared prefixes, and without: gradient, entropies and norms."""
    logs = []
    for is_on in (True, False):
        model, processor = script.policy(setting.device, savings=is_on, attention=attention)
        logs.append(script.train(model, processor, script.by_turns, 3))
    return {"checks": _same(*logs)}


def savings(setting: Setting) -> dict[str, Any]:
    """Three steps with every saving, dropped rows among them, and with none."""
    logs = []
    for is_on in (True, False):
        model, processor = script.policy(setting.device, savings=is_on)
        logs.append(script.train(model, processor, script.by_turns, 3, drop_idle_rows=is_on))
    return {"rows": [log[0]["rows"] for log, _ in logs], "checks": [
        check("relative error of the first gradient", script.relative_error(logs[0][1].first, logs[1][1].first), SAME),
        check("relative difference of gradient norms", script.largest_difference(logs[0][0], logs[1][0], "grad_norm"), SAME)]}


def _same(left: tuple, right: tuple) -> list[dict[str, Any]]:
    return [check("relative error of the first gradient", script.relative_error(left[1].first, right[1].first), SAME),
            *(check(f"relative difference of {name}", script.largest_difference(left[0], right[0], name), SAME)
              for name in ("entropy", "grad_norm"))]


def steps_against_the_cpu(setting: Setting) -> dict[str, Any]:
    """Twenty steps in 32 bits, here and on the CPU, from the same base with the same rollouts."""
    found = []
    for device in (setting.device, torch.device("cpu")):
        model, processor = script.policy(device)
        before = script.weights(model)
        log, _ = script.train(model, processor, script.by_turns, 4 if setting.is_dry else 20)
        found.append((log, {name: value - before[name] for name, value in script.weights(model).items()}))
    (here, moved), (cpu, cpu_moved) = found
    modes = [[entry[name] for name in ("memorize", "explore", "mastered")] for entry in here]
    return {"steps": len(here), "modes": modes, "checks": [
        check("steps whose modes differ", sum(any(left[name] != right[name] for name in ("memorize", "explore", "mastered"))
                                              for left, right in zip(here, cpu, strict=True)), 0),
        check("relative difference of entropies", script.largest_difference(here, cpu, "entropy"), 10 * SAME),
        check("relative difference of the change of the weights", script.relative_error(moved, cpu_moved), DRIFT)]}


def greedy_answers(setting: Setting) -> dict[str, Any]:
    """Share of greedy answers that are not the CPU's; a tie may fall the other way."""
    rows = datasets.mini_records("validation", 8 if setting.is_dry else 64, seed=0)
    said = []
    for device in (setting.device, torch.device("cpu")):
        model, processor = script.policy(device)
        said.append([each.text for each in decode(model, processor, rows, max_new_tokens=24)])
    return {"checks": [check("share of other answers", sum(map(str.__ne__, *said)) / len(rows), 0.05)]}


def resume(setting: Setting) -> dict[str, Any]:
    """A run that is killed and goes on against one that is not: every logged number but times, every answer."""
    whole, broken = (runs.repository(setting, name) for name in ("whole", "broken"))
    wanted = runs.finished(runs.trained(setting, whole))
    runs.kill_at_first_checkpoint(setting, broken)
    found = runs.finished(runs.trained(setting, broken))
    differing = runs.differences(found, wanted)
    allowed = 0
    if differing and not setting.is_dry:  # kernels that sum in any order: how far are two whole runs apart?
        allowed = runs.differences(runs.finished(runs.trained(setting, runs.repository(setting, "again"))), wanted)
    return {"resumed": found["manifest"]["resumed"], "between whole runs": allowed,
            "checks": [check("numbers and answers that differ", differing, allowed),
                       check("runs that were not interrupted", int(not found["manifest"]["resumed"]), 0)]}


def suppressed(cache: str | None, setting: Setting) -> dict[str, Any]:
    """Samples of a model with random weights, which says every token; without the list special tokens come."""
    processor = tiny_onevision.build_processor()
    model = tiny_onevision.build_model("svlm", processor, 0).to(setting.device)
    loading.freeze_vision(model)
    rows = datasets.mini_records("train", 1, seed=0) * SAMPLES
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(folder, use_cpu=setting.device.type == "cpu", bf16=False, per_device_train_batch_size=SAMPLES,
                              num_generations=SAMPLES, max_completion_length=SAMPLED_TOKENS, cache_implementation=cache,
                              report_to="none")
        trainer = MeasuredGRPOTrainer(model, dyme_rewards(RuleChecker()), settings, datasets.to_dataset(rows[:1]),
                                      processing_class=processor)
    inputs = dict(prompt_inputs(processor, rows))
    prompts, _ = inputs.pop("input_ids").tolist(), inputs.pop("attention_mask")
    forbidden, counts = set(processors.suppressed_ids(model, processor)), []
    for is_on in (True, False):
        if not is_on:
            trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = None
        torch.manual_seed(0)
        sampled, _ = trainer._generate_single_turn(prompts, None, inputs, SAMPLES)
        counts.append(sum(token in forbidden for ids in sampled for token in ids))
    return {"without the list": counts[1], "checks": [
        check("special tokens sampled", counts[0], 0), check("minus those sampled without the list", -counts[1], -1)]}


def out_of_memory(setting: Setting) -> dict[str, Any]:
    """The longest sample where little memory is left: the error names the item and what to lower, and a step then runs."""
    model, processor = script.policy(setting.device)
    [record] = datasets.mini_records("train", 1, seed=0)
    many = config.load_profile("smoke", **{"training.prompts_per_step": 2 if setting.is_dry else 256,
                                           "training.max_completion_tokens": 300})
    hook, total = None, None
    if setting.device.type == "cuda":
        total = torch.cuda.get_device_properties(setting.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    else:
        hook = model.register_forward_pre_hook(_no_memory)
    try:
        check_memory(Run(many, "grpo"), model, processor, record)
        message = ""
    except OutOfMemory as error:
        message = str(error)
    finally:
        hook.remove() if hook else torch.cuda.set_per_process_memory_fraction(1.0)
    log, _ = script.train(model, processor, script.by_turns, 1)
    return {"message": message, "checks": [
        check("words missing in the error", sum(word not in message for word in (record.item, *NAMED)), 0),
        check("steps that are not possible afterwards", 1 - len(log), 0)]}


def _no_memory(*args: Any) -> None:
    raise torch.OutOfMemoryError("as a card without memory says")
