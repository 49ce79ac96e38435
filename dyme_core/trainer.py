"""DyMETrainer: TRL's GRPOTrainer with the dynamic switch, nothing else.

Two overrides (SEAM.md): `_calculate_rewards` remembers the gathered reward matrix, `_generate_and_score_completions` edits the
batch that TRL returns. The loss is never touched, so that Unsloth's compiled trainer runs the same code.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig, GRPOTrainer

from dyme_core import objective
from dyme_core.prompts import split_response
from dyme_core.rewards import completion_text

logger = logging.getLogger(__name__)
REQUIRED = {"loss_type": "grpo", "temperature": 1.0, "beta": 0.0, "num_iterations": 1, "mask_truncated_completions": False,
            "vllm_importance_sampling_correction": False, "scale_rewards": "group", "reward_weights": None,
            "multi_objective_aggregation": "sum_then_normalize", "top_entropy_quantile": 1.0}
WHY = {"loss_type": "dapo, bnpo and dr_grpo weigh a memorize row differently from the SFT step it stands for",
       "temperature": "a temperature T puts 1/T into the memorize gradient", "beta": "a reference model pulls targets back",
       "num_iterations": "a replaced row has no old log-probs", "mask_truncated_completions": "it would mask targets",
       "vllm_importance_sampling_correction": "a replaced row has no sampling log-probs",
       "scale_rewards": "advantages are standardised inside each group",
       "reward_weights": "format, accuracy and thinking weigh the same, and the switch would not see TRL's weights",
       "multi_objective_aggregation": "the switch standardises the sum", "top_entropy_quantile": "it would mask targets"}


@dataclass
class DyMEConfig(GRPOConfig):
    """GRPO's settings, those that DyME needs fixed, and the switch's own (METHOD.md)."""

    memorize_weight: str = field(default="row", metadata={"help": "row: 1 (public code); group: G, a prompt = an SFT example"})
    mastered: str = field(default="skip", metadata={"help": "all-correct groups: skip (advantage 0) or explore"})
    reward_gate: str = field(default="sum", metadata={"help": "sum (public code) or gated: 0 where the format fails"})
    correct_needs_format: bool = field(default=True, metadata={"help": "an answer without thinking is not correct"})
    loss_type: str = "grpo"
    beta: float = 0.0
    mask_truncated_completions: bool = False
    vllm_importance_sampling_correction: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("memorize_weight", ("row", "group")), ("mastered", ("skip", "explore")),
                              ("reward_gate", ("sum", "gated"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}: got {getattr(self, name)!r}")
        super().__post_init__()
        for name, wanted in REQUIRED.items():
            if getattr(self, name) != wanted:
                raise ValueError(f"DyME needs {name}={wanted!r}: got {getattr(self, name)!r}, but {WHY[name]}")
        if self.steps_per_generation != self.gradient_accumulation_steps:
            raise ValueError(f"DyME needs steps_per_generation unset: got {self.steps_per_generation} with "
                             f"gradient_accumulation_steps={self.gradient_accumulation_steps}; else old log-probs of replaced "
                             "rows would be stale")


class MeasuredGRPOTrainer(GRPOTrainer):
    """TRL's GRPO, unchanged, with what a reader of a run needs logged at each step.

    Logged: groups by mode (memorize / explore / mastered: none, some, all of a prompt's rollouts correct; plain GRPO only
    counts them), mean format / accuracy / thinking / correct, share of zero-variance groups, thinking length in tokens,
    share of truncated rollouts, seconds to generate, to score and to update.

    Args:
        reward_funcs: exactly [format, accuracy, thinking], each in [0, 1] (rewards.reward_functions).
        correct_needs_format: an answer without thinking is not correct.
    """

    def __init__(self, *args: Any, reward_funcs: Sequence[Callable], correct_needs_format: bool = True, **kwargs: Any):
        if len(reward_funcs) != 3:
            raise ValueError(f"reward_funcs must be [format, accuracy, thinking]: got {len(reward_funcs)} functions")
        super().__init__(*args, reward_funcs=list(reward_funcs), **kwargs)
        self.correct_needs_format = correct_needs_format
        self._rewards = torch.empty(0, 3)
        self._seconds = {"generate_s": 0.0, "score_s": 0.0}

    def is_correct(self) -> torch.Tensor:
        """(B_global,) booleans for the rollouts scored last, all processes."""
        is_right = self._rewards[:, 1] > 0.5
        return is_right & (self._rewards[:, 0] > 0.5) if self.correct_needs_format else is_right

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        start = time.perf_counter()
        self._rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._seconds["score_s"] = time.perf_counter() - start
        self._log_rollouts(completions, completion_ids_list)
        return self._rewards

    def _log_rollouts(self, completions, completion_ids_list) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        modes = objective.group_modes(self.is_correct(), group_size)
        for mode, name in enumerate(("memorize", "explore", "mastered")):
            metrics[name].append((modes == mode).sum().item())
        for place, name in enumerate(("format", "accuracy", "thinking")):
            metrics[name].append(self._rewards[:, place].nanmean().item())
        metrics["correct"].append(self.is_correct().float().mean().item())
        weights = self.reward_weights.to(self._rewards.device)  # a reward of weight 0 is measured, not learned from
        totals = (objective.fill_unknown(self._rewards, group_size) * weights).sum(dim=1).reshape(-1, group_size)
        metrics["zero_variance"].append((totals == totals[:, :1]).all(dim=1).float().mean().item())
        thinking = [split_response(completion_text(completion))[0] for completion in completions]
        lengths = [len(ids) for ids in self._tokenizer(thinking, add_special_tokens=False)["input_ids"]]
        truncated = [ids[-1] not in self.eos_token_ids for ids in completion_ids_list]
        local = torch.tensor([lengths, truncated], dtype=torch.float32, device=self.accelerator.device).mean(dim=1)
        means = self.accelerator.gather(local[None]).mean(dim=0).tolist()
        metrics["thinking_tokens"].append(means[0])
        metrics["truncated"].append(means[1])

    def _generate_and_score_completions(self, inputs):
        start = time.perf_counter()
        batch = super()._generate_and_score_completions(inputs)
        self._seconds["generate_s"] = time.perf_counter() - start - self._seconds["score_s"]
        return batch

    def training_step(self, model, inputs, num_items_in_batch):
        self._seconds = {"generate_s": 0.0, "score_s": 0.0}
        start = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        elapsed = time.perf_counter() - start
        self._seconds["update_s"] = elapsed - self._seconds["generate_s"] - self._seconds["score_s"]
        for name, seconds in self._seconds.items():  # TRL logs the mean over micro-batches; wanted is the step's sum
            self._metrics["train"][name].append(seconds * self.current_gradient_accumulation_steps)
        return loss


class DyMETrainer(MeasuredGRPOTrainer):
    """GRPO that memorizes a refined target where every rollout of a prompt failed.

    Logged besides: without_target, all-wrong prompts that the refiner had no target for; their groups teach nothing.

    Args:
        refine: called once a step with the data rows (dicts of columns) of all-wrong prompts; returns a target's text for
            each, thinking and answer line without the end token, or None (data.target_writer).
        **kwargs: as for MeasuredGRPOTrainer; `args` must be a DyMEConfig.
    """

    def __init__(self, *args: Any, refine: Callable[[list[dict[str, Any]]], list[str | None]], **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, DyMEConfig):
            raise TypeError(f"args must be a DyMEConfig: got {type(self.args).__name__}")
        self.correct_needs_format = self.args.correct_needs_format
        self.memorize_advantage = float(self.num_generations) if self.args.memorize_weight == "group" else 1.0
        self.refine = refine

    def _generate_and_score_completions(self, inputs):
        is_training = self.model.training  # read before super(): generation may change it
        batch = super()._generate_and_score_completions(inputs)
        start = time.perf_counter()
        batch = self._switch(inputs, batch) if is_training else batch
        self._seconds["score_s"] += time.perf_counter() - start  # the refiner's seconds are no part of the update
        return batch

    def _switch(self, inputs: list[dict[str, Any]], batch: dict[str, Any]) -> dict[str, Any]:
        """Apply the switch to the local rows of a generated batch; groups may span processes."""
        decision = objective.switch(objective.total_rewards(self._rewards, self.args.reward_gate, self.num_generations),
                                    self.is_correct(), self.num_generations, self.memorize_advantage, self.args.mastered)
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = decision.advantages[first: first + len(inputs)].to(batch["advantages"]).clone()
        rows = [row for row in (decision.memorize_rows - first).tolist() if 0 <= row < len(inputs)]
        self._memorize(batch, rows, self.refine([inputs[row] for row in rows]) if rows else [])
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        if not decision.advantages.any():
            logger.info("step %d: nothing to learn from this batch: %s", self.state.global_step, self._why_nothing(decision))
        return batch

    def _memorize(self, batch: dict[str, Any], rows: list[int], targets: Sequence[str | None]) -> None:
        for row, target in zip(rows, targets, strict=True):
            if target is None:
                batch["advantages"][row] = 0.0
            else:
                self._write_target(batch, row, target)
        num_missing = torch.tensor([sum(target is None for target in targets)], device=batch["advantages"].device)
        self._metrics["train"]["without_target"].append(self.accelerator.gather(num_missing).sum().item())

    def _why_nothing(self, decision: objective.Switched) -> str:
        mastered = int((decision.modes == objective.MASTERED).sum())
        flat = len(decision.modes) - mastered
        return (f"in {mastered} of {len(decision.modes)} groups every rollout is correct"
                + (f", in {flat} all rollouts earn the same reward" if flat else ""))

    def _write_target(self, batch: dict[str, Any], row: int, target: str) -> None:
        """Put the target's tokens in place of a rollout, widening every row of the batch where it is longer."""
        ids = self._tokenizer(target, add_special_tokens=False)["input_ids"] + [self._tokenizer.eos_token_id]
        missing = len(ids) - batch["completion_ids"].shape[1]
        if missing > 0:
            fills = {"completion_ids": self._tokenizer.pad_token_id, "completion_mask": 0, "token_type_ids": 0,
                     "mm_token_type_ids": 0}
            for name in fills.keys() & batch.keys():
                batch[name] = torch.nn.functional.pad(batch[name], (0, missing), value=fills[name])
        batch["completion_ids"][row] = self._tokenizer.pad_token_id
        batch["completion_ids"][row, : len(ids)] = torch.tensor(ids, device=batch["completion_ids"].device)
        batch["completion_mask"][row] = 0
        batch["completion_mask"][row, : len(ids)] = 1
