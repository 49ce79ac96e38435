"""`train(resume_from_checkpoint=...)` on a trainer alone: weights and log are those of a run that was never interrupted."""
from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from tiny_families import make_checkpoint
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from trl import GRPOConfig, SFTConfig

from dyme_core.models.loading import load_policy
from dyme_core.models.resuming import STATE, ResumableSFTTrainer
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import LearningChecker, RuleRefiner, TemplateBank
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer
from dyme_core.trainer.rewards import ThinkingReward

G, STEPS = 2, 6  # two prompts a step of four prompts: an epoch is two steps
WORDS = ("left", "right", "upper", "lower")


def luck(completions, **columns) -> list[float]:
    """Differs within most groups of random rollouts, so that there is something to learn from them."""
    return [len(set(str(completion))) % 3 / 2 for completion in completions]


def prompts(with_image: bool) -> dict[str, list]:
    pictures = [Image.new("RGB", (40, 40), (60 * place, 0, 0)) for place in range(len(WORDS))]
    return {"prompt": [[{"role": "user", "content": f"How high is the {word} bar?"}] for word in WORDS],
            **({"image": pictures} if with_image else {})}


def targets(rows) -> list[str]:
    return [f"It is as high as {row['question'][16:20]}.\n<answer>4</answer>" for row in rows]


def make(kind: str, base: Path, folder: Path, **changes):
    """A trainer of one kind on a policy that is loaded anew."""
    name, _, adapter = kind.partition("+")
    policy, processor = load_policy(base, lora_rank=2 if adapter else 0)
    per_step = 2 if name == "sft" else 2 * G
    common = dict(output_dir=str(folder), max_steps=STEPS, learning_rate=1e-2, use_cpu=True, bf16=False, disable_tqdm=True,
                  save_strategy="steps", save_steps=1, logging_steps=2, report_to="none", seed=3, gradient_checkpointing=False,
                  per_device_train_batch_size=per_step) | changes
    rows = prompts(with_image=(base / "preprocessor_config.json").exists())
    if name == "sft":
        said = [[{"role": "assistant", "content": f"It is {word}.\n<answer>4</answer>"}] for word in WORDS]
        return ResumableSFTTrainer(policy, args=SFTConfig(**common, max_length=None), processing_class=processor,
                                   train_dataset=datasets.Dataset.from_dict({**rows, "completion": said}))
    common |= dict(num_generations=G, max_completion_length=8)
    data = datasets.Dataset.from_dict({**rows, "answer": ["4"] * len(WORDS)})
    if name.startswith("grpo"):  # one generation for two updates: a checkpoint may lie between them
        reuse = dict(steps_per_generation=2, per_device_train_batch_size=G) if name == "grpo-reuse" else {}
        return MeasuredGRPOTrainer(policy, luck, GRPOConfig(**common | reuse), data, processing_class=processor)
    switch = dict(switch="budget", switch_value=3) if name == "budget" else {}
    return DyMETrainer(policy, luck, DyMEConfig(**common, **switch), data, refiner=targets, processing_class=processor)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def log(trainer) -> list[dict]:
    return [{name: value for name, value in row.items() if not name.endswith(("_s", "time", "runtime", "per_second"))}
            for row in trainer.state.log_history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The base, the weights and the log of a run that was never interrupted, and its folder with a checkpoint of each step."""
    known = {}

    def made(family: str, kind: str):
        if (family, kind) not in known:
            place = tmp_path_factory.mktemp("whole")
            trainer = make(kind, make_checkpoint(family, place / "hub"), place / "run")
            output = trainer.train()
            known[family, kind] = place / "hub", weights(trainer), log(trainer), place / "run", output.training_loss
        return known[family, kind]

    return made


@pytest.mark.promise("resume", "every trainer resumes exactly by itself, past an epoch and between two updates of a batch")
@pytest.mark.parametrize(("family", "kind", "step"), [
    ("llava_onevision", "dyme", 3), ("llava_onevision", "grpo", 3), ("llava_onevision", "grpo", 4), ("qwen2", "budget", 3),
    ("qwen2", "sft+lora", 4), *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (
        ("llava_onevision", "sft", 3), ("llava_onevision", "dyme+lora", 3), ("qwen2", "grpo-reuse", 3)))])
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(whole, tmp_path: Path, family: str, kind: str, step: int
                                                                ) -> None:
    base, wanted, wanted_log, folder, loss = whole(family, kind)
    trainer = make(kind, base, tmp_path / "again")
    start = weights(trainer)
    output = trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    found = weights(trainer)
    assert not [name for name in wanted if not found[name].equal(wanted[name])]
    assert [name for name in wanted if not start[name].equal(wanted[name])]
    assert log(trainer) == wanted_log and trainer.state.global_step == STEPS
    assert output.training_loss == pytest.approx(loss, rel=1e-6)


def test_true_takes_the_newest_complete_checkpoint_and_one_of_the_last_step_is_only_read(whole, tmp_path: Path, caplog) -> None:
    base, wanted, wanted_log, folder, loss = whole("qwen2", "budget")
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoint-99").mkdir()  # as a run leaves it that was killed while it wrote
    trainer, steps = make("budget", base, tmp_path / "run"), []
    trainer.add_callback(_Steps(steps))
    output = trainer.train(resume_from_checkpoint=True)
    found = weights(trainer)
    assert steps == ["begin", "end"] and "checkpoint-99 is not used: it has no trainer_state.json, optimizer.pt" in caplog.text
    assert not [name for name in wanted if not found[name].equal(wanted[name])]
    assert output.global_step == STEPS and output.training_loss == pytest.approx(loss)
    assert log(trainer) == wanted_log[:-1], "all but Trainer's own summary, which it writes after saving"


class _Steps(TrainerCallback):
    def __init__(self, seen: list) -> None:
        self.on_train_begin, self.on_train_end, self.on_step_end = (
            lambda *args, name=name, **kwargs: seen.append(name) for name in ("begin", "end", "step"))


def test_what_cannot_be_resumed_exactly_is_refused_with_advice(whole, tmp_path: Path) -> None:
    base, _, _, folder, _ = whole("qwen2", "budget")
    trainer = make("budget", base, tmp_path / "new")
    with pytest.raises(ValueError, match="a checkpoint to resume from in .*new: got 0 incomplete ones; leave resume_from_"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="a complete checkpoint in nowhere: it has no trainer_state.json, optimizer.pt, sch"):
        trainer.train(resume_from_checkpoint="nowhere")
    shutil.copytree(folder / "checkpoint-4", tmp_path / "torn")
    for name in ("state-0.pt", "scheduler.pt", "optimizer.pt", STATE):
        (tmp_path / "torn" / name).unlink()
        with pytest.raises(ValueError, match=f"it has no .*{name}"):
            trainer.train(resume_from_checkpoint=tmp_path / "torn")
    (tmp_path / "torn").rename(tmp_path / "weights")
    shutil.copytree(folder / "checkpoint-4", tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").write_bytes((folder / "checkpoint-4" / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="expected weights in safetensors, got a file that cannot be read"):
        trainer.train(resume_from_checkpoint=tmp_path / "torn")
    earlier = make("budget", base, tmp_path / "earlier", max_steps=3)
    with pytest.raises(ValueError, match="at most step 3, the last one to train: got one of step 4; take an earlier"):
        earlier.train(resume_from_checkpoint=folder / "checkpoint-4")
    shorter = make("budget", base, tmp_path / "shorter", max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="at most step 2, the last one to train: got one of step 4"):
        shorter.train(resume_from_checkpoint=folder / "checkpoint-4")


def test_a_longer_run_goes_on_along_the_new_schedule_and_says_so(whole, tmp_path: Path, caplog) -> None:
    base, _, _, folder, _ = whole("qwen2", "budget")
    trainer = make("budget", base, tmp_path / "longer", max_steps=STEPS + 2)
    trainer.train(resume_from_checkpoint=folder / f"checkpoint-{STEPS}")
    assert "was to take 6 steps, this one 8: the learning rate follows the new schedule" in caplog.text
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert trainer.state.global_step == STEPS + 2 and rates[-1] == pytest.approx(1e-2 * 1 / 8)


def test_the_best_policy_comes_back_at_the_end(tmp_path: Path) -> None:
    base = make_checkpoint("llava_onevision", tmp_path / "hub")
    trainer, kept = make("sft", base, tmp_path / "run", max_steps=2, lr_scheduler_type="constant"), []
    trainer.eval_dataset = trainer.train_dataset
    vars(trainer.args).update(eval_strategy=IntervalStrategy.STEPS, eval_steps=1, load_best_model_at_end=True,
                              metric_for_best_model="loss", greater_is_better=True)
    save = trainer._save_rng_state
    trainer._save_rng_state = lambda folder: (kept.append(weights(trainer)), save(folder))
    trainer.train()
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert best == 1, "the loss falls, and the highest is asked for"
    assert all(weight.equal(kept[0][name]) for name, weight in weights(trainer).items())
    assert not all(weight.equal(kept[1][name]) for name, weight in weights(trainer).items())


def test_the_template_bank_of_a_refiner_or_a_checker_comes_back(whole, tmp_path: Path) -> None:
    base, _, _, folder, _ = whole("qwen2", "budget")
    policy, processor = load_policy(base)
    banks, made = [], []
    for _ in range(2):
        bank = TemplateBank()
        checker = LearningChecker(RuleChecker(), bank)
        arguments = DyMEConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=G, per_device_train_batch_size=G)
        made.append(DyMETrainer(policy, [luck, ThinkingReward(checker)], arguments, datasets.Dataset.from_dict(
            {**prompts(False), "answer": ["4"] * 4}), refiner=RuleRefiner(TemplateBank()), processing_class=processor))
        banks.append(bank)
    banks[0].counts["{facts}, so {working} and {conclusion}"] = 3
    made[1].load_state_dict(made[0].state_dict())
    assert banks[1].counts == banks[0].counts
