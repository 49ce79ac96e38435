"""The runner on real, tiny notebooks: skipping, refusing, failing, interrupting, and what it leaves behind."""
from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from dyme_core import config, utils
from dyme_core.pipeline.methods import LIVE_FILE, Run
from study import cli
from study.runner import live, run_notebooks
from study.runner.execution import NotebookError
from study.runner.run_notebooks import Workspace

PARAMETERS = 'profile = "mini"\nseed = 0'
WRITE_ROWS = """import os
from pathlib import Path
rows = Path(os.environ["DYME_ROOT"], "results", "local", profile, "rows")
rows.mkdir(parents=True, exist_ok=True)
(rows / "run.jsonl").write_text(f"seed {seed}\\n")"""
READ_ROWS = """import os
from pathlib import Path
print(Path(os.environ["DYME_ROOT"], "results", "local", profile, "rows", "run.jsonl").read_text())"""


def write_notebook(root: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {"name": "dyme", "display_name": "a kernel that is not registered here"}
    nb.cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    nb.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def start(workspace: Workspace, *only: str, **settings: object) -> None:
    run_notebooks.run_jobs(workspace, run_notebooks.plan_jobs(workspace, only, settings))


def manifest(workspace: Workspace) -> dict:
    return json.loads(workspace.manifest.read_text())


def text_output(path: Path) -> str:
    nb = nbformat.read(path, as_version=4)
    return "".join(out.get("text", "") for cell in nb.cells for out in cell.get("outputs", []))


def command(root: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "DYME_ROOT": str(root), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-m", "study", "paper", "--profile", "smoke", *arguments], cwd=root,
                            env=environment, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored in the background


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    root = tmp_path / "-a {braces} {0} %41%s #1 'q' \"q\" $HOME [ab]* ü;&"
    (root / "notebooks").mkdir(parents=True)
    (root / "requirements.lock").write_text("numpy==2.4.6\n")
    return Workspace(config.Paths(root, "smoke"))


def test_a_notebook_runs_again_only_when_something_it_depends_on_changed(workspace: Workspace) -> None:
    root = workspace.root
    write_notebook(root, "01_write", WRITE_ROWS)
    write_notebook(root, "02_read", READ_ROWS)

    def stale(**settings: object) -> list[str]:
        return [job.name for job in run_notebooks.plan_jobs(workspace, settings=settings) if not workspace.is_finished(job)]

    start(workspace)
    assert text_output(workspace.target("02_read")) == "seed 0\n\n" and stale() == []
    write_notebook(root, "02_read", READ_ROWS, "print('one more cell')")
    assert stale() == ["02_read"]
    (workspace.paths.rows / "run.jsonl").unlink()
    assert stale() == ["01_write", "02_read"], "a result is gone"
    start(workspace, "01")
    assert stale() == ["02_read"]
    start(workspace, "01", seed=3)
    assert stale() == ["01_write", "02_read"] and stale(seed=3) == ["02_read"], "what it reads is of another seed"
    start(workspace, seed=3)
    assert text_output(workspace.target("02_read")) == "seed 3\n\none more cell\n" and stale(seed=3) == []
    (root / "requirements.lock").write_text("numpy==2.4.7\n")
    assert stale(seed=3) == ["01_write", "02_read"]
    assert "seed 3" not in (root / "notebooks" / "02_read.ipynb").read_text(), "sources stay without outputs"


def test_copy_and_manifest_carry_what_a_reader_needs_and_nothing_volatile(workspace: Workspace) -> None:
    write_notebook(workspace.root, "01_where", "import sys, os\nprint(os.environ['DYME_ROOT'])\nprint(sys.executable)\n"
                   "print(os.getcwd(), os.environ['OMP_NUM_THREADS'])", parameters='profile = "mini"')
    write_notebook(workspace.root, "02_seed", "print(profile, seed)")
    start(workspace, seed=5)
    copy = nbformat.read(workspace.target("01_where"), as_version=4)
    assert text_output(workspace.target("01_where")).splitlines() == [
        ".", sys.executable.replace(str(Path.home()), "~"), f"./notebooks {os.environ.get('OMP_NUM_THREADS', '1')}"]
    assert "papermill" not in copy.metadata
    assert not any({"papermill", "execution"} & cell.metadata.keys() for cell in copy.cells)
    assert text_output(workspace.target("02_seed")) == "smoke 5\n"
    recorded = manifest(workspace)
    assert recorded["notebooks"]["01_where"]["parameters"] == {"profile": "smoke"}, "it declares no seed"
    assert recorded["notebooks"]["02_seed"]["parameters"] == {"profile": "smoke", "seed": 5}
    assert {"commit", "dirty", "versions", "cpu"} <= recorded.keys()
    assert all(entry["seconds"] > 0 for entry in recorded["notebooks"].values())


def test_wrong_requests_are_refused_with_what_would_be_right(workspace: Workspace) -> None:
    write_notebook(workspace.root, "01_a", "1")
    with pytest.raises(ValueError, match=r"unknown parameter 'sed'.*know: seed$"):
        run_notebooks.plan_jobs(workspace, settings={"sed": 1})
    with pytest.raises(ValueError, match="takes a int such as 0, got 'one'"):
        run_notebooks.plan_jobs(workspace, settings={"seed": "one"})
    with pytest.raises(ValueError, match="--profile"):
        run_notebooks.plan_jobs(workspace, settings={"profile": "mini"})
    with pytest.raises(ValueError, match="'07'.*01_a"):
        run_notebooks.plan_jobs(workspace, only=["07"])


@pytest.mark.parametrize("content", ["", "<<<<<<< HEAD\n{}", "[]", "{}", '{"cells": 3}', "\0" * 9])
def test_what_is_no_notebook_is_refused_by_its_name(workspace: Workspace, content: str) -> None:
    path = write_notebook(workspace.root, "01_a", "1")
    path.write_text(content)
    with pytest.raises(ValueError, match="01_a.ipynb is no notebook"):
        run_notebooks.plan_jobs(workspace)


def test_a_default_that_is_no_plain_value_is_refused_with_its_notebook(workspace: Workspace) -> None:
    write_notebook(workspace.root, "01_a", "1", parameters="seeds = range(3)")
    with pytest.raises(ValueError, match="01_a.ipynb: the parameters' defaults must be plain values"):
        run_notebooks.plan_jobs(workspace)


@pytest.mark.parametrize("content", ["", "<<<<<<< HEAD\n{}", "[]", "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_none_is_refused_by_its_name_on_the_command_line(workspace: Workspace, content: str, monkeypatch,
                                                                           capsys) -> None:
    monkeypatch.setenv("DYME_ROOT", str(workspace.root))
    write_notebook(workspace.root, "01_a", "1")
    for path, command in ((workspace.manifest, ["paper"]), (workspace.paths.manifests / "svlm-sft-s0.json", ["figures"])):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, "--profile", "smoke"])
        assert f"{path.name} " in (said := capsys.readouterr().err) and "JSON" in said and "Traceback" not in said


def test_a_failing_cell_is_shown_and_keeps_the_last_good_copy(workspace: Workspace) -> None:
    write_notebook(workspace.root, "01_good", "print('good')")
    write_notebook(workspace.root, "02_bad", "print('once')")
    start(workspace)
    last_good = workspace.target("02_bad").read_text()
    write_notebook(workspace.root, "02_bad", "numerator = 3", "numerator / 0  # the culprit")
    with pytest.raises(NotebookError) as caught:
        start(workspace)
    message = str(caught.value)
    assert "02_bad failed in cell In[4]: ZeroDivisionError: division by zero" in message
    assert "numerator / 0  # the culprit" in message
    assert workspace.target("02_bad").read_text() == last_good
    failed = workspace.stamps / "02_bad.failed.ipynb"
    assert str(failed) in message and failed.is_file()
    good, bad = run_notebooks.plan_jobs(workspace)
    assert workspace.is_finished(good) and not workspace.is_finished(bad)


def test_a_kernel_that_dies_is_reported_as_such(workspace: Workspace) -> None:
    write_notebook(workspace.root, "01_dies", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match="the kernel died.*memory"):
        start(workspace)
    assert not workspace.target("01_dies").exists()


def test_the_command_exits_with_one_for_a_failing_cell_and_two_for_a_wrong_request(workspace: Workspace, monkeypatch, caplog,
                                                                                  capsys) -> None:
    write_notebook(workspace.root, "01_bad", "raise KeyError('gone')")
    monkeypatch.setenv("DYME_ROOT", str(workspace.root))
    with pytest.raises(SystemExit, match="1"):
        cli.main(["paper", "--profile", "smoke"])
    assert "KeyError: 'gone'" in caplog.text and "raise KeyError('gone')" in caplog.text
    with pytest.raises(SystemExit, match="2"):
        cli.main(["paper", "--profile", "smoke", "--set", "speed=2"])
    assert "unknown parameter 'speed'" in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_half_written_result_and_no_process(workspace: Workspace, number: int) -> None:
    write_notebook(workspace.root, "01_slow", WRITE_ROWS.replace('"run.jsonl"', '"run.jsonl.1.part"'),
                   "import subprocess, sys, time\nsleep = 'import time; time.sleep(300)'\n"
                   "child = subprocess.Popen([sys.executable, '-c', sleep], start_new_session=True)\n"
                   "Path(os.environ['DYME_ROOT'], 'pids').write_text(f'{os.getpid()} {child.pid}')\ntime.sleep(300)")
    run = command(workspace.root)
    pids = workspace.root / "pids"
    deadline = time.monotonic() + 30
    while not (pids.is_file() and pids.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    run.send_signal(number)
    output = run.communicate(timeout=30)[1]
    assert run.returncode == 130 and output.strip().splitlines()[-1].startswith("interrupted")
    assert "Traceback" not in output
    assert not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split())
    left = [path.name for path in workspace.paths.results.rglob("*") if path.is_file()]
    assert left in ([], ["lock"])


def test_the_time_left_is_what_the_last_runs_took(workspace: Workspace, caplog, monkeypatch) -> None:
    caplog.set_level("INFO")
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    job = run_notebooks.Job(write_notebook(workspace.root, "03_train", *["1"] * 6), {})
    progress = run_notebooks.Progress(job, expected_s=60.0, later_s=30.0)
    progress.on_cell(cell=None, cell_index=1)  # too soon to be shown
    for now[0], cell in ((20.0, 2), (100.0, 4)):
        progress.on_cell(cell=None, cell_index=cell)
    now[0] = 115.0
    progress.write("\x1b[31mepoch 1\x1b[0m\repoch 2\n\n")
    assert caplog.messages == ["03_train: 8 cells, 1:00 last time", "03_train: cell 3 of 8, 0:20, about 1:10 left",
                               "03_train: cell 5 of 8, 1:40, about 0:30 left",
                               "03_train: cell 5 of 8, 1:55, about 0:30 left  | epoch 2"]


def test_a_terminal_has_one_line_that_is_written_over_and_wiped(monkeypatch) -> None:
    screen, now = io.StringIO(), [0.0]
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setenv("COLUMNS", "20")
    line = live.LiveLine()
    for now[0], text in ((1.0, "step 1"), (1.05, "too soon"), (2.0, "a text longer than the terminal is wide")):
        line.show(lambda text=text: text)
    line.wipe()
    assert screen.getvalue().split("\r\x1b[K") == ["", "step 1", "a text longer than ", ""]


def test_training_in_a_notebook_leaves_one_table(workspace: Workspace, monkeypatch) -> None:
    write_notebook(workspace.root, "01_train", "from study.runner import live\nlive.NOTEBOOK_S = 0\n"
                   "shown = live.LiveTable(lambda: '<p>table</p>')\nfor done in '12':\n    shown.show(lambda: f'{done} of 2')\n"
                   "shown.end()")
    start(workspace)
    [output] = nbformat.read(workspace.target("01_train"), as_version=4).cells[-1].outputs
    assert output.data["text/html"] == "<p>table</p>"


def test_the_table_of_a_training_says_how_far_each_run_is(workspace: Workspace, monkeypatch) -> None:
    monkeypatch.setenv("DYME_ROOT", str(workspace.root))
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    runs = {method: Run(config.load_profile("smoke"), method) for method in ("grpo", "sft", "base")}
    utils.write_rows(runs["grpo"].folder / LIVE_FILE, [
        {"event": "step", "step": 1, "loss": 3.0, "memorize": 2.0, "explore": 0.0, "mastered": 0.0},
        {"event": "eval", "step": 2, "correct": 0.25},
        {"event": "step", "step": 2, "loss": 0.5, "memorize": 1.0, "explore": 1.0, "mastered": 0.0}])
    text = live.table((name, run, *seconds) for (name, run), seconds in zip(
        runs.items(), ((100.0, None), (None, None), (None, 65.0)), strict=True))
    lines = [re.findall("<td>(.*?)</td>", line) for line in text.split("</tr>")]
    assert lines[1] == ["grpo", "<progress value=2 max=4></progress>", "2 of 4", "0.5", "1", "1", "0", "25.0 %",
                        "about 0:10 left"]
    assert lines[2] == ["sft", "", "0 of 4", *[""] * 5, "waits"] and lines[3] == ["base", *[""] * 7, "took 1:05"]


def test_a_profile_that_a_session_saved_is_named(workspace: Workspace, monkeypatch, caplog) -> None:
    monkeypatch.setenv("DYME_ROOT", str(workspace.root))
    write_notebook(workspace.root, "01_a", "print(profile)", parameters='profile = "gpu"')
    assert run_notebooks.run("smoke") == 0
    assert "01_a: a session saved profile 'gpu' in it; profile 'smoke' is run" in caplog.messages


def test_the_first_run_here_is_expected_to_take_as_long_as_the_published_one(workspace: Workspace) -> None:
    published = workspace.root / "results" / "smoke" / "manifest.json"
    assert workspace.last_seconds("01_a") is None
    utils.write_json(published, {"notebooks": {"01_a": {"seconds": 70.0}}})
    assert workspace.last_seconds("01_a") == 70.0


def test_outputs_left_in_a_notebook_by_a_session_do_not_make_it_run_again(workspace: Workspace) -> None:
    path = write_notebook(workspace.root, "01_a", "print('hello')")
    [job] = run_notebooks.plan_jobs(workspace)
    before = workspace.dependencies(job)
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].outputs, nb.cells[1].execution_count = [nbformat.v4.new_output("stream", text="hello")], 1
    nbformat.write(nb, path)
    assert workspace.dependencies(job) == before
    write_notebook(workspace.root, "01_a", "print('bye')")
    assert workspace.dependencies(job)["sources"] != before["sources"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "manifest.json"
    utils.write_json(path, {"seed": 1})
    with pytest.raises(UnicodeEncodeError):
        utils.write_atomic(path, "half a file \ud800")  # a lone surrogate cannot be encoded
    assert json.loads(path.read_text()) == {"seed": 1}
    assert [left.name for left in path.parent.iterdir()] == ["manifest.json"]


def test_results_do_not_make_a_checkout_dirty_but_sources_do(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True,
                              check=True).stdout.strip()

    assert utils.git_state(tmp_path) == {"commit": None, "dirty": None}, "not a repository"
    git("init", "--quiet")
    (tmp_path / "room.py").write_text("1")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "rows.jsonl").write_text("{}")
    assert utils.git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "room.py").write_text("2")
    assert utils.git_state(tmp_path)["dirty"] is True
