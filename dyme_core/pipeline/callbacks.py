"""Callbacks of a run: the log of its steps with the time left, and the detection of a collapse."""
from __future__ import annotations

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback

from dyme_core import ranks
from dyme_core.config import CollapseAction
from dyme_core.data import datasets
from dyme_core.data.schema import Record
from dyme_core.pipeline.evaluate import evaluate, summarise
from dyme_core.pipeline.methods import LIVE_FILE, Run
from dyme_core.supervision.factory import Experts, describe
from dyme_core.utils import json_line, write_rows

logger = logging.getLogger(__name__)
LOGGED = ("loss", "memorize", "explore", "mastered", "format", "accuracy", "correct", "thinking", "zero_variance", "entropy",
          "thinking_tokens", "truncated", "repeated", "without_target", "rows", "refilled", "rollouts",
          "memorize_norm", "explore_norm", "cosine", "target_nll", "first_target_nll", "other_target", "choose_s",
          "generate_s", "score_s", "update_s")
WINDOW = 10  # steps over which the signs of a collapse are averaged
REMEDIES = {  # by logged column: what its collapse means, and what to do
    "truncated": "rollouts run into the length limit (lower the learning rate, or raise max_completion_tokens)",
    "repeated": "rollouts repeat one token (lower the learning rate)",
    "format": "no rollout keeps the format any more (lower the learning rate, or memorize more: memorize_weight 'group')",
    "thinking_tokens": "rollouts answer without thinking (set correct_needs_format)"}


class StepLog(TrainerCallback):
    """Collects one row per optimisation step and, every `evaluate_every` steps, one of greedy validation; LIVE_FILE has them as
    they come.

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
        self.has_learned = False
        self.resumed: list[int] = []  # steps before training resumed
        self._start = self._step_start = time.perf_counter()
        self._start_step = 0
        self.begin()

    def begin(self) -> None:
        """Start counting the seconds of training."""
        self._spent, self._since = (0.0, 0.0), _now()

    def spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of training so far, without the evaluations in between and with those before resuming."""
        elapsed = (now - since for now, since in zip(_now(), self._since, strict=True))
        return tuple(before + more for before, more in zip(self._spent, elapsed, strict=True))

    def end(self) -> None:
        """Stop counting."""
        self.train_s, self.cpu_s = self.spent()

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "tokens": self.tokens, "phase_tokens": self._phase_tokens, "steps_before": self.steps_before,
                "resumed": self.resumed, "has_learned": self.has_learned, "spent": self.spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.tokens, self._phase_tokens = state["rows"], state["tokens"], state["phase_tokens"]
        if ranks.is_writer():  # steps after the checkpoint come again
            write_rows(self.run.folder / LIVE_FILE, self.rows)
        self.steps_before, self._spent, self._since = state["steps_before"], tuple(state["spent"]), _now()
        self.has_learned = state.get("has_learned", True)
        self.resumed = [*state["resumed"], self.rows[-1]["step"]]

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
        self._add(row)
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
        spent = self.spent()
        rows = evaluate(model, self.processor, self.validation, max_new_tokens=self.run.profile.training.max_completion_tokens,
                        run_columns={**self.run.columns, "step": step}, task=datasets.task_of(self.run.profile.data.name))
        summary = summarise(rows)
        self._add({"event": "eval", **self.run.columns, "step": step, **summary})
        self._spent, self._since = spent, _now()
        grounded = "not known" if summary["groundedness"] is None else f"{summary['groundedness']:.2f}"
        logger.info("%s: step %d, validation: correct %.1f %%, format %.1f %%, groundedness %s", self.run.name, step,
                    100 * summary["correct"], 100 * summary["has_format"], grounded)
        return summary

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if ranks.is_writer():
            self.run.folder.mkdir(parents=True, exist_ok=True)
            with (self.run.folder / LIVE_FILE).open("wb" if len(self.rows) == 1 else "ab") as file:
                file.write(json_line(row))


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Collapsed(RuntimeError):
    """Training was stopped after a collapse; the message has the signs and where the earlier checkpoints lie."""


class CollapseWatch(TrainerCallback):
    """Checks the log of every step: a loss or gradient that is not finite, rollouts of REMEDIES' kinds. Warns once, or stops.

    Args:
        action: "warn", or "stop": raise Collapsed before the step's checkpoint is written.
    """

    def __init__(self, action: CollapseAction = "warn") -> None:
        self.action = action
        self.seen: dict[str, list[float]] = {}  # the last values of each column
        self.best: dict[str, float] = {}  # the highest mean so far
        self.said: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "best": self.best, "said": self.said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.best, self.said = state["seen"], state["best"], state["said"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        new = {name: finding for name, finding in self.signs(logs).items() if name not in self.said}
        if not new:
            return
        self.said += new
        told = f"step {state.global_step}: training looks collapsed: {'; '.join(new.values())}"
        if self.action == "stop":
            healthy = state.global_step - (1 if {"loss", "grad_norm"} & new.keys() else WINDOW)
            raise Collapsed(f"{told}. Checkpoints up to step {healthy} are from before it, in {args.output_dir}")
        logger.warning("%s (on_collapse='stop' would end the run here)", told)

    def signs(self, logs: dict[str, float]) -> dict[str, str]:
        """The name and finding of each sign in the logs up to this step."""
        found = {name: f"{name} is {logs[name]} (lower the learning rate, and look at the batch of this step)"
                 for name in ("loss", "grad_norm") if not math.isfinite(logs.get(name, 0.0))}
        for name in REMEDIES.keys() & logs.keys():
            values = self.seen[name] = [*self.seen.get(name, []), logs[name]][-WINDOW:]
            mean, best = sum(values) / len(values), self.best.get(name, 0.0)
            if len(values) == WINDOW and _has_collapsed(name, mean, best):
                found[name] = f"{name} is {mean:.2f} over {WINDOW} steps: {REMEDIES[name]}"
            self.best[name] = max(mean, best)
        return found


def _has_collapsed(column: str, mean: float, best: float) -> bool:
    """Whether a column's mean over WINDOW steps says so; `best` is the highest mean before."""
    # In the study's logs exactly one run exceeds these bounds, DyME without memorizing (seed 2), and it did collapse.
    return {"truncated": mean >= 0.9, "repeated": mean >= 0.9, "format": mean <= 0.02 and best >= 0.1,
            "thinking_tokens": mean < 1 and best >= 3}[column]
