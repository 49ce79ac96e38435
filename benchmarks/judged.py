"""Full DyME with a judge that takes 200 ms, eight at a time, against Pure DyME: asked when all rollouts have ended, asked as
they end, and with every reply recorded.

The judge is scripted, on loopback, in a process of its own. It rates every trace "high", which the guard caps by the
rules, so that all three arms train alike and differ only in their supervision.
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
from dyme_core.data.datasets import mini_records
from dyme_core.pipeline.trainers import supervise_online
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.factory import Experts
from dyme_core.trainer.rewards import dyme_rewards

DELAY_S, QUESTIONS, LEARNING_RATE = 0.2, 512, 1e-3
PURE, LATE, COLD, WARM = (Arm(name, True, SAVINGS) for name in ("Pure DyME", "Full DyME, asked at the end",
                                                                "Full DyME, cold", "Full DyME, recorded"))
SHAPES = {"mini": (Shape(), 40, 24), "602 image tokens": (Shape(side=14, tokens=48), 1, 6)}  # warm-up steps, steps
SUPERVISING = ("score", "refine")  # the phases in which training waits for supervision
logger = logging.getLogger(__name__)


def compare(shape: Shape, warm_up: int, steps: int) -> list[dict]:
    """Medians of a step by arm, and the ratio to Pure DyME's step of the same round; the same race with the
    judge asked late, with it asked early, and with its replies on file."""
    records, lines = mini_records("train", QUESTIONS, 0), []
    training = config.load_profile("mini").training
    with serving(QUESTIONS, DELAY_S) as (base_url, asked), tempfile.TemporaryDirectory() as place:
        for full in (LATE, COLD, WARM):
            before, file = asked(), Path(place) / ("late.sqlite" if full is LATE else "replies.sqlite")
            settings = config.Supervision(backend="api", policy="raise", recording=str(file), model="scripted",
                                          base_url=base_url)
            with ExitStack() as stack:
                def build_arm(arm: Arm, shape: Shape, steps: int, full=full, stack=stack, settings=settings):
                    chosen = config.Supervision() if arm is PURE else settings
                    experts = stack.enter_context(Experts(chosen, config.Paths(ROOT, "mini"), Path(place) / arm.name))
                    supervision = supervise_online(experts, training) if arm is full else {
                        "reward_funcs": dyme_rewards(RuleChecker()), "refiner": experts.offline(records)}
                    if arm is LATE:
                        supervision["watch"] = None
                    return build(arm, shape, steps, **supervision, questions=QUESTIONS,
                                 learning_rate=0.0 if shape.tokens else LEARNING_RATE)

                frame = pd.DataFrame(race([PURE, full], shape, steps, warm_up, build_arm))
            lines += _lines(frame, full, asked() - before)
    return lines


def _lines(frame: pd.DataFrame, full: Arm, requests: int) -> list[dict]:
    base, lines = frame[frame["arm"] == PURE.name].set_index("step"), []
    for name, own in frame.groupby("arm", sort=False):
        own = own.set_index("step")
        more = (own[[*SUPERVISING]].sum(axis=1) - base[[*SUPERVISING]].sum(axis=1)) / base["seconds"]
        lines.append({"race": full.name, "arm": name, "steps": len(own), "requests": requests,
                      "ratio": round((own["seconds"] / base["seconds"]).median(), 3),
                      "ratio_of_means": round(own["seconds"].mean() / base["seconds"].mean(), 3),
                      "cpu_ratio": round((own["cpu_s"] / base["cpu_s"]).median(), 3), "waited_more": round(more.mean(), 3),
                      **{phase: round(own[phase].mean(), 4) for phase in ("seconds", "cpu_s", *PHASES, "rows")}})
        logger.info("  %-20s %.3f s a step, %.2f of Pure DyME's; %d requests in this race", name, lines[-1]["seconds"],
                    lines[-1]["ratio"], requests)
    return lines


def judged() -> list[dict]:
    """The comparison on every shape."""
    lines = []
    for name, (shape, warm_up, steps) in SHAPES.items():
        logger.info(" %s: three races of %d steps", name, warm_up + steps)
        lines += [{"shape": name, "judge_s": DELAY_S, **line} for line in compare(shape, warm_up, steps)]
    return lines
