"""The four architectures at true size with random weights, their processors, and charts to ask about; nothing is downloaded.

Sizes are those of the checkpoints' config.json; tokenizer and layout come from the tests' tiny twins, so that a question has
several times as many tokens (one a letter) beside a picture's thousands.
"""
from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.gpu.stages import ROOT
from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import Record
from dyme_core.models import engine, loading, processors
from dyme_core.models.generation import prompt_inputs
from dyme_core.pipeline.estimate import Shape

sys.path.insert(0, str(ROOT / "tests"))
import tiny_families  # noqa: E402

CHART = (850, 600)  # pixels of a usual ChartQA picture
QWEN_05B = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "initializer_range": 0.02, "rope_theta": 1e6}
GRIDS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]  # LLaVA-OneVision's


@dataclass(frozen=True)
class Sizes:
    """What the real checkpoint's files say in place of the tiny twin's.

    Attributes:
        millions: weights of the model, for a test.
        config: config.json, merged into the twin's.
        pictures, places, words: as for `tiny_families.write_processor`.
    """

    millions: int
    config: dict[str, Any]
    pictures: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


SIZES = {
    "llava_onevision": Sizes(  # llava-hf/llava-onevision-qwen2-0.5b-ov-hf
        894, {"text_config": {**QWEN_05B, "vocab_size": 152000}, "image_grid_pinpoints": GRIDS,
              "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
                                "num_attention_heads": 16, "image_size": 384, "patch_size": 14}},
        {"image_grid_pinpoints": GRIDS, "size": {"height": 384, "width": 384}}, {"num_image_tokens": 729}),
    "idefics3": Sizes(  # HuggingFaceTB/SmolVLM-500M-Instruct
        507, {"scale_factor": 4,
              "text_config": {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
                              "num_key_value_heads": 5, "max_position_embeddings": 8192, "initializer_range": 0.02,
                              "vocab_size": 49280, "rope_theta": 1e5},
              "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                                "num_attention_heads": 12, "image_size": 512, "patch_size": 16}},
        {"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}}, {"image_seq_len": 64},
        tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))),
    "internvl": Sizes(  # OpenGVLab/InternVL3-1B-hf
        938, {"image_seq_length": 256, "tie_word_embeddings": False, "text_config": {**QWEN_05B, "vocab_size": 151674},
              "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                                "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14]}},
        {"size": {"height": 448, "width": 448}, "crop_to_patches": True}, {"image_seq_length": 256}),
    "qwen2_5_vl": Sizes(  # Qwen/Qwen2.5-VL-3B-Instruct
        3755, {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
               "num_key_value_heads": 2, "max_position_embeddings": 128000, "initializer_range": 0.02, "vocab_size": 151936,
               "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
               "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
                                 "out_hidden_size": 2048, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}},
        {"max_pixels": 12845056}),
    "qwen2": Sizes(494, {**QWEN_05B, "vocab_size": 151936}),  # Qwen/Qwen2.5-0.5B, text alone
}


def write_folder(family: str, is_tiny: bool, folder: Path, **changes: Any) -> Path:
    """config.json, tokenizer and processor files of a family; `changes` are config.json's, `text_config` and so on merged."""
    sizes = Sizes(0, {}) if is_tiny else SIZES[family]
    tiny_families.write_processor(family, folder, sizes.pictures, sizes.places, sizes.words)
    path = folder / "config.json"
    path.write_text(json.dumps(_merged(_merged(json.loads(path.read_text()), sizes.config), changes)))
    return folder


def build(family: str, device: torch.device, *, is_tiny: bool = False, dtype: torch.dtype = torch.float32, savings: bool = True,
          lora_rank: int = 0, attention: str = "sdpa", **changes: Any) -> tuple[torch.nn.Module, Any]:
    """(model with random weights, processor), the vision tower frozen, as `load_policy` would give them.

    Args:
        is_tiny: the tests' twin in place of the true size.
        dtype: of the weights; adapters stay in 32 bits.
        savings: vision cache and shared prefixes.
        lora_rank: of adapters on the language model; 0 trains all of it.
        changes: of config.json.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = write_folder(family, is_tiny, Path(place) / family, **changes)
        reads_images = family in tiny_families.PREPROCESSOR
        loader = AutoModelForImageTextToText if reads_images else AutoModelForCausalLM
        torch.manual_seed(0)
        with torch.device(device):
            model = loader.from_config(AutoConfig.from_pretrained(folder), dtype=dtype, attn_implementation=attention)
        processor = processors.load_processor(folder, family, reads_images)
    tokenizer = processors.tokenizer_of(processor)
    model.config.get_text_config().pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    loading.freeze_vision(model)
    if savings:
        engine.with_engine(model, processor)
    if lora_rank:
        model = get_peft_model(model, LoraConfig(r=lora_rank, lora_alpha=lora_rank, task_type="CAUSAL_LM",
                                                 target_modules=loading.language_layers(model)))
    return model, processor


def questions(count: int, pictures: Path | None, is_tiny: bool = False, has_image: bool = True) -> list[Record]:
    """Questions of the mini world on real charts from a folder, where there is one, else on drawn ones of their size.

    Answers do not fit the real charts; rewards are scripted.
    """
    rows = mini_records("train", count, seed=0)
    if not has_image:
        return [replace(row, image=None) for row in rows]
    if is_tiny:
        return rows
    real = sorted(pictures.glob("*.png")) if pictures else []
    return [replace(row, image=real[place % len(real)] if real else row.load_image().resize(CHART, Image.Resampling.BICUBIC))
            for place, row in enumerate(rows)]


def shape(model: torch.nn.Module, processor: Any, rows: list[Record]) -> Shape:
    """The sizes that the estimate's formulas read, with the longest prompt of `rows`."""
    asked = [prompt_inputs(processor, [row]) for row in rows]
    longest = max(asked, key=lambda inputs: inputs["input_ids"].shape[1])
    return Shape.of(model, _patches(model.config, longest), longest["input_ids"].shape[1])


def _patches(config: Any, inputs: Mapping[str, torch.Tensor]) -> int:
    """Patches that the vision tower reads of one picture, all its views together."""
    if "pixel_values" not in inputs:
        return 0
    pixels, side = inputs["pixel_values"], config.vision_config.patch_size
    if pixels.ndim == 2:  # Qwen2.5-VL's: patches already
        return len(pixels)
    side = side if isinstance(side, int) else side[0]
    height, width = pixels.shape[-2:]
    return pixels.numel() // (3 * height * width) * (height // side) * (width // side)


def _merged(known: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return known | {name: _merged(known[name], value) if isinstance(value, dict) and isinstance(known.get(name), dict)
                    else value for name, value in changes.items()}
