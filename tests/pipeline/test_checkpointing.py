"""Killed and resumed runs have the weights, logs and rows of uninterrupted ones; broken checkpoints are not used."""
from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from scripted_judge import judge, rule_draft
from scripted_server import ScriptedServer
from transformers import Trainer

from dyme_core import config, utils
from dyme_core.data import datasets
from dyme_core.models import loading
from dyme_core.models.resuming import ExactResume
from dyme_core.pipeline import callbacks, checkpointing, methods, train
from dyme_core.pipeline.checkpointing import CHECKSUMS, Keeper
from dyme_core.supervision.llm import cache, usage
from dyme_core.supervision.llm.usage import LEDGER_FILE, ROWS_FILE
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.utils import read_rows

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 4,
         "training.evaluate_every": 2, "training.prompts_per_step": 2, "training.num_generations": 4, "save_every": 2,
         "training.sft_share": 0.5}
BUDGET = {"training.switch": "budget", "training.switch_value": 5}  # a switch that counts, so that it has a state
TIMES = ("seconds", "generate_s", "score_s", "update_s", "supervision_waited_s")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("root")
    (place / "pyproject.toml").touch()
    shutil.copytree(ROOT / "bases" / "svlm-s0", place / "bases" / "svlm-s0")
    before = os.environ.get("DYME_ROOT")
    os.environ["DYME_ROOT"] = str(place)
    yield place
    os.environ.pop("DYME_ROOT") if before is None else os.environ.update(DYME_ROOT=before)


def run_of(method: str, variant: str, **changes) -> train.Run:
    return train.Run(config.load_profile("smoke", **SMALL | changes), method, variant=variant)


def execute(run: train.Run) -> dict:
    return train.execute(run, ("validation",))


def outcome(run: train.Run) -> dict:
    """What a run leaves, but for its name and for seconds."""
    def rows(folder: Path) -> list[dict]:
        return [{name: value for name, value in row.items() if name not in (*TIMES, "run", "variant")}
                for row in read_rows(folder / f"{run.name}.jsonl.xz")]

    folder = run.paths.runs / run.name
    return {"log": rows(run.paths.logs), "rows": rows(run.paths.rows), "bank": (folder / "bank.json").read_text(),
            "weights": (folder / "policy" / "model.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def never_stopped(root: Path) -> Callable[..., dict]:
    known: dict[str, dict] = {}

    def made(method: str, **changes) -> dict:
        key = repr((method, changes))
        if key not in known:
            execute(run := run_of(method, f"whole{len(known)}", **changes))
            known[key] = outcome(run)
        return known[key]

    return made


POINTS = ((DyMETrainer, "_generate_single_turn"), (DyMETrainer, "_switch"), (DyMETrainer, "compute_loss"),
          (Trainer, "_save_optimizer_and_scheduler"), (Trainer, "_save_rng_state"), (ExactResume, "_save_rng_state"),
          (checkpointing, "write_json"), (train, "evaluate"), (callbacks, "evaluate"), (train, "caption_match"),
          (loading, "save_policy"),
          (torch.optim.AdamW, "step"), (usage.Ledger, "book"), (cache.Recording, "put"), (usage.Ledger, "write"))


def die_at(count: int) -> None:
    """End this process, as a power cut would, where one of POINTS is passed for the `count`-th time: before it or after."""
    passed = iter(range(10**6))

    def passing(function: Callable) -> Callable:
        def deadly(*args, **kwargs):
            if next(passed) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = function(*args, **kwargs)
            if next(passed) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer
        return deadly

    for place, name in POINTS:
        setattr(place, name, passing(getattr(place, name)))


def launch(run: train.Run, processes: int, dying: int | None = None, reached: int = 0) -> int:
    """Execute the run in forked processes, of which `dying` ends at its point `reached`; the others end with it, as a launcher
    sees to. The wait status of the first that ended badly, else 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, ended = {_fork(run, rank, processes, port, reached if rank == dying else None) for rank in range(processes)}, 0
    while children:
        time.sleep(0.02)
        for child in list(children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children.discard(child)
                ended = ended or status
                for other in children if status else ():
                    os.kill(other, signal.SIGKILL)
    return ended


def _fork(run: train.Run, rank: int, processes: int, port: int, reached: int | None) -> int:
    child = os.fork()
    if child:
        return child
    signal.alarm(240)
    try:
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_PORT": str(port),
                           "MASTER_ADDR": "127.0.0.1"}
            AcceleratorState._reset_state(reset_partial_state=True)
        if reached is not None:
            die_at(reached)
        execute(run)
        train.ranks.stop()
        os._exit(0)
    except BaseException:
        logging.exception("the child failed")
        os._exit(1)


@pytest.fixture(scope="module")
def judged(root: Path) -> Iterator[Callable[[str], train.Run]]:
    """Runs of Full DyME behind an API, each with a recording of its own: none is served what another has paid for."""
    script = judge("high", rule_draft(datasets.mini_records("train", 24, 0)))
    with ScriptedServer(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_MODEL", "m")
        yield lambda variant: run_of("full_dyme", variant, **{
            "training.steps": 6, "training.evaluate_every": 3, "supervision.backend": "api", "world.traces": "refined",
            "supervision.recording": f"runs/{variant}.sqlite"})


def spent(run: train.Run) -> dict:
    """The ledger of a judged run but for seconds, and what its manifest says of supervision."""
    rows = [json.loads(line) for line in (run.paths.runs / run.name / LEDGER_FILE).read_text().splitlines()]
    told = json.loads((run.paths.results / "runs" / f"{run.name}.json").read_text())["supervision"]
    assert told["client"].pop("waited_s") > 0
    return {"ledger": [{name: value for name, value in row.items() if name != "seconds"} for row in rows], "supervision": told}


@pytest.mark.exhaustive
@pytest.mark.promise("resume", "a run killed at ten random points ends with the same weights, logs, bank, ledger and rows")
@pytest.mark.parametrize("processes", [1, 2], ids=["one process", "two processes"])
def test_a_run_killed_again_and_again_ends_like_an_uninterrupted_one(judged, processes: int) -> None:
    """At least ten kills at points drawn at random: generation, update, evaluation, a call, a checkpoint's writing, between."""
    whole, rng, kills, run = judged(f"whole-{processes}"), random.Random(processes), 0, None
    assert launch(whole, processes) == 0
    while kills < 10:
        run = judged(f"killed-{processes}-{kills}")
        while os.WIFSIGNALED(ended := launch(run, processes, rng.randrange(processes), rng.randrange(90))):
            kills += 1
        assert ended == 0, "it was not told to die before its end"
        assert outcome(run) == outcome(whole) and spent(run) == spent(whole)
        folder = run.paths.runs / run.name
        assert not [*folder.glob("phase-*"), *folder.glob(ROWS_FILE)]
    manifest = json.loads((run.paths.results / "runs" / f"{run.name}.json").read_text())
    assert manifest["train_s"] > 0 and manifest["processes"] == processes
    calls, asked = manifest["supervision"]["client"]["calls"], [manifest["supervision"][name]["asked"] for name in (
        "checker", "refiner")]
    assert 0 < calls <= sum(asked) == len(spent(run)["ledger"])


@pytest.mark.promise("resume", "every method goes on exactly from each of its checkpoints")
@pytest.mark.parametrize(("method", "changes", "steps"), [
    ("sft_grpo", {}, [2, 4]), ("pure_dyme", BUDGET, [2, 4]), pytest.param("sft", {}, [2, 4], marks=pytest.mark.exhaustive),
    pytest.param("sft_grpo", {"training.steps": 6}, [2, 3, 5, 6], marks=pytest.mark.exhaustive)], ids=str)
def test_every_method_goes_on_from_each_of_its_checkpoints(root: Path, never_stopped, method: str, changes: dict,
                                                           steps: list[int], monkeypatch) -> None:
    """Stopped right after each checkpoint, the last of all and that of a phase among them."""
    wanted, run = never_stopped(method, **changes), run_of(method, f"stopped{len(steps)}", **changes)
    on_save, saved = Keeper.on_save, []

    def stop(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        saved.append(state.global_step)
        raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "on_save", stop)
    while True:
        try:
            manifest = execute(run)
            break
        except KeyboardInterrupt:
            assert len(saved) < 10
    assert manifest["resumed"] == steps and len(saved) == len(steps)
    assert outcome(run) == wanted


@pytest.fixture(scope="module")
def two_checkpoints(root: Path) -> tuple[train.Run, Keeper, Path]:
    """A run that was stopped with two checkpoints on disk."""
    run, on_save = run_of("pure_dyme", "broken", **BUDGET), Keeper.on_save

    def stop(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "on_save", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(run)
    folder = run.paths.runs / run.name / "phase-0"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    return run, Keeper(methods.fingerprint(run)), folder


@pytest.mark.promise("resume", "weights are read back whatever names the files have for them")
def test_weights_come_back_under_the_names_that_the_model_has(two_checkpoints) -> None:
    """Trainer's own reading finds none of LLaVA-OneVision's, and would go on from the base."""
    run, _, folder = two_checkpoints
    base = run.paths.bases / "svlm-s0"
    model, _ = loading.load_policy(base)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    loading.load_weights(model, folder / "checkpoint-4")
    moved = {name for name, weight in model.state_dict().items() if not weight.equal(start[name])}
    assert moved and not [name for name in moved if "vision_tower" in name]
    names = load_file(folder / "checkpoint-4" / "model.safetensors").keys()
    assert not names & moved, "else Trainer could read them itself, and load_weights is needed no more"
    model.resize_token_embeddings(50)
    with pytest.raises(RuntimeError, match="size mismatch"):
        loading.load_weights(model, folder / "checkpoint-4")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FAULTS = {
    "a bit of the weights": (lambda folder: flip(folder / "model.safetensors"), "changed or torn: model.safetensors"),
    "a torn optimiser": (lambda folder: os.truncate(folder / "optimizer.pt", 1000), "changed or torn: optimizer.pt"),
    "a missing file": (lambda folder: (folder / "kept-0.json").unlink(), "missing or foreign: kept-0.json"),
    "a pickle from elsewhere": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04."),
                                "missing or foreign: pytorch_model.bin"),
    "no checksums": (lambda folder: (folder / CHECKSUMS).unlink(), "still being written, or is not from here"),
    "torn checksums": (lambda folder: os.truncate(folder / CHECKSUMS, 30), "cannot be read"),
    "checksums that are a list": (lambda folder: (folder / CHECKSUMS).write_text("[]"), "cannot be read"),
    "another run's": (lambda folder: (folder / CHECKSUMS).write_text(
        (folder / CHECKSUMS).read_text().replace('"fingerprint": "', '"fingerprint": "0')), "other settings, sources"),
}


@pytest.mark.promise("resume", "a torn, changed or foreign checkpoint is reported, and the one before it is used")
def test_a_broken_checkpoint_is_reported_and_the_one_before_it_is_used(two_checkpoints, never_stopped, caplog) -> None:
    run, keeper, folder = two_checkpoints
    newest, aside = folder / "checkpoint-4", folder.parent / "aside"
    shutil.copytree(newest, aside)
    assert keeper.latest(folder) == newest
    for fault, (break_it, said) in FAULTS.items():
        shutil.rmtree(newest)
        shutil.copytree(aside, newest)
        break_it(newest)
        caplog.clear()
        assert keeper.latest(folder) == folder / "checkpoint-2", fault
        assert said in caplog.text and str(newest) in caplog.text, fault
    flip(folder / "checkpoint-2" / "scheduler.pt")
    assert keeper.latest(folder) is None and "training starts anew" in caplog.text
    flip(folder / "checkpoint-2" / "scheduler.pt")
    manifest = execute(run)
    assert manifest["resumed"] == [2] and outcome(run) == never_stopped("pure_dyme", **BUDGET)
    live = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text().splitlines()]
    assert live == read_rows(utils.run_file(run.paths.logs, run.name)), "steps after the checkpoint stand there once"


def test_a_finished_run_leaves_no_checkpoint_and_none_is_made_where_none_is_wanted(root: Path, monkeypatch) -> None:
    saved = []
    monkeypatch.setattr(Keeper, "on_save", lambda self, args, state, control, **kwargs: saved.append(state.global_step))
    run = run_of("sft", "unsaved", save_every=0)
    assert execute(run)["resumed"] == [] and not saved
    assert not list((run.paths.runs / run.name).glob("phase-*"))
