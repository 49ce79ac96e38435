"""Tiny checkpoints of every family, in the hub's layout: its files, config keys, names of weights, templates and
special tokens, with random weights. Written from what is known of the real folders, which no test can reach.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['content'] is string %}"
          "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
          "{{ IMAGE }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
          "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEMPLATES = {
    "llava_onevision": (  # pictures first, then texts
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}{% for content in message['content'] | "
        "selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "idefics3": (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == "
        "'image' %}{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
        "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"),
    "qwen2_5_vl": CHATML.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    "internvl": CHATML.replace("IMAGE", "'<IMG_CONTEXT>\n'"),
    "qwen2": CHATML.replace("IMAGE", "''")}
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPECIAL = {"llava_onevision": (*QWEN, "<image>", "<video>"),
           "idefics3": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>",
                        "<end_of_utterance>", "<global-img>", "<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>",
                        "<row_2_col_2>"),
           "qwen2_5_vl": (*QWEN, "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
           "internvl": (*QWEN, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
           "qwen2": (*QWEN, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")}
END = {"idefics3": "<end_of_utterance>"}  # else <|im_end|>
PAD = {"idefics3": "<|im_end|>"}  # else <|endoftext|>
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 4096, "initializer_range": 0.1}
SIDE = 28  # pixels of the tiny vision towers; 14 a patch
SIGLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE,
          "patch_size": 14}
PIXELS = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
          "rescale_factor": 1 / 255, "resample": 3}


def _config(family: str, ids: dict[str, int], size: int) -> dict[str, Any]:
    """config.json of a family, as the hub has it."""
    text = {**TEXT, "vocab_size": size}
    if family == "llava_onevision":
        return {"architectures": ["LlavaOnevisionForConditionalGeneration"], "image_token_index": ids["<image>"],
                "video_token_index": ids["<video>"], "image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE]],
                "text_config": {"model_type": "qwen2", **text}, "tie_word_embeddings": True, "vision_feature_layer": -1,
                "vision_aspect_ratio": "anyres_max_9", "vision_feature_select_strategy": "full", "projector_hidden_act": "gelu",
                "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False, **SIGLIP}}
    if family == "idefics3":
        return {"architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": ids["<image>"], "scale_factor": 2,
                "pad_token_id": ids["<|im_end|>"], "tie_word_embeddings": False,
                "text_config": {"model_type": "llama", **text, "pad_token_id": ids["<|im_end|>"]},
                "vision_config": {"model_type": "idefics3", **SIGLIP}}
    if family == "qwen2_5_vl":  # the text's settings stand at the top
        vision = {"model_type": "qwen2_5_vl", "depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2,
                  "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2, "window_size": 56, "in_chans": 3,
                  "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2}
        return {"architectures": ["Qwen2_5_VLForConditionalGeneration"], **text, "bos_token_id": ids["<|endoftext|>"],
                "eos_token_id": ids["<|im_end|>"], "image_token_id": ids["<|image_pad|>"],
                "video_token_id": ids["<|video_pad|>"],
                "vision_start_token_id": ids["<|vision_start|>"],
                "vision_end_token_id": ids["<|vision_end|>"], "vision_token_id": ids["<|vision_pad|>"],
                "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 1000000.0,
                "tie_word_embeddings": True, "vision_config": vision}
    if family == "internvl":
        vision = {"model_type": "internvl_vision", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                  "num_attention_heads": 2, "image_size": [SIDE, SIDE], "patch_size": [14, 14]}
        return {"architectures": ["InternVLForConditionalGeneration"], "image_token_id": ids["<IMG_CONTEXT>"],
                "downsample_ratio": 0.5, "image_seq_length": 1, "projector_hidden_act": "gelu", "vision_feature_layer": -1,
                "vision_feature_select_strategy": "default", "vision_config": vision, "tie_word_embeddings": True,
                "text_config": {"model_type": "qwen2", **text}}
    return {"architectures": ["Qwen2ForCausalLM"], **text, "tie_word_embeddings": True, "rope_theta": 1000000.0,
            "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 2, "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"]}


# preprocessor_config.json and processor_config.json, as the hub has them (None: it has none)
PREPROCESSOR = {
    "llava_onevision": {"image_processor_type": "LlavaOnevisionImageProcessor", "do_convert_rgb": True, "do_pad": True,
                        "image_grid_pinpoints": [[SIDE, SIDE], [SIDE, 2 * SIDE]], "size": {"height": SIDE, "width": SIDE},
                        "processor_class": "LlavaOnevisionProcessor", **PIXELS},
    "idefics3": {"image_processor_type": "Idefics3ImageProcessor", "do_convert_rgb": True, "do_image_splitting": True,
                 "do_pad": True, "max_image_size": {"longest_edge": SIDE}, "size": {"longest_edge": 2 * SIDE}, **PIXELS,
                 "processor_class": "Idefics3Processor"},
    "qwen2_5_vl": {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 56 * 56, "patch_size": 14,
                   "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
                   "processor_class": "Qwen2_5_VLProcessor"},
    "internvl": {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": False, "min_patches": 1,
                 "max_patches": 12, "do_convert_rgb": True, "size": {"height": SIDE, "width": SIDE}, **PIXELS,
                 "processor_class": "InternVLProcessor"}}
PROCESSOR = {
    "llava_onevision": {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 4, "image_token": "<image>",
                        "video_token": "<video>", "vision_feature_select_strategy": "full"},
    "idefics3": {"processor_class": "Idefics3Processor", "image_seq_len": 1},
    "qwen2_5_vl": None,
    "internvl": {"processor_class": "InternVLProcessor", "image_seq_length": 1}}
TOKENIZER = {
    "llava_onevision": {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "LlavaOnevisionProcessor"},
    "idefics3": {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|im_start|>", "processor_class": "Idefics3Processor"},
    "qwen2_5_vl": {"tokenizer_class": "Qwen2Tokenizer"},
    "internvl": {"tokenizer_class": "Qwen2Tokenizer", "processor_class": "InternVLProcessor", "start_image_token": "<img>",
                 "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
                 "extra_special_tokens": {"start_image_token": "<img>", "end_image_token": "</img>",
                                          "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}},
    "qwen2": {"tokenizer_class": "Qwen2Tokenizer"}}


def _tokenizer(special: Sequence[str]) -> Tokenizer:
    """Byte level, without merges: 256 bytes and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def write_processor(family: str, folder: Path, pictures: dict[str, Any] | None = None, places: dict[str, Any] | None = None,
                    words: Sequence[str] = (), **tokens: str) -> dict[str, int]:
    """Write the files of a family's tokenizer and processor to `folder`; returns the ids of all tokens.

    Args:
        pictures, places: changes of preprocessor_config.json and of processor_config.json.
        words: further special tokens.
        tokens: changes of the tokenizer's (eos_token, pad_token).
    """
    folder.mkdir(parents=True)
    tokenizer = _tokenizer(dict.fromkeys((*SPECIAL[family], *words)))
    ids = tokenizer.get_vocab()
    end, pad = END.get(family, "<|im_end|>"), PAD.get(family, "<|endoftext|>")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"add_prefix_space": False, "clean_up_tokenization_spaces": False,
                                              "eos_token": end, "pad_token": pad, "model_max_length": 32768,
                                              **TOKENIZER[family], **tokens})
    (folder / "chat_template.jinja").write_text(TEMPLATES[family])
    if family in PREPROCESSOR:
        _write(folder / "preprocessor_config.json", PREPROCESSOR[family] | (pictures or {}))
        if PROCESSOR[family] is not None:
            _write(folder / "processor_config.json", PROCESSOR[family] | (places or {}))
    _write(folder / "generation_config.json", {"eos_token_id": [ids[end], ids["<|endoftext|>"]], "pad_token_id": ids[pad],
                                               "do_sample": True, "repetition_penalty": 1.05, "top_k": 20, "temperature": 0.7})
    _write(folder / "config.json", {"model_type": family, **_config(family, ids, len(ids))})
    return ids


def make_checkpoint(family: str, folder: Path, seed: int = 0, **tokens: str) -> Path:
    """Write a family's tiny checkpoint to `folder`; `tokens` change its tokenizer's (eos_token, pad_token)."""
    write_processor(family, folder, **tokens)
    torch.manual_seed(seed)
    loader = AutoModelForImageTextToText if family in PREPROCESSOR else AutoModelForCausalLM
    model = loader.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)  # as the hub's weights are
    model.save_pretrained(folder / "aside")
    weights = load_file(folder / "aside" / "model.safetensors")
    if family == "llava_onevision":  # transformers 5 dropped a part of these names, and puts it in again
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    shutil.rmtree(folder / "aside")
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))
