"""TRL's GRPO, unchanged, with more logged: the baseline, and the base class of DyMETrainer."""
from __future__ import annotations

import copy
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOConfig

from dyme_core.data.datasets import fill_step, with_defaults
from dyme_core.data.prompt_format import completion_text, split_response
from dyme_core.models.loading import load_policy
from dyme_core.models.processors import generation_kwargs, processor_of, set_end_ids
from dyme_core.models.resuming import ResumableGRPOTrainer
from dyme_core.trainer.advantages import StepRewards, fill_unknown, group_modes
from dyme_core.trainer.refill import Refill
from dyme_core.trainer.rewards import check_functions, roles_of

logger = logging.getLogger(__name__)
CACHE_STEP = 512  # tokens by which a cache of fixed size grows


class MeasuredGRPOTrainer(Refill, ResumableGRPOTrainer):
    """TRL's GRPO, unchanged but that special tokens which do not end a rollout are never sampled: a sampled <image> would break
    the next forward pass.

    Logs in addition: groups by mode (memorize, explore, mastered: none, some, all of a prompt's rollouts correct; plain GRPO
    only counts them), means of format, accuracy, thinking (of those rewards that are given) and correct, share of zero-variance
    groups, thinking length in tokens, shares of rollouts that are truncated or repeat one token, seconds to generate, to score
    and to update.

    Args:
        model: a loaded model, trained as it is; or a folder or hub id, loaded by `load_policy` with its vision tower frozen.
        reward_funcs: any that TRL takes; `rewards.dyme_rewards` gives DyME's.
        args: a GRPOConfig; where it has a `correct_reward`, that names the reward which says what is correct; where it has a
            `refill` (RefillConfig), groups that would teach nothing are replaced by fresh prompts (`refill.Refill`).
        train_dataset, eval_dataset: columns `prompt` (text or messages), `image` or `images` where the model reads them, and
            what the rewards need, such as `answer`; `item`, `question` and `supervision` are filled in where they are missing
            (`datasets.with_defaults`).
        processing_class: the model's processor or tokenizer; None: the one that lies with the model.
        correct_needs_format: an answer without thinking is not correct.
        **kwargs: as for GRPOTrainer.
    """

    def __init__(self, model: PreTrainedModel | Path | str, reward_funcs: Any = None, args: GRPOConfig | None = None,
                 train_dataset: Any = None, eval_dataset: Any = None,
                 processing_class: ProcessorMixin | PreTrainedTokenizerBase | None = None, *,
                 correct_needs_format: bool = True, **kwargs: Any):
        check_functions(reward_funcs)
        if isinstance(model, str | Path):
            _check_options({**kwargs, "model_init_kwargs": getattr(args, "model_init_kwargs", None)})
            model, processor = load_policy(model)
            processing_class = processing_class or processor
        elif processing_class is None:
            processing_class = processor_of(model)
        _check_pictures(train_dataset, processing_class)
        set_end_ids(model, processing_class)
        if any(weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16) for weight in model.parameters()):
            logger.warning("trained weights have 16 bits, in which an update of a small learning rate rounds to nothing; load "
                           "the model in float32 (bf16=True computes in 16 bits all the same)")
        args = copy.copy(args) if args is not None else GRPOConfig(f"{model.config.name_or_path.split('/')[-1]}-GRPO")
        args.generation_kwargs = generation_kwargs(model, processing_class, args.use_vllm, args.generation_kwargs)
        rows = fill_step(with_defaults(train_dataset), args.generation_batch_size // args.num_generations)
        super().__init__(model, reward_funcs=reward_funcs, args=args, train_dataset=rows,
                         eval_dataset=with_defaults(eval_dataset), processing_class=processing_class, **kwargs)
        self._get_per_token_logps_and_entropies = _one_picture_each(self._get_per_token_logps_and_entropies)
        if self._is_compiled():  # TRL turns compilation off
            self.generation_config.disable_compile = False
        self.correct_needs_format = correct_needs_format
        self._roles = roles_of(self.reward_funcs, self.reward_func_names, getattr(self.args, "correct_reward", None))
        self._rewards = StepRewards(torch.empty(0))  # of the step's rollouts, all processes
        self._seconds = {"generate_s": 0.0, "score_s": 0.0}
        self._asked: list[dict[str, Any]] = []  # data rows whose rollouts are being written; none in evaluation
        self._refills = getattr(self.args, "refill", 0.0) > 0
        if self._refills:
            self.init_refill()

    def is_correct(self) -> torch.Tensor:
        """(B_global,) booleans for the rollouts scored last, all processes."""
        return self._rewards.is_correct(self.correct_needs_format)

    def _is_compiled(self) -> bool:
        return self.args.cache_implementation == "static" and not self.use_vllm

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self._is_compiled():  # a longer cache is compiled for anew: grow it in large steps, and never shrink it
            longest = max(map(len, prompt_ids)) + self.max_completion_length
            known = self.generation_config.max_cache_len or 0
            self.generation_config.max_cache_len = max(known, -(-longest // CACHE_STEP) * CACHE_STEP)
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        start = time.perf_counter()
        self.matrix = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._seconds["score_s"] += time.perf_counter() - start
        thinking = [split_response(completion_text(completion))[0] for completion in completions]
        lengths = [len(ids) for ids in self._tokenizer(thinking, add_special_tokens=False)["input_ids"]]
        truncated = [ids[-1] not in self.eos_token_ids for ids in completion_ids_list]
        repeated = [len(ids) >= 8 and max(Counter(ids).values()) > len(ids) / 2 for ids in completion_ids_list]  # one token
        self.traits = torch.tensor([lengths, truncated, repeated], dtype=torch.float32, device=self.accelerator.device)
        return self.matrix

    @property
    def matrix(self) -> torch.Tensor:
        """(B_global, F) rewards of the step's rollouts, of all processes; NaN where one is missing."""
        return self._matrix

    @matrix.setter
    def matrix(self, matrix: torch.Tensor) -> None:
        self._matrix, self._rewards = matrix, StepRewards.of(matrix, self._roles)

    def _totals(self, group_size: int) -> torch.Tensor:
        """(P, G) sums of the rewards as GRPO learns from them; one of weight 0 is measured, not learned from."""
        weights = self.reward_weights.to(self.matrix.device)
        return (fill_unknown(self.matrix, group_size) * weights).sum(dim=1).reshape(-1, group_size)

    def idle_groups(self) -> torch.Tensor:
        totals = self._totals(self.num_generations)
        return (totals == totals[:, :1]).all(dim=1)

    def ask(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        self._asked = rows if self.model.training else []
        return super()._generate_and_score_completions(rows)

    def _log_rollouts(self, mode: str, group_size: int) -> None:
        is_correct, modes = self.is_correct(), group_modes(self.is_correct(), group_size)
        logged = {name: (modes == number).sum() for number, name in enumerate(("memorize", "explore", "mastered"))}
        logged |= {name: reward.nanmean() for name in ("format", "accuracy", "thinking")
                   if (reward := getattr(self._rewards, name)) is not None}
        totals = self._totals(group_size)
        logged |= {"correct": is_correct.float().mean(),
                   "zero_variance": (totals == totals[:, :1]).all(dim=1).float().mean()}
        means = self.accelerator.gather(self.traits.mean(dim=1)[None]).mean(dim=0)
        logged |= zip(("thinking_tokens", "truncated", "repeated"), means, strict=True)
        for name, value in logged.items():
            self._metrics[mode][name].append(value.item())

    def _generate_and_score_completions(self, inputs):
        start, is_training = time.perf_counter(), self.model.training  # read first: generation may change it
        self._seconds["score_s"] = 0.0
        batch = self.ask(inputs)
        if is_training and self._refills:
            batch = self.refill(inputs, batch)
        self._log_rollouts(*(("train", self.num_generations) if is_training else ("eval", self.num_generations_eval)))
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


def _check_options(given: dict[str, Any]) -> None:
    """Refuse options of TRL's for loading a model, which `load_policy` does not take."""
    if unused := [name for name in ("model_init_kwargs", "quantization_config") if given.get(name)]:
        raise ValueError(f"a model that is given as a path is loaded in 32 bits, without options: got {' and '.join(unused)}; "
                         "load it with AutoModelForImageTextToText.from_pretrained and give the model")


def _check_pictures(dataset: Any, processor: ProcessorMixin | PreTrainedTokenizerBase) -> None:
    """Refuse a data set with pictures where only a tokenizer is there to read them."""
    columns = getattr(dataset, "column_names", None) or ()
    if isinstance(processor, PreTrainedTokenizerBase) and {"image", "images"} & {*columns}:
        raise ValueError(f"train_dataset has pictures, which need the model's processor: got {type(processor).__name__}; give "
                         "the processor or leave processing_class out, take a model that reads pictures, or remove the column")


def _one_picture_each(log_probs: Callable[..., Any]) -> Callable[..., Any]:
    """TRL's log-probs, also of LLaVA-OneVision's rollouts: TRL hands on the number of pictures of each prompt, which it does
    not take there. The model needs none where it is one."""
    @functools.wraps(log_probs)
    def call(*args: Any, batch_num_images: Any = None, **kwargs: Any) -> Any:
        return log_probs(*args, **kwargs)

    return call
