"""The smol base, from a tiny language model in SmolLM2's layout: its vocabulary, its projector, one command to its folder."""
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dyme_core import config
from dyme_core.data import chart_images, english
from dyme_core.data.datasets import mini_records, of_profile
from dyme_core.data.schema import item_of
from dyme_core.models import loading
from dyme_core.models.generation import prompt_inputs
from scripts import curriculum, pretrain, smol

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<filename>", "<gh_stars>"]
START = config.paths("mini").root / "bases" / "svlm-start"
TINY = smol.Smol(align_steps=2, align_batch_size=2, language_steps=2, early_steps=1, own_steps=1, batch_size=2, sums=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `weights.model_folder` gives it."""
    folder = tmp_path_factory.mktemp("source")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    other = ["A paragraph of prose that has nothing to do with charts, and whose words may go."] * 20
    tokenizer.train_from_iterator([*smol.world_texts(), *other], trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64,
                                 num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
                     ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bases folder after `dyme base --profile smol --seed 3`, with few steps."""
    root = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smol, "COMMON", len(SPECIAL))
        patch.setattr(smol, "Smol", lambda: TINY)
        patch.setattr(smol.weights, "model_folder", lambda folder: source)
        patch.setattr(pretrain, "measure_base", lambda model, processor, language: {"language": float(language == "english")})
        patch.setenv("DYME_ROOT", str(root))
        (root / "bases").mkdir()
        (root / "bases" / "svlm-start").symlink_to(START)
        smol.build_base(3, 1)
    return root / "bases" / "smol"


def test_the_worlds_texts_are_read_as_before_with_fewer_tokens(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(smol, "COMMON", len(SPECIAL))
    stored, ids = smol.prune(source, smol.world_texts()[:40])
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    before, after = (PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")) for folder in (source, tmp_path))
    assert len(after) == len(ids) < len(before)
    for text in [*smol.world_texts()[:40], "What is the share of Men in Nepal? <|im_end|>"]:
        own = after(text)["input_ids"]
        assert after.decode(own) == before.decode(before(text)["input_ids"])
    assert [ids[place] for place in after(smol.world_texts()[0])["input_ids"]] == before(smol.world_texts()[0])["input_ids"]
    assert [ids[place] for place in after(SPECIAL)["input_ids"][2]] == before(SPECIAL)["input_ids"][2]


def test_one_command_builds_a_base_that_plain_transformers_loads(built: Path) -> None:
    made = json.loads((built / "svlm-s3" / "manifest.json").read_text())
    assert (made["seed"], made["start"], made["metrics"]["language"]) == (3, "svlm-start", 1)
    assert {"says numbers", "says names", "prose (nats per token)"} <= json.loads(
        (built / "svlm-start" / "manifest.json").read_text())["metrics"].keys()
    processor = AutoProcessor.from_pretrained(built / "svlm-s3")
    model = AutoModelForImageTextToText.from_pretrained(built / "svlm-s3", dtype=torch.float32)
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    record = mini_records("test", 1, 0, language="english")[0]
    turns = [{"role": "user", "content": [{"type": "image", "image": record.image}, {"type": "text", "text": record.question}]}]
    inputs = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True,
                                           return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 52
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2


def test_a_conversation_is_marked_as_the_chat_template_does(built: Path) -> None:
    processor = loading.load_policy(built / "svlm-start")[1]
    record = mini_records("test", 1, 0, language="english")[0]
    prompt = prompt_inputs(processor, [record], instruction="")["input_ids"][0].tolist()
    image = [processor.image_token_id] * 52
    ids, labels = curriculum.tokens(processor, [(record.question, "Yes")], image)
    assert ids.tolist()[:len(prompt)] == prompt and (labels[:len(prompt)] == -100).all()
    assert processor.tokenizer.decode(ids[labels != -100]) == "Yes<|im_end|>"


def test_a_patch_says_what_stands_in_its_group_of_the_chart(built: Path) -> None:
    model, processor = loading.load_policy(built / "svlm-start")
    lexicon = smol.Lexicon(model.get_input_embeddings().weight.detach(), processor.tokenizer)
    names = {place: text for text, place in lexicon.places.items()}
    for seed in range(20):
        table, style = curriculum.draw_chart(random.Random(seed), "train")
        said = lexicon.of_chart(table, style).flatten().tolist()
        texts = [names[place] for place in said if place]
        for group, values in zip(table.groups, zip(*table.values, strict=True), strict=True):
            place = texts.index(english.name_of(group))
            assert texts[place + 1: place + 1 + len(values)] == [f"#{value}" for value in values]
        assert {english.name_of(name) for name in table.series} <= set(texts)
    assert chart_images.NUM_TILES * curriculum.SIDE ** 2 == len(said)


def test_the_base_never_sees_the_prose_that_it_is_measured_on(built: Path) -> None:
    model, processor = loading.load_policy(built / "svlm-start")
    rows = smol.prose_rows(processor)
    kept, trained = ({tuple(ids.tolist()) for ids, _ in part} for part in (rows[:smol.PROSE_KEPT], rows[smol.PROSE_KEPT:]))
    assert len(trained) > 400 and not kept & trained
    assert smol.prose_nll(model, processor) > 1


def test_the_profile_asks_in_english_of_at_most_five_groups() -> None:
    profile = config.load_profile("smol")
    for record in of_profile(profile, "test", 0)[:40]:
        assert len({fact.entity for fact in item_of(record.row).facts}) in (4, 5)
