"""One training run from base to rows, and several of them side by side; every method goes through here.

`python -m dyme_core.experiment --profile mini --method full_dyme --seed 0` makes one run; so does
`torchrun --nproc_per_node 2 -m dyme_core.experiment ...` in two processes. It writes, whole or not at all,
rows/<run>.jsonl.xz (one row per item), logs/<run>.jsonl.xz (one per step and evaluation) and runs/<run>.json (what made them),
and leaves the trained policy in the profile's `runs` folder.
"""
from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from dyme_core import config, models, provenance, ranks, splits, switches
from dyme_core.badrows import BadRows
from dyme_core.checkpoints import Keeper, train_from
from dyme_core.collapse import CollapseWatch
from dyme_core.data import Record, sft_dataset, target_writer, to_dataset
from dyme_core.decoding import caption_match
from dyme_core.engine import BAD_ROWS
from dyme_core.evaluate import evaluate, summarise
from dyme_core.experts import Experts, describe, save_bank, too_long
from dyme_core.headroom import Headroom, try_longest
from dyme_core.measured import MeasuredGRPOTrainer
from dyme_core.preflight import preflight, without_bad_rows
from dyme_core.rewards import reward_functions
from dyme_core.store import run_file, write_rows
from dyme_core.supervision import RuleChecker
from dyme_core.trainer import DyMEConfig, DyMETrainer

logger = logging.getLogger(__name__)
LOGGED = ("loss", "memorize", "explore", "mastered", "format", "accuracy", "correct", "thinking", "zero_variance", "entropy",
          "thinking_tokens", "truncated", "repeated", "without_target", "rows", "memorize_norm", "explore_norm", "cosine",
          "generate_s", "score_s", "update_s")
NEVER = -100.0  # added to a logit: vLLM has no list of suppressed ids
CAPTIONS = 100  # validation charts that the final policy is asked to describe
UNSUPERVISED = ("base", "grpo")  # methods that ask no expert for anything that is learned
HELD_OUT = config.SPLITS[1:]
RESULTS = ("num_items", "correct", "has_format", "groundedness")  # of each split, in the manifest


@dataclass(frozen=True)
class Run:
    """What is trained: a method of config.METHODS on a base ("svlm" or "large") with a seed.

    `variant` names what differs from the profile's own settings (`plan`); "" nothing.
    """

    profile: config.Profile
    method: str
    model: str = "svlm"
    seed: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.model, self.method, self.variant, f"s{self.seed}")))

    @property
    def paths(self) -> config.Paths:
        return config.paths(self.profile.name)

    @property
    def columns(self) -> dict[str, Any]:
        return {"run": self.name, "method": self.method, "variant": self.variant, "model": self.model, "seed": self.seed}


class StepLog(TrainerCallback):
    """Collects one row per optimisation step and, every `evaluate_every` steps, one of greedy validation.

    `steps_before` are the steps of an earlier phase (SFT then GRPO); calls of `experts` are counted per step.
    """

    def __init__(self, run: Run, validation: list[Record], processor, steps_before: int = 0, experts: Experts | None = None):
        self.run, self.validation, self.processor, self.steps_before = run, validation, processor, steps_before
        self.experts = experts
        self.rows: list[dict[str, Any]] = []
        self.tokens = self._phase_tokens = 0  # prompts and completions; TRL counts anew in each phase
        self.evaluate_s = self.evaluate_cpu_s = 0.0
        self.resumed: list[int] = []  # steps from which training went on
        self._before = (0.0, 0.0)  # seconds and CPU seconds of training until it was interrupted
        self._start = self._step_start = time.perf_counter()
        self._start_step = 0
        self.begin()

    def begin(self) -> None:
        """Count what training takes from here on, without the evaluations in between."""
        self._begun = time.perf_counter() - self.evaluate_s, time.process_time() - self.evaluate_cpu_s

    def spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of training so far."""
        return (self._before[0] + time.perf_counter() - self.evaluate_s - self._begun[0],
                self._before[1] + time.process_time() - self.evaluate_cpu_s - self._begun[1])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "tokens": self.tokens, "phase_tokens": self._phase_tokens, "steps_before": self.steps_before,
                "resumed": self.resumed, "spent": self.spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.tokens, self._phase_tokens = state["rows"], state["tokens"], state["phase_tokens"]
        self.steps_before, self._before = state["steps_before"], tuple(state["spent"])
        self.resumed = [*state["resumed"], self.rows[-1]["step"]]
        self.begin()

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._start_step = time.perf_counter(), state.global_step  # the time left is of this phase and its pace

    def on_train_end(self, args, state, control, **kwargs):
        self.tokens, self._phase_tokens = self.tokens + self._phase_tokens, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self._step_s = time.perf_counter() - self._step_start

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" not in logs:
            return
        step, self._phase_tokens = state.global_step + self.steps_before, int(logs["num_tokens"])
        row = {"event": "step", **self.run.columns, "step": step, "seconds": self._step_s,
               **{name: logs[name] for name in LOGGED if name in logs}}
        asked = ranks.total(self.experts.take_counts()) if self.experts is not None else {}
        row |= asked
        self.rows.append(row)
        left = (state.max_steps - state.global_step) * (time.perf_counter() - self._start) \
            / max(1, state.global_step - self._start_step)
        modes = f", memorize {row['memorize']:.0f} explore {row['explore']:.0f} mastered {row['mastered']:.0f}" \
            if "memorize" in row else ""
        modes += f", {describe(asked)}" if asked else ""
        logger.info("%s: step %d of %d, loss %.4f%s, %.2f s a step, about %.0f s left", self.run.name, step,
                    state.max_steps + self.steps_before, row["loss"], modes, self._step_s, left)
        if step % self.run.profile.training.evaluate_every == 0:
            self.measure(model, step)

    def measure(self, model, step: int) -> dict[str, Any]:
        """Evaluate greedily on validation and log it."""
        start, cpu_start = time.perf_counter(), time.process_time()
        rows = evaluate(model, self.processor, self.validation, max_new_tokens=self.run.profile.training.max_completion_tokens,
                        run_columns={**self.run.columns, "step": step})
        summary = summarise(rows)
        self.rows.append({"event": "eval", **self.run.columns, "step": step, **summary})
        self.evaluate_s += time.perf_counter() - start
        self.evaluate_cpu_s += time.process_time() - cpu_start
        logger.info("%s: step %d, validation: correct %.1f %%, format %.1f %%, groundedness %.2f", self.run.name, step,
                    100 * summary["correct"], 100 * summary["has_format"], summary["groundedness"])
        return summary


def shared_arguments(run: Run, steps: int, learning_rate: float, folder: Path) -> dict[str, Any]:
    """The settings that every method's trainer shares."""
    engine = run.profile.engine
    return dict(output_dir=str(folder), max_steps=steps, learning_rate=learning_rate, seed=run.seed, optim="adamw_torch",
                lr_scheduler_type="linear", warmup_steps=run.profile.warmup_steps[run.method], weight_decay=0.0,
                max_grad_norm=1.0, logging_steps=1, save_strategy="steps" if run.profile.save_every else "no",
                save_steps=run.profile.save_every or 1, save_total_limit=2, report_to="none", disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(), bf16=engine.bf16, gradient_checkpointing=engine.gradient_checkpointing,
                gradient_checkpointing_kwargs={"use_reentrant": False}, dataloader_pin_memory=False,
                remove_unused_columns=False)


def grpo_arguments(run: Run, processor) -> dict[str, Any]:
    """GRPO's and DyME's settings; special ids are never sampled, by whatever name an engine calls that."""
    training, engine = run.profile.training, run.profile.engine
    forbidden = models.suppressed_ids(processor)
    vllm = dict(use_vllm=True, vllm_mode="colocate", vllm_gpu_memory_utilization=engine.vllm_memory_share,
                generation_kwargs={"logit_bias": dict.fromkeys(forbidden, NEVER)})
    return dict(**engine.batch(training.prompts_per_step * training.num_generations, ranks.size()),
                num_generations=training.num_generations, max_completion_length=training.max_completion_tokens,
                temperature=1.0, beta=0.0, loss_type="grpo", num_iterations=1,
                **(vllm if engine.use_vllm else {"generation_kwargs": {"suppress_tokens": forbidden}}))


def sft_trainer(run: Run, experts: Experts, model, processor, records: list[Record], log: StepLog, steps: int,
              learning_rate: float, folder: Path) -> Trainer:
    """CoT-SFT with TRL's SFTTrainer on the refined targets, one target a prompt, as many prompts a step as the others."""
    arguments = SFTConfig(**shared_arguments(run, steps, learning_rate, folder), max_length=None,
                          **run.profile.engine.batch(run.profile.training.prompts_per_step, ranks.size()))
    return SFTTrainer(model, args=arguments, train_dataset=sft_dataset(records, experts.offline(records)),
                      processing_class=processor, callbacks=[log])


def grpo_trainer(run: Run, experts: Experts, model, processor, records: list[Record], log: StepLog, steps: int,
               learning_rate: float, folder: Path) -> Trainer:
    """GRPO as TRL has it, on format and accuracy; the checker's score is measured with weight 0 (it is DyME's supervision)."""
    arguments = GRPOConfig(**shared_arguments(run, steps, learning_rate, folder), **grpo_arguments(run, processor),
                           reward_weights=[1.0, 1.0, 0.0])
    return MeasuredGRPOTrainer(model, args=arguments, train_dataset=to_dataset(records), processing_class=processor,
                               reward_funcs=reward_functions(RuleChecker()), callbacks=[log],
                               correct_needs_format=run.profile.training.correct_needs_format)


def dyme_trainer(run: Run, experts: Experts, model, processor, records: list[Record], log: StepLog, steps: int,
               learning_rate: float, folder: Path) -> Trainer:
    """DyME. Pure: targets written once, before training, thinking scored by rule. Full: checker and refiner at work during
    training, the template bank learning from rollouts rated "high"."""
    training = run.profile.training
    arguments = DyMEConfig(**shared_arguments(run, steps, learning_rate, folder), **grpo_arguments(run, processor),
                           switch=training.switch, switch_value=training.switch_value,
                           thinking_weight=training.thinking_weight, probe_every=training.probe_every,
                           memorize_weight=training.memorize_weight, mastered=training.mastered,
                           reward_gate=training.reward_gate, correct_needs_format=training.correct_needs_format)
    supervision = {"reward_funcs": reward_functions(RuleChecker()), "refine": experts.offline(records)} \
        if run.method == "pure_dyme" else experts.online(training)
    return DyMETrainer(model, args=arguments, train_dataset=to_dataset(records), processing_class=processor, **supervision,
                       callbacks=[log])


def phases(run: Run) -> list[tuple[Callable, int, float]]:
    """(function that makes the trainer, steps, learning rate) of each phase; all methods get the same steps in all."""
    steps, rates = run.profile.training.steps, run.profile.learning_rates
    dyme, grpo, sft = dyme_trainer, grpo_trainer, sft_trainer
    first = int(steps * run.profile.training.sft_share)
    chosen = {"base": [], "sft": [(sft, steps, rates["sft"])], "grpo": [(grpo, steps, rates["grpo"])],
              "sft_grpo": [(sft, first, rates["sft"]), (grpo, steps - first, rates["sft_grpo"])],
              "pure_dyme": [(dyme, steps, rates["pure_dyme"])], "full_dyme": [(dyme, steps, rates["full_dyme"])]}[run.method]
    return [phase for phase in chosen if phase[1]]  # to a Trainer max_steps=0 would mean three epochs


def settings_of(run: Run) -> dict[str, Any]:
    """Every setting that decides the run's result, as its manifest holds them."""
    return {**asdict(run.profile.training), "learning_rate": [rate for _, _, rate in phases(run)],
            "warmup_steps": run.profile.warmup_steps.get(run.method), "world": asdict(run.profile.world),
            "supervision": asdict(supervision_of(run)), "engine": asdict(run.profile.engine), "data": asdict(run.profile.data)}


def supervision_of(run: Run) -> config.Supervision:
    """Who checks and refines in this run; methods that learn from no expert have the rules, which only measure."""
    return config.Supervision() if run.method in UNSUPERVISED else run.profile.supervision


def execute(run: Run, splits: tuple[str, ...] = HELD_OUT, keep_policy: bool = True) -> dict[str, Any]:
    """Train and evaluate one run and store everything; returns its manifest.

    Under torchrun or accelerate every process makes this call, trains on its share and knows the result; one writes it.

    Args:
        run: what to train.
        splits: the splits to answer at the end, of those that the data set has; tuning passes ("validation",) and leaves the
            test sets closed.
        keep_policy: leave the trained policy (10 MB) in the `runs` folder.
    """
    ranks.start()
    switches.named(run.profile.training.switch, run.profile.training.switch_value)  # an unknown one is refused at once
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model, processor = load_start(run)
    objection = too_long(processor.tokenizer, run.profile.training.max_completion_tokens)
    with Experts(supervision_of(run), run.paths, run.paths.runs / run.name, objection) as experts:
        return _execute(run, tuple(split for split in run.profile.data.held_out if split in splits), keep_policy, experts,
                        model, processor)


def load_start(run: Run) -> tuple[Any, Any]:
    """Model and processor that a run starts from, on this process's device: the seed's mini base, or the profile's model."""
    is_mini, profile = run.profile.model == "mini", run.profile
    model, processor = models.load_policy(base_folder(run.paths, run.model, run.seed) if is_mini else profile.model,
                                          backend=profile.backend)
    return model if model.device.type != "cpu" else model.to(ranks.device()), processor


def check_memory(run: Run, model, processor, longest: Record) -> Headroom:
    """Try the longest sample in a micro-batch as training will have them, and say what it took.

    Raises:
        OutOfMemory: where it does not fit, with what to lower.
    """
    training, engine = run.profile.training, run.profile.engine
    rows = engine.batch(training.prompts_per_step * training.num_generations, ranks.size())["per_device_train_batch_size"]
    tried = try_longest(model, processor, longest, rows=rows, max_completion_tokens=training.max_completion_tokens,
                        engine=engine)
    logger.info("%s", tried)
    return tried


def _execute(run: Run, names: tuple[str, ...], keep_policy: bool, experts: Experts, model, processor) -> dict[str, Any]:
    started, training, data = datetime.now(UTC), run.profile.training, run.profile.data
    refine, bad = _no_target if run.method in UNSUPERVISED else target_writer(experts.rules), BadRows(data.on_bad_row)
    longest = training.max_completion_tokens
    records = without_bad_rows(experts.supposed(splits.of_profile(run.profile, "train", run.seed, bad)), processor, bad, refine,
                               longest)
    held_out = {split: without_bad_rows(splits.of_profile(run.profile, split, run.seed, bad), processor, bad, _no_target,
                                        longest) for split in data.held_out}
    watched = held_out[data.held_out[0]]
    checked = preflight(records, processor, model, others=[record for rest in held_out.values() for record in rest],
                        max_new_tokens=training.max_completion_tokens, refine=refine)
    if run.profile.model != "mini":
        check_memory(run, model, processor, next(record for record in records if record.item == checked.longest_item))
    log = StepLog(run, watched, processor, experts=experts)
    folder = run.paths.runs / run.name
    watch, chosen = CollapseWatch(run.profile.on_collapse), phases(run)
    keeper = Keeper(fingerprint(run), log=log, bank=experts.bank, watch=watch)
    found = {number: path for number in range(len(chosen)) if (path := keeper.latest(folder / f"phase-{number}"))}
    if not found:
        log.measure(model, 0)
    log.begin()
    for number, (trainer_of, steps, learning_rate) in enumerate(chosen):
        if number < max(found, default=0):  # a later phase was under way
            continue
        trainer = trainer_of(run, experts, model, processor, records, log, steps, learning_rate, folder / f"phase-{number}")
        trainer.add_callback(watch)
        trainer.remove_callback(PrinterCallback)  # StepLog says the same in one readable line
        keeper.kept |= {"held": trainer.held} if isinstance(trainer, DyMETrainer) else {}
        train_from(trainer, found.get(number), keeper)
        log.steps_before += steps
    train_s, cpu_s = log.spent()
    cpu_s = sum(ranks.gather(cpu_s))
    # Every process answers every question: none is waited for, and a model that is dealt over cards needs all of them.
    rows = [row for split in names for row in
            evaluate(model, processor, held_out[split], max_new_tokens=training.max_completion_tokens,
                     run_columns={**run.columns, "step": log.steps_before})]
    captions = caption_match(model, processor, watched[:CAPTIONS]) if data.name == "mini" else None
    steps = [row for row in log.rows if row["event"] == "step"]
    manifest = {**run.columns, "profile": run.profile.name, "base": base_name(run),
                "steps": log.steps_before, "processes": ranks.size(),
                "settings": settings_of(run), "started": started.isoformat(timespec="seconds"),
                "seconds": (datetime.now(UTC) - started).total_seconds(),
                "resumed": log.resumed,
                "train_s": train_s, "cpu_s": cpu_s, "tokens": log.tokens, "s_per_step": train_s / max(1, log.steps_before),
                "rollouts": sum("generate_s" in row for row in steps) * training.prompts_per_step * training.num_generations,
                "captions": captions, "results": _results(rows, names), "supervision": experts.summary(),
                "skipped_rows": bad.summary(),
                **provenance.provenance(run.paths.root)}
    if ranks.is_writer():
        if keep_policy:
            models.save_policy(model, processor, folder / "policy")
        save_bank(experts.bank, folder)
        _store(run, log.rows, rows, manifest)
        for number in range(len(chosen)):
            shutil.rmtree(folder / f"phase-{number}", ignore_errors=True)  # checkpoints, of no use any more
    return manifest


def _store(run: Run, log: list[dict[str, Any]], rows: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
    made = run.paths.results / "runs" / f"{run.name}.json"
    made.unlink(missing_ok=True)  # an earlier run's; the new one comes last and says that rows and log are whole
    write_rows(run_file(run.paths.logs, run.name), log)
    write_rows(run_file(run.paths.rows, run.name), rows)
    provenance.write_json(made, manifest)


def _results(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    scores = {split: summarise([row for row in rows if row["split"] == split]) for split in names}
    return {split: {name: score[name] for name in RESULTS} for split, score in scores.items()}


def _no_target(rows: list[dict[str, Any]]) -> list[None]:
    return [None] * len(rows)


def fingerprint(run: Run) -> str:
    """What a run's result depends on: its settings, the core's sources and the base."""
    root = run.paths.root
    sources = [*provenance.rooms_of("experiment", root / "dyme_core"), *base_folder(run.paths, run.model, run.seed).glob("*")]
    return provenance.hash_json([repr(run), provenance.hash_files(sources, root)])


def base_folder(paths: config.Paths, model: str, seed: int) -> Path:
    """The base a seed starts from: its own, which `scheduler` builds where it is missing."""
    return paths.bases / f"{model}-s{seed}"


def base_name(run: Run) -> str:
    """What a run starts from, as its manifest says it."""
    return base_folder(run.paths, run.model, run.seed).name if run.profile.model == "mini" else run.profile.model


def main(arguments: list[str] | None = None) -> None:
    """The command line of one run."""
    parser = argparse.ArgumentParser(prog="python -m dyme_core.experiment", description="Train and evaluate one method.")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--method", choices=config.METHODS, required=True)
    parser.add_argument("--model", choices=tuple(models.SIZES), default="svlm")
    parser.add_argument("--seed", type=int, help="default: the profile's")
    parser.add_argument("--variant", default="", help="what the settings below are called in the run's name")
    parser.add_argument("--splits", nargs="+", choices=HELD_OUT, default=HELD_OUT, help="answered at the end; all by default")
    parser.add_argument("--no-policy", action="store_true", help="do not keep the trained policy")
    parser.add_argument("--on-bad-row", choices=BAD_ROWS, help="default: the profile's, which is raise")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the profile, as JSON values")
    options = parser.parse_args(arguments)
    ranks.start()
    logging.basicConfig(level=logging.INFO if ranks.is_writer() else logging.ERROR, format="%(message)s", stream=sys.stderr)
    try:
        overrides = dict(map(config.read_setting, options.set))
        overrides |= {"data.on_bad_row": options.on_bad_row} if options.on_bad_row else {}
        profile = config.load_profile(options.profile, **overrides)
    except ValueError as error:
        parser.error(str(error))
    seed = profile.seed if options.seed is None else options.seed
    execute(Run(profile, options.method, options.model, seed, options.variant), tuple(options.splits),
            keep_policy=not options.no_policy)
    ranks.stop()


if __name__ == "__main__":
    main()
