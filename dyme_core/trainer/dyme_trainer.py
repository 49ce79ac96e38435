"""DyMETrainer: TRL's GRPOTrainer with a switch between memorizing and exploring, nothing else.

`_generate_and_score_completions` edits the batch that TRL returns, `_generate_single_turn` lets rollouts start from a
hint. The loss is never touched, so that Unsloth's compiled trainer runs the same code.
"""
from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from trl import GRPOConfig

from dyme_core.models import prefix_sharing
from dyme_core.trainer import advantages, batching, switches
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.streaming import Watcher, watching

logger = logging.getLogger(__name__)
VISUAL = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
          "token_type_ids", "mm_token_type_ids", "image_position_ids")  # what TRL's log-probs take besides token ids
REQUIRED = {"loss_type": "grpo", "temperature": 1.0, "beta": 0.0, "num_iterations": 1, "mask_truncated_completions": False,
            "vllm_importance_sampling_correction": False, "scale_rewards": "group", "reward_weights": None,
            "multi_objective_aggregation": "sum_then_normalize", "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None}
WHY = {"loss_type": "dapo, bnpo and dr_grpo weigh a memorize row differently from the SFT step it stands for",
       "temperature": "a temperature T puts 1/T into the memorize gradient", "beta": "a reference model pulls targets back",
       "num_iterations": "a replaced row has no old log-probs", "mask_truncated_completions": "it would mask targets",
       "vllm_importance_sampling_correction": "a replaced row has no sampling log-probs",
       "scale_rewards": "advantages are standardised inside each group",
       "reward_weights": "format, accuracy and thinking weigh the same, and the switch would not see TRL's weights",
       "multi_objective_aggregation": "the switch standardises the sum", "top_entropy_quantile": "it would mask targets",
       "off_policy_mask_threshold": "a replaced row has no sampling log-probs"}


@dataclass
class DyMEConfig(GRPOConfig):
    """GRPO's settings, those that DyME needs fixed, and the switch's own (docs/method.md)."""

    switch: str = field(default="binary", metadata={"help": "one of switches.SWITCHES; binary is DyME's"})
    switch_value: float | None = field(default=None, metadata={"help": "the switch's number; None: its default"})
    thinking_weight: float = field(default=1.0, metadata={"help": "of the thinking reward; 0 is the ablation without checker"})
    drop_idle_rows: bool = field(default=True, metadata={"help": "rows of advantage 0 skip the update (same gradient)"})
    probe_every: int = field(default=0, metadata={"help": "steps between measurements of gradients; 0: never"})
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
        switches.named(self.switch, self.switch_value)
        super().__post_init__()
        for name, wanted in REQUIRED.items():
            if getattr(self, name) != wanted:
                raise ValueError(f"DyME needs {name}={wanted!r}: got {getattr(self, name)!r}, but {WHY[name]}")
        if self.steps_per_generation != self.gradient_accumulation_steps:
            raise ValueError(f"DyME needs steps_per_generation unset: got {self.steps_per_generation} with "
                             f"gradient_accumulation_steps={self.gradient_accumulation_steps}; else old log-probs of replaced "
                             "rows would be stale")


class DyMETrainer(MeasuredGRPOTrainer):
    """GRPO that memorizes a refined target where the switch says so: DyME's own where every rollout of a prompt failed.

    Logged besides: without_target, prompts to memorize that the refiner had no target for; rows, those that went through the
    update; every `probe_every` steps memorize_norm, explore_norm and cosine of the gradients of targets and of rollouts.

    Args:
        refine: called once a step with the data rows (dicts of columns) of the prompts to memorize; returns a target's text
            for each, thinking and answer line without the end token, or None (data.target_writer).
        watch: called while rollouts are written, whenever some of them have ended, with the text of each (None: not yet) and
            the data rows (rewards.ThinkingReward.watch); not where vLLM writes them or a hint is given.
        on_scored: called in every process once the rollouts of a step are scored, before `refine` (Experts.share_bank).
        **kwargs: as for MeasuredGRPOTrainer; `args` must be a DyMEConfig.
    """

    def __init__(self, *args: Any, refine: Callable[[list[dict[str, Any]]], list[str | None]],
                 watch: Callable[[list[str | None], list[dict[str, Any]]], None] | None = None,
                 on_scored: Callable[[], None] = lambda: None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not isinstance(self.args, DyMEConfig):
            raise TypeError(f"args must be a DyMEConfig: got {type(self.args).__name__}")
        self.correct_needs_format = self.args.correct_needs_format
        self.memorize_advantage = float(self.num_generations) if self.args.memorize_weight == "group" else 1.0
        self.switch = switches.named(self.args.switch, self.args.switch_value)
        self.refine, self.watch, self.on_scored = refine, watch, on_scored
        self._inputs: list[dict[str, Any]] = []  # data rows of the batch that is being made
        self._hints: list[list[int]] = []  # token ids, one list per local row; empty where rollouts start from nothing
        self.held = batching.Held()  # rows with targets that wait (Decision.hold)

    @property
    def progress(self) -> float:
        """Share of the training steps that are done."""
        return self.state.global_step / max(1, self.state.max_steps)  # a batch may be looked at before training

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or self.args.steps_per_generation == 1:
            return inputs
        self._buffered_inputs = batching.micro_batches(self._buffered_inputs, self._tokenizer.pad_token_id,
                                                       by_prompt=prefix_sharing.shares_prefixes(self.model))
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs):
        is_training = self.model.training  # read before super(): generation may change it
        self._inputs = inputs if is_training else []
        self._hints = self._draw_hints(inputs) if is_training and self.switch.hint else []
        batch = super()._generate_and_score_completions(inputs)
        start = time.perf_counter()
        if is_training:
            self.on_scored()
            batch = self._switch(inputs, batch)
        self._seconds["score_s"] += time.perf_counter() - start  # the refiner's seconds are no part of the update
        return batch

    def _draw_hints(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        share = self.switch.hint(self.progress, self.switch.value)
        ids = [self._ids(target)[:-1] if target is not None else [] for target in self.refine(inputs)]
        return [row[: round(share * len(row))] for row in ids]

    def _generate_single_turn(self, prompt_ids, images, fields, *args, **kwargs):
        if not any(self._hints):
            is_watched = self.watch is not None and self._inputs
            with watching(self.model, Watcher(self._tell, self.eos_token_ids)) if is_watched else nullcontext():
                return super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)
        hinted = [[*ids, *hint] for ids, hint in zip(prompt_ids, self._hints, strict=True)]
        longer = {name: [[*ids, *[0] * len(hint)] for ids, hint in zip(values, self._hints, strict=True)]
                  if name in batching.SPANS else values for name, values in fields.items()}
        sampled, log_probs = super()._generate_single_turn(hinted, images, longer, *args, **kwargs)
        return [[*hint, *ids] for hint, ids in zip(self._hints, sampled, strict=True)], log_probs

    def _tell(self, rollouts: list[list[int] | None]) -> None:
        texts = iter(self.processing_class.batch_decode([ids for ids in rollouts if ids is not None], skip_special_tokens=True))
        self.watch([None if ids is None else next(texts) for ids in rollouts], self._inputs)

    def _switch(self, inputs: list[dict[str, Any]], batch: batching.Batch) -> batching.Batch:
        """Apply the switch to the local rows of a generated batch; groups may span processes."""
        size, args = self.num_generations, self.args
        rewards = advantages.total_rewards(self._rewards, args.reward_gate, size, args.thinking_weight)
        groups = switches.Groups(rewards.view(-1, size), self.is_correct().view(-1, size), self.progress,
                                 self.memorize_advantage, 2 + args.thinking_weight, args.mastered,
                                 (self._rewards[:, 2] == 1).view(-1, size))
        decision = self.switch.decide(groups, self.switch.value)
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = decision.advantages.flatten()[first: first + len(inputs)].to(batch["advantages"])
        targets = [(group * size - first, weight) for group, weight in enumerate(decision.targets.tolist()) if weight]
        batch = self._memorize(inputs, batch, [(row, weight) for row, weight in targets if 0 <= row < len(inputs)], decision)
        if any(self._hints):
            self._weigh_hints(batch)
        if not decision.advantages.any() and not decision.targets.any():
            logger.info("step %d: nothing to learn from this batch: %s", self.state.global_step, self._why_nothing(groups))
        if args.probe_every and self.state.global_step % args.probe_every == 0:
            self._probe(batch, len(inputs))
        batch = self._fit_rows(batch)
        # TRL's mean is over all rows there are; the switch's weights are meant for the rollouts of the step.
        batch["advantages"] = batch["advantages"] * (len(batch["advantages"]) / len(inputs))
        self._metrics["train"]["rows"].append(len(batch["advantages"]) * self.accelerator.num_processes)
        batch.pop("sampling_per_token_logps", None)  # vLLM's, of the rollouts: a target has none, and nothing reads them
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        del batch["is_target"]
        return batch

    def _fit_rows(self, batch: batching.Batch) -> batching.Batch:
        """Rows that teach, and as many more as TRL needs: as many on every process, and in every micro-batch."""
        needed = batching.busy_rows(batch) if self.args.drop_idle_rows else list(range(len(batch["advantages"])))
        most = self.accelerator.gather(torch.tensor([len(needed)], device=batch["advantages"].device)).max().item()
        parts = self.args.steps_per_generation
        return batching.fit_rows(batch, needed, -(-max(1, most) // parts) * parts)

    def _memorize(self, inputs, batch: batching.Batch, rows: list[tuple[int, float]], decision: switches.Decision
                  ) -> batching.Batch:
        """Write targets: in place of an idle first rollout of their group, else as one more row."""
        texts = self.refine([inputs[row] for row, _ in rows]) if rows else []
        found = [(row, weight, text) for (row, weight), text in zip(rows, texts, strict=True) if text is not None]
        num_missing = torch.tensor([texts.count(None)], device=batch["advantages"].device)
        self._metrics["train"]["without_target"].append(self.accelerator.gather(num_missing).sum().item())
        batch["is_target"] = torch.zeros(len(inputs), dtype=torch.bool, device=batch["advantages"].device)
        if decision.hold:
            self.held.batches += [self._target_rows(batch, [target]) for target in found]
            if len(self.held.batches) < decision.hold:
                return batch
            released, self.held.batches = self.held.batches, []
            return batching.join([batch, *released], self._tokenizer.pad_token_id)
        idle = [target for target in found if batch["advantages"][target[0]] == 0]
        if len(idle) < len(found):
            batch = batching.join([batch, self._target_rows(batch, [target for target in found if target not in idle])],
                                  self._tokenizer.pad_token_id)
        for row, weight, text in idle:
            batching.write_completion(batch, row, self._ids(text), self._tokenizer.pad_token_id)
            batch["advantages"][row], batch["is_target"][row] = weight, True
        if decision.token_weight is not None and found:
            self._weigh_tokens(batch, decision.token_weight)
        return batch

    def _target_rows(self, batch: batching.Batch, targets: list[tuple[int, float, str]]) -> batching.Batch:
        """New rows: the prompts of these rows with their targets (row, weight, text)."""
        rows = batching.take_rows(batch, [row for row, _, _ in targets])
        for place, (_, weight, text) in enumerate(targets):
            batching.write_completion(rows, place, self._ids(text), self._tokenizer.pad_token_id)
            rows["advantages"][place], rows["is_target"][place] = weight, True
        return rows

    def _ids(self, target: str) -> list[int]:
        return [*self._tokenizer(target, add_special_tokens=False)["input_ids"], self._tokenizer.eos_token_id]

    @torch.no_grad()
    def _weigh_tokens(self, batch: batching.Batch, token_weight: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Give each token of a target its own weight, from its probability under the policy; advantages become (B, C)."""
        places = batch["is_target"].nonzero().flatten().tolist()
        advantages = batch["advantages"][:, None].repeat(1, batch["completion_ids"].shape[1])
        advantages[places] *= token_weight(self._log_probs(batching.take_rows(batch, places)).exp())
        batch["advantages"] = advantages

    def _weigh_hints(self, batch: batching.Batch) -> None:
        """Give the tokens of a hint the weight of a target that is shared by its group's rows."""
        advantages = batch["advantages"][:, None].repeat(1, batch["completion_ids"].shape[1])
        for row, hint in enumerate(self._hints):
            advantages[row, : len(hint)] = self.memorize_advantage / self.num_generations
        batch["advantages"] = advantages

    def _log_probs(self, batch: batching.Batch) -> torch.Tensor:
        """(B, C) log-probabilities of the completions' tokens, as TRL computes them."""
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
        others = {name: value for name, value in batch.items() if name in VISUAL}
        return self._get_per_token_logps_and_entropies(self.model, ids, mask, batch["completion_ids"].shape[1], **others)[0]

    def _probe(self, batch: batching.Batch, size: int) -> None:
        """Measure the gradients of the targets and of the rollouts by themselves, at the weights of this step."""
        metrics, parameters = copy.deepcopy(self._metrics), [p for p in self.model.parameters() if p.requires_grad]
        found = []
        for is_kept in (batch["is_target"], ~batch["is_target"]):
            kept = is_kept if batch["advantages"].dim() == 1 else is_kept[:, None]
            part = {**batch, "advantages": batch["advantages"] * kept * (len(is_kept) / size)}
            gradient = torch.autograd.grad(self._compute_loss(self.model, part), parameters)
            found.append(self.accelerator.reduce(torch.cat([each.flatten() for each in gradient]), "mean"))  # of all processes
        norms = [each.norm() for each in found]
        self._metrics = metrics
        for name, norm in zip(("memorize_norm", "explore_norm"), norms, strict=True):
            self._metrics["train"][name].append(norm.item())
        if norms[0] > 0 and norms[1] > 0:  # else one of the two teaches nothing in this batch
            self._metrics["train"]["cosine"].append((found[0] @ found[1] / (norms[0] * norms[1])).item())

    def _why_nothing(self, groups: switches.Groups) -> str:
        mastered = int((groups.pass_rate == 1).sum())
        flat = len(groups.pass_rate) - mastered
        return (f"in {mastered} of {len(groups.pass_rate)} groups every rollout is correct"
                + (f", in {flat} all rollouts earn the same reward" if flat else ""))
