"""Callbacks of a run: the log of its steps with the time left, and the detection of a collapse."""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dyme_core import ranks
from dyme_core.config import COLLAPSE_ACTIONS
from dyme_core.data import datasets
from dyme_core.data.schema import Record
from dyme_core.pipeline.evaluate import evaluate, summarise
from dyme_core.pipeline.methods import Run
from dyme_core.supervision.factory import Experts, describe

logger = logging.getLogger(__name__)
LOGGED = ("loss", "memorize", "explore", "mastered", "format", "accuracy", "correct", "thinking", "zero_variance", "entropy",
          "thinking_tokens", "truncated", "repeated", "without_target", "rows", "memorize_norm", "explore_norm", "cosine",
          "generate_s", "score_s", "update_s")
WINDOW = 10  # steps over which the signs of a collapse are averaged
NUMBERS = ("loss", "grad_norm")  # must be finite


class StepLog(TrainerCallback):
    """Collects one row per optimisation step and, every `evaluate_every` steps, one of greedy validation.

    Args:
        run: its columns are in every row.
        validation: records that are evaluated.
        processor: of the policy.
        experts: their calls are counted per step.

    Attributes:
        rows: the log.
        steps_before: steps of earlier phases (SFT then GRPO).
        has_learned: whether any step had a gradient.
        train_s, cpu_s: seconds and CPU seconds of all training, set by `end`.
    """

    def __init__(self, run: Run, validation: list[Record], processor, experts: Experts) -> None:
        self.run, self.validation, self.processor, self.experts, self.steps_before = run, validation, processor, experts, 0
        self.rows: list[dict[str, Any]] = []
        self.tokens = self._phase_tokens = 0  # prompts and completions; TRL starts from 0 in each phase
        self.evaluate_s = self.evaluate_cpu_s = 0.0
        self.has_learned = False
        self.resumed: list[int] = []  # steps before training resumed
        self._before = (0.0, 0.0)  # seconds and CPU seconds of training before the interruption
        self._start = self._step_start = time.perf_counter()
        self._start_step = 0
        self.begin()

    def begin(self) -> None:
        """Start counting the seconds of training, without the evaluations in between."""
        self._begun = time.perf_counter() - self.evaluate_s, time.process_time() - self.evaluate_cpu_s

    def spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of training so far."""
        return (self._before[0] + time.perf_counter() - self.evaluate_s - self._begun[0],
                self._before[1] + time.process_time() - self.evaluate_cpu_s - self._begun[1])

    def end(self) -> None:
        """Stop counting."""
        self.train_s, self.cpu_s = self.spent()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "tokens": self.tokens, "phase_tokens": self._phase_tokens, "steps_before": self.steps_before,
                "resumed": self.resumed, "has_learned": self.has_learned, "spent": self.spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.tokens, self._phase_tokens = state["rows"], state["tokens"], state["phase_tokens"]
        self.steps_before, self._before = state["steps_before"], tuple(state["spent"])
        self.has_learned = state.get("has_learned", True)
        self.resumed = [*state["resumed"], self.rows[-1]["step"]]
        self.begin()

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._start_step = time.perf_counter(), state.global_step  # the time left is that of this phase

    def on_train_end(self, args, state, control, **kwargs):
        self.tokens, self._phase_tokens = self.tokens + self._phase_tokens, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_start = time.perf_counter()
        self.experts.begin_step(state.global_step + 1 + self.steps_before)

    def on_step_end(self, args, state, control, **kwargs):
        self._step_s = time.perf_counter() - self._step_start

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" not in logs:
            return
        self.has_learned |= logs.get("grad_norm", 1.0) != 0
        step, self._phase_tokens = state.global_step + self.steps_before, int(logs["num_tokens"])
        row = {"event": "step", **self.run.columns, "step": step, "seconds": self._step_s,
               **{name: logs[name] for name in LOGGED if name in logs}}
        asked = ranks.total(self.experts.take_counts())
        row |= asked
        self.rows.append(row)
        left = (state.max_steps - state.global_step) * (time.perf_counter() - self._start) \
            / max(1, state.global_step - self._start_step)
        modes = f", memorize {row['memorize']:.0f} explore {row['explore']:.0f} mastered {row['mastered']:.0f}" \
            if "memorize" in row else ""
        modes += f", {describe(asked)}" if asked else ""
        logger.info("%s: step %d of %d, loss %.4f%s, %.2f s a step, about %.0f s left", self.run.name, step,
                    state.max_steps + self.steps_before, row["loss"], modes, self._step_s, left)
        if step % self.run.profile.training.evaluate_every == 0:
            self.measure(model, step)

    def measure(self, model, step: int) -> dict[str, Any]:
        """Evaluate greedily on validation and log it."""
        start, cpu_start = time.perf_counter(), time.process_time()
        rows = evaluate(model, self.processor, self.validation, max_new_tokens=self.run.profile.training.max_completion_tokens,
                        run_columns={**self.run.columns, "step": step}, task=datasets.task_of(self.run.profile.data.name))
        summary = summarise(rows)
        self.rows.append({"event": "eval", **self.run.columns, "step": step, **summary})
        self.evaluate_s += time.perf_counter() - start
        self.evaluate_cpu_s += time.process_time() - cpu_start
        logger.info("%s: step %d, validation: correct %.1f %%, format %.1f %%, groundedness %.2f", self.run.name, step,
                    100 * summary["correct"], 100 * summary["has_format"], summary["groundedness"])
        return summary


class Collapsed(RuntimeError):
    """Training was stopped after a collapse; the message has the signs and the newest checkpoint from before it."""


@dataclass(frozen=True)
class Sign:
    """A logged column, and when its mean over WINDOW steps says that training has collapsed (`best`: the highest so far)."""

    column: str
    is_bad: Callable[[float, float], bool]
    meaning: str
    remedy: str


# Bounds: in the study's logs exactly one run exceeds them, DyME without memorizing (seed 2), and it did collapse.
SIGNS = (
    Sign("truncated", lambda mean, best: mean >= 0.9, "rollouts run into the length limit",
         "lower the learning rate, or raise max_completion_tokens if thinking needs it"),
    Sign("repeated", lambda mean, best: mean >= 0.9, "rollouts repeat one token", "lower the learning rate"),
    Sign("format", lambda mean, best: mean <= 0.02 and best >= 0.1, "no rollout keeps the format any more",
         "lower the learning rate, or memorize more (memorize_weight 'group')"),
    Sign("thinking_tokens", lambda mean, best: mean < 1 and best >= 3, "rollouts answer without thinking",
         "set correct_needs_format, so that an answer without thinking is not correct"))


class CollapseWatch(TrainerCallback):
    """Checks the log of every step; warns once, or stops.

    Args:
        action: "warn", or "stop": raise Collapsed before the step's checkpoint is written.
    """

    def __init__(self, action: str = "warn") -> None:
        if action not in COLLAPSE_ACTIONS:
            raise ValueError(f"on_collapse must be one of {COLLAPSE_ACTIONS}: got {action!r}")
        self.action = action
        self.seen: dict[str, list[float]] = {}  # the last values of each column
        self.best: dict[str, float] = {}
        self.said: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "best": self.best, "said": self.said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.best, self.said = state["seen"], state["best"], state["said"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        new = [sign for sign in self.signs(logs) if sign[0] not in self.said]
        if not new:
            return
        self.said += [name for name, *_ in new]
        told = f"step {state.global_step}: training looks collapsed: " + "; ".join(
            f"{reason} ({remedy})" for _, reason, remedy in new)
        if self.action == "stop":
            is_sudden = any(name in NUMBERS for name, *_ in new)
            raise Collapsed(f"{told}. {_last_good(Path(args.output_dir), state.global_step - (1 if is_sudden else WINDOW))}")
        logger.warning("%s (on_collapse='stop' would end the run here)", told)

    def signs(self, logs: dict[str, float]) -> list[tuple[str, str, str]]:
        """(name, finding, remedy) of each sign in the logs up to this step."""
        found = [(name, f"{name} is {logs[name]}", "lower the learning rate, and look at the batch of this step")
                 for name in NUMBERS if not math.isfinite(logs.get(name, 0.0))]
        for sign in SIGNS:
            if sign.column not in logs:
                continue
            values = self.seen[sign.column] = [*self.seen.get(sign.column, []), logs[sign.column]][-WINDOW:]
            mean = sum(values) / len(values)
            if len(values) == WINDOW and sign.is_bad(mean, self.best.get(sign.column, 0.0)):
                found.append((sign.column, f"{sign.meaning}, {sign.column} is {mean:.2f} over {WINDOW} steps", sign.remedy))
            self.best[sign.column] = max(mean, self.best.get(sign.column, 0.0))
        return found


def _last_good(folder: Path, step: int) -> str:
    """A sentence on the newest checkpoint that is not later than a step."""
    steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")]
    good = max((each for each in steps if each <= step), default=None)
    return f"The last good checkpoint is {folder / f'checkpoint-{good}'}" if good else \
        "There is no checkpoint from before it; start anew with the remedy"
