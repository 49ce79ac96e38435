"""The benchmark's arms do the same task: same rollouts, in turns; only the work in the update differs."""
from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import arms
import judged
import long_run

SHAPE = arms.Shape(side=2, generations=4, prompts=2, tokens=6)


def test_every_arm_makes_the_same_rollouts_and_the_savings_leave_out_rows() -> None:
    frame = pd.DataFrame(arms.race([arms.STOCK, arms.PLAIN, arms.FULL], SHAPE, steps=2, warm_up=1))
    assert frame["arm"].tolist().count("DyME") == 2
    assert set(frame["tokens"]) == {2 * 4 * 6}
    rows = frame.groupby("arm")["rows"].agg(set)
    assert rows["TRL GRPO"] == rows["DyME, no savings"] == {8} and rows["DyME"] == {1 + 4}  # a target, and the mixed group
    phases = frame[[phase for phase in arms.PHASES if phase != "refine"]].sum(axis=1)  # a refiner's seconds are `refine`
    assert (phases <= frame["seconds"] + 1e-6).all() and (frame[list(arms.PHASES)] >= 0).all(axis=None)


def test_a_failing_arm_ends_the_race_with_its_error() -> None:
    def failing(arm: arms.Arm, shape: arms.Shape, steps: int):
        def refine(rows):
            raise LookupError("no target")
        return arms.build(arm, shape, steps, refiner=refine)

    with pytest.raises(LookupError, match="no target"):
        arms.race([arms.FULL], SHAPE, steps=1, warm_up=0, build_arm=failing)


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
