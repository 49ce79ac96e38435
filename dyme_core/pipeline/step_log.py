"""A run's log: one row per optimisation step, one per evaluation on the watched split; progress with the time left."""
from __future__ import annotations

import logging
import time
from typing import Any

from transformers import TrainerCallback

from dyme_core import ranks
from dyme_core.data import datasets
from dyme_core.data.schema import Record
from dyme_core.pipeline.evaluate import evaluate, summarise
from dyme_core.pipeline.runs import Run
from dyme_core.supervision.factory import Experts, describe

logger = logging.getLogger(__name__)
LOGGED = ("loss", "memorize", "explore", "mastered", "format", "accuracy", "correct", "thinking", "zero_variance", "entropy",
          "thinking_tokens", "truncated", "repeated", "without_target", "rows", "memorize_norm", "explore_norm", "cosine",
          "generate_s", "score_s", "update_s")


class StepLog(TrainerCallback):
    """Collects one row per optimisation step and, every `evaluate_every` steps, one of greedy validation.

    `steps_before` are the steps of an earlier phase (SFT then GRPO); calls of `experts` are counted per step.
    """

    def __init__(self, run: Run, validation: list[Record], processor, steps_before: int = 0, experts: Experts | None = None):
        self.run, self.validation, self.processor, self.steps_before = run, validation, processor, steps_before
        self.experts = experts
        self.rows: list[dict[str, Any]] = []
        self.tokens = self._phase_tokens = 0  # prompts and completions; TRL counts anew in each phase
        self.evaluate_s = self.evaluate_cpu_s = 0.0
        self.resumed: list[int] = []  # steps from which training went on
        self._before = (0.0, 0.0)  # seconds and CPU seconds of training until it was interrupted
        self._start = self._step_start = time.perf_counter()
        self._start_step = 0
        self.begin()

    def begin(self) -> None:
        """Count what training takes from here on, without the evaluations in between."""
        self._begun = time.perf_counter() - self.evaluate_s, time.process_time() - self.evaluate_cpu_s

    def spent(self) -> tuple[float, float]:
        """Seconds and CPU seconds of training so far."""
        return (self._before[0] + time.perf_counter() - self.evaluate_s - self._begun[0],
                self._before[1] + time.process_time() - self.evaluate_cpu_s - self._begun[1])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "tokens": self.tokens, "phase_tokens": self._phase_tokens, "steps_before": self.steps_before,
                "resumed": self.resumed, "spent": self.spent()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.tokens, self._phase_tokens = state["rows"], state["tokens"], state["phase_tokens"]
        self.steps_before, self._before = state["steps_before"], tuple(state["spent"])
        self.resumed = [*state["resumed"], self.rows[-1]["step"]]
        self.begin()

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._start_step = time.perf_counter(), state.global_step  # the time left is of this phase and its pace

    def on_train_end(self, args, state, control, **kwargs):
        self.tokens, self._phase_tokens = self.tokens + self._phase_tokens, 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._step_start = time.perf_counter()
        if self.experts is not None:
            self.experts.begin_step(state.global_step + 1 + self.steps_before)

    def on_step_end(self, args, state, control, **kwargs):
        self._step_s = time.perf_counter() - self._step_start

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if "loss" not in logs:
            return
        step, self._phase_tokens = state.global_step + self.steps_before, int(logs["num_tokens"])
        row = {"event": "step", **self.run.columns, "step": step, "seconds": self._step_s,
               **{name: logs[name] for name in LOGGED if name in logs}}
        asked = ranks.total(self.experts.take_counts()) if self.experts is not None else {}
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
