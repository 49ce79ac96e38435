"""The engine: what any trainer that asks one model several times about a picture saves, in one call."""
from __future__ import annotations

import functools

import torch
from transformers import (
    LlamaForCausalLM,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2ForCausalLM,
)

from dyme_core.models import decoding, prefix_sharing
from dyme_core.models.vision_cache import cache_vision_features

MODELS = (LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM, LlamaForCausalLM)
TEXT_MODELS = ("qwen2", "llama")


def with_engine(model: torch.nn.Module, processor: ProcessorMixin | PreTrainedTokenizerBase | None = None) -> torch.nn.Module:
    """Let a model encode each picture once (`cache_vision_features`) and go once through a prompt that rows of a batch share
    (`share_prefixes`); returns the same model.

    TRL's trainers (GRPO, RLOO, DyME, SFT on several targets of a picture with loss_type "nll") need no change, nor does
    `generate`. What is learned is the same but for float rounding. Other models than MODELS stay as they are.

    Args:
        model: before it is wrapped (LoRA, several devices).
        processor: the model's; its pictures are then processed once, too.
    """
    cache_vision_features(model, processor)
    share_prefixes(model)
    return model


def share_prefixes(model: PreTrainedModel) -> None:
    """Let a model of MODELS compute a prompt once that rows of a batch share. Others stay as they are, and so do those with
    sliding windows or another attention than sdpa.

    Results are the plain model's up to float rounding, except the meaningless logits at padding. `forward` shares where it is
    told which tokens are completions (`prefix_sharing.packed_forward`), `generate` where it samples or decodes greedily, one
    response a row (`decoding.decode`). `model.set_attn_implementation` turns it off.

    Args:
        model: its class becomes one of the same name. In generation prompts must be padded on the left.
    """
    config = model.config.get_text_config()
    sees_all = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    if isinstance(model, MODELS) and config.model_type in TEXT_MODELS and config._attn_implementation == "sdpa" and sees_all:
        model.get_decoder().config._attn_implementation = prefix_sharing.ATTENTION
        model.__class__ = _sharing(type(model))


def shares_prefixes(model: torch.nn.Module) -> bool:
    """True for a model that `share_prefixes` has changed."""
    return any(isinstance(each, _Sharing) for each in model.modules())


class _Sharing:
    """Marks the classes that `share_prefixes` makes."""


def _sharing(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    @functools.wraps(plain.forward)  # TRL reads its signature
    def forward(self, *args, **inputs):
        output = None if args or not _is_on(self) else prefix_sharing.packed_forward(self, inputs)
        return plain.forward(self, *args, **inputs) if output is None else output

    @functools.wraps(plain.generate)
    def generate(self, *args, **inputs):
        if args or not _is_on(self) or not decoding.can_decode(self, inputs):
            return plain.generate(self, *args, **inputs)
        return plain.generate(self, custom_generate=decoding.decode, **inputs)

    return type(plain.__name__, (plain, _Sharing), {"forward": forward, "generate": generate, "__module__": plain.__module__})


def _is_on(model: PreTrainedModel) -> bool:
    return model.get_decoder().config._attn_implementation == prefix_sharing.ATTENTION
