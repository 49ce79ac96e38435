"""One training run from base to rows, and several of them side by side; every method goes through here.

`dyme train --profile mini --method full_dyme --seed 0` makes one run; so does `torchrun --nproc_per_node 2 -m study train ...`
in two processes. It writes, whole or not at all,
rows/<run>.jsonl.xz (one row per item), logs/<run>.jsonl.xz (one per step and evaluation) and runs/<run>.json (what made them),
and leaves the trained policy in the profile's `runs` folder.
"""
from __future__ import annotations

import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from dyme_core import ranks, utils
from dyme_core.data import datasets
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.datasets import no_target
from dyme_core.data.schema import DataError, Record, item_of
from dyme_core.disk import writing
from dyme_core.models import loading, processors
from dyme_core.models.generation import caption_match
from dyme_core.models.loading import is_vision
from dyme_core.pipeline.checkpointing import Keeper, train_from
from dyme_core.pipeline.collapse import CollapseWatch
from dyme_core.pipeline.estimate import CARDS, Estimate, estimate, shape_of
from dyme_core.pipeline.evaluate import evaluate, summarise
from dyme_core.pipeline.headroom import Headroom, try_longest
from dyme_core.pipeline.methods import phases
from dyme_core.pipeline.model_card import model_card
from dyme_core.pipeline.preflight import PreflightReport, preflight, without_bad_rows
from dyme_core.pipeline.runs import (
    HELD_OUT,
    RESULTS_VERSION,
    UNSUPERVISED,
    Run,
    base_folder,
    base_name,
    fingerprint,
    refuse_to_replace,
    settings_of,
    supervision_of,
)
from dyme_core.pipeline.step_log import StepLog
from dyme_core.store import run_file, write_rows
from dyme_core.supervision.fact_extraction import backend_of, with_facts
from dyme_core.supervision.factory import Experts, save_bank, too_long
from dyme_core.supervision.refiner import TracesFirst, target_writer
from dyme_core.trainer import switches
from dyme_core.trainer.dyme_trainer import DyMETrainer

logger = logging.getLogger(__name__)
CAPTIONS = 100  # validation charts that the final policy is asked to describe
RESULTS = ("num_items", "correct", "has_format", "groundedness")  # of each split, in the manifest


def execute(run: Run, names: tuple[str, ...] = HELD_OUT, keep_policy: bool = True, force: bool = False) -> dict[str, Any]:
    """Train and evaluate one run and store everything; returns its manifest.

    Under torchrun or accelerate every process makes this call, trains on its share and knows the result; one writes it.

    Args:
        run: what to train.
        names: of the splits to answer at the end, of those that the data set has; tuning passes ("validation",) and leaves the
            test sets closed.
        keep_policy: leave the trained policy (10 MB) in the `runs` folder.
        force: replace a finished run of the same name that was made with other settings.
    Raises:
        RunExists: where there is one, without `force`.
        CannotWrite: for a full disk and the like; what was written before stays, and the same call goes on from there.
        OutOfMemory: where the longest sample, or a step, does not fit.
    """
    ranks.start()
    if not force:
        refuse_to_replace(run)
    switches.named(run.profile.training.switch, run.profile.training.switch_value)  # an unknown one is refused at once
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model, processor = load_start(run)
    objection = too_long(processors.tokenizer_of(processor), run.profile.training.max_completion_tokens)
    folder = run.paths.runs / run.name
    with writing(folder), Experts(supervision_of(run), run.paths, folder, objection,
                                  datasets.accuracy_of(run.profile.data.name)) as experts:
        return _execute(run, tuple(split for split in run.profile.data.held_out if split in names), keep_policy, experts,
                        model, processor)


def load_start(run: Run) -> tuple[Any, Any]:
    """Model and processor that a run starts from, on this process's device: the seed's mini base, or the profile's model.

    Weights that FSDP deals out move in memory, so that nothing may be kept of what they once gave (`vision_cache`).
    """
    is_mini, profile, is_whole = run.profile.model == "mini", run.profile, not ranks.deals_weights()
    source = base_folder(run.paths, run.model, run.seed) if is_mini else profile.model
    engine = profile.engine
    model, processor = loading.load_policy(source, profile.backend, vision_cache=is_whole, prefix_sharing=is_whole,
                                           lora_rank=engine.lora_rank or 0, lora_alpha=engine.lora_alpha,
                                           load_in_4bit=engine.load_in_4bit)
    return model if model.device.type != "cpu" else model.to(ranks.device()), processor


def check_facts(records: list[Record]) -> None:
    """Refuse to train on targets where no question has what they are written from; its own trace is looked for before.

    Raises:
        DataError: where no record has facts of its picture.
    """
    if not any(item_of(record.row).facts for record in records):
        raise DataError(f"none of {len(records)} training questions has facts of its picture, so that no target can be written "
                        "and no thinking checked; give data.source a folder with tables (ChartQA's own release has them), "
                        "set data.facts to 'ocr' or 'vlm', or train with grpo")


def look(run: Run, experts: Experts, records: list[Record]) -> list[Record]:
    """Training records with the facts that `data.facts` asks for; one process looks, the others read what it stored."""
    is_asked = run.profile.data.facts != "given" and run.method not in UNSUPERVISED
    if not is_asked or all(record.image is None or item_of(record.row).facts for record in records):
        return records
    backend, seen = backend_of(run.profile.data.facts, experts.client), records
    for is_turn in (True, False):
        if ranks.is_writer() == is_turn:
            seen = with_facts(records, backend, run.paths.root / "runs" / "facts", run.profile.supervision.max_concurrency)
        ranks.gather(is_turn)
    return seen


def expected(run: Run, model, checked: PreflightReport) -> Estimate:
    """What a step of the run will take, on this card if `estimate` knows it, from the model and its longest prompt."""
    vision = sum(weight.numel() for name, weight in model.named_parameters() if is_vision(name))
    shape = shape_of(model.config, checked.image_tokens[1], checked.longest_tokens - checked.longest_target, vision)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return estimate(run.profile, shape, next((card for card in CARDS if card in name), None), ranks.size())


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
    refine = no_target if run.method in UNSUPERVISED else target_writer(TracesFirst(experts.rules))
    bad, longest = BadRows(data.on_bad_row), training.max_completion_tokens
    records = look(run, experts, datasets.of_profile(run.profile, "train", run.seed, bad))
    records = without_bad_rows(experts.supposed(records), processor, bad, refine, longest)
    held_out = {split: without_bad_rows(datasets.of_profile(run.profile, split, run.seed, bad), processor, bad, no_target,
                                        longest) for split in data.held_out}
    watched = held_out[data.held_out[0]]
    checked = preflight(records, processor, model, others=[record for rest in held_out.values() for record in rest],
                        max_new_tokens=training.max_completion_tokens, refine=refine)
    if run.method not in UNSUPERVISED and not checked.longest_target:
        check_facts(records)
    if run.profile.model != "mini":
        logger.info("%s", expected(run, model, checked))
        check_memory(run, model, processor, next(record for record in records if record.item == checked.longest_item))
    log = StepLog(run, watched, processor, experts=experts)
    folder = run.paths.runs / run.name
    watch, chosen = CollapseWatch(run.profile.on_collapse), phases(run)
    keeper = Keeper(fingerprint(run), log=log, bank=experts, watch=watch)
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
                     run_columns={**run.columns, "step": log.steps_before}, task=datasets.task_of(data.place(split)[0]))]
    captions = caption_match(model, processor, watched[:CAPTIONS]) if data.name == "mini" else None
    steps = [row for row in log.rows if row["event"] == "step"]
    manifest = {**run.columns, "profile": run.profile.name, "base": base_name(run),
                "steps": log.steps_before, "processes": ranks.size(), "results_version": RESULTS_VERSION,
                "settings": settings_of(run), "started": started.isoformat(timespec="seconds"),
                "seconds": (datetime.now(UTC) - started).total_seconds(),
                "resumed": log.resumed,
                "train_s": train_s, "cpu_s": cpu_s, "tokens": log.tokens, "s_per_step": train_s / max(1, log.steps_before),
                "rollouts": sum("generate_s" in row for row in steps) * training.prompts_per_step * training.num_generations,
                "captions": captions, "results": _results(rows, names), "supervision": experts.summary(),
                "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "skipped_rows": bad.summary(),
                **utils.provenance(run.paths.root)}
    state = ranks.whole_state(model) if keep_policy else None
    if ranks.is_writer():
        if keep_policy:
            keep(model, processor, folder / "policy", manifest, state)
        save_bank(experts.bank, folder)
        experts.write_ledger()
        _store(run, log.rows, rows, manifest)
        for number in range(len(chosen)):
            shutil.rmtree(folder / f"phase-{number}", ignore_errors=True)  # checkpoints, of no use any more
    return manifest


def keep(model, processor, folder: Path, manifest: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
    """Save a policy, adapters merged into its weights, with its card; `state` are weights that were dealt over cards."""
    loading.save_policy(model, processor, folder, state=state)
    utils.write_atomic(folder / "README.md", model_card(manifest))


def _store(run: Run, log: list[dict[str, Any]], rows: list[dict[str, Any]], manifest: dict[str, Any]) -> None:
    run.manifest.unlink(missing_ok=True)  # an earlier run's; the new one comes last and says that rows and log are whole
    write_rows(run_file(run.paths.logs, run.name), log)
    write_rows(run_file(run.paths.rows, run.name), rows)
    utils.write_json(run.manifest, manifest)


def _results(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    scores = {split: summarise([row for row in rows if row["split"] == split]) for split in names}
    return {split: {name: score[name] for name in RESULTS} for split, score in scores.items()}
