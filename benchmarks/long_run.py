"""Four thousand steps of DyME: does memory stay flat, does a step take as long at the end as at the start?

    .venv/bin/python benchmarks/long_run.py              # into results/bench/long_run.json, about 20 min

The policy is the mini base with its savings on, rules supervise online (Full DyME), checkpoints are written.
"""
from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from arms import FULL, ROOT, Shape, build
from transformers import PrinterCallback, TrainerCallback

from dyme_core import config, utils
from dyme_core.pipeline.checkpointing import Keeper
from dyme_core.pipeline.trainers import supervise_online
from dyme_core.supervision.factory import Experts

SHAPE, QUESTIONS, SETTLED = Shape(generations=4, prompts=2), 512, 1000  # the first steps fill caches and heap
logger = logging.getLogger(__name__)


class Gauge(TrainerCallback):
    """Resident memory and seconds of every step."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self._process, self._start = psutil.Process(), 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.rows.append((self._process.memory_info().rss / 2**20, time.perf_counter() - self._start))
        if state.global_step % 100 == 0:
            left_s = (state.max_steps - state.global_step) * float(np.mean([seconds for _, seconds in self.rows]))
            logger.info("step %d of %d: %.1f MiB, about %.0f s left", state.global_step, state.max_steps, self.rows[-1][0],
                        left_s)


def measure(steps: int, settled: int = SETTLED) -> dict[str, Any]:
    """Train so many steps; slopes and ratios after the warm-up, memory over the whole run."""
    with tempfile.TemporaryDirectory() as place:
        with Experts(config.Supervision(), config.Paths(ROOT, "mini"), Path(place)) as experts:
            trainer = build(FULL, SHAPE, steps, **supervise_online(experts, config.Training()), questions=QUESTIONS,
                            learning_rate=1e-4)
            trainer.args.output_dir, trainer.args.save_strategy, trainer.args.save_steps = place, "steps", 200
            trainer.args.save_total_limit = 2
            gauge = Gauge()
            for callback in (gauge, Keeper("", bank=experts.bank)):
                trainer.add_callback(callback)
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            templates = len(experts.bank.counts)
    memory, seconds = np.array(gauge.rows[settled:]).T
    quarter = len(seconds) // 4
    slope = float(np.polyfit(np.arange(len(memory)), memory, 1)[0]) * 100
    return {"steps": steps, "settled_after": settled, "mib_per_100_steps": round(slope, 3),
            "mib": [round(mib, 1) for mib, _ in gauge.rows[:: max(1, steps // 40)]],
            "step_s_first_quarter": round(float(np.median(seconds[:quarter])), 4),
            "step_s_last_quarter": round(float(np.median(seconds[-quarter:])), 4), "templates": templates}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    result = measure(options.steps)
    utils.write_json(ROOT / "results" / "bench" / "long_run.json", {**result, "threads": 1, **utils.provenance(ROOT)})
    logger.info("%s", result)


if __name__ == "__main__":
    main()
