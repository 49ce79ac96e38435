"""What a policy finds when only the checker pays: GRPO and DyME trained on the thinking reward alone, and what they write.

    python -m scripts.reward_hacking --method grpo --seed 0 --steps 300 --out runs/hacking

Every well-formed rollout is kept with its step, its rating and whether its answer is right; the report lists the structures of
the traces rated 1.0 (the question's parts as slots), most frequent first, with one example each, for a reader to judge by the
contract (docs/method.md).
"""
from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dyme_core import config, utils
from dyme_core.data import datasets
from dyme_core.data.metrics import accuracy_reward
from dyme_core.data.prompt_format import Completion, completion_text, is_well_formed, split_response
from dyme_core.data.schema import item_of
from dyme_core.pipeline.methods import Run
from dyme_core.pipeline.train import load_start
from dyme_core.pipeline.trainers import grpo_arguments, shared_arguments
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner, structure_of
from dyme_core.trainer.config import DyMEConfig, RefillConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.rewards import ThinkingReward

RATES = {"grpo": 3e-4, "dyme": 1e-3}


class KeepingReward(ThinkingReward):
    """A thinking reward by the rule checker that keeps every well-formed rollout, with its score, whether its answer is right,
    and the number of the call, which is that of the step."""

    def __init__(self) -> None:
        super().__init__(RuleChecker())
        self.kept: list[dict[str, Any]] = []
        self.calls = 0

    def __call__(self, completions: Sequence[Completion], **columns: Any) -> list[float]:
        scores = super().__call__(completions, **columns)
        self.calls += 1
        rows = zip(map(completion_text, completions), scores, accuracy_reward(completions, **columns), strict=True)
        for place, (text, score, accuracy) in enumerate(rows):
            if is_well_formed(text):
                record = {name: columns[name][place] for name in ("item", "question", "answer", "supervision")}
                self.kept.append({"step": self.calls, **record, "thinking": split_response(text)[0], "score": score,
                                  "is_right": accuracy == 1})
        return scores


def train(method: str, seed: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Train the base of seed 0 on the thinking reward alone; every well-formed rollout with its score.

    For DyME a rollout is correct where its thinking is rated 1.0; where none of the group is, it memorizes a refined target, so
    that it reaches kinds of questions that GRPO never earns anything for.
    """
    run = Run(config.load_profile("mini", **{"world.traces": "refined"}), "pure_dyme", "svlm", seed)
    model, processor = load_start(replace(run, seed=0))
    records, reward = datasets.of_profile(run.profile, "train", seed), KeepingReward()
    arguments = {**shared_arguments(run, steps, RATES[method], folder), **grpo_arguments(run), "save_strategy": "no"}
    shared = dict(train_dataset=datasets.to_dataset(records), processing_class=processor)
    if method == "grpo":
        settings = RefillConfig(**arguments, reward_weights=[1.0, 0.0])
        trainer = MeasuredGRPOTrainer(model, [reward, accuracy_reward], settings, **shared)
    else:
        settings = DyMEConfig(**arguments, correct_reward="thinking_reward", memorize_weight="group")
        trainer = DyMETrainer(model, [reward], settings, refiner=RuleRefiner(), **shared)
    trainer.train()
    return reward.kept


def report(kept: Sequence[dict[str, Any]], most: int = 40) -> str:
    """The structures of the traces rated 1.0, most frequent first, with an example of each."""
    structures: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in kept:
        if row["score"] == 1:
            text = structure_of(row["thinking"], item_of(row))
            structures[text] += 1
            examples[text] = f"{row['question']} ({row['answer']}): {row['thinking']}"
    return "\n".join(f"{number:5d}  {text}\n       {examples[text]}" for text, number in structures.most_common(most))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=RATES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    kept = train(given.method, given.seed, given.steps, given.out / "trainer")
    utils.write_rows(given.out / f"{given.method}-s{given.seed}.jsonl.xz", kept)
    sys.stdout.write(report(kept) + "\n")


if __name__ == "__main__":
    main()
