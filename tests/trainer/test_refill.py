"""Idle slots refilled: which groups give way, to what, and that nothing else changes."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import IterableDataset

from dyme_core.data import datasets
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import item_of
from dyme_core.models import loading
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer.config import DyMEConfig, RefillConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.rewards import dyme_rewards

BASE = Path(__file__).resolve().parents[2] / "bases" / "svlm-s0"
RECORDS = datasets.mini_records("train", 24, seed=0)
TARGETS = {record.item: RuleRefiner().refine(item_of(record.row)) for record in RECORDS}
NUMBERS = {record.item: number for number, record in enumerate(RECORDS)}
G, PROMPTS = 4, 4
SOME = {"mastered": G, "all wrong": 0, "mixed": 2}
FATES = ("mastered", "all wrong", "mixed", "mastered", "mixed", "mastered")  # of the questions, in turns


def scripted(trainer: type) -> type:
    """The trainer with rollouts of each question's fate."""
    class Scripted(trainer):
        def ask(self, rows):
            self.asked = [*getattr(self, "asked", []), [row["item"] for row in rows[::G]]]
            self.rows = rows
            return super().ask(rows)

        def _generate_single_turn(self, prompt_ids, *args, **kwargs):
            tokenizer, rollouts = self.processing_class.tokenizer, []
            for place, row in enumerate(self.rows):
                is_right = place % G < SOME[fate(row["item"])]
                thinking = f"{'Well, ' * (place % G)}{TARGETS[row['item']]}"
                text = write_response(thinking, row["answer"] if is_right else "no idea")
                rollouts.append([*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id])
            return rollouts, None

        def refill(self, inputs, batch):
            self.final = super().refill(inputs, batch)
            self.final_rows = [row["item"] for row in inputs]
            return self.final

    return Scripted


def fate(item: str) -> str:
    return FATES[NUMBERS[item] % len(FATES)]


def make(method: str, folder: Path, refill: float = 1.0, processes: int = 1, accumulation: int = 1, **settings):
    torch.set_num_threads(1)
    model, processor = loading.load_policy(BASE)
    shared = dict(per_device_train_batch_size=PROMPTS * G // processes // accumulation, num_generations=G,
                  gradient_accumulation_steps=accumulation, max_completion_length=152, learning_rate=0.01, use_cpu=True,
                  bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, seed=0,
                  gradient_checkpointing=False, optim="sgd", shuffle_dataset=False, max_steps=1, beta=0.0, loss_type="grpo")
    shared |= settings
    trainer, config = (MeasuredGRPOTrainer, RefillConfig) if method == "grpo" else (DyMETrainer, DyMEConfig)
    more = {} if method == "grpo" else {"refiner": RuleRefiner()}
    return scripted(trainer)(model, args=config(str(folder), refill=refill, **shared), processing_class=processor,
                             train_dataset=datasets.to_dataset(RECORDS), reward_funcs=dyme_rewards(RuleChecker()), **more)


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(("method", "gives_way"), [("grpo", {"mastered", "all wrong"}), ("dyme", {"mastered"})])
def test_groups_that_teach_nothing_give_way_to_fresh_prompts(method: str, gives_way: set[str], tmp_path: Path) -> None:
    trainer = make(method, tmp_path, refill=10.0, reward_weights=[1.0, 1.0, 0.0]) if method == "grpo" else make(
        method, tmp_path, refill=10.0)
    trainer.train()
    first, *rounds = trainer.asked
    final = trainer.final_rows[::G]
    assert [fate(item) for item in first] == ["mastered", "all wrong", "mixed", "mastered"]
    assert not gives_way & {fate(item) for item in final}, "the budget is large enough"
    assert final[2] == first[2] and len(rounds) >= 1, "a group that teaches keeps its rows"
    assert all(not {*new} & {*first, *final[2:3]} for new in rounds[:1]), "fresh prompts are none of the step's own"
    assert logged(trainer, "refilled") == [len(sum(rounds, []))]
    assert logged(trainer, "rollouts") == [G * len(sum(trainer.asked, []))]
    assert logged(trainer, "mastered") == [0], "the counts are those of the final rows"


@pytest.mark.parametrize("method", ["grpo", "dyme"])
def test_rows_rewards_and_the_table_of_completions_stay_together(method: str, tmp_path: Path) -> None:
    trainer = make(method, tmp_path)
    trainer.train()
    decode = trainer.processing_class.tokenizer.batch_decode
    batch, items = trainer.final, trainer.final_rows
    texts = decode(batch["completion_ids"], skip_special_tokens=True)
    for item, text, prompt in zip(items, texts, decode(batch["prompt_ids"]), strict=True):
        record = RECORDS[NUMBERS[item]]
        assert record.question in prompt and TARGETS[item].split("\n")[0][-20:] in text
    is_right = [place % G < SOME[fate(item)] for place, item in enumerate(items)]
    assert trainer.is_correct().tolist() == is_right
    table = trainer._logs
    assert list(table["rewards"]["accuracy_reward"]) == [float(right) for right in is_right]
    for item, prompt, text in zip(items, table["prompt"], table["completion"], strict=True):
        assert RECORDS[NUMBERS[item]].question in prompt and TARGETS[item].split("\n")[0][-20:] in text
    assert len(table["advantages"]) == len(table["images"]) == PROMPTS * G
    assert batch["pixel_values"].shape[0] == len(batch["advantages"])


@pytest.mark.parametrize(("refill", "asked"), [(0.0, 4), (0.25, 5), (0.7, 6), (1.0, 8)])
def test_no_more_is_asked_than_the_budget_allows(refill: float, asked: int, tmp_path: Path) -> None:
    trainer = make("grpo", tmp_path, refill, reward_weights=[1.0, 1.0, 0.0])
    trainer.train()
    assert len(sum(trainer.asked, [])) <= asked and (len(trainer.asked) == 1) == (refill == 0)
    assert bool(logged(trainer, "refilled")) == (refill > 0)


def test_evaluation_is_not_refilled(tmp_path: Path) -> None:
    trainer = make("dyme", tmp_path, per_device_eval_batch_size=PROMPTS * G)
    trainer.evaluate(datasets.to_dataset(RECORDS[:4]))
    assert len(trainer.asked) == 1


def test_a_resumed_run_draws_the_prompts_that_it_would_have_drawn(tmp_path: Path) -> None:
    settings = dict(max_steps=4, save_strategy="steps", save_steps=2, shuffle_dataset=True, lr_scheduler_type="constant")
    whole = make("dyme", tmp_path / "whole", **settings)
    whole.train()
    first = make("dyme", tmp_path / "parts", **settings | {"max_steps": 2})
    first.train()
    second = make("dyme", tmp_path / "parts", **settings)
    second.train(resume_from_checkpoint=True)
    assert [*first.asked, *second.asked] == whole.asked and second.drawn == whole.drawn > 0
    for name, weight in whole.model.named_parameters():
        assert torch.equal(weight, second.model.get_parameter(name)), name


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_a_data_set_without_other_prompts_gives_its_own(rows: int, tmp_path: Path) -> None:
    model, processor = loading.load_policy(BASE)
    trainer = scripted(DyMETrainer)(
        model, args=DyMEConfig(str(tmp_path), refill=1.0, max_steps=1, num_generations=G, use_cpu=True, bf16=False,
                               per_device_train_batch_size=PROMPTS * G, report_to="none"),
        processing_class=processor, train_dataset=datasets.to_dataset(RECORDS[:rows]), reward_funcs=dyme_rewards(RuleChecker()))
    inputs = [dict(trainer.train_dataset[place // G % len(trainer.train_dataset)]) for place in range(PROMPTS * G)]
    fresh = trainer.fresh_rows(inputs, [0, 1, 2])
    assert len(fresh) == 3 and {row["item"] for row in fresh} <= {record.item for record in RECORDS[:rows]}


def test_a_checkpoint_of_before_the_setting_is_read(tmp_path: Path) -> None:
    trainer = make("dyme", tmp_path)
    state = trainer.state_dict()
    del state["drawn"]
    trainer.load_state_dict(state)
    assert trainer.drawn == 0


def test_settings_that_cannot_be_refilled_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        DyMEConfig(str(tmp_path), refill=-1.0)
    with pytest.raises(ValueError, match="whole groups"):
        trainer = make("dyme", tmp_path)
        trainer.num_generations = 3
        trainer.init_refill()
    with pytest.raises(ValueError, match="hints"):
        make("dyme", tmp_path, switch="prefix")
    with pytest.raises(ValueError, match="beta=0"):
        make("grpo", tmp_path, num_iterations=2)
    model, processor = loading.load_policy(BASE)
    stream = IterableDataset.from_generator(lambda: iter(datasets.to_dataset(RECORDS)))
    with pytest.raises(ValueError, match="stream"):
        DyMETrainer(model, args=DyMEConfig(str(tmp_path), refill=1.0, max_steps=1, use_cpu=True, bf16=False, report_to="none",
                                           num_generations=4, per_device_train_batch_size=4),
                    processing_class=processor, train_dataset=stream, reward_funcs=dyme_rewards(RuleChecker()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_replace_as_many_groups_each(accumulation: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__,
               str(tmp_path), str(accumulation)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(ranks[0]["end"], ranks[1]["end"]) and ranks[0]["logged"] == ranks[1]["logged"] and ranks[0]["logged"]
    assert [len(each) for each in ranks[0]["asked"]] == [len(each) for each in ranks[1]["asked"]]
    assert not {*sum(ranks[0]["asked"], [])} & {*sum(ranks[1]["asked"], [])}, "processes draw different prompts"
    rights = [[place % G < SOME[fate(item)] for place, item in enumerate(each["final"])] for each in ranks]
    assert ranks[0]["correct"] == ranks[1]["correct"] == rights[0] + rights[1]


if __name__ == "__main__":
    made = make("dyme", Path(sys.argv[1]) / "run", processes=2, accumulation=int(sys.argv[2]))
    made.train()
    end = torch.cat([weight.detach().flatten() for weight in made.model.parameters()])
    torch.save({"end": end, "asked": made.asked, "final": made.final_rows, "correct": made.is_correct().tolist(),
                "logged": logged(made, "refilled")}, Path(sys.argv[1]) / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
