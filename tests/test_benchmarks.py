"""The benchmark's arms do the same task: same rollouts, in turns; only the work in the update differs."""
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import arms
import attribution
import judged
import long_run
import operations
import time_to_accuracy

SHAPE = arms.Shape(side=2, generations=4, prompts=2, tokens=6)


def test_every_arm_makes_the_same_rollouts_and_dyme_leaves_out_rows() -> None:
    frame = pd.DataFrame(arms.race(arms.CHAIN, SHAPE, steps=1, warm_up=1))
    assert frame["arm"].tolist().count("DyME") == 1
    assert set(frame["generated"]) == {2 * 4 * 6} and set(frame["tokens_a_rollout"]) == {6}
    rows = frame.groupby("arm")["rows"].agg(set)
    assert rows["TRL GRPO"] == rows["TRL GRPO + engine"] == rows["DyME, idle rows kept"] == {8}
    assert rows["DyME"] == rows["DyME, no engine"] == {1 + 4}  # a target, and the mixed group
    phases = frame[[phase for phase in arms.PHASES if phase != "refine"]].sum(axis=1)  # a refiner's seconds are `refine`
    assert (phases <= frame["seconds"] + 1e-6).all() and (frame[list(arms.PHASES)] >= 0).all(axis=None)


def test_rollouts_of_a_group_end_at_scripted_lengths_in_every_arm() -> None:
    frame = pd.DataFrame(arms.race(arms.RACE, replace(SHAPE, shortest=3, tokens=9), steps=1, warm_up=0))
    assert set(frame["generated"]) == {2 * (3 + 5 + 7 + 9)} and set(frame["tokens_a_rollout"]) == {6}


def test_a_failing_arm_ends_the_race_with_its_error() -> None:
    def failing(arm: arms.Arm, shape: arms.Shape, steps: int):
        def refine(rows):
            raise LookupError("no target")
        return arms.build(arm, shape, steps, refiner=refine)

    with pytest.raises(LookupError, match="no target"):
        arms.race([arms.FULL], SHAPE, steps=1, warm_up=0, build_arm=failing)


def test_each_saving_is_the_ratio_of_its_arm_less_that_of_the_arm_before_it() -> None:
    ratios = {arms.STOCK: 1.0, arms.PICTURES: 0.9, arms.WITH_ENGINE: 0.5, arms.KEPT: 0.6, arms.FULL: 0.4}
    generate = {arms.STOCK: 1.0, arms.PICTURES: 1.0, arms.WITH_ENGINE: 0.4, arms.KEPT: 0.4, arms.FULL: 0.4}
    race = pd.DataFrame([{"arm": arm.name, "ratio": ratio, "ratio_same_engine": ratio / 0.5, "seconds": 2 * ratio,
                          "generate": generate[arm], "generated": 32 * 11.0, "prompts": 4, "generations": 8, "image_tokens": 52}
                         for arm, ratio in ratios.items()]).set_index("arm")
    found = attribution.shares(race)
    assert list(found["changes"].values()) == [-0.1, -0.3, -0.1, 0.1, -0.2]  # they sum to DyME's ratio less 1
    assert found["engine"] == 0.5 and found["dyme"] == 0.4 and found["dyme_same_engine"] == 0.8
    assert found["mean_tokens"] == 11


def test_attention_on_a_cpu_is_counted_forward_and_backward() -> None:
    query, key, value = (torch.ones(2, 3, length, 8, requires_grad=True) for length in (5, 7, 7))
    with FlopCounterMode(display=False, custom_mapping=operations.ATTENTION) as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, value).sum().backward()
    product = 2 * 2 * 3 * 5 * 7 * 8  # a multiply-add counts twice
    assert counter.get_total_flops() == 2 * product + 5 * product  # backward computes the scores again, and four gradients


def test_operators_of_a_profile_belong_to_the_phase_in_which_they_start() -> None:
    def event(name: str, start: float, end: float, own: float = 0.0) -> SimpleNamespace:
        return SimpleNamespace(name=name, time_range=SimpleNamespace(start=start, end=end), self_cpu_time_total=own)

    found = operations.operators([event("training_step", 10, 90), event("_generate", 20, 40), event("aten::mm", 5, 6, 1e6),
                                  event("aten::mm", 20, 21, 1e6), event("aten::add", 30, 31, 2e6), event("other", 32, 33, 1e6),
                                  event("aten::bmm", 50, 51, 3e6), event("aten::copy_", 60, 61, 4e6)])
    assert found == {"generate": {"calls": 2, "matrix_s": 1, "other_operators_s": 2},
                     "update": {"calls": 2, "matrix_s": 3, "other_operators_s": 4}}


def test_the_page_shows_the_attribution_on_file() -> None:
    text = attribution.PAGE.read_text(encoding="utf-8")
    shown = text.split(attribution.START)[1].split(attribution.END)[0]
    path = attribution.FOLDER / "attribution.json"
    assert shown.startswith("|") and (not path.is_file() or shown == attribution.tables(json.loads(path.read_text())))


@pytest.mark.exhaustive
def test_a_judge_is_asked_in_the_races_that_have_one() -> None:
    lines = pd.DataFrame(judged.compare(arms.Shape(generations=4, prompts=2), warm_up=1, steps=2))
    arms_of = lines.groupby("race")["arm"].agg(set).to_dict()
    assert arms_of == {full.name: {judged.PURE.name, full.name} for full in (judged.LATE, judged.COLD, judged.WARM)}
    asked = lines.set_index("race")["requests"].to_dict()
    assert asked[judged.LATE.name] == asked[judged.COLD.name] > 0 and asked[judged.WARM.name] == 0


@pytest.mark.exhaustive
def test_a_long_run_is_measured_after_it_has_settled() -> None:
    found = long_run.measure(8, settled=4)
    assert found["steps"] == 8 and len(found["mib"]) == 8 and min(found["mib"]) > 100
    assert found["step_s_first_quarter"] > 0 and found["step_s_last_quarter"] > 0 and found["templates"] > 0


def test_the_learning_rate_warms_up_and_falls_to_zero_over_the_cpu_seconds_of_each_phase() -> None:
    spent, control, optimizer = [], SimpleNamespace(), SimpleNamespace(param_groups=[{}])
    budget = time_to_accuracy.Budget(SimpleNamespace(spent=lambda: (0.0, spent[-1])), marks=[])
    for seconds, warmup_steps in ((10.0, 0), (30.0, 4)):
        budget.start_phase(seconds, warmup_steps)
    for at, step, rate in ((10, 2, 0.5), (10, 4, 1.0), (25, 9, 0.5), (40, 9, 0.0), (41, 9, 0.0)):  # of 10 to 40 s
        spent.append(float(at))
        budget.on_step_begin(SimpleNamespace(learning_rate=2.0), SimpleNamespace(global_step=step), control, optimizer)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2 * rate)
        budget.on_step_end(None, None, control)
        assert control.should_training_stop == (at >= 40)


def test_the_time_to_an_accuracy_is_read_between_evaluations_and_is_none_where_it_is_never_reached() -> None:
    curve = pd.Series([0.1, 0.2, 0.4, 0.3], index=[0, 10, 20, 30])
    assert [time_to_accuracy.seconds_to(target, curve) for target in (0.05, 0.2, 0.3, 0.5)] == [0, 10, 15, None]


def test_the_summary_counts_to_nine_tenths_of_what_grpo_ends_with() -> None:
    def run(name: str, seed: int, last: float) -> dict:
        points = [{"cpu_s": 100.0 * mark, "step": mark, "correct": last * mark, "has_format": 1.0, "groundedness": None}
                  for mark in time_to_accuracy.MARKS]  # the accuracy grows evenly
        return {"arm": name, "method": time_to_accuracy.ARMS[name][0], "seed": seed, "budget_s": 100.0, "curve": points}

    found = time_to_accuracy.summarise([run("GRPO", 0, 0.3), run("GRPO", 1, 0.5), run("Pure DyME", 0, 0.6)])
    grpo, dyme = found["lines"]
    assert found["target_accuracy"] == 0.36 and grpo["seeds"] == [0, 1]
    assert grpo["seconds_to_target"] == 90 and grpo["seconds_to_target_by_seed"] == [None, 72]
    assert dyme["seconds_to_target"] == 60 and dyme["accuracy_at_20_s"] == {"mean": 0.12, "by_seed": [0.12]}


@pytest.mark.exhaustive
def test_a_run_of_two_phases_stops_at_its_budget_and_is_not_made_twice(tmp_path, monkeypatch) -> None:
    few = {"world.train_questions": 32}
    monkeypatch.setitem(time_to_accuracy.ARMS, "SFT then GRPO", ("sft_grpo", few))
    given = ("SFT then GRPO", 1, 2.0, 4, tmp_path)
    assert not time_to_accuracy.is_finished(*given)
    curve = time_to_accuracy.train_one(*given)["curve"]
    assert curve[0]["cpu_s"] == 0 and curve[-1]["cpu_s"] >= 2 and curve[-1]["step"] >= 2
    assert time_to_accuracy.is_finished(*given) and not time_to_accuracy.is_finished(*given[:2], 3.0, 4, tmp_path)
    assert [run["arm"] for run in time_to_accuracy.on_file(2.0, 4, tmp_path)] == ["SFT then GRPO"]
