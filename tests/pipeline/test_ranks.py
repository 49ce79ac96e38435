"""A whole Full DyME run in two processes is the run of one: losses, modes, calls, files; a lost process ends it.

Run as a script (alone or under torchrun), the file is one process of such a run, whose rollouts are scripted.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from scripted_judge import judge, rule_draft
from scripted_server import ScriptedServer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dyme_core import config, ranks
from dyme_core.config import Engine
from dyme_core.data import datasets
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import item_of
from dyme_core.models import loading, tiny_onevision
from dyme_core.models.generation import decode
from dyme_core.pipeline import train as training
from dyme_core.supervision.refiner import DEFAULT_TEMPLATES, RuleRefiner
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.utils import read_rows
from study import cli

G, STEPS, LOST_AT = 4, 4, 1
WRONG = "We look at the chart.\n<answer>no idea</answer>"
SETTINGS = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": STEPS,
            "training.evaluate_every": STEPS, "training.num_generations": G, "training.probe_every": 2,
            "supervision.backend": "api", "world.traces": "refined", "save_every": 1}
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def rollout(row: dict, place: int) -> str:
    """What the policy "says" in a place of its group: by item all wrong, some right in two wordings, or all right."""
    kind, item = int(row["item"].rsplit("-", 1)[1]) % 4, item_of(row)
    if kind == 0 or kind < 3 and place in (1, 2):
        return WRONG
    thinking = DEFAULT_TEMPLATES[1].fill(item) if place == 0 else RuleRefiner().refine(item)
    return write_response(thinking, row["answer"])


def sample(trainer: DyMETrainer, prompt_ids, *args) -> tuple[list[list[int]], None]:
    """In place of the policy's sampling, which differs from process to process; one process is lost where the test says so."""
    if os.environ.get("LOSE_A_PROCESS") and ranks.rank() == 1 and trainer.state.global_step == LOST_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    first, tokenizer = ranks.rank() * len(prompt_ids), trainer.processing_class.tokenizer
    texts = [rollout(row, (first + place) % G) for place, row in enumerate(trainer._asked)]
    return [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in texts], None


def command(prompts: int, *launcher: str) -> list[str]:
    settings = [f"{name}={json.dumps(value)}" for name, value in {**SETTINGS, "training.prompts_per_step": prompts}.items()]
    return [sys.executable, *launcher, __file__, "--profile", "smoke", "--method", "full_dyme",
            *(f"--set={setting}" for setting in settings)]


def save_base(folder: Path) -> Path:
    """A repository with a random base, whose folder is returned."""
    (folder / "bases").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    processor, base = tiny_onevision.build_processor(), folder / "bases" / "svlm-s0"
    loading.save_policy(tiny_onevision.build_model("svlm", processor, 0), processor, base)
    return base


def train(folder: Path, server: ScriptedServer, prompts: int, *launcher: str, **environment: str
          ) -> subprocess.CompletedProcess[str]:
    """A run in a repository of its own, with a random base; one that was lost goes on."""
    if not (folder / "bases").exists():
        save_base(folder)
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(command(prompts, *launcher), capture_output=True, text=True, timeout=300, env=os.environ | {
        "DYME_ROOT": str(folder), "PYTHONPATH": path, "OPENAI_BASE_URL": server.base_url, "OPENAI_MODEL": "m",
        "OPENAI_API_KEY": "none", **environment})


def scripted() -> ScriptedServer:
    """A judge that rates all "high" and drafts what the rules write."""
    return ScriptedServer(judge("high", rule_draft(datasets.mini_records("train", 24, 0))))


def results(folder: Path) -> tuple[list[dict], dict, list[dict]]:
    """The steps of the log, the manifest and the ledger of the one run in a repository."""
    stored, runs = folder / "results" / "local" / "smoke", folder / "runs" / "smoke"
    [made] = (stored / "runs").iterdir()
    log = read_rows(stored / "logs" / f"{made.stem}.jsonl.xz")
    ledger = [json.loads(line) for line in (runs / made.stem / "ledger.jsonl").read_text().splitlines()]
    return [row for row in log if row["event"] == "step"], json.loads(made.read_text()), ledger


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[int], tuple]:
    """Runs that nothing happens to, with so many prompts a step: in one process and in two, and what the second said."""
    @cache
    def made(prompts: int) -> tuple:
        folder = tmp_path_factory.mktemp("whole")
        with scripted() as server:
            ended = [train(folder / name, server, prompts, *launcher) for name, launcher in (("one", ()), ("two", LAUNCHER))]
        assert [each.returncode for each in ended] == [0, 0], ended[0].stderr[-1500:] + ended[1].stderr[-9000:]
        return results(folder / "one"), results(folder / "two"), ended[1].stderr

    return made


@pytest.mark.exhaustive
@pytest.mark.promise("several processes", "two processes train as one does: losses, modes, bank, and as many judge calls")
@pytest.mark.parametrize("prompts", [2, 1], ids=["whole groups", "a group on two processes"])
def test_two_processes_train_as_one_does_and_ask_the_judge_no_more(whole, prompts: int) -> None:
    (alone, one, one_ledger), (steps, two, two_ledger), said = whole(prompts)
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in alone], abs=1e-5)
    for name in ("memorize", "explore", "mastered", "without_target", "correct", "format"):
        assert [row[name] for row in steps] == [row[name] for row in alone], name
    assert sum(row["memorize"] for row in steps) > 0 and any(row["loss"] != 0 for row in steps)
    assert steps[0]["memorize_norm"] == pytest.approx(alone[0]["memorize_norm"], rel=1e-4), "the gradient of all rows"
    asked = [Counter((row["purpose"], row["item"]) for row in ledger) for ledger in (one_ledger, two_ledger)]
    drafts = [{key: number for key, number in counts.items() if key[0] == "refine"} for counts in asked]
    assert drafts[0] == drafts[1] and sum(drafts[1].values()) == sum(row["memorize"] for row in steps)
    if prompts == 2:
        assert asked[0] == asked[1] and any(purpose == "check" for purpose, _ in asked[0])
        assert [row["supervision_calls"] for row in steps] == [row["supervision_calls"] for row in alone]
        assert two["supervision"]["client"]["calls"] == one["supervision"]["client"]["calls"] == len(one_ledger)
        assert two["supervision"]["bank"] == one["supervision"]["bank"] and len(two["supervision"]["bank"]["counts"]) == 2
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (two["rollouts"], two["tokens"], two["settings"]) == (one["rollouts"], one["tokens"], one["settings"])
    lines = [line for line in said.splitlines() if f"step 1 of {STEPS}" in line]
    assert len(lines) == 1, "one process says how far the run is"


@pytest.mark.exhaustive
@pytest.mark.promise("several processes", "a lost process ends the run with a clear error; in two or in one it goes on")
@pytest.mark.parametrize("launcher", [LAUNCHER, ()], ids=["in two", "in one"])
def test_a_process_that_is_lost_ends_the_run_which_then_goes_on(tmp_path: Path, whole, launcher: tuple) -> None:
    start = time.monotonic()
    with scripted() as server:
        ended = train(tmp_path, server, 2, *LAUNCHER, LOSE_A_PROCESS="1")
        lost_s = time.monotonic() - start
        has_results = (tmp_path / "results" / "local" / "smoke" / "runs").exists() or list(tmp_path.rglob("*.part"))
        again = train(tmp_path, server, 2, *launcher)
        num_asked = len(server.seen)
    assert ended.returncode != 0 and lost_s < 120  # most of it is loading torch
    assert "Signal 9 (SIGKILL)" in ended.stderr and "rank      : 1" in ended.stderr
    assert not has_results
    assert again.returncode == 0, again.stderr[-3000:]
    (steps, manifest, ledger), (wanted, two, wanted_ledger) = results(tmp_path), whole(2)[1]
    assert manifest["resumed"] == [LOST_AT] and manifest["supervision"]["bank"] == two["supervision"]["bank"]
    same = ("memorize", "explore", "mastered", "correct", "thinking", *(("loss", "rows") if launcher else ()))
    assert [[row[name] for name in same] for row in steps] == [[row[name] for name in same] for row in wanted]
    assert [row["loss"] for row in steps] == pytest.approx([row["loss"] for row in wanted], abs=1e-5)
    assert [row | {"seconds": 0} for row in ledger] == [row | {"seconds": 0} for row in wanted_ledger]
    calls = [each["supervision"]["client"]["calls"] for each in (manifest, two)]
    assert calls == [num_asked] * 2, "none is paid twice"


def test_rows_are_dealt_evenly_or_refused() -> None:
    assert Engine().batch(32, 1) == {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1}
    assert Engine(micro_batches=8).batch(256, 8) == {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    assert Engine(micro_batches=16).batch(4, 1) == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    with pytest.raises(ValueError, match="9 rows a step cannot be dealt to 2 processes evenly"):
        Engine().batch(9, 2)
    with pytest.raises(ValueError, match="10 rows a step and process cannot be dealt to engine.micro_batches=4"):
        Engine(micro_batches=4).batch(10, 1)
    for name in ("gpu", "paper"):
        profile, cards = config.load_profile(name), {"gpu": 1, "paper": 8}[name]
        training = profile.training
        shape = profile.engine.batch(training.prompts_per_step * training.num_generations, cards)
        assert training.num_generations * training.prompts_per_step == cards * shape["per_device_train_batch_size"] * \
            shape["gradient_accumulation_steps"]


def test_alone_a_process_is_the_writer_and_has_all() -> None:
    assert (ranks.size(), ranks.rank(), ranks.is_writer()) == (1, 0, True)
    assert ranks.share([1, 2, 3]) == [1, 2, 3] and ranks.gather("x") == ["x"] and ranks.total({"calls": 2}) == {"calls": 2}


def dealt_out(folder: Path) -> None:
    """Saves a policy whose weights are dealt over the processes, as FSDP2 does it, answers with it, and notes what it said."""
    ranks.start()
    model, processor = training.load_start(training.Run(config.load_profile("smoke"), "base"))
    for part in (*model.model.language_model.layers, model):
        fully_shard(part, mesh=init_device_mesh("cpu", (ranks.size(),)))
    said = [each.text for each in decode(model, processor, datasets.mini_records("test", 2, seed=0), max_new_tokens=4)]
    state = ranks.whole_state(model)
    if ranks.is_writer():
        training.keep(model, processor, folder / "policy", json.loads((folder / "manifest.json").read_text()), state)
        (folder / "said.json").write_text(json.dumps(said))
    ranks.stop()


@pytest.mark.exhaustive
def test_weights_that_are_dealt_out_answer_and_are_saved_whole(tmp_path: Path) -> None:
    made = Path(__file__).parents[2] / "results" / "mini" / "runs" / "svlm-full_dyme-s0.json"
    (tmp_path / "manifest.json").write_text(made.read_text())
    base = save_base(tmp_path)
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run([sys.executable, *LAUNCHER, __file__, "dealt-out", str(tmp_path)], capture_output=True, text=True,
                           timeout=300, env=os.environ | {
                               "PYTHONPATH": path, "DYME_ROOT": str(tmp_path), "ACCELERATE_USE_FSDP": "true"})
    assert ended.returncode == 0, ended.stderr[-3000:]
    (model, processor), (plain, _) = loading.load_policy(tmp_path / "policy"), loading.load_policy(base)
    assert ranks.whole_state(model) is None, "every process holds these whole"
    assert all(tensor.equal(plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    said = [each.text for each in decode(plain, processor, datasets.mini_records("test", 2, seed=0), max_new_tokens=4)]
    assert json.loads((tmp_path / "said.json").read_text()) == said


if __name__ == "__main__":
    if sys.argv[1] == "dealt-out":
        dealt_out(Path(sys.argv[2]))
    else:
        DyMETrainer._generate_single_turn = sample
        cli.main(["train", *sys.argv[1:]])
