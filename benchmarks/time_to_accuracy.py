"""Time to accuracy: what each method of the study has learned after so many CPU seconds of training, all with the engine.

    .venv/bin/python benchmarks/time_to_accuracy.py                       # what is missing, two runs at a time
    .venv/bin/python benchmarks/time_to_accuracy.py --only GRPO "Pure DyME" --seeds 0 --list

Every run starts from bases/svlm-s0 on one thread; evaluation stops its clock, writing targets does not. The learning rate is
the profile's and falls to 0 over the budget, in each phase after the profile's warm-up. Seeds differ in training questions,
their order and sampling; they share a base, because git holds only that of seed 0. A run that is on file with the same
settings is not made again: delete its file after changes of the code. Summary and figure are made of all runs on file.
"""
from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import PrinterCallback, TrainerCallback

from dyme_core import config, utils
from dyme_core.models import processors
from dyme_core.pipeline import methods, train
from dyme_core.pipeline.callbacks import StepLog
from dyme_core.pipeline.trainers import TRAINERS, shared_arguments
from dyme_core.supervision.factory import Experts, too_long
from study.figures.theme import PAGE, PALETTE, STYLES, Style, draw_line, finish, label_ends, panels, save_figure, themed

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "bench" / "time_to_accuracy"  # one file a run
SMALL_GROUPS = {"training.prompts_per_step": 8, "training.num_generations": 4}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # name: method, changes against profile mini
    **{config.METHOD_NAMES[method]: (method, {}) for method in config.METHODS if method != "base"},
    "GRPO, 8 prompts x 4": ("grpo", SMALL_GROUPS), "Pure DyME, 8 prompts x 4": ("pure_dyme", SMALL_GROUPS),
    "GRPO, refill": ("grpo", {"training.refill": 1.0}), "Pure DyME, refill": ("pure_dyme", {"training.refill": 1.0})}
BUDGET_S, QUESTIONS, SEEDS = 300.0, 200, (0, 1, 2)
MARKS = (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)  # when to evaluate, as shares of the budget
REPORTED = (0.2, 0.4, 1)  # marks whose accuracy the summary has: 60, 120 and 300 s
TARGET_OF, TARGET_SHARE = "GRPO", 0.9
NEVER = 10**6  # steps: more than any budget takes
MEASURES = ("correct", "has_format", "groundedness")
logger = logging.getLogger(__name__)


class Budget(TrainerCallback):
    """Lowers the learning rate over a phase's CPU seconds, evaluates at marks, and stops when the phase's share is spent.

    Args:
        log: whose clock stands still during evaluations.
        marks: CPU seconds at which to evaluate, the first of them before training.

    Attributes:
        curve: one row per evaluation: cpu_s, step, MEASURES.
    """

    def __init__(self, log: StepLog, marks: Sequence[float]) -> None:
        self.log, self.marks, self.curve, self.end_s = log, list(marks), [], 0.0

    def start_phase(self, seconds: float, warmup_steps: int) -> None:
        """The next trainer trains for so many CPU seconds more."""
        self.start_s, self.end_s, self.warmup_steps = self.end_s, self.end_s + seconds, warmup_steps

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        left = max(0.0, (self.end_s - self.log.spent()[1]) / (self.end_s - self.start_s))
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * left * min(1.0, state.global_step / max(1, self.warmup_steps))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        spent = self.log.spent()[1]
        if self.marks and spent >= self.marks[0]:
            self.measure(model, state.global_step + self.log.steps_before)
        control.should_training_stop = spent >= self.end_s

    def measure(self, model: torch.nn.Module, step: int) -> None:
        """Evaluate as training does; a mark that one step has passed along with another is left out."""
        spent = self.log.spent()[1]
        found = self.log.measure(model, step)
        self.curve.append({"cpu_s": round(spent, 2), "step": step, **{name: found[name] for name in MEASURES}})
        self.marks = [mark for mark in self.marks if mark > spent]


def asked(name: str, seed: int, budget_s: float, questions: int) -> tuple[methods.Run, dict[str, Any]]:
    """The run of an arm, and all that decides its result."""
    method, changes = ARMS[name]
    profile = config.load_profile("mini", **{"training.evaluate_every": NEVER, "training.probe_every": 0, "save_every": 0,
                                             "data.held_out": ("validation",), "world.validation_questions": questions,
                                             **changes})
    run = methods.Run(profile, method, seed=seed)
    return run, {"arm": name, "method": method, "seed": seed, "budget_s": budget_s,
                 "settings": methods.flat(methods.settings_of(run))}


def train_one(name: str, seed: int, budget_s: float, questions: int, folder: Path) -> dict[str, Any]:
    """Train an arm for the budget; writes and returns its curve."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    torch.set_num_threads(1)
    run, settings = asked(name, seed, budget_s, questions)
    model, processor = train.load_start(dataclasses.replace(run, seed=0))
    objection = too_long(processors.tokenizer_of(processor), run.profile.training.max_completion_tokens)
    with tempfile.TemporaryDirectory() as place, Experts(config.Supervision(), run.paths, Path(place), objection) as experts:
        session = train.load_records(run, experts, model, processor)
        log = StepLog(run, session.watched, processor, experts)
        budget = Budget(log, [share * budget_s for share in MARKS])
        budget.measure(model, 0)
        log.begin()
        for method, steps in methods.phase_steps(run):
            arguments = shared_arguments(run, NEVER, run.profile.learning_rates[method], Path(place))
            budget.start_phase(budget_s * steps / run.profile.training.steps, run.profile.warmup_steps[run.method])
            trainer = TRAINERS[method](session, {**arguments, "lr_scheduler_type": "constant"}, [log, budget])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            log.steps_before += trainer.state.global_step
    result = {**settings, "curve": budget.curve, "threads": torch.get_num_threads(), **utils.provenance(ROOT)}
    utils.write_json(_file(folder, name, seed), result)
    return result


def _file(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{'-'.join(name.replace(',', '').split()).lower()}-s{seed}.json"


def is_finished(name: str, seed: int, budget_s: float, questions: int, folder: Path) -> bool:
    """Whether the run is on file with these settings."""
    if not (path := _file(folder, name, seed)).is_file():
        return False
    found, wanted = utils.read_json(path), asked(name, seed, budget_s, questions)[1]
    return found["budget_s"] == budget_s and not methods.differences(found["settings"], wanted["settings"])


def on_file(budget_s: float, questions: int, folder: Path) -> list[dict[str, Any]]:
    """Every finished run, in the order of ARMS and seeds."""
    found = [utils.read_json(path) for path in folder.glob("*.json")]
    kept = [run for run in found if run["arm"] in ARMS and is_finished(run["arm"], run["seed"], budget_s, questions, folder)]
    return sorted(kept, key=lambda run: (list(ARMS).index(run["arm"]), run["seed"]))


def seconds_to(target: float, curve: pd.Series) -> float | None:
    """CPU seconds (the index of a curve of accuracies) when it first reaches the target, linear in between; None: never."""
    seconds, reached = curve.index.to_numpy(dtype=float), curve.to_numpy() >= target
    if not reached.any():
        return None
    after = int(reached.argmax())
    if after == 0:
        return float(seconds[0])
    return round(float(np.interp(target, curve.iloc[after - 1: after + 1], seconds[after - 1: after + 1])), 1)


def at_marks(run: dict[str, Any]) -> pd.DataFrame:
    """A run's curve at the marks themselves: a row each, with arm, method, seed and MEASURES; steps overshoot them a little."""
    curve = pd.DataFrame(run["curve"]).astype(float)
    marks = [share * run["budget_s"] for share in MARKS]
    return pd.DataFrame({**{name: run[name] for name in ("arm", "method", "seed")}, "cpu_s": marks,
                         **{name: np.interp(marks, curve["cpu_s"], curve[name]) for name in ("step", *MEASURES)}})


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line per arm: CPU seconds to the target (of the mean curve, of each seed), and accuracy at the reported marks."""
    frame, lines = pd.concat(map(at_marks, runs), ignore_index=True), []
    budget_s, last = runs[0]["budget_s"], frame["cpu_s"].max()
    final = frame.loc[(frame["arm"] == TARGET_OF) & (frame["cpu_s"] == last), "correct"].mean()  # NaN: not measured yet
    for name, part in frame.groupby("arm", sort=False):
        wide = part.pivot(index="cpu_s", columns="seed", values="correct")
        line = {"arm": name, "method": part["method"].iloc[0], "changes": ARMS[name][1], "seeds": list(wide),
                "steps": round(part.loc[part["cpu_s"] == last, "step"].mean()),
                "seconds_to_target": seconds_to(TARGET_SHARE * final, wide.mean(axis=1)),
                "seconds_to_target_by_seed": [seconds_to(TARGET_SHARE * final, wide[seed]) for seed in wide]}
        for share in REPORTED:
            found = wide.loc[share * budget_s]
            line[f"accuracy_at_{share * budget_s:g}_s"] = {"mean": round(found.mean(), 4), "by_seed": found.round(4).tolist()}
        lines.append(line)
    return {"budget_s": budget_s, "target_accuracy": None if np.isnan(final) else round(TARGET_SHARE * final, 4),
            "target": f"{TARGET_SHARE:.0%} of the final accuracy of {TARGET_OF}, mean over seeds", "lines": lines,
            **utils.provenance(ROOT)}


@themed()
def figure_of(runs: Sequence[dict[str, Any]]) -> Figure:
    """Validation accuracy over CPU seconds: left the study's methods, right the ways to fill a step of two of them."""
    curves = pd.concat(map(at_marks, runs)).groupby(["arm", "method", "cpu_s"], sort=False)["correct"].agg(
        ["mean", "min", "max", "count"]).reset_index().rename(columns={"min": "low", "max": "high", "count": "num_seeds"})
    curves[["mean", "low", "high"]] *= 100
    figure, axes = panels(1, 2, PAGE, 2.8, xlabel="CPU seconds of training")
    studied, filled = curves["arm"].isin(config.METHOD_NAMES.values()), curves["method"].isin(("grpo", "pure_dyme"))
    top = 1.05 * curves["high"].max()
    for place, part in zip(axes[0], (curves[studied], curves[filled]), strict=True):
        _draw(place, part, top)
    axes[0, 0].set_ylabel("validation accuracy (%)")
    seeds = sorted({run["seed"] for run in runs})
    return finish(figure, curves, "Validation accuracy (answer with format) over CPU seconds of training, one thread, all "
                  f"with the engine, from one base. Lines: means, bands: range over {len(seeds)} seed(s). Right: GRPO and Pure "
                  "DyME with other steps.")


def _draw(axes: Axes, curves: pd.DataFrame, top: float) -> None:
    lines = {name: part for name, part in curves.groupby("arm", sort=False)}
    ends = []
    for number, (name, part) in enumerate(lines.items()):
        style = STYLES[part["method"].iloc[0]]
        if name not in config.METHOD_NAMES.values():
            style = Style(PALETTE[(number + 3) % len(PALETTE)], "dashed", style.marker)
        ends.append(draw_line(axes, part, "cpu_s", "mean", style, name))
    axes.set(xlim=(0, curves["cpu_s"].max() or 1), ylim=(0, top or 1))
    label_ends(axes, ends)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code is the number of failed runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), default=tuple(ARMS), metavar="ARM",
                        help="; ".join(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="CPU seconds of training a run")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of validation")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the runs; the summary lies beside it")
    parser.add_argument("--list", action="store_true", help="say what is on file, and end")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    runs = {(name, seed): (name, seed, options.budget, options.questions, options.folder)
            for seed in options.seeds for name in options.only}
    missing = {run: given for run, given in runs.items() if not is_finished(*given)}
    for run in runs:
        logger.info("%-26s seed %d: %s", *run, "to be made" if run in missing else "on file")
    return 0 if options.list else _make(missing, options)


def _make(missing: dict[tuple[str, int], tuple], options: argparse.Namespace) -> int:
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), max_tasks_per_child=1)
    futures, failed = {pool.submit(train_one, *given): run for run, given in missing.items()}, 0
    try:
        for number, future in enumerate(as_completed(futures), 1):
            failed += (error := future.exception()) is not None
            told = f"failed: {error!r}" if error else f"{100 * future.result()['curve'][-1]['correct']:.1f} % correct"
            logger.info("%d of %d: %s, seed %d: %s", number, len(futures), *futures[future], told)
    finally:
        pool.shutdown(cancel_futures=True)
    if found := on_file(options.budget, options.questions, options.folder):
        utils.write_json(options.folder.with_suffix(".json"), summarise(found))
        save_figure(figure_of(found), options.folder.name, options.folder.parent)
    return failed


if __name__ == "__main__":
    sys.exit(main())
