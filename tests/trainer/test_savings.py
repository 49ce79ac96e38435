"""All savings together, against none: the same rollouts give the same losses and weights, in one process and in two."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dyme_core.data import datasets
from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import item_of
from dyme_core.models import loading
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer import batching
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards

BASE = Path(__file__).resolve().parents[2] / "bases" / "svlm-s0"
RECORDS = datasets.mini_records("train", 8, seed=0)
TARGETS = {record.item: RuleRefiner().refine(item_of(record.row)) for record in RECORDS}
G, STEPS, PROMPTS = 4, 3, 4


class Scripted(DyMETrainer):
    """Rollouts from a script: by prompt all wrong, mixed, all right; the first is cut at the limit, lengths differ."""

    def _generate_and_score_completions(self, inputs):
        self.rows = inputs
        batch = super()._generate_and_score_completions(inputs)
        self.num_rows = [*getattr(self, "num_rows", []), len(batch["advantages"])]
        self.num_busy = [*getattr(self, "num_busy", []), len(batching.busy_rows(batch))]
        return batch

    def _generate_single_turn(self, prompt_ids, *args):
        tokenizer, first = self.processing_class.tokenizer, self.accelerator.process_index * len(prompt_ids)
        rollouts = []
        for place, row in enumerate(self.rows, first):
            group, rollout = divmod(place, G)
            is_right = rollout < (0, 2, G, 1)[(group + self.state.global_step) % PROMPTS]
            text = write_response(f"{'Well, ' * rollout}{TARGETS[row['item']]}", row["answer"] if is_right else "no idea")
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            rollouts.append(ids if place else ids[:20])
        return rollouts, None


def train(folder: Path, saves: bool, num_processes: int = 1, accumulation: int = 1) -> dict:
    torch.set_num_threads(1)
    model, processor = loading.load_policy(BASE, engine=saves)
    arguments = DyMEConfig(str(folder), per_device_train_batch_size=PROMPTS * G // num_processes // accumulation,
                           gradient_accumulation_steps=accumulation, num_generations=G, max_completion_length=152,
                           max_steps=STEPS, learning_rate=0.1, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                           logging_steps=1, shuffle_dataset=False, disable_tqdm=True, gradient_checkpointing=False, seed=0,
                           max_grad_norm=0.0, optim="sgd", drop_idle_rows=saves)
    trainer = Scripted(model, args=arguments, train_dataset=datasets.to_dataset(RECORDS), processing_class=processor,
                       refiner=RuleRefiner(), reward_funcs=dyme_rewards(RuleChecker()))
    start = weights(model)
    trainer.train()
    return {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], "rows": trainer.num_rows,
            "busy": trainer.num_busy, "start": start, "end": weights(model)}


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict:
    return train(tmp_path_factory.mktemp("plain"), saves=False)


def check(made: dict, wanted: dict) -> None:
    assert len(set(wanted["losses"])) == STEPS
    assert made["losses"] == pytest.approx(wanted["losses"], rel=1e-4, abs=1e-6)
    assert (made["end"] - wanted["end"]).norm() < 1e-4 * (wanted["end"] - wanted["start"]).norm()



@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_savings_change_no_loss_and_no_weight(accumulation: int, plain: dict, tmp_path: Path) -> None:
    made = train(tmp_path, saves=True, accumulation=accumulation)
    assert sum(made["rows"]) < STEPS * PROMPTS * G == sum(plain["rows"])
    check(made, plain)


@pytest.mark.exhaustive
@pytest.mark.promise("alignment", "savings change no loss and no weight, on two processes with unequal rows too")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_savings_change_nothing_on_two_processes_with_unequal_rows(accumulation: int, plain: dict, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__,
               str(tmp_path), str(accumulation)]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0]["rows"] == ranks[1]["rows"], "TRL gathers by rows; the rank with fewer to learn from fills up"
    assert ranks[0]["busy"] != ranks[1]["busy"] and torch.equal(ranks[0]["end"], ranks[1]["end"])
    check(ranks[0], plain)


if __name__ == "__main__":
    result = train(Path(sys.argv[1]) / "run", saves=True, num_processes=2, accumulation=int(sys.argv[2]))
    torch.save(result, Path(sys.argv[1]) / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
