"""Full DyME with a judge that takes 200 ms, eight at a time, against Pure DyME: cold, and with every reply recorded.

The judge is scripted, on loopback, in a process of its own. It rates every trace "high", which the guard holds to what the
rules find, so that all three arms train alike and differ in their supervision alone.
"""
from __future__ import annotations

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
from arms import PHASES, ROOT, SAVINGS, Arm, Shape, build, race
from judge_server import serving

from dyme_core import config
from dyme_core.data import mini_records
from dyme_core.experts import Experts
from dyme_core.rewards import reward_functions
from dyme_core.supervision import RuleChecker

DELAY_S, QUESTIONS, LEARNING_RATE = 0.2, 512, 1e-3
PURE, COLD, WARM = (Arm(name, True, SAVINGS) for name in ("Pure DyME", "Full DyME, cold", "Full DyME, recorded"))
SHAPES = {"mini": (Shape(), 40, 30), "300 image tokens": (Shape(side=12, tokens=48), 1, 8)}  # warm-up steps, steps
logger = logging.getLogger(__name__)


def compare(shape: Shape, warm_up: int, steps: int) -> list[dict]:
    """Medians of a step by arm, and the ratio to Pure DyME's step of the same round."""
    records = mini_records("train", QUESTIONS, 0)
    training = config.load_profile("mini").training
    with serving(QUESTIONS, DELAY_S) as (base_url, asked), tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        settings = config.Supervision("api", "raise", str(Path(place) / "replies.sqlite"), model="scripted", base_url=base_url)

        def build_arm(arm: Arm, shape: Shape, steps: int):
            rest = dict(questions=QUESTIONS, learning_rate=0.0 if shape.tokens else LEARNING_RATE)
            if arm is PURE:
                experts = stack.enter_context(Experts(config.Supervision(), config.Paths(ROOT, "mini"), Path(place) / "pure"))
                return build(arm, shape, steps, reward_funcs=reward_functions(RuleChecker()),
                             refine=experts.offline(records), **rest)
            experts = stack.enter_context(Experts(settings, config.Paths(ROOT, "mini"), Path(place) / arm.name))
            return build(arm, shape, steps, **experts.online(training), **rest)

        frame = pd.DataFrame(race([PURE, COLD, WARM], shape, steps, warm_up, build_arm))
        count = asked()
    base, lines = frame[frame["arm"] == PURE.name].set_index("step")["seconds"], []
    for name, own in frame.groupby("arm", sort=False):
        ratios = own.set_index("step")["seconds"] / base
        lines.append({"arm": name, "steps": len(own), "ratio": round(ratios.median(), 3), "requests": count,
                      **{phase: round(own[phase].median(), 4) for phase in ("seconds", "cpu_s", *PHASES, "rows")}})
        logger.info("  %-20s %.3f s a step, %.2f of Pure DyME's", name, lines[-1]["seconds"], lines[-1]["ratio"])
    return lines


def judged() -> list[dict]:
    """The comparison on every shape."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    lines = []
    for name, (shape, warm_up, steps) in SHAPES.items():
        logger.info(" %s: %d steps of three arms", name, warm_up + steps)
        lines += [{"shape": name, "judge_s": DELAY_S, **line} for line in compare(shape, warm_up, steps)]
    return lines
