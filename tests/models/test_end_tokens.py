"""Which tokens end a response: the chat template's, the tokenizer's and generation_config's, everywhere alike."""
from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from family_steps import WRONG, G, records_for, refine, step
from tiny_families import END, TEMPLATES, make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, SFTConfig, SFTTrainer

from dyme_core.data.datasets import sft_dataset
from dyme_core.models import generation, loading, processors
from dyme_core.trainer.grpo_trainer import MeasuredGRPOTrainer

every_family = pytest.mark.parametrize("family", TEMPLATES)


def checkpoint(family: str, folder: Path, **tokenizer: str) -> Path:
    """As Gemma 3 and others: the tokenizer's end token is not the one that the chat template closes a turn with; what
    generation_config says besides is a third."""
    folder = make_checkpoint(family, folder, eos_token="<|endoftext|>", **tokenizer)
    ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    settings = json.loads((folder / "generation_config.json").read_text())
    settings["eos_token_id"] = [ids["<|endoftext|>"], ids[END.get(family, "<|im_end|>")], ids["<|im_start|>"]]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def always(policy, token_id: int) -> None:
    """From now on the policy says nothing else."""
    policy.get_output_embeddings().register_forward_hook(
        lambda module, inputs, logits: logits.index_fill(-1, torch.tensor([token_id]), 1e4))


@every_family
def test_every_end_token_ends_a_response_and_none_is_suppressed(tmp_path: Path, family: str) -> None:
    names = END.get(family, "<|im_end|>"), "<|endoftext|>", "<|im_start|>"
    checkpoint(family, tmp_path / "hub")
    for name in names:
        policy, processor = loading.load_policy(tmp_path / "hub")
        tokenizer = processors.tokenizer_of(processor)
        ends = tokenizer.convert_tokens_to_ids(list(names))
        assert processors.end_ids(policy, processor) == ends and policy.generation_config.eos_token_id == [
            ends[1], ends[0], ends[2]], "as the folder has them"
        assert not {*ends} & {*processors.suppressed_ids(policy, processor)}
        always(policy, tokenizer.convert_tokens_to_ids(name))
        [response] = generation.decode(policy, processor, records_for(family)[:1], max_new_tokens=4)
        assert response == generation.Decoded("", 1, False)


@every_family
def test_a_target_is_closed_as_the_chat_template_closes_an_answer(tmp_path: Path, family: str) -> None:
    policy, processor = loading.load_policy(checkpoint(family, tmp_path / "hub"))
    trainer, _ = step(tmp_path / "run", family, policy, processor, [WRONG] * 2 * G)
    tokenizer, end = processors.tokenizer_of(processor), END.get(family, "<|im_end|>")
    target = refine([records_for(family)[0].row])[0]
    assert tokenizer.decode(processors.target_ids(processor, target)) == target + end
    assert tokenizer.pad_token not in (None, end, tokenizer.eos_token), "else the closing token is masked with the padding"
    assert {*trainer.eos_token_ids} == {*processors.end_ids(policy, processor)}
    settings = SFTConfig(str(tmp_path / "sft"), use_cpu=True, bf16=False, report_to="none", max_length=None,
                         per_device_train_batch_size=2)
    rows = sft_dataset(records_for(family), refine)
    sft = SFTTrainer(policy, args=settings, train_dataset=rows, processing_class=processor)
    labels = next(iter(sft.get_train_dataloader()))["labels"]
    learned = [tokenizer.decode([token_id for token_id in row if token_id >= 0]).strip() for row in labels.tolist()]
    assert sorted(learned) == sorted(refine([record.row])[0] + end for record in records_for(family))


@pytest.mark.parametrize(("family", "end"), [("llava_onevision", "<|im_end|>"), ("qwen2", "<|im_start|>")])
def test_no_rollout_that_ends_is_counted_as_cut(tmp_path: Path, family: str, end: str) -> None:
    policy, processor = loading.load_policy(checkpoint(family, tmp_path / "hub"))
    always(policy, processors.tokenizer_of(processor).convert_tokens_to_ids(end))
    trainer, _ = step(tmp_path / "run", family, policy, processor, None, max_completion_length=4)
    assert [len(ids) for ids in trainer.sampled] == [1] * 2 * G and trainer.state.log_history[0]["truncated"] == 0


def test_a_plain_model_and_tokenizer_are_trained_and_saved_with_every_end_token(tmp_path: Path) -> None:
    """The chat template's end stands neither in the tokenizer nor in generation_config, nor is it marked as special."""
    folder = make_checkpoint("qwen2", tmp_path / "hub", eos_token="<|endoftext|>", pad_token="<|vision_start|>")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    ids = AutoTokenizer.from_pretrained(folder).get_vocab()
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": ids["<|endoftext|>"]}))
    words = json.loads((folder / "tokenizer.json").read_text())
    [token] = [token for token in words["added_tokens"] if token["content"] == "<|im_end|>"]
    token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(words))

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    always(model, ids["<|im_end|>"])
    seen: list[str] = []

    def says_nothing(completions, **columns) -> list[float]:
        seen.extend(completion[0]["content"] for completion in completions)
        return [1.0] * len(completions)

    arguments = GRPOConfig(str(tmp_path / "run"), use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=G,
                           num_generations=G, max_completion_length=4, report_to="none", disable_tqdm=True,
                           save_strategy="no", logging_steps=1)
    rows = datasets.Dataset.from_dict({"prompt": [[{"role": "user", "content": "2 + 2?"}]], "answer": ["4"]})
    trainer = MeasuredGRPOTrainer(model, says_nothing, arguments, rows, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.log_history[0]["truncated"] == 0 and seen == [""] * G
    trainer.save_model(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {*saved["eos_token_id"]} == {ids["<|im_end|>"], ids["<|endoftext|>"]}
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").decode([ids["<|im_end|>"]], skip_special_tokens=True) == ""


@pytest.mark.parametrize(("template", "end"), [
    (None, "<|endoftext|>"), ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "<|endoftext|>"),
    ("{% for m in messages %}<|im_start|>{{ m.content }} <|im_end|>\n<|vision_end|>{% endfor %}", "<|im_end|>")])
def test_without_a_closing_token_in_the_template_the_tokenizers_own_closes(tmp_path: Path, template, end: str) -> None:
    _, tokenizer = loading.load_policy(make_checkpoint("qwen2", tmp_path / "hub", eos_token="<|endoftext|>"))
    tokenizer.chat_template = template
    assert processors.turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)
    tokenizer.eos_token = None
    if end == "<|endoftext|>":
        with pytest.raises(ValueError, match="expected an end token, from the chat template or the tokenizer: got none; set"):
            processors.turn_end(tokenizer)
