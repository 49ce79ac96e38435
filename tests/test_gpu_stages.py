"""The stages for a card: a wrong value is found, results survive a stop, and all of it runs on a CPU (--dry)."""
from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correct, generation, networks, page, runs, script, shapes, stages, unsloth_path
from benchmarks.gpu.stages import NotHere, OutOfTime, Setting, check, run_stage
from dyme_core.models.generation import prompt_inputs
from dyme_core.trainer.dyme_trainer import DyMETrainer
from study import doctor
from study.cli import app

ROOT = Path(__file__).resolve().parents[1]
SHOWN = {name: shows for name, (shows, _) in command.STAGES.items()}
QUICK = {  # parts of the fast suite
    "memorize gradient, 32 bits", "cache and prefixes, sdpa", "out of memory", "text, vLLM", "text, continuous batching",
    "LLaVA-OneVision-0.5B, DyME, LoRA, checkpointing", "Qwen2.5-VL-3B, DyME, LoRA, checkpointing",
    "pictures, eager, shared prefixes", "pictures, cache of fixed size"}
exhaustive = pytest.mark.exhaustive


@pytest.fixture
def dry(tmp_path: Path) -> Setting:
    return Setting(torch.device("cpu"), is_dry=True, scratch=tmp_path / "scratch")


def each(*parts: dict) -> pytest.MarkDecorator:
    """A test for every part by its name; those that are not quick are exhaustive."""
    names = [name for some in parts for name in some]
    return pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=exhaustive) for name in names])


def raising(error: Exception, setting: Setting) -> dict:
    raise error


PARTS = {"holds": lambda setting: {"checks": [check("error", 1e-6, 1e-4)], "number": 3},
         "does not": lambda setting: {"checks": [check("error", 1e-3, 1e-4)]},
         "fails": partial(raising, ZeroDivisionError("why")),
         "lacks": partial(raising, NotHere("no such package")), "too slow": partial(raising, OutOfTime("later"))}


def states(result: dict) -> dict[str, str]:
    return {name: part["state"] for name, part in result["parts"].items()}


def test_a_part_that_fails_or_does_not_hold_is_written_and_stops_no_other(tmp_path: Path, dry: Setting) -> None:
    result = run_stage("some", PARTS, dry, tmp_path)
    assert states(result) == {"holds": "ok", "does not": "wrong", "fails": "failed", "lacks": "not run",
                              "too slow": "not reached"}
    stored = json.loads((tmp_path / "some.json").read_text())
    assert stored == result and stored["parts"]["holds"]["number"] == 3
    assert stored["parts"]["fails"]["error"] == "ZeroDivisionError: why"
    assert stored["parts"]["lacks"]["error"] == "no such package"
    assert stored["card"] == "cpu" and stored["dry"] and {"torch", "transformers", "trl"} <= set(stored["versions"])


def test_the_next_call_goes_on_with_what_was_not_reached_and_repeats_nothing_that_is_done(tmp_path: Path, dry: Setting) -> None:
    made: list[str] = []
    parts = {name: lambda setting, name=name: made.append(name) or {} for name in "abc"}
    parts["b"] = lambda setting: (made.append("b"), 1 / 0)
    ended = Setting(dry.device, True, dry.scratch, deadline=-math.inf)
    assert set(states(run_stage("some", parts, ended, tmp_path)).values()) == {"not reached"} and made == []
    assert states(run_stage("some", {name: parts[name] for name in "ab"}, dry, tmp_path)) == {"a": "ok", "b": "failed"}
    assert states(run_stage("some", parts, dry, tmp_path)) == {"a": "ok", "b": "failed", "c": "ok"}
    assert made == ["a", "b", "c", "b"], "first what was never tried, then what failed"


@pytest.mark.parametrize("changed", ["code", "versions", "card", "dry"])
def test_other_code_versions_or_another_card_start_anew(tmp_path: Path, dry: Setting, changed: str) -> None:
    made: list[str] = []
    parts = {"a": lambda setting: made.append("a") or {}}
    run_stage("some", parts, dry, tmp_path)
    path = tmp_path / "some.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {changed: "another"}))
    run_stage("some", parts, dry, tmp_path)
    assert made == ["a", "a"]


@pytest.mark.parametrize(("found", "holds"), [(0.1, True), (0.2, True), (0.21, False), (math.nan, False), (math.inf, False)])
def test_a_comparison_holds_up_to_its_limit_and_nan_holds_nowhere(found: float, holds: bool) -> None:
    assert check("error", found, 0.2)["holds"] is holds


@each(correct.parts())
def test_what_a_card_is_compared_with_holds_on_a_cpu(dry: Setting, name: str) -> None:
    found = stages._run(correct.parts()[name], dry)
    assert found["state"] == "ok", found


def test_a_memorize_gradient_that_is_a_little_too_large_is_found(dry: Setting, monkeypatch) -> None:
    plain = DyMETrainer._switch

    def heavier(self, inputs, batch):
        batch = plain(self, inputs, batch)
        batch["advantages"] = batch["advantages"] * 1.001
        return batch

    monkeypatch.setattr(DyMETrainer, "_switch", heavier)
    assert stages._run(correct.parts()["memorize gradient, 32 bits"], dry)["state"] == "wrong"


@exhaustive
def test_special_tokens_that_are_sampled_are_found(dry: Setting, monkeypatch) -> None:
    from dyme_core.trainer import grpo_trainer
    monkeypatch.setattr(grpo_trainer, "generation_kwargs", lambda *_: {"suppress_tokens": None})
    assert stages._run(correct.parts()["nothing suppressed is sampled, eager"], dry)["state"] == "wrong"


@exhaustive
def test_steps_that_go_another_way_are_found(dry: Setting, monkeypatch) -> None:
    plain, calls = script.train, []

    def other(model, processor, chosen, steps, *args, **changes):
        calls.append(chosen)
        return plain(model, processor, chosen if len(calls) == 1 else script.all_wrong, steps, *args, **changes)

    monkeypatch.setattr(script, "train", other)
    found = stages._run(correct.parts()["steps against the CPU"], dry)
    assert found["state"] == "wrong" and found["checks"][0]["found"] > 0


def test_differences_of_runs_count_numbers_and_answers_and_leave_times_out() -> None:
    run = {"log": [{"loss": 1.0, "generate_s": 2.0, "seconds": 3.0}], "rows": [{"prediction": "62"}]}
    other = {"log": [{"loss": 1.5, "generate_s": 2.5, "seconds": 3.5}], "rows": [{"prediction": "63"}]}
    assert runs.differences(run, run) == 0 and runs.differences(run, other) == 2


@pytest.mark.parametrize("family", networks.SIZES)
def test_the_sizes_written_out_are_those_of_the_real_models(family: str) -> None:
    model, processor = networks.build(family, torch.device("meta"))
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert round(millions) == networks.SIZES[family].millions
    if family == "qwen2":
        return
    [row] = networks.questions(1, None)
    inputs = prompt_inputs(processor, [row])
    shape = networks.shape(model, processor, [row])
    # A chart of 850 x 600: a base view and 3 x 2 tiles of 27 x 27 patches, of whose 81 columns 77 are not padding, with a
    # token at the end of each line; 13 views of 32 x 32, 16 a token; 7 of 32 x 32, four a token; 60 x 42, four a token.
    patches, tokens = {"llava_onevision": (7 * 27**2, 27**2 + 54 * (77 + 1)), "idefics3": (13 * 32**2, 13 * 64),
                       "internvl": (7 * 32**2, 7 * 256), "qwen2_5_vl": (60 * 42, 30 * 21)}[family]
    assert shape.patches == patches and int((inputs["input_ids"] == processor.image_token_id).sum()) == tokens


def test_real_charts_are_read_from_a_folder(tmp_path: Path) -> None:
    networks.questions(1, None)[0].image.save(tmp_path / "a.png")
    rows = networks.questions(3, tmp_path)
    assert [row.image for row in rows] == [tmp_path / "a.png"] * 3


@each(shapes.parts(is_dry=True))
def test_every_shape_is_measured_at_toy_size(dry: Setting, name: str) -> None:
    found = stages._run(shapes.parts(is_dry=True)[name], dry)
    assert found["state"] == "ok", found
    assert found["s_per_step"] == pytest.approx(sum(found[phase] for phase in shapes.PHASES))
    assert found["estimated"]["peak_gib"] > 0 < found["share_of_peak"] and found["tokens_per_s"] > 0


def test_every_true_shape_is_planned_and_the_usual_ways_come_first() -> None:
    names = list(shapes.parts())
    assert len(names) == len(set(names)) == 4 * 3 * 2 * 2
    assert all("LoRA, checkpointing" in name for name in names[:12]) and "every weight, all kept" in names[-1]


@each(generation.parts(is_dry=True))
def test_every_way_to_write_rollouts_is_measured_at_toy_size(dry: Setting, name: str) -> None:
    found = stages._run(generation.parts(is_dry=True)[name], dry)
    assert found["state"] == ("not run" if "vLLM" in name else "ok"), found


def test_without_unsloth_or_a_card_its_stage_measures_the_other_way_and_says_so(dry: Setting) -> None:
    found = {name: stages._run(part, dry) for name, part in unsloth_path.parts().items()}
    assert {name: part["state"] for name, part in found.items()} == {
        "transformers": "ok", "unsloth": "not run", "unsloth against transformers": "not run"}


def test_the_two_ways_are_compared_step_by_step(dry: Setting) -> None:
    folder = dry.scratch / "unsloth"
    folder.mkdir(parents=True)
    for backend, norm in (("unsloth", 1.0), ("transformers", 1.1)):
        (folder / f"{backend}.json").write_text(json.dumps({"s_per_step": 1.0, "peak_gib": 2.0, "log": [
            {"grad_norm": norm, "entropy": 3.0, "loss": 0.5}]}))
    found = stages._run(unsloth_path.compare, dry)
    assert found["state"] == "wrong" and [each["holds"] for each in found["checks"]] == [True, False, True]


@each(runs.process_parts(), runs.study_parts())
def test_runs_in_processes_of_their_own_at_toy_size(dry: Setting, name: str) -> None:
    parts = runs.process_parts() | runs.study_parts()
    if name.startswith("seed"):
        parts["bases of seeds 1 and 2"](dry)
    found = stages._run(parts[name], dry)
    assert found["state"] == ("not run" if name.startswith(("FSDP2", "ZeRO-2")) or name == "smol" else "ok"), found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_the_command_says_so_with_its_own_exit_code(capsys) -> None:
    assert command.main([]) == command.NO_CARD == 2
    assert "no CUDA card found" in capsys.readouterr().err


def test_exit_codes_say_whether_all_parts_hold(tmp_path: Path, dry: Setting, monkeypatch) -> None:
    for name, code in (("holds", 0), ("lacks", 0), ("does not", 1), ("fails", 1), ("too slow", 1)):
        monkeypatch.setitem(command.STAGES, "correct", ("", lambda is_dry, name=name: {name: PARTS[name]}))
        assert command.run(["correct"], dry, tmp_path / name) == code


def test_doctor_starts_the_stages_and_gives_their_exit_code(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DYME_ROOT", str(ROOT))
    started = []
    monkeypatch.setattr(doctor, "measure_card", lambda root: started.append(root) or 2)
    assert CliRunner().invoke(app, ["doctor", "--gpu"]).exit_code == 2 and started == [ROOT]
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 0 and started == [ROOT]
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match="no folder benchmarks/gpu in .*; clone the repository"):
        doctor.measure_card(tmp_path)


def test_the_page_is_what_the_results_give() -> None:
    written = page.render(page.read(ROOT / "results" / "gpu"), SHOWN)
    assert (ROOT / "docs" / "gpu.md").read_text() == written, "write it again: python -m benchmarks.gpu --page"


def test_the_page_says_not_yet_until_a_card_has_run_and_then_what_it_found(tmp_path: Path, dry: Setting) -> None:
    nothing = page.render({}, SHOWN)
    assert "**Nothing here has run on a GPU yet.**" in nothing and nothing.count("| not yet |") == len(SHOWN)
    run_stage("correct", PARTS, dry, tmp_path / "cpu-toy")
    assert page.read(tmp_path) == {}, "a run at toy size shows nothing"
    result = run_stage("correct", PARTS, Setting(dry.device, False, dry.scratch), tmp_path / "nvidia-h100")
    some = page.render(page.read(tmp_path), SHOWN)
    assert "Nothing here has run" not in some and "**Ran on:** nvidia-h100: 1 stages" in some
    assert "1 ok, 1 not reached, 1 not run, 1 failed, 1 wrong" in some and result["versions"]["torch"] in some
    assert "| does not | error | 0.001 | 0.0001 | **no** |" in some and "ZeroDivisionError: why" in some
