"""The engine: what any trainer that asks one model several times about a picture saves, in one call."""
from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dyme_core.models.prefix_sharing import share_prefixes
from dyme_core.models.vision_cache import cache_vision_features


def with_engine(model: torch.nn.Module, processor: ProcessorMixin | PreTrainedTokenizerBase | None = None) -> torch.nn.Module:
    """Let a model encode each picture once and go once through a prompt that rows of a batch share; returns the same model.

    TRL's trainers (GRPO, RLOO, DyME) need no change. What is learned is the same but for float rounding. A model of another
    family than LLaVA-OneVision and Qwen2 stays as it is.

    Args:
        model: before it is wrapped (LoRA, several devices).
        processor: the model's; its pictures are then processed once, too.
    """
    cache_vision_features(model, processor)
    share_prefixes(model)
    return model
