"""TRL's GRPO, unchanged, with what a reader of a run needs logged: the baseline, and what DyMETrainer is built on."""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from dyme_core.data.prompt_format import completion_text, split_response
from dyme_core.trainer import advantages


class MeasuredGRPOTrainer(GRPOTrainer):
    """TRL's GRPO, unchanged, with what a reader of a run needs logged at each step.

    Logged: groups by mode (memorize / explore / mastered: none, some, all of a prompt's rollouts correct; plain GRPO only
    counts them), mean format / accuracy / thinking / correct, share of zero-variance groups, thinking length in tokens,
    share of truncated rollouts and of those that repeat one token, seconds to generate, to score and to update.

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
        modes = advantages.group_modes(self.is_correct(), group_size)
        for mode, name in enumerate(("memorize", "explore", "mastered")):
            metrics[name].append((modes == mode).sum().item())
        for place, name in enumerate(("format", "accuracy", "thinking")):
            metrics[name].append(self._rewards[:, place].nanmean().item())
        metrics["correct"].append(self.is_correct().float().mean().item())
        weights = self.reward_weights.to(self._rewards.device)  # a reward of weight 0 is measured, not learned from
        totals = (advantages.fill_unknown(self._rewards, group_size) * weights).sum(dim=1).reshape(-1, group_size)
        metrics["zero_variance"].append((totals == totals[:, :1]).all(dim=1).float().mean().item())
        thinking = [split_response(completion_text(completion))[0] for completion in completions]
        lengths = [len(ids) for ids in self._tokenizer(thinking, add_special_tokens=False)["input_ids"]]
        truncated = [ids[-1] not in self.eos_token_ids for ids in completion_ids_list]
        repeated = [_is_one_token(ids) for ids in completion_ids_list]
        local = torch.tensor([lengths, truncated, repeated], dtype=torch.float32, device=self.accelerator.device).mean(dim=1)
        for name, mean in zip(("thinking_tokens", "truncated", "repeated"), self.accelerator.gather(local[None]).mean(dim=0),
                              strict=True):
            metrics[name].append(mean.item())

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


def _is_one_token(ids: Sequence[int]) -> bool:
    """True where one token makes up most of a rollout; short ones say nothing."""
    return len(ids) >= 8 and Counter(ids).most_common(1)[0][1] > len(ids) / 2
