"""The mini policies: tokenizer, picture tokens, sizes, saving and loading."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextProcessor, pipeline

from dyme_core.data import chart_tables, datasets, prompt_format, schema
from dyme_core.models import loading, processors, tiny_onevision

PROCESSOR = tiny_onevision.build_processor()
TOKENIZER = PROCESSOR.tokenizer
RECORDS = datasets.mini_records("train", 3, seed=0)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def ask(records: list[schema.Record]) -> dict[str, torch.Tensor]:
    asked = [{"type": "text", "text": prompt_format.question_text(record.question)} for record in records]
    texts = [PROCESSOR.apply_chat_template([{"role": "user", "content": [{"type": "image"}, text]}],
                                           add_generation_prompt=True) for text in asked]
    return PROCESSOR(images=[[record.image] for record in records], text=texts, padding=True, return_tensors="pt")


@pytest.mark.parametrize("words", [chart_tables.LABELS, tiny_onevision.WORDS, [str(year) for year in range(1900, 2030)],
                                   [str(number) for number in range(200)]], ids=["labels", "words", "years", "numbers"])
def test_every_word_of_the_closed_vocabulary_is_one_token(words) -> None:
    assert [word for word in words if len(ids_of(word)) != 1] == []
    for word in words:  # and stays one inside a sentence
        assert ids_of(f"{word} is {word}") == [*ids_of(word), *ids_of("is"), *ids_of(word)]


def test_the_answer_tags_and_special_tokens_are_one_token_each() -> None:
    for token in (prompt_format.ANSWER_OPEN, prompt_format.ANSWER_CLOSE, *tiny_onevision.SPECIAL):
        assert ids_of(token) == [TOKENIZER.convert_tokens_to_ids(token)]


def test_a_question_and_a_target_are_short() -> None:
    assert len(ids_of("What is the value of FAV in 2010?")) <= 10
    assert len(ids_of("2010 has FAV 30 and UNF 10\n<answer>2010</answer>")) <= 12


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_read_and_written_again(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["naïve Zürich – 5 €", "日本語のグラフ", "😀 2010", "a\tb", "two  spaces", "line\n\nline",
                                  "(3.0 + 8.9) / 3 = 8.3", "thinking\n<answer>12</answer>", "<answer> 12</answer>",
                                  "x( y", "", " leading", "trailing "])
def test_texts_of_every_sort_survive_the_round_trip(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text), skip_special_tokens=False) == text


def test_a_picture_has_as_many_tokens_as_features() -> None:
    model, inputs = tiny_onevision.build_model("svlm", PROCESSOR, 0), ask(RECORDS)
    features = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], vision_feature_layer=-1,
                                        vision_feature_select_strategy="full").pooler_output
    assert len(features) == len(RECORDS)
    for ids, feature in zip(inputs["input_ids"], features, strict=True):
        assert int((ids == TOKENIZER.image_token_id).sum()) == len(feature)
    assert model(**inputs).logits.shape == (*inputs["input_ids"].shape, len(TOKENIZER))


def test_the_picture_changes_what_the_model_says() -> None:
    model, inputs = tiny_onevision.build_model("svlm", PROCESSOR, 0), ask([RECORDS[0], RECORDS[0]])
    inputs["pixel_values"][1] = -inputs["pixel_values"][1]
    first, second = model(**inputs).logits
    assert not torch.allclose(first[-1], second[-1])


def test_the_small_model_has_one_to_three_million_parameters_and_the_large_one_almost_twice_as_many() -> None:
    small, large = (sum(parameter.numel() for parameter in tiny_onevision.build_model(size, PROCESSOR, 0).parameters())
                    for size in ("svlm", "large"))
    assert 1e6 < small < 3e6
    assert 1.5 < large / small < 2, large / small


def test_a_seed_gives_its_own_weights() -> None:
    first, again, other = (tiny_onevision.build_model("svlm", PROCESSOR, seed).state_dict() for seed in (0, 0, 1))
    assert all(first[name].equal(again[name]) for name in first)
    assert any(not first[name].equal(other[name]) for name in first)


def test_only_the_end_token_may_be_sampled_of_the_special_ones() -> None:
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0)
    names = TOKENIZER.convert_ids_to_tokens(processors.suppressed_ids(model, PROCESSOR))
    assert set(names) == set(tiny_onevision.SPECIAL) - {tiny_onevision.END}


def test_a_policy_saved_and_loaded_says_the_same_and_has_its_tower_frozen(tmp_path: Path) -> None:
    model, inputs = tiny_onevision.build_model("svlm", PROCESSOR, 3).eval(), ask(RECORDS)
    loading.save_policy(model, PROCESSOR, tmp_path / "policy")
    loaded, processor = loading.load_policy(tmp_path / "policy")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)
    assert isinstance(processor, LlavaNextProcessor)
    asked = dict(images=[[RECORDS[0].image]], text=["<user><image>What is the sum<end><assistant>"],
                 return_tensors="pt")
    again, wanted = processor(**asked), PROCESSOR(**asked)
    assert all(again[name].equal(wanted[name]) for name in wanted)
    assert processor.chat_template == tiny_onevision.CHAT_TEMPLATE
    assert all(parameter.requires_grad == ("vision_tower" not in name) for name, parameter in loaded.named_parameters())


def test_a_policy_in_16_bits_takes_half_the_space_and_loads_in_32(tmp_path: Path) -> None:
    model = tiny_onevision.build_model("svlm", PROCESSOR, 0)
    for name, dtype in (("whole", None), ("half", torch.bfloat16)):
        loading.save_policy(model, PROCESSOR, tmp_path / name, dtype)
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert 0.45 < half / whole < 0.55
    assert loading.load_policy(tmp_path / "half")[0].dtype == torch.float32


def test_a_folder_without_a_model_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model in .*: expected config.json .*make base"):
        loading.load_policy(tmp_path)


def test_plain_transformers_reads_the_picture_of_a_saved_policy(tmp_path: Path) -> None:
    model, processor = loading.load_policy(Path(__file__).parents[2] / "bases" / "svlm-s0")
    loading.save_policy(model, processor, tmp_path)
    ask = pipeline("image-text-to-text", model=str(tmp_path))
    assert isinstance(ask.processor, LlavaNextProcessor)
    asked = [record for record in datasets.mini_records("validation", 42, 0) if record.kind == "lookup"]
    for record in asked:
        text = prompt_format.question_text(record.question, prompt_format.ANSWER_INSTRUCTION)
        turn = {"role": "user", "content": [{"type": "image", "image": record.image}, {"type": "text", "text": text}]}
        said = ask(text=[turn], max_new_tokens=16, return_full_text=False)[0]["generated_text"]
        assert prompt_format.split_response(said)[1] == record.answer
    assert len(asked) == 6
