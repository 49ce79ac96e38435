"""Updates with each prompt once: losses, logits and gradients are the plain model's, with fewer tokens computed."""
from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dyme_core.data import datasets
from dyme_core.models import generation, loading, processors, tiny_onevision
from dyme_core.models.engine import share_prefixes
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.refiner import RuleRefiner
from dyme_core.trainer.config import DyMEConfig
from dyme_core.trainer.dyme_trainer import DyMETrainer
from dyme_core.trainer.rewards import dyme_rewards

PROCESSOR = tiny_onevision.build_processor()
RECORDS = datasets.mini_records("train", 4, seed=0)
SUPPRESSED = processors.suppressed_ids(tiny_onevision.build_model("svlm", PROCESSOR, 0), PROCESSOR)
LENGTH = 9


def pair(dtype: torch.dtype = torch.float64) -> list:
    """A policy without and one with sharing, of the same weights."""
    policies = [tiny_onevision.build_model("svlm", PROCESSOR, 0).to(dtype) for _ in range(2)]
    for policy in policies:
        loading.freeze_vision(policy)
    share_prefixes(policies[1])
    return policies


def prompts(rows: list[int], dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Inputs of these records, in this order."""
    return generation.prompt_inputs(PROCESSOR, [RECORDS[row] for row in rows]).to("cpu", dtype)


def with_completions(inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The inputs of an update, random completions behind the prompts, and the (B, LENGTH) mask of their tokens."""
    generator, size = torch.Generator().manual_seed(0), len(inputs["input_ids"])
    mask = (torch.arange(LENGTH) < torch.randint(0, LENGTH + 1, (size, 1), generator=generator)).long()
    ids = torch.randint(len(tiny_onevision.SPECIAL), 200, mask.shape, generator=generator) * mask
    return {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], dim=1),
            "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1), "logits_to_keep": LENGTH + 1}, mask


def seen_by_text_model(policy) -> list[int]:
    """The list grows by the number of tokens each time that the language model is called."""
    counts: list[int] = []
    text = getattr(policy.model, "language_model", policy.model)
    text.layers[0].register_forward_pre_hook(lambda module, inputs: counts.append(inputs[0].shape[:2].numel()))
    return counts


def check_update(plain, shared, inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> None:
    read = torch.cat([torch.ones(len(mask), 1), mask], dim=1).bool()  # the prompt's last token, and each token there is
    made = []
    for policy in (plain, shared):
        logits = policy(**inputs).logits[read]
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
        (logits * weights).sum().backward()
        made.append((logits.detach(), {name: each.grad for name, each in policy.named_parameters() if each.grad is not None}))
    torch.testing.assert_close(made[1][0], made[0][0], atol=1e-5, rtol=1e-5)
    assert made[0][1].keys() == made[1][1].keys() and len(made[0][1]) > 20
    for name, gradient in made[0][1].items():  # norms and rotations are in 32 bits in any case
        assert (made[1][1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("rows", [[0] * 4 + [1] * 4 + [2] * 4, [0, 1, 2, 0, 3, 1, 0], [0] * 8 + [1, 2, 3], [2, 2]], ids=str)
def test_logits_and_gradients_are_the_plain_models(rows: list[int]) -> None:
    plain, shared = pair()
    counts = [seen_by_text_model(policy) for policy in (plain, shared)]
    check_update(plain, shared, *with_completions(prompts(rows)))
    assert counts[1][0] < counts[0][0]


def test_an_update_has_each_prompt_once_and_of_completions_no_padding() -> None:
    _, shared = pair()
    counts, (inputs, mask) = seen_by_text_model(shared), with_completions(prompts([0] * 8 + [1, 2, 3]))
    shared(**inputs)
    longest = int(inputs["attention_mask"][:, :-LENGTH].sum(dim=1).max())
    assert counts == [4 * longest + int(mask.sum())]


@pytest.mark.parametrize("family", [(Qwen2Config, Qwen2ForCausalLM), (LlamaConfig, LlamaForCausalLM)], ids=str)
def test_text_models_share_too(family: tuple) -> None:
    torch.manual_seed(0)
    plain = family[1](family[0](vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                num_attention_heads=4, num_key_value_heads=2)).double()
    shared = copy.deepcopy(plain)
    share_prefixes(shared)
    ids = torch.randint(6, 200, (2, 12)).repeat_interleave(3, dim=0)
    asked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    check_update(plain, shared, *with_completions(asked))
    made = [policy.generate(**asked, do_sample=False, max_new_tokens=12, pad_token_id=0) for policy in (plain, shared)]
    assert torch.equal(*made)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_sft_on_several_targets_of_a_picture_shares_its_prompt(padding: str) -> None:
    plain, shared = pair()
    inputs, mask = with_completions(prompts([0, 0, 0, 2, 2, 1]))
    keep = mask.sum(dim=1) > 0
    inputs = {name: value[keep] for name, value in inputs.items() if name != "logits_to_keep"}
    is_prompt = torch.arange(inputs["input_ids"].shape[1]) < inputs["input_ids"].shape[1] - LENGTH
    inputs["labels"] = inputs["input_ids"].masked_fill(is_prompt | (inputs["attention_mask"] == 0), -100)
    if padding == "right":
        order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
        inputs |= {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask", "labels")}
    counts = [seen_by_text_model(policy) for policy in (plain, shared)]
    made = [policy(**inputs) for policy in (plain, shared)]
    for output in made:
        output.loss.backward()
    is_read = inputs["attention_mask"].bool()
    assert made[1].loss.item() == pytest.approx(made[0].loss.item(), rel=1e-6) and counts[1][0] < counts[0][0]
    torch.testing.assert_close(made[1].logits[is_read], made[0].logits[is_read], atol=1e-5, rtol=1e-5)
    for (name, wanted), weight in zip(plain.named_parameters(), shared.parameters(), strict=True):
        assert wanted.grad is None or (weight.grad - wanted.grad).norm() <= 1e-5 * wanted.grad.norm(), name


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain, shared = pair()
    shared.train().gradient_checkpointing_enable({"use_reentrant": False})
    check_update(plain, shared, *with_completions(prompts([0, 0, 0, 2, 2, 1])))


def test_another_attention_turns_it_off() -> None:
    plain, shared = pair()
    plain.set_attn_implementation("eager"), shared.set_attn_implementation("eager")
    inputs, _ = with_completions(prompts([0, 0]))
    assert torch.equal(shared(**inputs).logits, plain(**inputs).logits)


def test_the_same_words_about_another_picture_are_another_prompt() -> None:
    plain, shared = pair()
    inputs = prompts([0, 0, 0, 0])
    inputs["pixel_values"][2:] = inputs["pixel_values"][2:].flip(-1)
    check_update(plain, shared, *with_completions(inputs))
    made = [policy.generate(**inputs, max_new_tokens=8, do_sample=False, suppress_tokens=SUPPRESSED, pad_token_id=0)
            for policy in (plain, shared)]
    assert torch.equal(*made)


@pytest.mark.parametrize("change", ["labels", "hole", "whole", "no mask", "cache", "distinct"])
def test_what_cannot_be_shared_goes_the_plain_way(change: str) -> None:
    plain, shared = pair()
    inputs, _ = with_completions(prompts([0, 1, 2, 3] if change == "distinct" else [0, 0, 1, 1]))
    if change == "labels":
        inputs["labels"], inputs["logits_to_keep"] = inputs["input_ids"], 0
    elif change == "hole":
        inputs["attention_mask"][:, -LENGTH] = 0
    elif change == "whole":
        inputs["logits_to_keep"] = 0
    elif change == "no mask":
        del inputs["attention_mask"]
    elif change == "cache":
        inputs["use_cache"] = True
    outputs = [policy(**inputs) for policy in (plain, shared)]
    assert torch.equal(outputs[0].logits, outputs[1].logits) and type(outputs[0]) is type(outputs[1])


def test_models_with_sliding_windows_stay_as_they_are() -> None:
    config = Qwen2Config(vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    policy = Qwen2ForCausalLM(config)
    share_prefixes(policy)
    assert type(policy) is Qwen2ForCausalLM


class Scripted(DyMETrainer):
    """Rollouts from a script."""

    def _generate_single_turn(self, prompt_ids, *args):
        texts = ["We look at the chart.\n<answer>no idea</answer>"] * len(prompt_ids)
        texts[0], texts[3] = "We look.\n<answer>5</answer>", "So.\n<answer>no</answer>"
        return [[*PROCESSOR.tokenizer(text)["input_ids"], PROCESSOR.tokenizer.eos_token_id] for text in texts], None


@pytest.mark.parametrize("accumulation", [1, 2])
def test_training_with_it_has_the_same_losses(accumulation: int, tmp_path: Path) -> None:
    losses = []
    for policy in pair(torch.float32):
        arguments = DyMEConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, max_steps=4, seed=0,
                               per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
                               max_completion_length=64, learning_rate=1e-3, report_to="none", save_strategy="no",
                               logging_steps=1, disable_tqdm=True, gradient_checkpointing=False)
        trainer = Scripted(policy, args=arguments, train_dataset=datasets.to_dataset(RECORDS), processing_class=PROCESSOR,
                         refiner=RuleRefiner(), reward_funcs=dyme_rewards(RuleChecker()))
        trainer.train()
        names = ("loss", "grad_norm", "entropy")[: 3 if accumulation == 1 else 2]  # TRL's entropy is a mean of parts' means
        losses.append([tuple(entry[name] for name in names) for entry in trainer.state.log_history if "loss" in entry])
    assert len(set(losses[0])) == 4
    for made, wanted in zip(*losses, strict=True):
        assert made == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_prompt_goes_through_once_however_many_micro_batches_there_are(accumulation: int, tmp_path: Path) -> None:
    """Four prompts of four rollouts, which TRL shuffles into the micro-batches of a step."""
    policy = pair(torch.float32)[1]
    arguments = DyMEConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=4, max_steps=1, seed=0,
                           per_device_train_batch_size=16 // accumulation, gradient_accumulation_steps=accumulation,
                           max_completion_length=64, report_to="none", save_strategy="no", disable_tqdm=True,
                           gradient_checkpointing=False, drop_idle_rows=False)
    trainer = Scripted(policy, args=arguments, train_dataset=datasets.to_dataset(RECORDS), processing_class=PROCESSOR,
                       refiner=RuleRefiner(), reward_funcs=dyme_rewards(RuleChecker()))
    counts, batches = seen_by_text_model(policy), []
    loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs) or loss(model, inputs)
    trainer.train()
    prompts = [{tuple(ids) for ids in batch["prompt_ids"].tolist()} for batch in batches]
    assert len(prompts) == accumulation and sum(map(len, prompts)) == 4, "no prompt stands in two micro-batches"
    own = sum(int(batch["completion_mask"].sum()) for batch in batches) + sum(
        {tuple(ids): int(mask.sum()) for ids, mask in zip(batch["prompt_ids"].tolist(), batch["prompt_mask"], strict=True)}[ids]
        for batch, some in zip(batches, prompts, strict=True) for ids in some)
    assert own <= sum(counts) < 1.15 * own, "and little padding"


def test_names_signature_and_copies_are_the_plain_models(tmp_path: Path) -> None:
    plain, shared = pair(torch.float32)
    assert inspect.signature(shared.forward) == inspect.signature(plain.forward)
    for name, policy in (("plain", plain), ("shared", copy.deepcopy(shared))):
        loading.save_policy(policy, PROCESSOR, tmp_path / name)
    saved = [{path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())} for name in ("plain", "shared")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("shares", [True, False])
def test_a_loaded_policy_shares_unless_told_not_to(shares: bool, tmp_path: Path) -> None:
    loading.save_policy(pair(torch.float32)[0], PROCESSOR, tmp_path / "policy")
    policy, _ = loading.load_policy(tmp_path / "policy", engine=shares)
    counts, inputs = seen_by_text_model(policy), prompts([0, 0], torch.float32)
    policy(**with_completions(inputs)[0])
    assert (counts[0] < 2 * (inputs["input_ids"].shape[1] + LENGTH)) == shares
