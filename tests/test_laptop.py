"""An ordinary laptop: a folder with a space and an umlaut, a home that cannot be written, no git, two runs at once, faults."""
from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from dyme_core import config, utils
from dyme_core.pipeline import train
from dyme_core.pipeline.checkpointing import Keeper
from dyme_core.pipeline.estimate import OutOfMemory
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.utils import CannotWrite

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"world.train_questions": 24, "world.validation_questions": 4, "world.test_questions": 4, "training.steps": 4,
         "training.evaluate_every": 4, "training.prompts_per_step": 2, "training.num_generations": 4, "save_every": 2}


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """A copy of the repository without git, in a folder whose name is as bad as names get."""
    root = tmp_path / "-my dÿme {0} {braces} %41%s #1 'q' \"q\" $HOME [ab]*;&"
    for part in ("dyme_core", "study", "scripts", "notebooks", "bases/svlm-s0", "pyproject.toml", "requirements.lock"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, root / part)
    return root


def start(root: Path, notebook: str) -> subprocess.Popen[str]:
    """`make paper PROFILE=smoke` for one notebook, as a terminal starts it, where no home can be written."""
    nowhere = "/proc/none"  # no folder can be made there, not even by root
    environment = {"HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PATH": "/nowhere", "OMP_NUM_THREADS": "1", "LANG": "C",
                   "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-m", "study", "paper", "--profile", "smoke", "--only", notebook], cwd=root,
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


@pytest.mark.exhaustive
@pytest.mark.promise("laptop", "notebooks run in a folder with a space and an umlaut, without git or a home, two runs at once")
def test_notebooks_run_in_an_awkward_place_twice_at_once(awkward: Path) -> None:
    runs = [start(awkward, "01") for _ in range(2)]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(said)[-3000:]
    made = json.loads((awkward / "results" / "local" / "smoke" / "manifest.json").read_text())
    assert made["commit"] is None and len(list((awkward / "results" / "local" / "smoke" / "notebooks").glob("01*.ipynb"))) == 1
    assert not list(awkward.rglob("*.part"))


@pytest.mark.exhaustive
@pytest.mark.promise("laptop", "Ctrl-C at any moment: nothing half written is left, and the same command finishes the work")
def test_after_ctrl_c_the_same_command_finishes_the_work(awkward: Path) -> None:
    """Ctrl-C, to all processes of the terminal, at moments drawn at random, from the start of Python to the last cell."""
    rng, ends = random.Random(0), []
    while len(ends) < 5:
        run = start(awkward, "01")
        try:
            run.communicate(timeout=rng.uniform(0.5, 12))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGINT)
            said = run.communicate(timeout=60)[0]
            assert run.returncode != 0, said[-2000:]
        ends.append(run.returncode)
        assert not list((awkward / "results").rglob("*.part")) if (awkward / "results").exists() else True
    last = start(awkward, "01")
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said[-3000:]
    assert sum(code != 0 for code in ends) >= 3 and 130 in ends
    assert len(list((awkward / "results" / "local" / "smoke" / "notebooks").glob("01*.ipynb"))) == 1


@pytest.fixture
def run(root: Path) -> train.Run:
    torch.set_num_threads(1)
    return train.Run(config.load_profile("smoke", **SMALL), "pure_dyme")


FAULTS = {
    "a full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
    "results that cannot be written": (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
}


@pytest.mark.promise("faults", "a full disk or results that cannot be written: the error says so, the same command finishes")
@pytest.mark.parametrize(("place", "fault"), [("checkpoint", "a full disk"), ("results", "results that cannot be written")])
def test_what_cannot_be_written_is_said_and_earlier_work_is_kept(run, monkeypatch, fault: str, place: str) -> None:
    error, said = FAULTS[fault]
    write = utils.write_atomic

    def failing(path: Path, content) -> None:
        if ("results" in path.parts) if place == "results" else path.parent.name == "checkpoint-4":
            raise error
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(utils, "write_atomic", failing)
        with pytest.raises(CannotWrite, match=f"{run.name} cannot be written: {said}; .* MiB are free.* goes on"):
            train.execute(run, ("validation",))
    assert train.execute(run, ("validation",))["resumed"] == [4 if place == "results" else 2]


@pytest.mark.exhaustive
@pytest.mark.promise("faults", "a full disk or results that cannot be written: the error says so, the same command finishes")
@pytest.mark.parametrize(("writer", "said"), [("_save_checkpoint", "File too large"), (
    "_save_optimizer_and_scheduler", "torch wrote a file in part only")], ids=["weights", "optimiser"])
def test_a_file_that_the_system_cuts_off_is_reported(run, writer: str, said: str, monkeypatch) -> None:
    """The system itself refuses to write on: from the second checkpoint's weights or optimiser on, no file has over 1 MiB."""
    resource = pytest.importorskip("resource")
    before, write = resource.getrlimit(resource.RLIMIT_FSIZE), getattr(Trainer, writer)

    def limited(self, *args, **kwargs):
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, writer, limited)
        try:
            with pytest.raises(CannotWrite, match=f"{said}; .*goes on from the last checkpoint"):
                train.execute(run, ("validation",))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert train.execute(run, ("validation",))["resumed"] == [2]


@pytest.mark.promise("faults", "out of memory in a step: the error names what to lower, and the run goes on")
def test_out_of_memory_in_a_step_is_reported_with_what_to_lower(run, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    loss = DyMETrainer._compute_loss

    def greedy(self, model, inputs):
        if self.state.global_step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss(self, model, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(DyMETrainer, "_compute_loss", greedy)
        with pytest.raises(OutOfMemory, match=r"step 4 of 4.*engine.micro_batches.*max_completion_tokens.*goes on"):
            train.execute(run, ("validation",))
    assert train.execute(run, ("validation",))["resumed"] == [2]
    assert Keeper("").latest(run.paths.runs / run.name) is None, "checkpoints of a finished run are gone"
