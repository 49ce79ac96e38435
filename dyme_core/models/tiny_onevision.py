"""The mini VLM: a tiny LLaVA-OneVision built from nothing, with its tokenizer and processor."""
from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from dyme_core.data import chart_tables, prompt_format
from dyme_core.data.chart_images import NUM_TILES, TILE
from dyme_core.data.teacher import teacher_words

PAD, END, USER, ASSISTANT, IMAGE, VIDEO = "<pad>", "<end>", "<user>", "<assistant>", "<image>", "<video>"
SPECIAL = (PAD, END, USER, ASSISTANT, IMAGE, VIDEO)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<user>' if m.role == 'user' else '<assistant>' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}")
WORDS = tuple("""What is the value of in Which has greater greatest gap between highest lowest sum and difference How much many
 have above than Output thinking process then give final answer tag Give Describe chart We locate Then extract
 Comparing count Therefore Step to compute So First look at From read values for therefore gives conclude step
 find see one can be Calculate as by with we compare result this shows are Reading a an on figure + - * / = < >""".split())
PATCH = 24  # pixels: 16 patches a view, 52 image tokens a picture; 16-pixel patches made a step three times slower
SIZES = {"svlm": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4),
         "middle": dict(hidden_size=160, intermediate_size=480, num_hidden_layers=5, num_attention_heads=5),
         "large": dict(hidden_size=192, intermediate_size=576, num_hidden_layers=6, num_attention_heads=6)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose closed vocabulary (words, labels, years, 0..199) is one token each.

    Known words and numbers after a space are single tokens; everything else falls back to bytes, so that any text can be
    read. A space is added at the beginning of a text, a line, a bracket or an answer, and removed in decoding.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = dict.fromkeys((*WORDS, *teacher_words(), *chart_tables.LABELS, *(str(year) for year in range(1900, 2030)),
                           *(str(number) for number in range(200))))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*alphabet, "ĊĠ", *(f"Ġ{word}" for word in words)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("\n", "\n "), normalizers.Replace("(", "( "),
                                                 normalizers.Prepend(" ")])
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Replace("( ", "("),
                                           decoders.Replace(f"{prompt_format.ANSWER_OPEN} ", prompt_format.ANSWER_OPEN),
                                           decoders.Replace(f"{prompt_format.ANSWER_CLOSE} ", prompt_format.ANSWER_CLOSE),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (prompt_format.ANSWER_OPEN, prompt_format.ANSWER_CLOSE)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left",
                                   extra_special_tokens={"image_token": IMAGE}, clean_up_tokenization_spaces=False,
                                   chat_template=CHAT_TEMPLATE)


def build_processor(image_size: int = TILE, patch_size: int = PATCH) -> LlavaNextProcessor:
    """The mini model's processor: one base view (the whole picture, narrowed) and `NUM_TILES` tiles beside each other, all of
    `image_size` pixels a side and (image_size/patch_size)^2 patches."""
    images = LlavaOnevisionImageProcessorPil(size={"height": image_size, "width": image_size}, resample=0,
                                             image_mean=[0.5] * 3, image_std=[0.5] * 3,
                                             image_grid_pinpoints=[[image_size, NUM_TILES * image_size]])
    tokenizer = build_tokenizer()
    return LlavaNextProcessor(images, tokenizer, patch_size=patch_size, vision_feature_select_strategy="full",
                              image_token=IMAGE, num_additional_image_tokens=0, chat_template=CHAT_TEMPLATE)


def build_model(size: str, processor: LlavaNextProcessor, seed: int, image_size: int = TILE, patch_size: int = PATCH
                ) -> LlavaOnevisionForConditionalGeneration:
    """A new mini VLM with random weights; `size` is one of SIZES, with equal vision towers."""
    tokenizer = processor.tokenizer
    text = Qwen2Config(vocab_size=len(tokenizer), max_position_embeddings=1024, tie_word_embeddings=True,
                       initializer_range=0.06, num_key_value_heads=SIZES[size]["num_attention_heads"],
                       pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
                       **SIZES[size])
    vision = SiglipVisionConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                                image_size=image_size, patch_size=patch_size, vision_use_head=False)
    config = LlavaOnevisionConfig(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id,
                                  video_token_id=tokenizer.convert_tokens_to_ids(VIDEO),
                                  image_grid_pinpoints=[[image_size, NUM_TILES * image_size]],
                                  vision_aspect_ratio=f"anyres_max_{NUM_TILES}",
                                  vision_feature_layer=-1, tie_word_embeddings=True,
                                  vision_feature_select_strategy="full")
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    _spread_numbers(model.get_input_embeddings().weight, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@torch.no_grad()
def _spread_numbers(embedding: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the numbers 0..199 Fourier features of their value, in random directions of the usual length.

    Pre-trained language models represent numbers in this way; without it a new model learns to add only slowly (Zhou et al.,
    "Pre-trained Large Language Models Use Fourier Features to Compute Addition", NeurIPS 2024).
    """
    numbers = torch.arange(200)
    angles = 2 * torch.pi * numbers[:, None] / torch.tensor([2, 5, 10, 20, 50, 100, 200, 400])
    features = torch.cat([angles.cos(), angles.sin()], dim=1)
    spread = features @ torch.randn(features.shape[1], embedding.shape[1])
    places = tokenizer.convert_tokens_to_ids([f"Ġ{number}" for number in numbers.tolist()])
    embedding[places] = spread * (embedding.std() / spread.std()) + 0.3 * embedding[places]
