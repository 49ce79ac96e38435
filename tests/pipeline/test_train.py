"""Runs from base to rows, several side by side, and the report drawn from them: profile smoke on a random base."""
from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dyme_core import config, utils
from dyme_core.data import datasets, prompt_format, schema
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import item_of
from dyme_core.models import loading, tiny_onevision
from dyme_core.pipeline import checkpointing, trainers
from dyme_core.pipeline import train as training
from dyme_core.pipeline.train import Run
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards
from study import report
from study.runner import scheduler

CORE = Path(__file__).resolve().parents[2] / "dyme_core"
METHODS = ("sft", "full_dyme", "sft_grpo")
NUM = 8  # questions of each held-out split: one of every kind
SMALL = {"world.train_questions": 24, "world.validation_questions": NUM, "world.test_questions": NUM, "training.steps": 4,
         "training.evaluate_every": 2, "training.prompts_per_step": 2, "training.num_generations": 4,
         "warmup_steps": dict.fromkeys(("sft", "grpo", "sft_grpo", "pure_dyme", "full_dyme"), 2),
         "training.sft_share": 0.5}  # smoke's own numbers may change
ROW = {"run", "method", "variant", "model", "seed", "step", "split", "item", "kind", "source", "question", "target",
       "prediction",
       "answer", "has_format", "strict", "relaxed", "year_exact", "correct", "thinking", "groundedness", "wrong_facts",
       "num_thinking_tokens", "num_tokens", "is_truncated"}
STEP = {"event", "run", "method", "variant", "model", "seed", "step", "loss", "entropy", "seconds"}
ROLLOUT_STEP = STEP | {"generate_s", "score_s", "update_s", "memorize", "explore", "mastered", "format", "accuracy",
                       "correct", "thinking", "zero_variance", "thinking_tokens", "truncated", "repeated"}
DYME_STEP = ROLLOUT_STEP | {"without_target", "rows"}
PROBED = {"memorize_norm", "explore_norm", "cosine"}  # of the first step and of every fortieth
EVAL = {"event", "run", "method", "model", "seed", "step", "correct", "has_format", "groundedness", "thinking", "num_items"}
MANIFEST = {"run", "method", "model", "seed", "profile", "commit", "dirty", "steps", "settings", "versions", "cpu",
            "train_s", "s_per_step", "rollouts", "tokens", "cpu_s", "captions", "started", "seconds", "results"}


def smoke(method: str, model: str = "svlm", **overrides) -> Run:
    return Run(config.load_profile("smoke", **SMALL | overrides), method, model)


def lines(path: Path) -> list[dict]:
    return utils.read_rows(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    """A repository with the core's sources and a random base, and nothing run in it yet."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(CORE, folder / "dyme_core", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").touch()
    processor = tiny_onevision.build_processor()
    loading.save_policy(tiny_onevision.build_model("svlm", processor, 0), processor, folder / "bases" / "svlm-s0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DYME_ROOT", str(folder))
        patch.setattr(scheduler, "POLL_S", 0.05)
        yield folder


@pytest.fixture(scope="module")
def executed(root: Path) -> dict[str, dict]:
    """The manifests of one run a method."""
    return {method: training.execute(smoke(method)) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_writes_rows_logs_and_manifest_as_tables_and_figures_read_them(root: Path, executed, method: str) -> None:
    results, name, profile = root / "results" / "local" / "smoke", smoke(method).name, config.load_profile("smoke")
    rows, log = lines(results / "rows" / f"{name}.jsonl.xz"), lines(results / "logs" / f"{name}.jsonl.xz")
    manifest = json.loads((results / "runs" / f"{name}.json").read_text())
    assert {tuple(sorted(row)) for row in rows} == {tuple(sorted(ROW))}
    assert [row["split"] for row in rows] == ["validation"] * NUM + ["test"] * NUM + ["unseen"] * NUM + ["altered"] * (NUM // 2)
    assert {(row["run"], row["method"], row["model"], row["seed"], row["step"]) for row in rows} == {
        (name, method, "svlm", 0, 4)}
    assert all(row["correct"] == (row["strict"] and row["has_format"]) for row in rows)
    assert list(map(json.loads, (smoke(method).folder / "steps.jsonl").read_text().splitlines())) == log
    pages = {path.name for path in (smoke(method).folder / "rollouts").glob("*.html")}
    assert pages == {"sft": set(), "full_dyme": {"step-2.html", "step-4.html"}, "sft_grpo": {"step-4.html"}}[method]
    steps = [row for row in log if row["event"] == "step"]
    with_rollouts = {"sft": [], "full_dyme": [1, 2, 3, 4], "sft_grpo": [3, 4]}[method]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    rollout_step = DYME_STEP if method == "full_dyme" else ROLLOUT_STEP
    assert [set(row) - PROBED for row in steps] == [
        rollout_step if number in with_rollouts else STEP for number in (1, 2, 3, 4)]
    assert ({"memorize_norm", "explore_norm"} <= set(steps[0])) == (method == "full_dyme"), "gradients of the first step"
    assert all(row["memorize"] + row["explore"] + row["mastered"] == 2 for row in steps if row["step"] in with_rollouts)
    assert [row["step"] for row in log if row["event"] == "eval"] == [0, 2, 4]
    assert all(set(row) >= EVAL and row["num_items"] == NUM for row in log if row["event"] == "eval")
    assert set(manifest) >= MANIFEST and manifest == json.loads(json.dumps(executed[method]))
    assert manifest["steps"] == 4 and manifest["rollouts"] == len(with_rollouts) * 8
    assert manifest["tokens"] > 4 * 2 * 52, "two prompts a step at least, of 52 picture tokens each"
    # A step's seconds are part of the training's, and no evaluation is.
    assert 0 < sum(row["seconds"] for row in steps) <= manifest["train_s"] == 4 * manifest["s_per_step"]
    assert manifest["settings"]["learning_rate"] == [profile.learning_rates[phase] for phase in {
        "sft": ["sft"], "full_dyme": ["full_dyme"], "sft_grpo": ["sft", "sft_grpo"]}[method]]


def test_a_run_ends_with_what_it_came_to_and_where_it_lies(root: Path, executed, caplog) -> None:
    run, manifest = smoke("sft"), executed["sft"]
    said = training.summary(run, manifest, keep_policy=True)
    assert f"test {100 * manifest['results']['test']['correct']:.1f} %" in said
    assert all(Path(path.rstrip(",")).exists() for path in said.split() if path.startswith("/")) and said.count(str(root)) == 2
    assert "policy" not in training.summary(run, manifest, keep_policy=False)


def test_steps_are_reported_where_the_profile_says(tmp_path: Path) -> None:
    for name in ("none", "trackio"):
        run = Run(config.load_profile("smoke", report_to=name), "sft")
        assert trainers.shared_arguments(run, 2, 1e-3, tmp_path)["report_to"] == name
    with pytest.raises(ValueError, match="report_to"):
        config.load_profile("smoke", report_to="mail")


FEW = [("sft", 3, 4), ("full_dyme", 1, 4)]


@pytest.mark.parametrize(("method", "rows", "prompts"), FEW)
def test_fewer_rows_than_prompts_of_a_step_train_all_the_same(root: Path, method: str, rows: int, prompts: int) -> None:
    run = Run(config.load_profile("smoke", **SMALL | {
        "world.train_questions": rows, "training.prompts_per_step": prompts, "training.steps": 2,
        "engine.micro_batches": 2}), method, variant=f"few{rows}")
    manifest = training.execute(run, ("validation",))
    steps = [row for row in lines(root / "results" / "local" / "smoke" / "logs" / f"{run.name}.jsonl.xz")
             if row["event"] == "step"]
    assert manifest["steps"] == len(steps) == 2
    if method == "full_dyme":
        assert {row["memorize"] + row["explore"] + row["mastered"] for row in steps} == {prompts}
    base, policy = (load_file(folder / "model.safetensors") for folder in (root / "bases" / "svlm-s0", run.folder / "policy"))
    assert not all(policy[name].equal(base[name]) for name in base)
    for path in (root / "results" / "local" / "smoke").glob(f"*/{run.name}.json*"):
        path.unlink()  # the report below shall see its own runs only


def test_a_stream_shorter_than_a_step_is_refused_and_16_bit_weights_are_warned_of(root: Path, tmp_path: Path, caplog) -> None:
    model, processor = loading.load_policy(root / "bases" / "svlm-s0", dtype=torch.bfloat16)
    stream = datasets.to_dataset(datasets.mini_records("train", 3, 0)).to_iterable_dataset()
    trainer = DyMETrainer(model, dyme_rewards(RuleChecker()), DyMEConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=2, max_completion_length=8, use_cpu=True,
        bf16=False, report_to="none"), stream, processing_class=processor)
    with pytest.raises(ValueError, match="no step was taken: the data set ended before"):
        trainer.train()
    assert "trained weights have 16 bits" in caplog.text


def test_a_split_that_the_data_set_lacks_is_refused_before_training(root: Path) -> None:
    with pytest.raises(ValueError, match="split must name one of data.held_out"):
        training.execute(smoke("sft", **{"data.held_out": ["validation", "test"]}), ("unseen",))


def test_rows_that_fill_a_step_are_used_equally_often() -> None:
    three = datasets.to_dataset(datasets.mini_records("train", 3, 0))
    assert Counter(datasets.fill_step(three, 4)["item"]) == dict.fromkeys(three["item"], 4), "12 rows are three whole steps"
    assert datasets.fill_step(three, 3) is three and datasets.fill_step(three, 2) is three
    with pytest.raises(schema.DataError, match="expected rows to train on, got none"):
        datasets.fill_step(three.select([]), 1)


def test_a_run_of_one_step_learns_in_it() -> None:
    for steps, warmup in ((1, 0), (2, 2)):
        assert trainers.shared_arguments(smoke("sft"), steps, 1e-3, Path("x"))["warmup_steps"] == warmup


def test_training_that_ends_early_is_an_error_and_that_without_a_gradient_a_warning(root: Path, monkeypatch, caplog) -> None:
    step = trainers.ResumableSFTTrainer.training_step

    def without_gradient(self, model, *args, **kwargs):
        loss = step(self, model, *args, **kwargs)
        model.zero_grad()
        return loss

    monkeypatch.setattr(trainers.ResumableSFTTrainer, "training_step", without_gradient)
    training.execute(run := Run(config.load_profile("smoke", **SMALL), "sft", variant="still"), ("validation",))
    assert "no step changed the policy, every gradient was 0" in caplog.text
    for path in (root / "results" / "local" / "smoke").glob(f"*/{run.name}.json*"):
        path.unlink()

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = True

    monkeypatch.setattr(training.StepLog, "on_step_begin", stop)
    with pytest.raises(checkpointing.Untrained, match="training ended after 1 of 4 steps"):
        training.execute(Run(config.load_profile("smoke", **SMALL), "sft", variant="cut"), ("validation",))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_changes_every_parameter_but_those_of_the_vision_tower(root: Path, executed, method: str) -> None:
    base = load_file(root / "bases" / "svlm-s0" / "model.safetensors")
    policy = load_file(root / "runs" / "smoke" / smoke(method).name / "policy" / "model.safetensors")
    assert base.keys() == policy.keys()
    same = {name for name in base if base[name].equal(policy[name])}
    assert same == {name for name in base if "vision_tower" in name} and same


def test_a_model_of_your_own_is_estimated_tried_on_its_longest_sample_and_kept_with_a_card(root: Path, caplog) -> None:
    caplog.set_level("INFO")
    own = {"model": str(root / "bases" / "svlm-s0"), "training.steps": 1, "engine.micro_batches": 2,
           "engine.gradient_checkpointing": True, "data.held_out": ("validation", "test")}
    run = Run(config.load_profile("smoke", **SMALL | own), "grpo", variant="own")
    manifest = training.execute(run)
    told = [line for line in caplog.messages if line.startswith(("estimate, not measured: profile smoke", "longest sample"))]
    assert "on 1 x RTX 4090" in told[0] and "4 rows of" in told[1] and len(told) == 2
    assert manifest["base"] == run.profile.model and set(manifest["results"]) == {"validation", "test"}
    assert manifest["settings"]["engine"]["micro_batches"] == 2 and manifest["rollouts"] == 8
    card = (root / "runs" / "smoke" / run.name / "policy" / "README.md").read_text()
    assert f"# {run.name}" in card and f"| validation | {NUM} |" in card
    for path in (root / "results" / "local" / "smoke").glob(f"*/{run.name}.json*"):
        path.unlink()  # the report below shall see its own runs only


def test_methods_that_need_targets_refuse_questions_without_facts(root: Path, monkeypatch) -> None:
    bare = [replace(record, supervision=schema.NO_SUPERVISION) for record in datasets.mini_records("train", 8, 0)]
    monkeypatch.setattr(training.datasets, "of_profile", lambda profile, split, seed, bad: (
        bare if split == "train" else datasets.mini_records(split, 4, 0)))
    with pytest.raises(schema.DataError, match="none of 8 training questions has facts .* or train with grpo"):
        training.execute(smoke("full_dyme"))


def test_the_base_is_evaluated_and_trained_for_no_time(root: Path) -> None:
    manifest = training.execute(smoke("base"), ("validation",))
    assert manifest["steps"] == manifest["rollouts"] == manifest["tokens"] == 0 and manifest["settings"]["learning_rate"] == []
    assert 0 <= manifest["train_s"] < 1 and 0 <= manifest["cpu_s"] < 1
    rows = lines(root / "results" / "local" / "smoke" / "rows" / f"{manifest['run']}.jsonl.xz")
    assert [row["split"] for row in rows] == ["validation"] * NUM, "tuning leaves the test sets closed"


def test_a_run_learns_from_what_its_settings_spoil_and_is_measured_on_what_is_true(root: Path, monkeypatch) -> None:
    given = {"world.traces": "refined", "supervision.quality": "low", "supervision.corruption": 0.5,
             "world.train_real_share": 1.0, "world.left_out_kinds": ["gap", "count"], "training.steps": 1}
    trained, measured = [], []
    train, evaluate = trainers.sft_trainer, training.evaluate
    monkeypatch.setitem(trainers.TRAINERS, "sft", lambda session, *rest: (
        trained.extend(zip(session.records, session.experts.offline(session.records)([
            record.row for record in session.records]), strict=True)), train(session, *rest))[1])
    monkeypatch.setattr(training, "evaluate", lambda model, processor, records, **rest: (
        measured.append(records), evaluate(model, processor, records, **rest))[1])
    monkeypatch.setattr(training, "caption_match", lambda model, processor, records: len(records) / 1000)
    run = Run(config.load_profile("smoke", **SMALL | given), "sft", variant="spoilt")
    manifest = training.execute(run)
    assert {record.kind for record, _ in trained} == {"lookup", "peak", "lowest", "sum", "margin", "difference"}
    assert all(record.source != "generated" and "Comparing the values, " in target for record, target in trained)
    assert 0 < sum("misread_answer" in record.supervision for record, _ in trained) < len(trained)
    for split in ("validation", "test", "unseen"):
        records = next(records for records in reversed(measured) if records[0].split == split)
        assert [record.supervision for record in records] == [
            record.supervision for record in datasets.mini_records(split, NUM, 0)], "never spoilt, and of all kinds"
    assert manifest["captions"] == NUM / 1000 and manifest["supervision"]["quality"] == "low"
    for path in (root / "results" / "local" / "smoke").glob(f"*/{run.name}.json*"):
        path.unlink()  # the report below shall see its own runs only


def test_grpo_is_measured_on_thinking_but_learns_nothing_from_it(root: Path, monkeypatch, tmp_path: Path) -> None:
    run = smoke("grpo")
    model, processor = loading.load_policy(root / "bases" / "svlm-s0")
    records = datasets.mini_records("train", 2, seed=0)
    experts = training.Experts(run.profile.supervision, run.paths, tmp_path)
    session = trainers.Session(run, experts, model, processor, records, {}, BadRows(), datetime.now(UTC))
    trainer = trainers.grpo_trainer(session, trainers.shared_arguments(run, 1, 1e-4, tmp_path), [])
    said = []
    for record in records:  # all right and well formed; half of them name the facts
        grounded = RuleRefiner().refine(item_of(record.row))
        said += [write_response(thinking, record.answer) for thinking in (grounded, "We look at the chart.") for _ in (0, 1)]
    assert all(prompt_format.is_well_formed(text) for text in said)
    ids = [[*processor.tokenizer(text, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id]
           for text in said]
    monkeypatch.setattr(trainer, "_generate_single_turn", lambda *_: (ids, None))
    trainer.model.train()
    batch = trainer._generate_and_score_completions([row for row in trainer.train_dataset for _ in range(4)])
    assert batch["advantages"].tolist() == [0.0] * 8
    measured = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert (measured["format"], measured["accuracy"], measured["thinking"]) == (1.0, 1.0, 0.5)
    assert measured["zero_variance"] == 1.0, "what has weight 0 makes no difference between rollouts"
    assert torch.equal(trainer.reward_weights, torch.tensor([1.0, 1.0, 0.0]))


@pytest.fixture
def own_root(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository like `root`, of one test alone."""
    folder = tmp_path / "repository"
    for name in ("dyme_core", "bases"):
        shutil.copytree(root / name, folder / name)
    (folder / "pyproject.toml").touch()
    monkeypatch.setenv("DYME_ROOT", str(folder))
    return folder


def stub_training(root: Path, source: str) -> None:
    """Let a run's process execute this in place of training, without loading torch."""
    (root / "dyme_core" / "pipeline" / "train.py").write_text(source)
    (root / "dyme_core" / "ranks.py").write_text("start = stop = lambda: None\nis_writer = lambda: True\n")


FINISHES = """from dyme_core.utils import run_file, write_json, write_rows

def execute(run, *_, **__):
    for folder in (run.paths.rows, run.paths.logs):
        write_rows(run_file(folder, run.name), [])
    for path in (run.folder / "policy" / "config.json", run.manifest):
        write_json(path, {"steps": 0})
"""


def test_a_run_is_finished_until_a_setting_or_the_base_changes(own_root: Path) -> None:
    stub_training(own_root, FINISHES)
    run = smoke("base", **{"training.max_completion_tokens": 24})
    assert not scheduler.is_finished(run)
    assert scheduler.run_all([run]) == [run.name]
    assert scheduler.is_finished(run) and scheduler.run_all([run]) == []
    assert not scheduler.is_finished(smoke("base", **{"training.max_completion_tokens": 32}))
    rows = own_root / "results" / "local" / "smoke" / "rows" / f"{run.name}.jsonl.xz"
    for path in (own_root / "bases" / "svlm-s0" / "config.json", rows):
        stored = path.read_bytes()
        path.write_bytes(stored + b"\n") if path != rows else path.unlink()
        assert not scheduler.is_finished(run), path.name
        path.write_bytes(stored)
        assert scheduler.is_finished(run)
    (own_root / "dyme_core" / "trainer" / "rewards.py").write_text("")
    assert scheduler.is_finished(run), "changed code that gives the same rows makes no run stale; RESULTS_VERSION does"


FAILS = """import sys, time
print("\\n".join(f"line {number} of {sys.argv}" for number in range(20)), flush=True)
if "grpo" in sys.argv:
    sys.exit("ValueError: the culprit")
time.sleep(300)
"""


def test_a_failing_run_shows_the_end_of_its_output_and_ends_the_others(own_root: Path, monkeypatch) -> None:
    processes, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: processes.append(popen(*args, **kwargs)) or processes[-1])
    stub_training(own_root, FAILS)
    runs, start = [smoke("full_dyme"), smoke("grpo"), smoke("sft")], time.monotonic()
    with pytest.raises(scheduler.RunFailed) as caught:
        scheduler.run_all(runs)
    message = str(caught.value)
    assert message.startswith(f"{runs[1].name} ended with code 1") and message.endswith("ValueError: the culprit")
    assert "line 19 of" in message and "line 2 of" not in message, "only the end of a long output"
    assert [process.returncode for process in processes] == [-15, 1], "the other is ended, the third never started"
    assert not any(scheduler.is_finished(run) for run in runs) and time.monotonic() - start < 60


@pytest.mark.exhaustive
def test_the_report_draws_its_tables_and_figures_from_the_rows_of_ones_own_runs(root: Path, executed) -> None:
    results = root / "results" / "local" / "smoke"
    copies = [("sft_grpo", "grpo", "svlm"), ("full_dyme", "pure_dyme", "svlm"), ("sft", "base", "svlm"),
              ("sft", "sft", "large")]
    for source, method, model in [*copies, *((method, method, "svlm") for method in METHODS)]:  # what the report needs
        told = {"run": f"{model}-{method}-s0", "method": method, "model": model, "variant": ""}
        for folder in ("rows", "logs"):
            rows = utils.read_rows(results / folder / f"{smoke(source).name}.jsonl.xz")
            utils.write_rows(results / folder / f"{told['run']}.jsonl.xz", [row | told for row in rows])
        manifest = json.loads((results / "runs" / f"{smoke(source).name}.json").read_text())
        (results / "runs" / f"{told['run']}.json").write_text(json.dumps(manifest | told))

    report.write_all("smoke")
    drawn = {path.name: path.read_bytes() for folder in ("tables", "figures") for path in (results / folder).iterdir()}
    names = [f"{name}.{suffix}" for name in ("main", "cost") for suffix in ("csv", "md", "tex")]
    names += [f"{name}.{suffix}" for name in ("stability", "modes", "thinking", "performance", "kinds", "pseudo_thinking")
              for suffix in ("pdf", "png", "csv", "md")]  # the others need runs of the study
    assert set(names) <= set(drawn) and all(drawn.values())
    assert {name.partition(".")[0] for name in drawn} <= {*report.TABLES, *report.FIGURES}
    assert not (root / "paper_figures").exists(), "those are of the default profile"
