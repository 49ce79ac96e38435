"""A provoked collapse is detected within 20 steps, and none in the study's logs, where none happened."""
from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dyme_core.data import datasets
from dyme_core.models import tiny_onevision
from dyme_core.pipeline.callbacks import Collapsed, CollapseWatch
from dyme_core.supervision.checker import RuleChecker
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards
from dyme_core.utils import read_json, read_rows

MINI = Path(__file__).resolve().parents[2] / "results" / "mini"
LOGS = sorted((MINI / "logs").glob("*.jsonl.xz"))
COLLAPSED = {"0.001": {"repeated"}, "0.002": {"format", "truncated"}}  # by learning rate: the two tuning runs that did
PROCESSOR = tiny_onevision.build_processor(96, 24)
RECORDS = datasets.mini_records("train", 4, seed=0)
HEALTHY = "We look at the chart and see much.\n<answer>no idea</answer>"
SICK = {"truncated": HEALTHY, "repeated": " value" * 12, "format": "no idea of what the chart shows", "thinking_tokens":
        "<answer>no idea</answer>", "loss": HEALTHY}
TURN = 12  # the step from which rollouts are sick


class Sickening(DyMETrainer):
    """Healthy rollouts, then those of one kind of collapse."""

    def __init__(self, *args, sign: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.sign = sign

    def _generate_single_turn(self, prompt_ids, *args):
        is_sick = self.state.global_step >= TURN
        ids = PROCESSOR.tokenizer(SICK[self.sign] if is_sick else HEALTHY, add_special_tokens=False)["input_ids"]
        end = [] if is_sick and self.sign == "truncated" else [PROCESSOR.tokenizer.eos_token_id]
        return [[*ids, *end]] * len(prompt_ids), None

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        return loss * (math.nan if self.sign == "loss" and self.state.global_step >= TURN else 1.0)


def train(folder: Path, sign: str, action: str) -> Sickening:
    torch.set_num_threads(1)
    arguments = DyMEConfig(str(folder), per_device_train_batch_size=2, num_generations=2, max_completion_length=24,
                           max_steps=TURN + 20, learning_rate=1e-4, use_cpu=True, bf16=False, report_to="none",
                           save_strategy="steps", save_steps=6, save_only_model=True, logging_steps=1, disable_tqdm=True,
                           gradient_checkpointing=False, logging_nan_inf_filter=False, seed=0)
    trainer = Sickening(tiny_onevision.build_model("svlm", PROCESSOR, 0, 96, 24), args=arguments, sign=sign,
                        processing_class=PROCESSOR,
                        train_dataset=datasets.to_dataset(RECORDS), refiner=lambda rows: [None] * len(rows),
                        reward_funcs=dyme_rewards(RuleChecker()), callbacks=[CollapseWatch(action)])
    try:
        trainer.train()
    finally:
        trainer.end = trainer.state.global_step
    return trainer


@pytest.mark.promise("collapse", "a collapse is seen within 20 steps; training stops and names the checkpoints from before it")
@pytest.mark.parametrize("sign", [pytest.param(sign, marks=[pytest.mark.exhaustive] * (sign in ("truncated", "repeated")))
                                  for sign in SICK])
def test_a_collapse_is_seen_within_twenty_steps_and_training_stops(sign: str, tmp_path: Path) -> None:
    with pytest.raises(Collapsed, match=f"training looks collapsed: .*{sign}") as raised:
        train(tmp_path, sign, "stop")
    step = int(str(raised.value).split(":")[0].removeprefix("step "))
    assert TURN < step <= TURN + 20
    good = step - (1 if sign == "loss" else 10)  # loss and gradient tell at once, the others look back ten steps
    assert f"Checkpoints up to step {good} are from before it, in {tmp_path}" in str(raised.value)
    assert not (tmp_path / f"checkpoint-{step}").exists()


def test_a_warning_is_said_once_and_training_goes_on(tmp_path: Path, caplog) -> None:
    assert train(tmp_path, "format", "warn").state.global_step == TURN + 20
    said = [line for line in caplog.messages if "training looks collapsed" in line]
    assert len(said) == 1 and "no rollout keeps the format any more" in said[0] and "memorize_weight" in said[0]


@pytest.mark.promise("collapse", "no false alarm in the runs of the study")
def test_of_the_runs_of_the_study_only_those_are_taken_for_collapsed_that_know_nothing_any_more() -> None:
    runs = {path.stem for path in (MINI / "runs").glob("*.json")}
    assert runs and {path.name.removesuffix(".jsonl.xz") for path in LOGS} == runs
    found = {}
    for path in LOGS:
        watch = CollapseWatch()
        signs = {name for row in read_rows(path) if row["event"] == "step" for name in watch.signs(row)}
        if signs:
            found[path.name.removesuffix(".jsonl.xz")] = signs
    assert found == {f"svlm-pure_dyme-refined-luffy1-lr{rate}-s0": signs for rate, signs in COLLAPSED.items()}
    made = [read_json(MINI / "runs" / f"{name}.json") for name in found]
    assert all(run["results"]["validation"]["correct"] < 0.03 for run in made)


def test_what_was_seen_goes_into_checkpoints() -> None:
    watch, back = CollapseWatch(), CollapseWatch()
    for _ in range(9):
        assert not watch.signs({"truncated": 1.0, "loss": 0.1})
    back.load_state_dict(watch.state_dict())
    assert list(back.signs({"truncated": 1.0})) == ["truncated"]


def test_a_gradient_that_is_not_finite_is_seen_at_once(caplog) -> None:
    caplog.set_level(logging.WARNING)
    CollapseWatch().on_log(SimpleNamespace(output_dir="x"), SimpleNamespace(global_step=3), None,
                           logs={"loss": 0.5, "grad_norm": math.inf})
    assert "step 3: training looks collapsed: grad_norm is inf" in caplog.text
