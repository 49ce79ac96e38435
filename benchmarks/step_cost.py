"""What an optimisation step costs: TRL's GRPO, DyME without its savings, with all of them, and with each one alone on or off.

    make bench                         # every section, into results/bench/, and the figure; 35 min on an idle machine
    make bench ARGS='--only savings'   # some sections

Times of a section are interleaved steps in one process on one thread, so their ratios hold even if the machine's pace changes;
memory is each arm's own process.
"""
from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from arms import ALONE, FULL, PHASES, PLAIN, ROOT, STOCK, WITHOUT, Arm, Shape, build, policy, race
from evaluation import evaluation
from judged import judged
from operations import operations

from dyme_core import utils

logger = logging.getLogger(__name__)
FOLDER = ROOT / "results" / "bench"
LONG = Shape(side=17, tokens=48)  # 595 image tokens
SWEEPS: dict[str, tuple[list[Shape], int]] = {  # shapes and steps of each
    "all_wrong": ([Shape(all_wrong=share) for share in (0, 0.25, 0.5, 0.75, 1)], 8),
    "generations": ([Shape(generations=size) for size in (4, 8, 16)], 8),
    "model": ([Shape(model=name, tokens=48) for name in ("svlm", "large", "wide")], 5),
    "micro_batches": ([Shape(micro_batches=count) for count in (1, 2, 4)], 8),
    "image_tokens": ([Shape(side=side, tokens=48) for side in (2, 4, 8, 12, 17)], 5),
    "tokens": ([Shape(tokens=length) for length in (32, 64, 128, 256)], 5)}
EXPONENTS = {"generations": "generations", "image_tokens": "image_tokens", "tokens": "tokens"}  # section: x


def compare(arms: list[Arm], shape: Shape, steps: int) -> list[dict[str, Any]]:
    """One line per arm: medians of a step, and its ratio to the first arm's in the same round (median, quartiles)."""
    frame = pd.DataFrame(race(arms, shape, steps))
    lines, millions = [], sum(weight.numel() for weight in policy(shape, ())[0].parameters()) / 1e6
    base = frame[frame["arm"] == arms[0].name].set_index("step")
    for arm in arms:
        own = frame[frame["arm"] == arm.name].set_index("step")
        ratios, cpu_ratios = own["seconds"] / base["seconds"], own["cpu_s"] / base["cpu_s"]
        low, middle, high = np.percentile(ratios, (25, 50, 75))
        line = {**asdict(shape), "image_tokens": shape.image_tokens, "millions": round(millions, 1),
                "arm": arm.name, "savings": list(arm.savings),
                "steps": len(own), "ratio": middle, "ratio_low": low, "ratio_high": high, "cpu_ratio": cpu_ratios.median(),
                "generated": own["tokens"].median(), "tokens_per_s": (own["tokens"] / own["seconds"]).median(),
                **{name: own[name].median() for name in ("seconds", "cpu_s", *PHASES, "rows", "through", "padding")}}
        lines.append({name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()})
        logger.info("  %-18s %.3f s a step (%.3f s CPU), %.2f of %s", arm.name, line["seconds"], line["cpu_s"], middle,
                    arms[0].name)
    return lines


def savings() -> list[dict[str, Any]]:
    """Every arm on the mini model, half of the groups all wrong."""
    return compare([STOCK, PLAIN, FULL, *ALONE, *WITHOUT], Shape(), 20)


def sweep(name: str) -> Callable[[], list[dict[str, Any]]]:
    """Three arms along one number."""
    def made() -> list[dict[str, Any]]:
        shapes, steps = SWEEPS[name]
        lines = []
        for number, shape in enumerate(shapes, 1):
            logger.info(" %s, shape %d of %d: %s", name, number, len(shapes), shape)
            lines += compare([STOCK, PLAIN, FULL], shape, steps)
        return lines
    return made


def memory() -> list[dict[str, Any]]:
    """Peak resident memory of three steps of an arm, in a process of its own, beside that before the model was loaded."""
    lines = []
    for shape in (Shape(), LONG):
        for arm in (STOCK, PLAIN, FULL):
            command = [sys.executable, __file__, "--one", json.dumps([arm.name, arm.is_dyme, arm.savings, asdict(shape)])]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            lines.append({"arm": arm.name, **asdict(shape), "image_tokens": shape.image_tokens,
                          **json.loads(done.stdout.splitlines()[-1])})
            logger.info("  %-18s %d image tokens: peak %.0f MiB, %.0f before", arm.name, shape.image_tokens,
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
    "savings": savings, **{name: sweep(name) for name in SWEEPS}, "memory": memory,
    "operations": lambda: [line for shape in (Shape(), LONG) for line in operations([STOCK, PLAIN, FULL], shape)],
    "judged": judged, "evaluation": evaluation}


def exponents(lines: list[dict[str, Any]], x: str) -> dict[str, float]:
    """How seconds a step grow with x: the slope between logarithms, by arm."""
    frame = pd.DataFrame(lines)
    return {arm: round(float(np.polyfit(np.log(part[x]), np.log(part["seconds"]), 1)[0]), 2)
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
    logger.info("%.0f s; figure in %s", time.monotonic() - start, draw(FOLDER))


if __name__ == "__main__":
    main()
