"""The study: unfinished runs, interruption and resuming, failures, registry; real runs of two steps in profile smoke."""
from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dyme_core import config, utils
from dyme_core.pipeline.methods import RESULTS_VERSION
from study import plan
from study.plan import Point
from study.runner import registry, run_all, scheduler

ROOT = Path(__file__).resolve().parents[2]
TINY = {"world.train_questions": 16, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 2,
        "training.prompts_per_step": 2, "training.num_generations": 2}
PLAN = """
import sys
from study import plan
from study.runner import scheduler
from study.plan import Point

plan.PROFILE, scheduler.POLL_S = "smoke", 0.1
plan.EXPERIMENTS = {"first": lambda: iter([Point("first", "a", "sft", "a", %(tiny)r, (0,), ("validation",))]),
                    "second": lambda: iter([Point("second", "b", "sft", "b", %(tiny)r | {"training.steps": %(steps)d}, (0,))])}
from study import cli
cli.main(["study", *sys.argv[1:]])
"""


def point(experiment: str, variant: str, method: str = "sft", seeds: tuple[int, ...] = (0,), **changes) -> Point:
    return Point(experiment, variant, method, variant, TINY | changes, seeds, ("validation",))


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A repository with the core's sources and seed 0's base, and nothing run in it yet."""
    for package in ("dyme_core", "study", "scripts"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "svlm-s0").symlink_to(ROOT / "bases" / "svlm-s0")
    monkeypatch.setenv("DYME_ROOT", str(tmp_path))
    monkeypatch.setenv(config.PUBLISH, "1")
    monkeypatch.setattr(scheduler, "POLL_S", 0.05)
    monkeypatch.setattr(plan, "PROFILE", "smoke")
    yield tmp_path


def declare(monkeypatch, *points: Point) -> None:
    """Make these the whole plan."""
    names = dict.fromkeys(each.experiment for each in points)
    monkeypatch.setattr(plan, "EXPERIMENTS", {
        name: lambda name=name: iter([each for each in points if each.experiment == name]) for name in names})


def finish(task: run_all.Task, **changes) -> None:
    """Leave what a finished run leaves."""
    run, paths = task.run, task.run.paths
    for folder in (paths.rows, paths.logs):
        utils.write_rows(utils.run_file(folder, run.name), [{**run.columns}])
    manifest = {**run.columns, "base": f"{run.model}-s{run.seed}", "results_version": RESULTS_VERSION,
                "settings": run_all.settings_of(run), "steps": 2, "seconds": 36.0, "cpu": "a CPU, 2 cores",
                "results": {split: {"correct": 0.5} for split in task.splits}}
    path = paths.results / "runs" / f"{run.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest | changes))


def study_process(root: Path, *arguments: str, steps: int = 2) -> subprocess.Popen:
    code = PLAN % {"tiny": TINY, "steps": steps}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=root, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=os.environ | {"PYTHONPATH": str(root)})


def stub_training(root: Path, source: str) -> None:
    """Let a run's process execute this in place of training, without loading torch."""
    (root / "dyme_core" / "pipeline" / "train.py").write_text(source)
    (root / "dyme_core" / "ranks.py").write_text("start = stop = lambda: None\nis_writer = lambda: True\n")


def manifest_of(root: Path, name: str) -> dict:
    path = root / "results" / "smoke" / "runs" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


@pytest.mark.exhaustive
def test_a_killed_study_goes_on_without_repeating_what_is_finished(root: Path) -> None:
    first, second, start = "svlm-sft-a-s0", "svlm-sft-b-s0", time.monotonic()
    killed = study_process(root, steps=300)  # the second run is far from its end when the first has ended
    while not manifest_of(root, first) and time.monotonic() - start < 120:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = manifest_of(root, first)
    assert made and not manifest_of(root, second)
    output = (root / "runs" / "published" / "smoke" / first / "output.log").read_text()
    assert f"{first}: step 0, validation: correct" in output and "%|" not in output, "no bars in what is shown live"
    os.killpg(killed.pid, signal.SIGKILL)  # a run outlives the study that was killed
    resumed = study_process(root)
    said = resumed.communicate(timeout=120)[1]
    assert resumed.returncode == 0, said
    assert "1 of 2 runs are finished" in said and f"{second} is finished" in said and f"{first} is finished" not in said
    assert manifest_of(root, first) == made and manifest_of(root, second)["steps"] == 2
    assert set(made["results"]) == {"validation"} and set(manifest_of(root, second)["results"]) == {
        "validation", "test", "unseen", "altered"}
    assert not (root / "runs" / "published" / "smoke" / first / "policy").exists(), "policies of variants are not kept"
    with (root / "results" / "smoke" / "registry.csv").open() as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert list(lines) == [first, second]
    assert (lines[first]["experiments"], lines[first]["steps"], lines[first]["base"]) == ("first", "2", "svlm-s0")
    assert lines[first]["validation"] == str(made["results"]["validation"]["correct"]) and lines[first]["test"] == ""
    assert float(lines[first]["learning_rate"]) == made["settings"]["learning_rate"][0] and "cores" in lines[first]["hardware"]


def test_ctrl_c_or_sigterm_ends_the_runs_under_way(root: Path) -> None:
    stub_training(root, "import time\ntime.sleep(300)\n")
    running = study_process(root, "--only", "second")
    output, start = root / "runs" / "published" / "smoke" / "svlm-sft-b-s0" / "output.log", time.monotonic()
    while not output.is_file() and time.monotonic() - start < 120:
        time.sleep(0.05)
    time.sleep(1)  # the study looks at its sources before it starts the run
    running.terminate()
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and "start the study again to go on" in said
    with pytest.raises(ProcessLookupError):
        os.killpg(running.pid, 0)  # nobody of its group is left
    assert not manifest_of(root, "svlm-sft-b-s0")


def test_a_run_is_to_do_again_where_settings_base_files_or_splits_are_not_those_of_the_plan(root: Path, monkeypatch) -> None:
    declare(monkeypatch, point("one", "a"), point("one", "b"))
    first, second = run_all.tasks()
    assert first.undone() == second.undone() == "to do"
    finish(first)
    assert first.is_finished() and second.undone() == "to do"
    declare(monkeypatch, point("one", "a", **{"training.steps": 4, "world.real_share": 0.25}))
    assert run_all.tasks()[0].undone() == "made with other settings: steps, world.real_share"
    assert replace(first, splits=("validation", "test")).undone() == "did not answer test"
    finish(first, base="svlm-s3")
    assert first.undone() == "made from base svlm-s3, not svlm-s0"
    finish(first, results_version=RESULTS_VERSION - 1)
    assert first.undone() == f"made by version {RESULTS_VERSION - 1} of the code, not {RESULTS_VERSION}"
    finish(first)
    utils.run_file(first.run.paths.logs, first.run.name).unlink()
    assert first.undone() == f"lacks {first.run.name}.jsonl.xz"
    (root / "dyme_core" / "trainer" / "rewards.py").write_text("")
    finish(first)
    assert first.is_finished(), "the manifest names the commit"
    finish(replace(first, splits=config.HELD_OUT))
    assert scheduler.is_finished(first.run) and not scheduler.is_finished(second.run), "a notebook needs no policy of it"


def test_a_setting_that_is_newer_than_a_run_counts_as_its_default(root: Path, monkeypatch) -> None:
    declare(monkeypatch, point("one", "a"))
    [task] = run_all.tasks()
    older = run_all.settings_of(task.run)
    del older["mastered"], older["world"]["left_out_kinds"]
    finish(task, settings=older)
    assert task.is_finished()
    declare(monkeypatch, point("one", "a", **{"training.mastered": "explore", "world.left_out_kinds": ("gap",)}))
    assert run_all.tasks()[0].undone() == "made with other settings: mastered, world.left_out_kinds"


def test_tasks_keep_the_order_of_experiments_and_put_long_runs_first_in_each(root: Path, monkeypatch) -> None:
    shared = replace(point("one", "", "grpo"), settings={})
    declare(monkeypatch, point("one", "x", "sft"), shared, point("two", "y", "grpo"), replace(shared, experiment="two"),
            replace(point("two", "z", "sft"), model="large"))
    assert [(task.experiment, task.run.name) for task in run_all.tasks()] == [
        ("one", "svlm-grpo-s0"), ("one", "svlm-sft-x-s0"), ("two", "large-sft-z-s0"), ("two", "svlm-grpo-y-s0")]
    assert [task.run.name for task in run_all.tasks(["two"])] == ["svlm-grpo-s0", "large-sft-z-s0", "svlm-grpo-y-s0"]
    assert registry.experiments_by_run()["svlm-grpo-s0"] == ["one", "two"]
    declare(monkeypatch, point("one", "x"), point("two", "x", **{"training.steps": 3}))
    with pytest.raises(ValueError, match="one and two mean different runs by svlm-sft-x-s0"):
        run_all.tasks()


def test_the_smol_worlds_plan_is_its_own_profiles_with_three_seeds() -> None:
    every = run_all.tasks(profile="smol")
    assert {task.run.profile.name for task in every} == {"smol"} and len(every) == len({task.run.name for task in every})
    assert {task.run.name for task in every if task.experiment != "tuning"} == {
        f"{setting}-s{seed}" for setting in plan.SMOL for seed in range(3)}
    with pytest.raises(ValueError, match="known: tuning, main, cost, refined"):
        run_all.tasks(["switch"], "smol")


def test_the_real_plan_names_no_two_runs_alike() -> None:
    every = run_all.tasks()
    assert len({task.run.name for task in every}) == len(every) > 200
    assert {task.experiment for task in every} == set(plan.EXPERIMENTS)


def test_a_failing_run_is_reported_and_does_not_stop_the_others(root: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    stub_training(root, "def execute(run, *_, **__):\n    if run.variant == 'bad':\n        raise KeyError('no good')\n")
    declare(monkeypatch, point("one", "bad", "grpo"), point("one", "good"))
    assert run_all.run_study() == 1
    assert "svlm-grpo-bad-s0 ended with code 1; the end of" in caplog.text and "KeyError: 'no good'" in caplog.text
    assert "svlm-sft-good-s0 is finished" in caplog.text


def test_when_the_time_is_up_nothing_is_started_and_the_list_shows_what_is_done(root: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    declare(monkeypatch, point("one", "a"), point("one", "b"), point("one", "c", **{"training.steps": 4}))
    finish(run_all.tasks()[1])
    assert run_all.run_study(hours=0) == 0
    assert "1 of 3 runs are finished" in caplog.text
    assert "the time is up: 2 not started, about 1 min left" in caplog.text
    assert not list((root / "runs").glob("*/*/output.log"))
    assert [line.split() for line in run_all.listing().splitlines()] == [
        ["one", "svlm-sft-c-s0", "to", "do"], ["one", "svlm-sft-a-s0", "finished"], ["one", "svlm-sft-b-s0", "to", "do"]]


def test_the_time_left_comes_from_finished_runs_of_the_same_method_and_model(root: Path, monkeypatch) -> None:
    declare(monkeypatch, point("one", "a"), point("one", "b", **{"training.steps": 200}), point("one", "c", "grpo"))
    jobs = [task.job() for task in run_all.tasks()]

    def left(jobs: list[scheduler.Job], spent_s: float = 0.0) -> str:
        return scheduler.time_left(scheduler.expected_seconds(jobs).values(), spent_s)

    assert left(jobs) == "time left unknown" and left([]) == "about 0 min left"
    made = [{"method": "sft", "model": "svlm", "steps": 2, "seconds": 72.0}, {"method": "sft", "model": "svlm", "steps": 2}]
    monkeypatch.setattr(scheduler, "read_manifests", lambda paths: made)
    assert left(jobs) == "about 1.0 h left and 1 runs of unknown length", "202 steps of 36 s by two"
    assert left(jobs, 720.0) == "about 55 min left and 1 runs of unknown length", "six minutes by two are over"
    here = replace(jobs[0].paths, is_published=False)
    monkeypatch.setattr(scheduler, "read_manifests", lambda asked: made if asked.is_published else [])
    base = scheduler.base_job(here, "svlm", 1)
    assert left([base, jobs[0]]) == "about 1.2 h left", "nothing ran here: the pace is the published runs'"
    assert left([base]) == "about 10 min left"


def test_the_live_line_reads_manifests_only_when_a_job_has_ended(root: Path, monkeypatch) -> None:
    declare(monkeypatch, point("one", "a"), point("one", "b"))
    reads = []
    monkeypatch.setattr(scheduler, "read_manifests", lambda paths: reads.append(paths) or [])
    queue = scheduler._Queue([task.job() for task in run_all.tasks()], stop_at_failure=False)
    count = len(reads)
    assert {queue.progress() for _ in range(5)} == {"0 of 2 done, time left unknown; "} and len(reads) == count


def test_missing_bases_are_built_before_the_runs_that_start_from_them(root: Path, monkeypatch) -> None:
    declare(monkeypatch, point("one", "a", seeds=(0, 1)), replace(point("two", "b", seeds=(1, 2)), model="large"))
    jobs = scheduler.with_bases(task.job() for task in run_all.tasks())
    assert [job.name for job in jobs] == ["svlm-sft-a-s0", "base svlm-s1", "svlm-sft-a-s1", "base large-s1",
                                          "large-sft-b-s1", "base large-s2", "large-sft-b-s2"]
    by_name = {job.name: job for job in jobs}
    assert by_name["base large-s2"].arguments == ("base", "--seed", "2", "--model", "large", "--threads", "1")
    assert by_name["base large-s2"].needs == by_name["base svlm-s1"].needs == "base svlm-s0", "which has the vision tower"
    assert by_name["large-sft-b-s1"].needs == "base large-s1"


BUILDER = """import sys
from pathlib import Path

def build_bases(seed, sizes, threads):
    if seed == 2:
        sys.exit("ValueError: no base for you")
    folder = Path("bases", f"svlm-s{seed}")
    folder.mkdir()
    (folder / "config.json").write_text(f"{seed} {sizes} {threads}")
"""


def test_a_base_is_built_once_said_aloud_and_its_failure_is_that_of_its_runs(root: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    (root / "scripts" / "pretrain.py").write_text(BUILDER)
    stub_training(root, "def execute(*_, **__):\n    pass\n")
    declare(monkeypatch, point("one", "a", seeds=(1, 2)), point("one", "b", seeds=(1,)))
    paths = config.paths("smoke")
    failed = scheduler.carry_out(scheduler.with_bases(task.job() for task in run_all.tasks()))
    assert failed.keys() == {"base svlm-s2", "svlm-sft-a-s2"}
    assert failed["base svlm-s2"].endswith("ValueError: no base for you")
    assert failed["svlm-sft-a-s2"] == "svlm-sft-a-s2 was not started: base svlm-s2 failed"
    assert all(f"{name} is finished" in caplog.messages for name in ("base svlm-s1", "svlm-sft-a-s1", "svlm-sft-b-s1"))
    assert (root / "bases" / "svlm-s1" / "config.json").read_text() == "1 ['svlm'] 1"
    assert "base svlm-s1 is missing: building it takes 10 to 30 minutes of one thread" in caplog.text
    assert scheduler.build_base(paths, "svlm", 3) == root / "bases" / "svlm-s3" and (root / "bases" / "svlm-s3").is_dir()
    with pytest.raises(scheduler.RunFailed, match="no base for you"):
        scheduler.build_base(paths, "svlm", 2)


def test_what_another_process_is_at_work_on_is_left_to_it(root: Path, monkeypatch) -> None:
    (root / "scripts" / "pretrain.py").write_text("import time\ntime.sleep(1)\n" + BUILDER)
    job = scheduler.base_job(config.paths("smoke"), "svlm", 1)
    left_behind = scheduler._start(job)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args) or popen(*args, **kwargs))
    assert scheduler.carry_out([job]) == {}
    assert job.is_finished() and started == [] and left_behind.process.wait() == 0


def test_the_same_rows_give_the_same_bytes_and_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"run": "a", "item": "1e5", "answer": "007", "prediction": "line\u2028separator and\nnewline"}] * 1000
    for name in ("a.jsonl.xz", "b.jsonl.xz", "c.jsonl"):
        utils.write_rows(tmp_path / name, rows)
        assert utils.read_rows(tmp_path / name) == rows
    packed = (tmp_path / "a.jsonl.xz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.xz").read_bytes() and 50 * len(packed) < (tmp_path / "c.jsonl").stat().st_size
