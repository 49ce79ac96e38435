"""The benchmark's arms do the same task: same rollouts, by turns, and only the work in the update differs."""
from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import arms

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
        return arms.build(arm, shape, steps, refine=refine)

    with pytest.raises(LookupError, match="no target"):
        arms.race([arms.FULL], SHAPE, steps=1, warm_up=0, build_arm=failing)
