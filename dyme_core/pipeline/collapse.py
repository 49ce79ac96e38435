"""Collapse watched for: rollouts cut at the limit or of one token, format or thinking lost, loss or gradient not finite."""
from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dyme_core.config import COLLAPSE_ACTIONS

logger = logging.getLogger(__name__)
WINDOW = 10  # steps whose mean is looked at
NUMBERS = ("loss", "grad_norm")  # that must be finite


class Collapsed(RuntimeError):
    """Training was stopped: it says what was seen, and the newest checkpoint from before."""


@dataclass(frozen=True)
class Sign:
    """A logged column, and when its mean over WINDOW steps says that training has collapsed (`best`: the highest so far)."""

    column: str
    is_bad: Callable[[float, float], bool]
    meaning: str
    remedy: str


# Bounds: over the study's 285 logs they hold for one run alone, GRPO without memorizing (seed 2), which did collapse.
SIGNS = (
    Sign("truncated", lambda mean, best: mean >= 0.9, "rollouts run into the length limit",
         "lower the learning rate, or raise max_completion_tokens if thinking needs it"),
    Sign("repeated", lambda mean, best: mean >= 0.9, "rollouts repeat one token", "lower the learning rate"),
    Sign("format", lambda mean, best: mean <= 0.02 and best >= 0.1, "no rollout keeps the format any more",
         "lower the learning rate, or memorize more (memorize_weight 'group')"),
    Sign("thinking_tokens", lambda mean, best: mean < 1 and best >= 3, "rollouts answer without thinking",
         "set correct_needs_format, so that an answer without thinking is not correct"))


class CollapseWatch(TrainerCallback):
    """Looks at every step's log; says once what it sees, or stops.

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
        """(name, what is seen, what to do) of each sign in this step's log and those before it."""
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
    """Words on the newest checkpoint that is not later than a step."""
    steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")]
    good = max((each for each in steps if each <= step), default=None)
    return f"The last good checkpoint is {folder / f'checkpoint-{good}'}" if good else \
        "There is no checkpoint from before it; start anew with the remedy"
