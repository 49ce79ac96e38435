"""`make test-gpu`, `dyme doctor --gpu`: every stage on this machine's card, into results/gpu/<card>/, and docs/gpu.md from it.

    python -m benchmarks.gpu                        # every stage, each at most 8 minutes and in a process of its own
    python -m benchmarks.gpu --only shapes          # one stage; the same call again goes on with what was not reached
    python -m benchmarks.gpu --dry                  # every stage at toy size on a CPU (a minute and a half)
    python -m benchmarks.gpu --page                 # only write docs/gpu.md again

Exit codes: 0 where all parts are done and hold, 1 where not, 2 without a card.
"""
from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from benchmarks.gpu import correct, generation, page, runs, shapes, stages, unsloth_path
from benchmarks.gpu.stages import ROOT, Setting

NO_CARD = 2  # exit code
ON_A_CPU = "generation"  # the one stage that also measures a CPU's shapes
STAGES: dict[str, tuple[str, Callable[[bool], dict[str, stages.Part]]]] = {  # what it shows, its parts
    "correct": (correct.SHOWS, lambda is_dry: correct.parts()),
    "shapes": (shapes.SHOWS, shapes.parts),
    "generation": (generation.SHOWS, generation.parts),
    "unsloth": (unsloth_path.SHOWS, lambda is_dry: unsloth_path.parts()),
    "study": (runs.STUDY_SHOWS, lambda is_dry: runs.study_parts()),
    "processes": (runs.PROCESSES_SHOWS, lambda is_dry: runs.process_parts())}


def run(names: Sequence[str], setting: Setting, folder: Path, minutes: float = float("inf")) -> int:
    """Run stages in this process, each for at most so many minutes; returns the exit code."""
    is_fine = True
    for name in names:
        boxed = replace(setting, deadline=time.monotonic() + 60 * minutes)
        states = stages.summary(stages.run_stage(name, STAGES[name][1](setting.is_dry), boxed, folder))
        logging.info("%s: %s", name, ", ".join(f"{count} {state}" for state, count in states.items()))
        is_fine &= set(states) <= {stages.OK, stages.NOT_RUN}
    return int(not is_fine)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(STAGES), default=tuple(STAGES), metavar="STAGE",
                        help=", ".join(STAGES))
    parser.add_argument("--dry", action="store_true", help="toy size, on a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="of each stage")
    parser.add_argument("--pictures", type=Path, help="a folder of real charts (.png); default: drawn ones")
    parser.add_argument("--out", type=Path, help="default: results/gpu/<card>, results/local/gpu-dry")
    parser.add_argument("--page", action="store_true", help="run nothing, write docs/gpu.md again")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    transformers.logging.disable_progress_bar()
    shown = {name: shows for name, (shows, _) in STAGES.items()}
    if options.page:
        page.write(ROOT, shown)
        return 0
    has_card = torch.cuda.is_available() and not options.dry
    if not has_card and not options.dry and tuple(options.only) != (ON_A_CPU,):
        sys.stderr.write("no CUDA card found: this is for a machine with one; --dry tries every stage on a CPU\n")
        return NO_CARD
    setting = Setting(torch.device("cuda", 0) if has_card else torch.device("cpu"), options.dry, ROOT / "runs" / "gpu" /
                      ("dry" if options.dry else "card"), options.pictures)
    folder = options.out or ROOT / "results" / ("local/gpu-dry" if options.dry else f"gpu/{setting.card}")
    if options.dry or len(options.only) == 1:
        torch.set_num_threads(torch.get_num_threads() if has_card else 1)
        return run(options.only, setting, folder, float("inf") if options.dry else options.minutes)
    codes = [_apart(name, options) for name in options.only]
    page.write(ROOT, shown)
    return max(codes)


def _apart(name: str, options: argparse.Namespace) -> int:
    """A stage in a process of its own: an error that a card does not recover from ends this stage alone."""
    paths = [f"--{key}={path.absolute()}" for key in ("pictures", "out") if (path := getattr(options, key))]
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, f"--minutes={options.minutes}", *paths]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return int(bool(subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}).returncode))


if __name__ == "__main__":
    sys.exit(main())
