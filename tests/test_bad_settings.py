"""Settings, parameters, caches, checkpoints and servers that cannot be used: each is refused before anything runs."""
from __future__ import annotations

import json
import sqlite3
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hostile import REMEDY, assert_says, catch

from dyme_core import config
from dyme_core.config import Endpoint
from dyme_core.pipeline import methods, train
from dyme_core.pipeline.checkpointing import CHECKSUMS, Keeper
from dyme_core.supervision.llm.cache import Recording
from dyme_core.trainer.config import DyMEConfig
from dyme_core.utils import hash_file, write_json
from study import cli
from study.runner import run_notebooks
from study.runner.run_notebooks import Workspace

NAN, INF = float("nan"), float("inf")
WRONG_TYPES: dict[type, tuple[Any, ...]] = {  # of a default's type: values that JSON or a shell may bring
    int: ("many", True, 1.5, NAN, None, [1], {}, -1), float: ("much", True, NAN, INF, [0.5], {}, -1.0),
    bool: ("true", 1, 0.0, None, []), str: (3, True, None, [], {}), tuple: ("mini", 3, {}, [3], None)}
NULLABLE = ("train_real_share",)


def every_setting() -> list[tuple[str, Any]]:
    """All settings that have a value of a plain type in profile mini, as `load_profile` takes them."""
    profile = config.load_profile("mini")
    parts = {"": profile, **{f"{one.name}.": getattr(profile, one.name) for one in fields(profile)
                             if is_dataclass(getattr(profile, one.name))}}
    return [(f"{part}{one.name}", getattr(settings, one.name)) for part, settings in parts.items() for one in fields(settings)
            if type(getattr(settings, one.name)) in WRONG_TYPES and f"{part}{one.name}" not in ("name", "overrides")]


CASES = [(name, value) for name, default in every_setting() for value in WRONG_TYPES[type(default)]]


@pytest.mark.promise("bad input", "no setting takes a value of another type, NaN, infinity or a negative number")
@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value!r}" for name, value in CASES])
def test_a_setting_of_a_wrong_type_or_sign_is_refused(name: str, value: Any) -> None:
    assert_says(catch(lambda: config.load_profile("mini", **{name: value}), ValueError), name.rpartition(".")[2])


SETTINGS = {
    "an unknown part": {"trainig.steps": 3}, "an unknown key": {"training.step": 3},
    "a part of a number": {"training.steps.x": 3}, "an unknown method": {"learning_rates.dyme": 1e-3},
    "no methods": {"learning_rates": {}}, "few methods": {"warmup_steps": {"sft": 3}},
    "a part as text": {"training": "fast"}, "a part as object": {"engine": {"bf16": True}}, "a name": {"name": "../../x"},
    "overrides": {"overrides": []}, "a rate of 0": {"learning_rates.sft": 0.0}, "a rate of 10": {"learning_rates.sft": 10},
    "a rate as text": {"learning_rates.sft": "1e-3"}, "a rate of NaN": {"learning_rates.grpo": NAN},
    "warm-up of half a step": {"warmup_steps.sft": 0.5}, "no steps": {"training.steps": 0},
    "one rollout a prompt": {"training.num_generations": 1}, "no prompts": {"training.prompts_per_step": 0},
    "no tokens": {"training.max_completion_tokens": 0}, "a share of 2": {"training.sft_share": 2},
    "no questions": {"world.train_questions": 0}, "a share of -1": {"world.real_share": -0.1},
    "a share as text": {"world.train_real_share": "half"}, "evaluating every 0 steps": {"training.evaluate_every": 0},
    "an unknown weight": {"training.memorize_weight": "rows"}, "an unknown mode": {"training.mastered": "stop"},
    "an unknown gate": {"training.reward_gate": "product"}, "a value as text": {"training.switch_value": "8"},
    "an unknown judge": {"supervision.backend": "llm"}, "an unknown policy": {"supervision.policy": "zero"},
    "quality of a judge": {"supervision.backend": "api", "supervision.quality": "low"},
    "wrong facts of a judge": {"supervision.backend": "api", "supervision.corruption": 0.5},
    "corruption of 2": {"supervision.corruption": 2}, "no calls": {"supervision.max_concurrency": 0},
    "no tries": {"supervision.max_tries": 0}, "no time": {"supervision.total_timeout_s": 0},
    "no requests": {"supervision.requests_per_minute": 0}, "parameters as list": {"supervision.parameters": []},
    "a model as number": {"supervision.model": 7}, "no micro-batch": {"engine.micro_batches": 0},
    "4 bits and every weight": {"engine.load_in_4bit": True}, "adapters of rank 0": {"engine.lora_rank": 0},
    "rank 8.5": {"engine.lora_rank": 8.5}, "all memory": {"engine.vllm_memory_share": 1.0},
    "a data set without folder": {"data.name": "chartqa"}, "half of a test set": {"data.test_name": "own"},
    "no split": {"data.held_out": []}, "training's split": {"data.held_out": ["train"]},
    "a split twice": {"data.held_out": ["test", "test"]}, "an unknown way with rows": {"data.on_bad_row": "ignore"},
    "no model": {"model": " "}, "an unknown engine": {"backend": "vllm"}, "an unknown action": {"on_collapse": "pray"},
    "a seed of -1": {"seed": -1}, "a seed that numpy has not": {"seed": 2**32},
    "a price below 0": {"supervision.usd_per_million": [-1.0, 1.0]},
    "a seed as text": {"seed": "0"}, "saving every -1 steps": {"save_every": -1}}


@pytest.mark.promise("bad input", "settings that contradict each other, are unknown or out of range are refused before a run")
@pytest.mark.parametrize("fault", SETTINGS)
def test_settings_that_cannot_work_are_refused(fault: str) -> None:
    error = catch(lambda: config.load_profile("mini", **SETTINGS[fault]), ValueError)
    assert "got" in str(error) or "known:" in str(error)
    assert list(SETTINGS[fault])[-1].split(".")[0] in str(error) or list(SETTINGS[fault])[-1].split(".")[1] in str(error)


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    assert_says(catch(lambda: config.load_profile("../mini"), ValueError), "'../mini'", "gpu, paper, mini, smoke")


def test_every_profile_of_ours_and_lists_for_tuples_are_taken() -> None:
    for name in config.PROFILES:
        assert config.load_profile(name, **{"world.left_out_kinds": ["gap"], "training.switch_value": 1}).name == name


@pytest.mark.parametrize("text", ["training.steps", "=3", "training.steps=many", "training.steps=[", "training.steps=NaN",
                                  "training.steps=3.0", "training.stepz=3", "training.steps=",
                                  "seed=" + "9" * 5000, "a=" + "[" * 99999], ids=lambda text: text[:30])
def test_the_command_refuses_a_setting_with_a_sentence_and_no_traceback(text: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--profile", "smoke", "--method", "base", "--set", text])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and ("got" in said or "known:" in said)


@pytest.mark.parametrize(("switch", "value"), [("dual", None), ("", None), ("budget", -1), ("binary", 3.0)])
def test_an_unknown_switch_is_refused_before_anything_is_loaded(switch: str, value: float | None, monkeypatch) -> None:
    monkeypatch.setattr(train, "load_start", lambda run: pytest.fail("the model was loaded"))
    profile = config.load_profile("smoke", **{"training.switch": switch, "training.switch_value": value})
    assert "got" in str(catch(lambda: train.execute(train.Run(profile, "base")), ValueError))


COUNTS = [["evaluate", "--model=m", "--data=mini", "--out=o", option] for option in (
    "--limit=0", "--limit=-3", "--batch-size=0", "--batch-size=-1", "--max-new-tokens=0")]
COUNTS += [["train", "--method=sft", "--seed=-1"], ["train", "--method=sft", "--seed=99999999999"], ["base", "--threads=0"],
           ["base", "--seed=-1"], ["judge-server", "--port=70000"], ["judge-server", "--port=-1"], ["study", "--hours=-1"]]


@pytest.mark.parametrize("arguments", COUNTS, ids=" ".join)
def test_a_count_that_is_none_is_refused_by_every_command(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and arguments[-1].split("=")[0] in said and "Traceback" not in said


@pytest.mark.parametrize("wrong", [
    {"max_completion_length": 0}, {"max_completion_length": -3}, {"num_generations": 0}, {"per_device_train_batch_size": 0},
    {"gradient_accumulation_steps": 0}, {"learning_rate": -1.0}, {"probe_every": -1}, {"thinking_weight": NAN},
    {"max_steps": 0}, {"num_train_epochs": 0}], ids=str)
def test_a_trainer_s_count_that_is_none_is_refused(wrong: dict) -> None:
    error = catch(lambda: DyMEConfig("x", use_cpu=True, bf16=False, report_to="none", **wrong), ValueError)
    [(name, value)] = wrong.items()
    assert f"{name} must be at least" in str(error) or f"{name}={value}" in str(error)


@pytest.mark.parametrize("options", ["[1]", "{", "3", "null", "[" * 99999], ids=lambda text: text[:9])
def test_reader_options_that_are_no_object_are_refused(options: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "--model=m", "--data=mini", "--out=o", "--options", options])
    assert ended.value.code == 2 and "--options takes a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "named"), [({"method": "dyme"}, "method"), ({"seed": -1}, "seed"), ({"seed": 2**32}, "seed"),
                                              ({"variant": "../../x"}, "variant"), ({"variant": "a b"}, "variant")])
def test_a_run_that_cannot_be_is_refused_when_it_is_named(wrong: dict, named: str) -> None:
    error = catch(lambda: train.Run(**{"profile": config.load_profile("smoke"), "method": "sft", **wrong}), ValueError)
    assert str(error).startswith(named) and repr(wrong[named]) in str(error)


def test_sft_then_grpo_needs_a_step_in_each_phase(monkeypatch) -> None:
    monkeypatch.setattr(train, "load_start", lambda run: pytest.fail("the model was loaded"))
    run = train.Run(config.load_profile("smoke", **{"training.steps": 1}), "sft_grpo")
    said = str(catch(lambda: train.execute(run), ValueError))
    assert "got training.steps=1 with training.sft_share=0.5; raise the steps" in said


@pytest.mark.parametrize(("share", "steps"), [(0.0, [4]), (1.0, [4]), (0.5, [2, 2]), (0.1, [4])])
def test_a_phase_without_steps_is_left_out(share: float, steps: list[int]) -> None:
    run = train.Run(config.load_profile("smoke", **{"training.sft_share": share}), "sft_grpo")
    assert [number for _, number in methods.phase_steps(run)] == steps


# --- Notebooks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    nb = nbformat.v4.new_notebook()
    nb.cells = [nbformat.v4.new_code_cell('profile = "mini"\nseed = 0\nshare = 0.5\nname = "x"\nis_fast = False',
                                          metadata={"tags": ["parameters"]})]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nb, tmp_path / "notebooks" / "01_a.ipynb")
    return Workspace(config.Paths(tmp_path, "smoke"))


PARAMETERS = [{"sed": 1}, {"seed": "one"}, {"seed": True}, {"seed": 1.5}, {"seed": [1]}, {"seed": None}, {"share": "half"},
              {"share": True}, {"name": 3}, {"is_fast": 1}, {"is_fast": "yes"}, {"profile": "mini"}, {"__import__": 1},
              {"seed; import os": 1}]


@pytest.mark.parametrize("wanted", PARAMETERS, ids=str)
def test_a_parameter_that_no_notebook_has_or_of_another_type_is_refused(workspace: Workspace, wanted: dict) -> None:
    error = catch(lambda: run_notebooks.plan_jobs(workspace, settings=wanted), ValueError)
    assert next(iter(wanted)) in str(error) and ("know:" in str(error) or "takes" in str(error) or "--profile" in str(error))


def test_a_parameter_is_a_literal_and_never_run(workspace: Workspace, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    name, value = config.read_setting(f"name=__import__('pathlib').Path({str(target)!r}).touch()")
    run_notebooks.plan_jobs(workspace, settings={name: value})
    assert isinstance(value, str) and not target.exists()


# --- Caches --------------------------------------------------------------------------------------------------------------

REPLY = {"key": "a", "purpose": "check", "item": "i", "model": "m", "reply": {"rating": "high"}, "tokens_in": 1,
         "tokens_out": 2}
EXPORTS = {"no JSON": b"{", "a list": b"[]", "a number": b"1", "no key": json.dumps({**REPLY, "key": None}).encode(),
           "a list as key": json.dumps({**REPLY, "key": ["a"]}).encode(), "missing fields": b'{"key": "a"}',
           "no UTF-8": b"\xff\xfe{}", "nested too deep": b"[" * 100_000, "a pickle": b"\x80\x04K\x01.", "a merge mark": b"<<<<",
           "digits": b'{"key": ' + b"9" * 5000,
           "a reply that is a text": json.dumps({**REPLY, "reply": "high"}).encode()}


@pytest.mark.parametrize("fault", EXPORTS)
def test_an_export_that_is_none_is_refused_with_its_line(fault: str, tmp_path: Path) -> None:
    (tmp_path / "export.jsonl").write_bytes(json.dumps(REPLY).encode() + b"\n" + EXPORTS[fault] + b"\n")
    error = catch(lambda: Recording(tmp_path / "export.jsonl"), ValueError)
    assert "export.jsonl, line 2: expected a" in str(error) and REMEDY.search(str(error))


def foreign_table(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE replies (id INTEGER)")


CACHES = {"text": lambda path: path.write_text("no database, but long enough to be read as a header of one"),
          "a pickle": lambda path: path.write_bytes(b"\x80\x04K\x01." * 40), "another table": foreign_table,
          "a torn database": lambda path: path.write_bytes(b"SQLite format 3\0" + b"\0" * 200)}


@pytest.mark.parametrize("fault", CACHES)
def test_a_file_that_is_no_cache_is_refused_with_its_name(fault: str, tmp_path: Path) -> None:
    CACHES[fault](tmp_path / "cache.sqlite")
    error = catch(lambda: Recording(tmp_path / "cache.sqlite"), ValueError)
    assert "cache.sqlite is no recording" in str(error) and REMEDY.search(str(error))


def test_a_cached_row_that_is_no_json_is_refused_with_its_file(tmp_path: Path) -> None:
    with Recording(tmp_path / "cache.sqlite") as cache:
        cache.put(REPLY)
        for text in ("{", "[]", "[" * 100_000):
            cache._database.execute("UPDATE replies SET row = ?", (text,))
            assert_says(catch(lambda: cache.get("a"), ValueError), "cache.sqlite")


# --- Checkpoints ---------------------------------------------------------------------------------------------------------

TOLD = {"an object": "{}", "null": "null", "a text": '"x"', "files as text": '{"fingerprint": "f", "files": "ab"}',
        "files as list": '{"fingerprint": "f", "files": [1]}', "nested too deep": "[" * 100_000, "digits": "9" * 5000,
        "no UTF-8": b"\xff\xfe", "a pickle": b"\x80\x04K\x01.", "nothing": "",
        "another run": '{"fingerprint": "g", "files": {}}', "a file outside": '{"fingerprint": "f", "files": {"../x": "0"}}',
        "a number as sum": '{"fingerprint": "f", "files": {"a": 1}}'}


@pytest.mark.promise("bad input", "checksums that are damaged, foreign or hostile are reported; the checkpoint is not used")
@pytest.mark.parametrize("fault", TOLD)
def test_a_checkpoint_with_foreign_checksums_is_not_used(fault: str, tmp_path: Path, caplog) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "a").write_text("x")
    content = TOLD[fault]
    (folder / CHECKSUMS).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert Keeper("f").latest(tmp_path) is None and "checkpoint-2 is not used: " in caplog.text


def test_things_that_are_no_checkpoint_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "a").write_text("x")
    write_json(folder / CHECKSUMS, {"fingerprint": "f", "files": {"a": hash_file(folder / "a")}})
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-9").write_text("a file")
    (tmp_path / "checkpoint-8" / CHECKSUMS).mkdir(parents=True)
    assert Keeper("f").latest(tmp_path) == folder


# --- Servers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["localhost:80", "ftp://host/v1", "file" + ":///etc/passwd", "http://", "//host/v1",
                                 "javascript:1", "http://me:sk-planted-0123456789@host/v1", "http://me@host/v1", "x y"])
def test_an_address_that_is_none_is_refused_without_its_secret(url: str) -> None:
    error = catch(lambda: Endpoint(model="m", base_url=url), ValueError)
    assert "base_url must" in str(error) and "sk-planted" not in str(error)
