"""The public API in a plain script: lazy names; any model, data and rewards that TRL takes; TRL's own behaviour."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_families import make_checkpoint
from transformers import AutoModelForImageTextToText, TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import GRPOConfig

import dyme_core
from dyme_core import DyMEConfig, DyMETrainer, RuleRefiner, dyme_rewards, load_dataset
from dyme_core.data.datasets import mini_records, to_dataset, with_defaults
from dyme_core.data.schema import item_of
from dyme_core.models.loading import load_policy
from dyme_core.models.processors import generation_kwargs, load_processor, suppressed_ids
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import target_writer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer

FAMILY, G = "idefics3", 2
TARGET = "The left bar is the taller one.\n<answer>4</answer>"


def test_importing_the_package_loads_no_torch_and_every_name_can_be_had() -> None:
    code = ("import sys, dyme_core; assert not {'torch', 'transformers', 'trl', 'datasets'} & sys.modules.keys(); "
            "assert set(dyme_core.__all__) <= set(dir(dyme_core)); from dyme_core import config")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert all(getattr(dyme_core, name) is not None for name in dyme_core.__all__)
    assert {*dyme_core.EXPORTS, "__version__"} == set(dyme_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'DyME'"):
        dyme_core.DyME  # noqa: B018


def test_the_version_is_the_packages() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{dyme_core.__version__}"\n' in project


def length(completions, **columns) -> list[float]:
    """A user's own reward."""
    return [min(1.0, len(str(completion)) / 1000) for completion in completions]


def says_four(completions, answer, **columns) -> list[float]:
    """A user's own rule of what is correct; never met by random weights."""
    assert set(answer) <= {"4", "5"} and len(columns["question"]) == len(completions)
    return [float("<answer>4</answer>" in str(completion)) for completion in completions]


def never(completions, **columns) -> list[float]:
    """A user's own rule, met by nothing."""
    return [0.0] * len(completions)


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seen.append(state.global_step)


class Kept(DyMETrainer):
    """Keeps what was sampled, and the rows that were memorized."""

    def _generate_single_turn(self, *args, **kwargs):
        rollouts, log_probs = super()._generate_single_turn(*args, **kwargs)
        self.sampled = [*getattr(self, "sampled", []), *rollouts]
        return rollouts, log_probs

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.memorized = self.processing_class.batch_decode(batch["completion_ids"][batch["advantages"] > 0])
        return batch


def settings(kind: type[GRPOConfig], folder: Path, **changes) -> GRPOConfig:
    return kind(str(folder), max_steps=2, per_device_train_batch_size=2 * G, num_generations=G, max_completion_length=12,
                learning_rate=1e-2, use_cpu=True, bf16=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
                gradient_checkpointing=False, **{"report_to": "none"} | changes)


def test_a_plain_model_trains_on_plain_columns_with_ones_own_rewards_refiner_and_callback(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(FAMILY, tmp_path / "hub")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain = datasets.Dataset.from_dict({"prompt": ["How high is the left bar?", "And the right one?"], "answer": [4, 5],
                                        "image": [Image.new("RGB", (40, 40), color) for color in ("white", "red")],
                                        "target": [None, "It is taller than that.\n<answer>5</answer>"]})
    plain = plain.cast_column("image", datasets.Image())
    asked, steps = [], Steps()

    def refine(rows):
        asked.extend(row["prompt"][0]["content"] for row in rows)
        return [TARGET] * len(rows)

    arguments = settings(DyMEConfig, tmp_path / "out", correct_reward="says_four", log_completions=True,
                         generation_kwargs={"suppress_tokens": [65], "top_k": 40})
    trainer = Kept(model, [length, says_four], arguments, plain, refiner=refine, callbacks=[steps])  # as in TRL
    trainer.train()
    processor = load_processor(checkpoint, FAMILY)
    assert type(trainer.processing_class) is type(processor), "a processor left out is the checkpoint's"
    assert steps.seen == [1, 2] and set(asked) == {"How high is the left bar?"}
    assert {text.split("<end_of")[0] for text in trainer.memorized} == {TARGET, "It is taller than that.\n<answer>5</answer>"}
    assert any(not weight.equal(before[name]) for name, weight in model.named_parameters())
    said = {token for ids in trainer.sampled for token in ids}
    assert not said & {65, *suppressed_ids(model, processor)} and trainer.generation_config.top_k == 40
    assert arguments.generation_kwargs == {"suppress_tokens": [65], "top_k": 40}, "the user's settings stay as they are"
    assert trainer.state.log_history[0]["memorize"] == 2 and "thinking" not in trainer.state.log_history[0]
    table = pd.read_parquet(tmp_path / "out" / "completions" / "completions_00002.parquet")
    assert len(table) == 2 * G and set(table) >= {"prompt", "completion", "length", "says_four", "advantage"}
    assert (table["advantage"] == 0).all(), "the switch's, not GRPO's: all rollouts are wrong"


def test_grpo_samples_no_special_token_either_and_takes_a_folder_and_a_reporter(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "tensorboard", Steps)
    checkpoint = make_checkpoint("qwen2", tmp_path / "hub")
    questions = datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ("2 + 2?", "3 + 1?")],
                                            "answer": ["4", "5"]})
    arguments = settings(GRPOConfig, tmp_path / "out", report_to=["tensorboard"])
    trainer = MeasuredGRPOTrainer(str(checkpoint), says_four, arguments, questions)
    assert trainer.args.report_to == ["tensorboard"]
    assert any(isinstance(callback, Steps) for callback in trainer.callback_handler.callbacks)
    assert trainer.generation_config.suppress_tokens == suppressed_ids(trainer.model, trainer.processing_class)
    assert trainer.train_dataset[1]["item"] == "row-1" and trainer.train_dataset[1]["question"] == "3 + 1?"


def test_a_path_and_one_function_are_enough_as_in_trl(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    charts = to_dataset(mini_records("train", 2, seed=0))
    trainer = DyMETrainer(model="bases/svlm-s0", reward_funcs=length, args=settings(DyMEConfig, tmp_path), train_dataset=charts)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.reward_func_names == ["length"]
    assert not any(weight.requires_grad for name, weight in trainer.model.named_parameters() if ".vision_tower." in name)
    [told] = [record.getMessage() for record in caplog.records if "has a target" in record.getMessage()]
    assert told == ("step 1: none of the 2 prompts to memorize here has a target, so they teach nothing: give the rows a trace "
                    "or a target, or a refiner that writes one")


def test_a_model_and_its_processor_of_another_family_are_taken_as_they_are(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen2_5_vl", tmp_path / "hub")
    model, processor = AutoModelForImageTextToText.from_pretrained(checkpoint), load_processor(checkpoint, "qwen2_5_vl")
    charts = to_dataset(mini_records("train", 2, seed=0))
    trainer = DyMETrainer(model, never, settings(DyMEConfig, tmp_path), charts, processing_class=processor,
                          refiner=RuleRefiner())
    trainer.train()
    assert trainer.processing_class is processor and all(weight.requires_grad for weight in model.parameters())
    assert trainer.state.log_history[0]["memorize"] == 2 and trainer.state.log_history[0]["without_target"] == 0


@pytest.mark.parametrize(("changes", "told"), [
    ({"reward_funcs": RuleChecker()}, "a list of functions: got RuleChecker; write a list, and dyme_rewards"),
    ({"reward_funcs": (length, length)}, "reward_funcs must be a function or a list of functions: got tuple"),
    ({"args": GRPOConfig("out", use_cpu=True, bf16=False)}, "a DyMEConfig: got GRPOConfig; DyMEConfig takes GRPOConfig's"),
    ({"refiner": RuleRefiner}, "an object with refine_all, or a function .*: got 'RuleRefiner'; write RuleRefiner()"),
    ({"options": {"model_init_kwargs": {"dtype": "bfloat16"}}}, "without options: got model_init_kwargs; load it with Auto"),
    ({"train_dataset": {"prompt": ["2 + 2?"], "solution": ["4"]}, "refiner": RuleRefiner()},
     "the column 'answer': got prompt, solution; rename"),
    ({"train_dataset": {"prompt": ["2?"], "answer": ["4"], "image": [Image.new("RGB", (8, 8))]}},
     "pictures, which need the model's processor: got .*Tokenizer.*; give the processor")])
def test_what_a_script_for_trl_may_get_wrong_is_said_in_a_sentence(tmp_path: Path, changes: dict, told: str) -> None:
    rows = changes.pop("train_dataset", {"prompt": ["2 + 2?"], "answer": ["4"]})
    given = {"model": str(make_checkpoint("qwen2", tmp_path / "hub")), "reward_funcs": length,
             "args": settings(DyMEConfig, tmp_path / "out", **changes.pop("options", {})), **changes}
    with pytest.raises((TypeError, ValueError), match=told):
        DyMETrainer(train_dataset=datasets.Dataset.from_dict(rows), **given)


def test_settings_of_ones_own_reach_vllm_beside_what_must_not_be_sampled(tmp_path: Path) -> None:
    model, tokenizer = load_policy(make_checkpoint("qwen2", tmp_path / "hub"))
    made = generation_kwargs(model, tokenizer, use_vllm=True, given={"logit_bias": {3: 1.0}, "top_k": 5})
    forbidden = dict.fromkeys(suppressed_ids(model, tokenizer), -100.0)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert made == {"logit_bias": {3: 1.0, **forbidden}, "top_k": 5, "stop_token_ids": ends} and len(forbidden) == 4


@pytest.mark.parametrize("refiner", [None, RuleRefiner(), lambda rows: ["written"] * len(rows)])
def test_a_rows_own_target_or_trace_comes_before_the_refiner(refiner) -> None:
    [record] = mini_records("train", 1, seed=0)
    trace = json.dumps({**json.loads(record.supervision), "trace": "Own thinking comes before all."})
    rows = [{**record.row, "target": "whole"}, {**record.row, "supervision": trace}, record.row]
    first, second, third = target_writer(refiner)(rows)
    assert (first, second) == ("whole", f"Own thinking comes before all.\n<answer>{record.answer}</answer>")
    assert third == (None if refiner is None else "written" if callable(refiner)
                     else f"{RuleRefiner().refine(item_of(record.row))}\n<answer>{record.answer}</answer>")


@pytest.mark.parametrize("is_iterable", [False, True])
def test_columns_that_are_missing_are_filled_in_and_others_stay(is_iterable: bool) -> None:
    facts = [{"entity": "May", "attribute": "rain", "value": 45, "unit": "mm"}]
    plain = datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": [{"type": "text", "text": "How much?"}]}]],
                                        "answer": [45], "facts": [facts], "trace": ["May has 45 mm of rain."], "mine": [1.5]})
    [row] = with_defaults({"test": plain.to_iterable_dataset() if is_iterable else plain})["test"]
    assert (row["item"], row["question"], row["answer"], row["mine"]) == ("row-0", "How much?", "45", 1.5)
    item = item_of(row)
    assert [(fact.entity, fact.value) for fact in item.facts] == [("May", 45.0)]
    assert json.loads(row["supervision"])["trace"] == "May has 45 mm of rain."


def test_data_sets_are_loaded_by_name_or_folder(tmp_path: Path) -> None:
    mini = load_dataset("mini", "validation", limit=3)
    assert len(mini) == 3 and {"prompt", "image", "answer", "item", "supervision"} <= set(mini.column_names)
    assert with_defaults(mini) is mini
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text('{"question": "How high?", "answer": 3, "image": "a.png"}\n')
    [row] = load_dataset(tmp_path)
    assert row["answer"] == "3" and row["image"].size == (8, 8)


def test_grounded_needs_a_thinking_reward(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("qwen2", tmp_path / "hub")
    questions = datasets.Dataset.from_dict({"prompt": ["2 + 2?"] * 4, "answer": ["4"] * 4})
    with pytest.raises(ValueError, match="switch 'grounded' needs a thinking reward: got .*; add rewards.ThinkingReward"):
        DyMETrainer(str(checkpoint), dyme_rewards(RuleChecker())[:2], settings(DyMEConfig, tmp_path, switch="grounded"),
                    questions)
