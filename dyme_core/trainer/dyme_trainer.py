"""DyMETrainer: TRL's GRPOTrainer with a switch between memorizing and exploring.

`_generate_and_score_completions` edits the batch that TRL returns, `_generate_single_turn` lets rollouts start from a hint.
The loss is never touched, so that Unsloth's compiled trainer runs the same code.
"""
from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dyme_core import ranks
from dyme_core.data.datasets import Refine
from dyme_core.models import engine
from dyme_core.models.generation import Watcher, watching
from dyme_core.models.processors import target_ids
from dyme_core.supervision.refiner import VisualRefiner, candidate_writer, target_writer
from dyme_core.trainer import batching, switches
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer

logger = logging.getLogger(__name__)
VISUAL = ("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes",
          "token_type_ids", "mm_token_type_ids", "image_position_ids")  # inputs of TRL's log-probs besides token ids


def _check_answers(dataset: Any, refiner: VisualRefiner | Refine | None) -> None:
    """Refuse rows without the answer with which a target closes."""
    columns = getattr(dataset, "column_names", None) or ("answer",)
    if "answer" not in columns and ("trace" in columns or hasattr(refiner, "refine_all")):
        raise ValueError(f"a target is thinking and the column 'answer': got {', '.join(columns)}; rename or add one, or give "
                         "a refiner that writes whole responses")


class DyMETrainer(MeasuredGRPOTrainer):
    """GRPO that memorizes a refined target where the switch says so: DyME's own where every rollout of a prompt failed.

    Logs in addition: without_target, prompts to memorize without a target; rows, those in the update; every `probe_every` steps
    memorize_norm, explore_norm and cosine of the gradients of targets and of rollouts. With likeliest_target: target_nll and
    first_target_nll, mean nats per token of the targets chosen and of those that stood first; other_target, the share that is
    not the first; choose_s, the seconds that the choice took.

    Args:
        model, reward_funcs, train_dataset, **kwargs: as for MeasuredGRPOTrainer.
        args: a DyMEConfig.
        refiner: writes the targets: an object with `refine_all(records)` (RuleRefiner, LLMRefiner, ...) that gives the
            thinking for data rows, to which the answer line is added; or a function from data rows (dicts of columns) to whole
            responses, without the token that closes them. None is no target: the prompt then teaches nothing. A row's own
            `target` (a whole response) or trace (thinking) comes first. Without a refiner there are no other targets.
        watch: called with the data rows of a batch before its rollouts are written; returns a function that gets the texts of
            rollouts as they end, by row (rewards.ThinkingReward.watch). Not used with vLLM or a hint.
        on_scored: called in every process when the rollouts of a step are scored, before targets are written
            (Experts.share_bank).
    """

    def __init__(self, model: PreTrainedModel | Path | str, reward_funcs: Any = None, args: DyMEConfig | None = None,
                 train_dataset: Any = None, *, refiner: VisualRefiner | Refine | None = None,
                 watch: Callable[[list[dict[str, Any]]], Callable[[dict[int, str]], None]] | None = None,
                 on_scored: Callable[[], None] = lambda: None, **kwargs: Any):
        args = DyMEConfig("DyME") if args is None else args
        if not isinstance(args, DyMEConfig):
            raise TypeError(f"args must be a DyMEConfig: got {type(args).__name__}; DyMEConfig takes GRPOConfig's settings")
        _check_answers(train_dataset, refiner)
        super().__init__(model, reward_funcs, args, train_dataset, correct_needs_format=args.correct_needs_format, **kwargs)
        self.memorize_advantage = float(self.num_generations) if self.args.memorize_weight == "group" else 1.0
        self.switch = switches.named(self.args.switch, self.args.switch_value)
        if self.args.switch == "grounded" and "thinking" not in self._roles:
            raise ValueError(f"switch 'grounded' needs a thinking reward: got {self.reward_func_names}; add "
                             "rewards.ThinkingReward(checker), or choose another switch")
        if self.switch.hint and self._refills:
            raise ValueError(f"refill needs rollouts that start from nothing: got switch {self.args.switch!r}, which gives "
                             "hints; set refill=0, or choose another switch")
        self.refine, self.watch, self.on_scored = target_writer(refiner), watch, on_scored
        if self.args.likeliest_target and not hasattr(refiner, "candidates_all"):
            raise ValueError("likeliest_target needs a refiner that writes several targets (candidates_all, as RuleRefiner): "
                             f"got {type(refiner).__name__}; give another refiner, or set likeliest_target=False")
        if self.args.likeliest_target and ranks.deals_weights():
            raise ValueError("likeliest_target needs whole weights in every process: got FSDP, whose forward passes all "
                             "processes must share; use DDP or a single process, or set likeliest_target=False")
        self.candidates = candidate_writer(refiner) if self.args.likeliest_target else None
        self._was_told = False  # that targets are missing
        self._hints: list[list[int]] = []  # token ids, one list per local row; empty where rollouts start from nothing
        self.held: list[batching.Batch] = []  # rows with targets that wait (Decision.hold)
        users = [refiner, *(getattr(function, "checker", None) for function in self.reward_funcs)]
        self._banks = [user.bank for user in users if hasattr(user, "bank")]

    @property
    def progress(self) -> float:
        """Share of the training steps that are done."""
        return self.state.global_step / max(1, self.state.max_steps)  # notebooks make a batch before training

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "held": self.held, "banks": [bank.state_dict() for bank in self._banks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.held = state["held"]
        for bank, its_state in zip(self._banks, state["banks"], strict=True):
            bank.load_state_dict(its_state)

    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self.model.training or self._buffered_inputs is before or self.args.steps_per_generation == 1:
            return inputs
        self._buffered_inputs = batching.micro_batches(self._buffered_inputs, self._tokenizer.pad_token_id,
                                                       by_prompt=engine.shares_prefixes(self.model))
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs):
        is_training = self.model.training  # read before super(): generation may change it
        self._hints = self._draw_hints(inputs) if is_training and self.switch.hint else []
        batch = super()._generate_and_score_completions(inputs)
        start = time.perf_counter()
        if is_training:
            self.on_scored()
            batch = self._switch(inputs, batching.with_own_log_probs(batch))
        self._seconds["score_s"] += time.perf_counter() - start  # the refiner's seconds are no part of the update
        return batch

    def _draw_hints(self, inputs: list[dict[str, Any]]) -> list[list[int]]:
        share = self.switch.hint(self.progress, self.switch.value)
        ids = [[] if target is None else target_ids(self.processing_class, target)[:-1] for target in self.refine(inputs)]
        return [row[: round(share * len(row))] for row in ids]

    def _generate_single_turn(self, prompt_ids, images, fields, *args, **kwargs):
        if not any(self._hints):
            with self._streaming():
                return super()._generate_single_turn(prompt_ids, images, fields, *args, **kwargs)
        hinted = [[*ids, *hint] for ids, hint in zip(prompt_ids, self._hints, strict=True)]
        longer = {name: [[*ids, *[0] * len(hint)] for ids, hint in zip(values, self._hints, strict=True)]
                  if name in batching.SPANS else values for name, values in fields.items()}
        sampled, log_probs = super()._generate_single_turn(hinted, images, longer, *args, **kwargs)
        if log_probs is not None:  # vLLM's; TRL takes a missing one for a ratio of 1
            log_probs = [[*[math.nan] * len(hint), *row] for hint, row in zip(self._hints, log_probs, strict=True)]
        return [[*hint, *ids] for hint, ids in zip(self._hints, sampled, strict=True)], log_probs

    def _streaming(self) -> AbstractContextManager[None]:
        """Within the block `watch` gets rollouts as they end; each is decoded once."""
        if self.watch is None or self.use_vllm or not self._asked:
            return nullcontext()
        end = self.watch(self._asked)

        def report(ended: dict[int, list[int]]) -> None:
            texts = self.processing_class.batch_decode(list(ended.values()), skip_special_tokens=True)
            end(dict(zip(ended, texts, strict=True)))

        return watching(self.model, Watcher(report, self.eos_token_ids, self.max_completion_length))

    def _decide(self) -> switches.Decision:
        """The switch's decision on the rollouts scored last, of all processes."""
        size, args, thinking = self.num_generations, self.args, self._rewards.thinking
        groups = switches.Groups(
            self._rewards.total(size, args.reward_gate, args.thinking_weight).view(-1, size),
            self.is_correct().view(-1, size), self.progress, self.memorize_advantage,
            self._rewards.best(args.thinking_weight), args.mastered,
            None if thinking is None else (thinking == 1).view(-1, size))
        return self.switch.decide(groups, self.switch.value)

    def idle_groups(self) -> torch.Tensor:
        decision = self._decide()
        return ~(decision.advantages.any(dim=1) | (decision.targets != 0))

    def _switch(self, inputs: list[dict[str, Any]], batch: batching.Batch) -> batching.Batch:
        """Apply the switch to the local rows of a generated batch; groups may span processes."""
        size, args, decision = self.num_generations, self.args, self._decide()
        first = self.accelerator.process_index * len(inputs)
        batch["advantages"] = decision.advantages.flatten()[first: first + len(inputs)].to(batch["advantages"])
        self._logs["advantages"].extend(decision.advantages.flatten().tolist())  # in place of GRPO's: as long as the step
        if not decision.advantages.any() and not decision.targets.any():
            is_mastered = self.is_correct().view(-1, size).all(dim=1)
            logger.info("step %d: nothing to learn from this batch: in %d of %d groups every rollout is correct, in the others "
                        "all rollouts earn the same reward", self.state.global_step, int(is_mastered.sum()), len(is_mastered))
        targets = [(group * size - first, weight) for group, weight in enumerate(decision.targets.tolist()) if weight]
        batch = self._memorize(inputs, batch, [(row, weight) for row, weight in targets if 0 <= row < len(inputs)], decision)
        if any(self._hints):  # the tokens of a hint have the weight of a target, shared among the rows of its group
            advantages = batching.spread_advantages(batch)
            for row, hint in enumerate(self._hints):
                advantages[row, : len(hint)] = self.memorize_advantage / size
        if args.probe_every and self.state.global_step % args.probe_every == 0:
            self._probe(batch, len(inputs))
        batch = self._fit_rows(batch)
        # TRL's mean is over the rows of the batch; the switch's weights refer to the rollouts of the step.
        batch["advantages"] = batch["advantages"] * (len(batch["advantages"]) / len(inputs))
        self._metrics["train"]["rows"].append(len(batch["advantages"]) * self.accelerator.num_processes)
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        del batch["is_target"]
        return batch

    def _fit_rows(self, batch: batching.Batch) -> batching.Batch:
        """The rows that teach, and further ones until every process and micro-batch has as many, as TRL needs."""
        needed = batching.busy_rows(batch) if self.args.drop_idle_rows else list(range(len(batch["advantages"])))
        most = self.accelerator.gather(torch.tensor([len(needed)], device=batch["advantages"].device)).max().item()
        parts = self.args.steps_per_generation
        return batching.fit_rows(batch, needed, math.ceil(max(1, most) / parts) * parts)

    def _memorize(self, inputs, batch: batching.Batch, rows: list[tuple[int, float]], decision: switches.Decision
                  ) -> batching.Batch:
        """Write targets: in place of the first rollout of their group where it is idle, else as an additional row."""
        texts = self._choose_targets(inputs, batch, [row for row, _ in rows]) if rows else []
        found = [(row, weight, text) for (row, weight), text in zip(rows, texts, strict=True) if text is not None]
        if rows and not found and not self._was_told:
            self._was_told = True
            logger.warning("step %d: none of the %d prompts to memorize here has a target, so they teach nothing: give the "
                           "rows a trace or a target, or a refiner that writes one", self.state.global_step + 1, len(rows))
        num_missing = torch.tensor([texts.count(None)], device=batch["advantages"].device)
        self._metrics["train"]["without_target"].append(self.accelerator.gather(num_missing).sum().item())
        batch["is_target"] = torch.zeros(len(inputs), dtype=torch.bool, device=batch["advantages"].device)
        idle = [target for target in found if not decision.hold and batch["advantages"][target[0]] == 0]
        new = [self._target_row(batch, *target) for target in found if target not in idle]
        if decision.hold:
            self.held += new
            new, self.held = (self.held, []) if len(self.held) >= decision.hold else ([], self.held)
        if new:
            batch = batching.join([batch, *new], self._tokenizer.pad_token_id)
        for target in idle:
            self._write_target(batch, *target)
        if decision.token_weight is not None and found:
            self._weigh_tokens(batch, decision.token_weight)
        return batch

    def _choose_targets(self, inputs, batch: batching.Batch, rows: list[int]) -> list[str | None]:
        """The target of each of these rows' prompts: the refiner's, or of all right ones the most probable under the policy."""
        asked = [inputs[row] for row in rows]
        if self.candidates is None:
            return self.refine(asked)
        choices, start = self.candidates(asked), time.perf_counter()
        pairs = [(row, text) for row, texts in zip(rows, choices, strict=True) for text in texts]
        scores = iter(self._mean_log_probs(batch, pairs))
        chosen, metrics = [], self._metrics["train"]
        for texts in choices:
            scored = {text: next(scores) for text in texts}
            chosen.append(max(scored, key=scored.__getitem__, default=None))
            if texts:
                metrics["target_nll"].append(-scored[chosen[-1]])
                metrics["first_target_nll"].append(-scored[texts[0]])
                metrics["other_target"].append(float(chosen[-1] != texts[0]))
        metrics["choose_s"].append(time.perf_counter() - start)
        return chosen

    @torch.no_grad()
    def _mean_log_probs(self, batch: batching.Batch, targets: list[tuple[int, str]]) -> list[float]:
        """Mean log-probability per token under the policy of each response as the completion of its row's prompt."""
        if not targets:
            return []
        each = [batching.take_rows(batch, [row]) for row, _ in targets]
        for one, (_, text) in zip(each, targets, strict=True):
            batching.write_completion(one, 0, target_ids(self.processing_class, text), self._tokenizer.pad_token_id)
        joined = batching.join(each, self._tokenizer.pad_token_id)
        mask = joined["completion_mask"]
        return ((self._log_probs(joined) * mask).sum(1) / mask.sum(1)).tolist()

    def _target_row(self, batch: batching.Batch, row: int, weight: float, text: str) -> batching.Batch:
        """A batch of one row: the prompt of this one with its target."""
        new = batching.take_rows(batch, [row])
        self._write_target(new, 0, weight, text)
        return new

    def _write_target(self, batch: batching.Batch, row: int, weight: float, text: str) -> None:
        batching.write_completion(batch, row, target_ids(self.processing_class, text), self._tokenizer.pad_token_id)
        batch["advantages"][row], batch["is_target"][row] = weight, True

    @torch.no_grad()
    def _weigh_tokens(self, batch: batching.Batch, token_weight: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Give each token of a target its own weight, from its probability under the policy."""
        places = batch["is_target"].nonzero().flatten().tolist()
        batching.spread_advantages(batch)[places] *= token_weight(self._log_probs(batching.take_rows(batch, places)).exp())

    def _log_probs(self, batch: batching.Batch) -> torch.Tensor:
        """(B, C) log-probabilities of the completions' tokens, as TRL computes them."""
        ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], dim=1) for name in ("ids", "mask"))
        others = {name: value for name, value in batch.items() if name in VISUAL}
        return self._get_per_token_logps_and_entropies(self.model, ids, mask, batch["completion_ids"].shape[1], **others)[0]

    def _probe(self, batch: batching.Batch, size: int) -> None:
        """Measure the gradients of targets and of rollouts separately, at the weights of this step."""
        metrics, parameters = copy.deepcopy(self._metrics), [p for p in self.model.parameters() if p.requires_grad]
        found = []
        for is_kept in (batch["is_target"], ~batch["is_target"]):
            kept = is_kept if batch["advantages"].dim() == 1 else is_kept[:, None]
            part = {**batch, "advantages": batch["advantages"] * kept * (len(is_kept) / size)}
            gradient = torch.autograd.grad(self._compute_loss(self.model, part), parameters)
            found.append(self.accelerator.reduce(torch.cat([each.flatten() for each in gradient]), "mean"))  # of all processes
        self._metrics = metrics
        memorize, explore = found
        measured = {"memorize_norm": memorize.norm(), "explore_norm": explore.norm()}
        if memorize.norm() > 0 and explore.norm() > 0:  # else one of the two teaches nothing in this batch
            measured["cosine"] = memorize @ explore / (memorize.norm() * explore.norm())
        for name, value in measured.items():
            self._metrics["train"][name].append(value.item())
