"""What an optimisation step costs: TRL's GRPO and DyME, each without and with the engine, on the same rollouts.

    make bench                          # every section, into results/bench/, and the figure; 25 min on an idle machine
    make bench ARGS='--only headline'   # some sections

Times of a section are interleaved steps in one process on one thread, so their ratios hold even if the machine's pace changes;
memory is each arm's own process. A line's `ratio` is to stock TRL GRPO, its `ratio_same_engine` to TRL GRPO with the engine,
which any trainer can have.
"""
from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from arms import CHAIN, FULL, PHASES, RACE, ROOT, STOCK, WITH_ENGINE, Arm, Shape, build, policy, race
from attribution import attribute
from evaluation import evaluation
from judged import judged
from operations import operations

from dyme_core import utils

logger = logging.getLogger(__name__)
FOLDER = ROOT / "results" / "bench"
COUNTS = ("rows", "generated", "tokens_a_rollout")
FIXED, LONG = Shape(tokens=96), Shape(side=10, tokens=96)  # 52 and 310 image tokens
UNEVEN, LONG_UNEVEN = Shape(tokens=128, shortest=60), Shape(side=10, tokens=128, shortest=60)
WIDTHS = ("svlm", "10m", "30m", "135m")
RACES: dict[str, list[tuple[Shape, tuple[Arm, ...], int]]] = {  # shape, arms and steps of each race of a section
    "headline": [(Shape(), CHAIN, 16), (FIXED, CHAIN, 6), (LONG, CHAIN, 4), (UNEVEN, RACE, 6), (LONG_UNEVEN, RACE, 4)],
    "all_wrong": [(Shape(all_wrong=share, tokens=96), RACE, 4) for share in (0, 0.5, 1)],
    "generations": [(Shape(generations=size, tokens=48), RACE, 4) for size in (4, 8, 16)],
    "image_tokens": [(Shape(side=side, tokens=48), RACE, 2) for side in (4, 7, 10, 14)],
    "tokens": [(Shape(tokens=length), RACE, 4) for length in (16, 32, 64, 128)],
    "model": [(Shape(model=name, prompts=2, generations=4, tokens=16), RACE, 2) for name in WIDTHS]}
EXPONENTS = {"generations": "generations", "image_tokens": "image_tokens", "tokens": "tokens", "model": "millions"}  # x
REFERENCES = {"ratio": STOCK, "ratio_same_engine": WITH_ENGINE}


def compare(arms: Sequence[Arm], shape: Shape, steps: int) -> list[dict[str, Any]]:
    """One line per arm: medians of a step, and its ratios to two references in the same round (median, quartiles)."""
    frame = pd.DataFrame(race(arms, shape, steps, warm_up=1))
    lines, millions = [], sum(weight.numel() for weight in policy(shape, ())[0].parameters()) / 1e6
    of = {arm.name: frame[frame["arm"] == arm.name].set_index("step") for arm in arms}
    for arm in arms:
        own, line = of[arm.name], {**asdict(shape), "image_tokens": shape.image_tokens, "millions": round(millions, 1),
                                   "arm": arm.name, "savings": list(arm.savings), "steps": len(of[arm.name])}
        for name, reference in REFERENCES.items():
            ratios = own["seconds"] / of[reference.name]["seconds"]
            line[name], line[f"{name}_low"], line[f"{name}_high"] = np.percentile(ratios, (50, 25, 75))
            line[f"cpu_{name}"] = (own["cpu_s"] / of[reference.name]["cpu_s"]).median()
        line |= {"tokens_per_s": (own["generated"] / own["seconds"]).median(),
                 **{name: own[name].median() for name in ("seconds", "cpu_s", *PHASES, *COUNTS)}}
        lines.append({name: round(float(value), 4) if isinstance(value, float) else value for name, value in line.items()})
        logger.info("  %-24s %.3f s a step (%.3f s CPU), %.2f of %s, %.2f with its engine", arm.name, line["seconds"],
                    line["cpu_s"], line["ratio"], STOCK.name, line["ratio_same_engine"])
    return lines


def races(name: str) -> Callable[[], list[dict[str, Any]]]:
    """The races of a section."""
    def made() -> list[dict[str, Any]]:
        lines = []
        for number, (shape, arms, steps) in enumerate(RACES[name], 1):
            logger.info(" %s, shape %d of %d: %s", name, number, len(RACES[name]), shape)
            lines += compare(arms, shape, steps)
        return lines
    return made


def memory() -> list[dict[str, Any]]:
    """Peak resident memory of three steps of an arm, in a process of its own, beside that before the model was loaded."""
    lines = []
    for shape in (Shape(), LONG):
        for arm in RACE:
            command = [sys.executable, __file__, "--one", json.dumps([arm.name, arm.is_dyme, arm.savings, asdict(shape)])]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            lines.append({"arm": arm.name, **asdict(shape), "image_tokens": shape.image_tokens,
                          **json.loads(done.stdout.splitlines()[-1])})
            logger.info("  %-24s %d image tokens: peak %.0f MiB, %.0f before", arm.name, shape.image_tokens,
                        lines[-1]["peak_mib"], lines[-1]["before_mib"])
    return lines


def peak_memory(arm: Arm, shape: Shape) -> dict[str, float]:
    """Resident memory in MiB, sampled every 5 ms during three steps."""
    process, most, is_over = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            most[0] = max(most[0], process.memory_info().rss)

    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    build(arm, shape, 3).train()
    is_over.set()
    thread.join()
    return {"before_mib": round(before / 2**20, 1), "peak_mib": round(most[0] / 2**20, 1)}


SECTIONS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    **{name: races(name) for name in RACES}, "memory": memory,
    "operations": lambda: operations((STOCK, WITH_ENGINE, FULL), FIXED) + operations((FULL,), Shape()),
    "judged": judged, "evaluation": evaluation}


def exponents(lines: list[dict[str, Any]], x: str) -> dict[str, float]:
    """How CPU seconds a step grow with x: the slope between logarithms, by arm."""
    frame = pd.DataFrame(lines)
    return {arm: round(float(np.polyfit(np.log(part[x]), np.log(part["cpu_s"]), 1)[0]), 2)
            for arm, part in frame.groupby("arm", sort=False)}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process of `memory`
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    if options.one:
        name, is_dyme, chosen, shape = json.loads(options.one)
        sys.stdout.write(json.dumps(peak_memory(Arm(name, is_dyme, tuple(chosen)), Shape(**shape))) + "\n")
        return
    start = time.monotonic()
    for number, name in enumerate(options.only, 1):
        logger.info("%s: section %d of %d, after %.0f s", name, number, len(options.only), time.monotonic() - start)
        lines = SECTIONS[name]()
        result = {"lines": lines, "threads": 1, **utils.provenance(ROOT)}
        if name in EXPONENTS:
            result["exponents"] = exponents(lines, EXPONENTS[name])
        utils.write_json(FOLDER / f"{name}.json", result)
    from step_figure import draw
    if len(options.only) == len(SECTIONS):
        attribute(FOLDER)
    logger.info("%.0f s; figure in %s", time.monotonic() - start, draw(FOLDER))


if __name__ == "__main__":
    main()
