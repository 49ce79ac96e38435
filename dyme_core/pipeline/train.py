"""One run from base to rows: every method is trained and evaluated here.

`dyme train --profile mini --method full_dyme --seed 0` makes one run; `torchrun --nproc_per_node 2 -m study train ...` lets two
processes make it together. A run writes, whole or not at all, rows/<run>.jsonl.xz (one row per question), logs/<run>.jsonl.xz
(one per step and evaluation) and runs/<run>.json (what made them), and leaves its policy in the profile's `runs` folder.
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
from dyme_core.config import HELD_OUT
from dyme_core.data import datasets, metrics
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.datasets import Refine, no_target
from dyme_core.data.schema import DataError, Record, item_of
from dyme_core.models import loading, processors
from dyme_core.models.generation import caption_match, generate_in_16_bits
from dyme_core.pipeline import methods
from dyme_core.pipeline.callbacks import CollapseWatch, StepLog
from dyme_core.pipeline.checkpointing import Keeper, train_from
from dyme_core.pipeline.estimate import check_memory, estimate_run
from dyme_core.pipeline.evaluate import evaluate, summarise
from dyme_core.pipeline.methods import UNSUPERVISED, Run, phase_steps
from dyme_core.pipeline.model_card import model_card
from dyme_core.pipeline.preflight import preflight, without_bad_rows, without_shared_rows
from dyme_core.pipeline.rollout_page import RolloutPage
from dyme_core.pipeline.trainers import TRAINERS, Session, shared_arguments
from dyme_core.supervision.fact_extraction import backend_of, with_facts
from dyme_core.supervision.factory import Experts, save_bank, too_long
from dyme_core.supervision.refiner import target_writer
from dyme_core.trainer import switches
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.utils import run_file, write_rows, writing

logger = logging.getLogger(__name__)
CAPTIONS = 100  # validation charts that the final policy describes
RESULTS = ("num_items", "correct", "has_format", "groundedness")  # of each split, in the manifest


def execute(run: Run, names: tuple[str, ...] = HELD_OUT, keep_policy: bool = True, force: bool = False) -> dict[str, Any]:
    """Train and evaluate one run and store everything; returns its manifest.

    Under torchrun or accelerate every process makes this call, trains on its share and knows the result; one writes it.

    Args:
        run: what to train.
        names: splits to answer at the end, of those that the data set has; tuning passes ("validation",) and leaves the
            test sets closed.
        keep_policy: leave the trained policy (10 MB) in the `runs` folder.
        force: replace a finished run of the same name that was made with other settings.
    Raises:
        ValueError: for settings that cannot be trained with.
        RunExists: where there is one, without `force`.
        CannotWrite: for a full disk and the like; earlier files stay, and the same call resumes.
        OutOfMemory: where the longest sample, or a step, does not fit.
    """
    ranks.start()
    if not set(names) & set(run.profile.data.held_out):
        raise ValueError(f"split must name one of data.held_out={run.profile.data.held_out}: got {names}; name another")
    methods.check_steps(run, ranks.size())
    if not force:
        methods.refuse_to_replace(run)
    switches.named(run.profile.training.switch, run.profile.training.switch_value)  # refuses an unknown one at once
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    model, processor = load_start(run)
    objection = too_long(processors.tokenizer_of(processor), run.profile.training.max_completion_tokens)
    accuracy = metrics.accuracy_of(datasets.task_of(run.profile.data.name))
    with writing(run.folder), Experts(methods.supervision_of(run), run.paths, run.folder, objection, accuracy) as experts:
        session = load_records(run, experts, model, processor)
        check_start(session)
        log = train_phases(session)
        asked = [split for split in session.held_out if split in names]
        rows = [row for split in asked for row in answer(session, split, log.steps_before)]
        manifest = manifest_of(session, log, {split: [row for row in rows if row["split"] == split] for split in asked})
        store(session, log.rows, rows, manifest, keep_policy)
    if ranks.is_writer():
        logger.info("%s", summary(run, manifest, keep_policy))
    return manifest


def summary(run: Run, manifest: dict[str, Any], keep_policy: bool) -> str:
    """What a run came to and where it lies, in one line."""
    scores = ", ".join(f"{split} {100 * score['correct']:.1f} %" for split, score in manifest["results"].items())
    policy = f", policy {run.folder / 'policy'}" if keep_policy else ""
    return f"{run.name}: correct on {scores}; rows {run_file(run.paths.rows, run.name)}{policy}"


def load_start(run: Run) -> tuple[Any, Any]:
    """Model and processor that a run starts from, on this process's device: the seed's mini base, or the profile's model."""
    profile, engine = run.profile, run.profile.engine
    source = methods.base_folder(run.paths, run.model, run.seed) if profile.model == "mini" else profile.model
    is_whole = not ranks.deals_weights()  # FSDP moves weights in memory: nothing computed from them may be kept
    model, processor = loading.load_policy(source, profile.backend, engine=is_whole, lora_rank=engine.lora_rank or 0,
                                           lora_alpha=engine.lora_alpha, load_in_4bit=engine.load_in_4bit)
    # A compiled step keeps the addresses of the weights, Unsloth and vLLM have copies of their own.
    if engine.bf16 and engine.generation == "eager" and is_whole and profile.backend == "transformers":
        generate_in_16_bits(model)
    return model if model.device.type != "cpu" else model.to(ranks.device()), processor


def load_records(run: Run, experts: Experts, model, processor) -> Session:
    """Read the questions of every split, without their bad rows where the profile skips these.

    Raises:
        DataError: for a bad row, or too many of them.
    """
    started, bad = datetime.now(UTC), BadRows(run.profile.data.on_bad_row)

    def kept(records: list[Record], refine: Refine) -> list[Record]:
        return without_bad_rows(records, processor, bad, refine, run.profile.training.max_completion_tokens)

    records = add_facts(run, experts, datasets.of_profile(run.profile, "train", run.seed, bad))
    records = kept(experts.with_corruption(records), _rule_targets(run, experts))
    held_out = {split: kept(datasets.of_profile(run.profile, split, run.seed, bad), no_target)
                for split in run.profile.data.held_out}
    records = without_shared_rows(records, [record for rest in held_out.values() for record in rest], bad)
    return Session(run, experts, model, processor, records, held_out, bad, started)


def add_facts(run: Run, experts: Experts, records: list[Record]) -> list[Record]:
    """Training records with the facts that `data.facts` asks for; one process extracts them, the others read what it stored."""
    is_asked = run.profile.data.facts != "given" and run.method not in UNSUPERVISED
    if not is_asked or all(record.image is None or item_of(record.row).facts for record in records):
        return records
    backend, found = backend_of(run.profile.data.facts, experts.client, run.profile.supervision.parameters), records
    for is_turn in (True, False):
        if ranks.is_writer() == is_turn:
            found = with_facts(records, backend, run.paths.root / "runs" / "facts", run.profile.supervision.max_concurrency)
        ranks.gather(is_turn)
    return found


def check_start(session: Session) -> None:
    """Check the data before step 0, and the memory where the model is not a mini one.

    Raises:
        DataError: for a fault in the data (see `preflight`), or where no target could be written.
        OutOfMemory: where the longest sample does not fit.
    """
    run, records = session.run, session.records
    checked = preflight(records, session.processor, session.model,
                        others=[record for rest in session.held_out.values() for record in rest],
                        max_new_tokens=run.profile.training.max_completion_tokens,
                        refine=_rule_targets(run, session.experts))
    has_targets = checked.longest_target or any(item_of(record.row).facts for record in records)
    if run.method not in UNSUPERVISED and not has_targets:
        raise DataError(f"none of {len(records)} training questions has facts of its picture, so that no target can be written "
                        "and no thinking checked; give data.source a folder with tables (ChartQA's own release has them), "
                        "set data.facts to 'ocr', 'deplot' or 'vlm', or train with grpo")
    if run.profile.model != "mini" and phase_steps(run):
        logger.info("%s", estimate_run(run, session.model, checked))
        longest = next(record for record in records if record.item == checked.longest_item)
        logger.info("%s", check_memory(run, session.model, session.processor, longest))


def _rule_targets(run: Run, experts: Experts) -> Refine:
    """Targets by rule, which the checks before step 0 read; none for methods that learn from rewards alone."""
    return no_target if run.method in UNSUPERVISED else target_writer(experts.rules)


def train_phases(session: Session) -> StepLog:
    """Train every phase of the run, resuming from its newest checkpoint; returns the log of all steps.

    Raises:
        Untrained: where fewer steps were taken than planned.
        OutOfMemory: where a step runs out of memory.
        Collapsed: where the profile stops a run that collapses.
    """
    run, experts = session.run, session.experts
    log = StepLog(run, session.watched, session.processor, experts)
    watch = CollapseWatch(run.profile.on_collapse)
    keeper = Keeper(methods.fingerprint(run), log=log, bank=experts, watch=watch)
    phases = list(enumerate(phase_steps(run)))
    found = {number: path for number, _ in phases if (path := keeper.latest(_phase_folder(run, number)))}
    if not found:
        log.measure(session.model, 0)
    log.begin()
    for number, (method, steps) in phases:
        if number < max(found, default=0):  # it was in a later phase
            continue
        arguments = shared_arguments(run, steps, run.profile.learning_rates[method], _phase_folder(run, number))
        trainer = TRAINERS[method](session, arguments, [log, watch])
        trainer.remove_callback(PrinterCallback)  # StepLog prints the same in one readable line
        if isinstance(trainer, MeasuredGRPOTrainer) and not run.profile.training.refill:
            trainer.add_callback(RolloutPage(run.folder, trainer, run.profile.training.evaluate_every, log.steps_before))
        taken = train_from(trainer, found.get(number), keeper)  # sets the log back to where it was
        log.steps_before += taken
    log.end()
    if phases and not log.has_learned:
        logger.warning("%s: no step changed the policy, every gradient was 0: all rollouts of each prompt had equal rewards, "
                       "and no target was memorized; take a base that succeeds at times, or more rollouts "
                       "(training.num_generations)", run.name)
    return log


def _phase_folder(run: Run, number: int) -> Path:
    return run.folder / f"phase-{number}"


def answer(session: Session, split: str, step: int) -> list[dict[str, Any]]:
    """Answer every question of a split greedily; the rows that are stored.

    Each process answers all of them: none waits for another, and a model that is sharded over cards needs all of them.
    """
    profile = session.run.profile
    return evaluate(session.model, session.processor, session.held_out[split],
                    max_new_tokens=profile.training.max_completion_tokens, run_columns={**session.run.columns, "step": step},
                    task=datasets.task_of(profile.data.place(split)[0]))


def manifest_of(session: Session, log: StepLog, rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The run's manifest: settings, versions, machine, scores.

    Args:
        rows: of each split that was answered.
    """
    run, training = session.run, session.run.profile.training
    is_mini_data, with_rollouts = run.profile.data.name == "mini", sum("generate_s" in row for row in log.rows)
    return {**run.columns, "profile": run.profile.name, "base": methods.base_name(run),
            "steps": log.steps_before, "processes": ranks.size(), "results_version": methods.RESULTS_VERSION,
            "settings": methods.settings_of(run), "started": session.started.isoformat(timespec="seconds"),
            "seconds": (datetime.now(UTC) - session.started).total_seconds(), "resumed": log.resumed,
            "train_s": log.train_s, "cpu_s": sum(ranks.gather(log.cpu_s)), "tokens": log.tokens,
            "s_per_step": log.train_s / max(1, log.steps_before),
            "rollouts": with_rollouts * training.prompts_per_step * training.num_generations,
            "captions": caption_match(session.model, session.processor, session.watched[:CAPTIONS]) if is_mini_data else None,
            "results": {split: {name: summarise(found)[name] for name in RESULTS} for split, found in rows.items()},
            "supervision": session.experts.summary(),
            "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "skipped_rows": session.bad_rows.summary(), **utils.provenance(run.paths.root)}


def store(session: Session, log: list[dict[str, Any]], rows: list[dict[str, Any]], manifest: dict[str, Any],
          keep_policy: bool) -> None:
    """Write everything of a finished run, in the one process that writes, and remove its checkpoints."""
    run, experts = session.run, session.experts
    state = ranks.whole_state(session.model) if keep_policy else None  # every process gives its share of the weights
    if not ranks.is_writer():
        return
    if keep_policy:
        keep(session.model, session.processor, run.folder / "policy", manifest, state)
    save_bank(experts.bank, run.folder)
    experts.write_ledger()
    run.manifest.unlink(missing_ok=True)  # an earlier run's; the new one is written last, when rows and log are complete
    write_rows(run_file(run.paths.logs, run.name), log)
    write_rows(run_file(run.paths.rows, run.name), rows)
    utils.write_json(run.manifest, manifest)
    for number in range(len(phase_steps(run))):
        shutil.rmtree(_phase_folder(run, number), ignore_errors=True)


def keep(model, processor, folder: Path, manifest: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
    """Save a policy, adapters merged into its weights, with its card; `state` are weights gathered from several cards."""
    loading.save_policy(model, processor, folder, state=state)
    utils.write_atomic(folder / "README.md", model_card(manifest))
