"""One prefill per prompt: rows of a batch that share a prompt and its picture go through the prompt's tokens once.

A GRPO step asks G times about the same prompt. Generation prefills it once and gives its cache to all G rollouts; the update
packs [prompt, completion 1, ..., completion G] into one sequence whose completions do not see each other, gradients included
(the idea of "Prefix Grouper", arXiv:2506.05433). Padding is left out. Trainers need no change.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LlavaOnevisionForConditionalGeneration, PreTrainedModel, Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

FAMILIES = (LlavaOnevisionForConditionalGeneration, Qwen2ForCausalLM)
ATTENTIONS = ("sdpa", "eager")  # that take any mask
PICTURES = {"pixel_values", "image_sizes", "batch_num_images"}  # one row a prompt each
NOTHING = -1  # number of a completion, for tokens of prompts; of a prompt, for padding


def share_prefixes(model: PreTrainedModel) -> None:
    """Let a model of FAMILIES compute a prompt once that rows of a batch share. Other models stay as they are, and so do those
    with sliding windows, which a packed sequence would not keep.

    Results are the plain model's up to float rounding, except the meaningless logits at padding.
    `forward` shares where `logits_to_keep` says that a row's last so many tokens but one are its completion, as in TRL's
    update, and where that costs fewer operations; `generate` shares where it samples or decodes greedily, one response a row.

    Args:
        model: its class becomes one of the same name. Prompts must be padded on the left, completions on the right.
    """
    sees_all = set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]) == {"full_attention"}
    if isinstance(model, FAMILIES) and model.config._attn_implementation in ATTENTIONS and sees_all:
        model.__class__ = _sharing(type(model))


def shares_prefixes(model: torch.nn.Module) -> bool:
    """True for a model that `share_prefixes` has changed."""
    return any(isinstance(each, _Sharing) for each in model.modules())


class _Sharing:
    """Marks the classes that `share_prefixes` makes."""


def _sharing(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    @functools.wraps(plain.forward)  # TRL reads its signature
    def forward(self, *args, **inputs):
        length = inputs.get("logits_to_keep", 0)
        if not args and isinstance(length, int) and length > 1 and not inputs.get("use_cache") and not _others(inputs):
            prompts = {name: inputs[name][:, : 1 - length] if name in ("input_ids", "attention_mask") else inputs[name]
                       for name in inputs.keys() - {"use_cache", "logits_to_keep"}}
            owners = _owners(prompts)
            mask = inputs["attention_mask"].bool()
            if len(set(owners)) < len(owners) and _is_padded_outside(mask, length - 1):
                layout = _lay_out(mask, length - 1, owners)
                if _cost(self, *layout.source.shape) < _cost(self, *mask.shape):
                    return _packed_forward(self, inputs, layout)
        return plain.forward(self, *args, **inputs)

    @functools.wraps(plain.generate)
    def generate(self, *args, **inputs):
        prompts = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        owners = _owners(prompts) if not args and not _others(prompts) and _decodes_plainly(self, inputs) else []
        if len(set(owners)) == len(owners) or inputs["input_ids"].shape[1] == 1:
            return plain.generate(self, *args, **inputs)
        cache = _prefill(self, prompts, owners)
        return plain.generate(self, past_key_values=cache,
                              **{name: value for name, value in inputs.items() if name not in PICTURES})

    return type(plain.__name__, (plain, _Sharing), {"forward": forward, "generate": generate, "__module__": plain.__module__})


def _others(inputs: dict[str, Any]) -> set[str]:
    """Inputs whose rows cannot be shared; all of them where ids or mask are missing."""
    if not all(isinstance(inputs.get(name), Tensor) and inputs[name].ndim == 2 for name in ("input_ids", "attention_mask")):
        return set(inputs) or {"input_ids"}
    size, known = len(inputs["input_ids"]), {"input_ids", "attention_mask", "use_cache", "logits_to_keep", *PICTURES}
    return {name for name, value in inputs.items() if value is not None and
            (name not in known or isinstance(value, Tensor) and (not value.ndim or len(value) != size))}


def _decodes_plainly(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    settings = {**(inputs.get("generation_config") or model.generation_config).to_dict(), **inputs}
    return (all((settings.get(name) or 1) == 1 for name in ("num_beams", "num_return_sequences"))
            and settings.get("use_cache") is not False
            and not any(settings.get(name) for name in ("past_key_values", "assistant_model", "cache_implementation",
                                                        "inputs_embeds", "prompt_lookup_num_tokens")))


def _owners(prompts: dict[str, Tensor | None]) -> list[int]:
    """For each row the first row with the same prompt and picture."""
    tensors = [value for value in prompts.values() if value is not None]
    texts = torch.cat([prompts["input_ids"], prompts["attention_mask"]], dim=1).tolist()
    firsts: dict[tuple[int, ...], list[int]] = {}
    owners = []
    for row, text in enumerate(map(tuple, texts)):
        alike = firsts.setdefault(text, [])
        owner = next((first for first in alike if all(torch.equal(value[row], value[first]) for value in tensors)), row)
        if owner == row:
            alike.append(row)
        owners.append(owner)
    return owners


def _is_padded_outside(mask: Tensor, length: int) -> bool:
    prompt, completion = mask[:, :-length], mask[:, -length:]
    return bool(prompt[:, -1].all() and (prompt[:, :-1] <= prompt[:, 1:]).all()
                and (completion[:, :-1] >= completion[:, 1:]).all())


def _prefill(model: PreTrainedModel, prompts: dict[str, Tensor], owners: Sequence[int]) -> DynamicCache:
    """The cache of every row's prompt without its last token, which `generate` still processes."""
    firsts = sorted(set(owners))
    once = {name: value[firsts] for name, value in prompts.items()}
    ids, mask = once.pop("input_ids")[:, :-1], once.pop("attention_mask")[:, :-1]
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0), past_key_values=cache,
              use_cache=True, logits_to_keep=1, **once)
    cache.batch_select_indices(torch.tensor([firsts.index(owner) for owner in owners], device=ids.device))
    return cache


@dataclass(frozen=True)
class _Layout:
    """Where tokens of (B, P + C) rows stand in S packed sequences of W tokens.

    Attributes:
        prompts: rows whose prompts were packed, in the order of their pictures.
        source: (S, W) place of each token among the rows' B * (P + C); at padding that of a token that is no picture's.
        owner, completion: (S, W) row of a token's prompt, and row of a completion's token; else NOTHING.
        position: (S, W) place in its own row, where the plain forward counts from, too.
        reader: (B, C + 1) place among the S * W from which each of a row's completion's tokens, and the next, is predicted.
    """

    prompts: list[int]
    source: Tensor
    owner: Tensor
    completion: Tensor
    position: Tensor
    reader: Tensor

    def mask(self) -> Tensor:
        """(S, 1, W, W) booleans: a token sees its prompt and its own completion up to itself; padding sees padding."""
        width = self.source.shape[1]
        asks, seen = (slice(None), slice(None), None), (slice(None), None, slice(None))
        is_own = (self.completion[seen] == NOTHING) | (self.completion[seen] == self.completion[asks])
        is_past = torch.ones(width, width, dtype=torch.bool, device=self.source.device).tril()
        return ((self.owner[asks] == self.owner[seen]) & is_own & is_past)[:, None]


def _lay_out(mask: Tensor, length: int, owners: Sequence[int]) -> _Layout:
    """Pack prompts with their completions; a sequence takes further ones while it stays within the longest single one."""
    num_rows, width = mask.shape
    prompt_len, completion_len = mask[:, :-length].sum(dim=1).tolist(), mask[:, -length:].sum(dim=1).tolist()
    rows_of = {first: [row for row, owner in enumerate(owners) if owner == first] for first in sorted(set(owners))}
    size_of = {first: prompt_len[first] + sum(completion_len[row] for row in rows) for first, rows in rows_of.items()}
    capacity = max(size_of.values())
    sequences: list[list[int]] = []
    for first in sorted(size_of, key=size_of.__getitem__, reverse=True):
        room = next((each for each in sequences if sum(map(size_of.get, each)) + size_of[first] <= capacity), None)
        sequences.append([first]) if room is None else room.append(first)
    source = torch.full((len(sequences), capacity), width - length - 1)  # padding: row 0's last prompt token
    owner, completion = torch.full_like(source, NOTHING), torch.full_like(source, NOTHING)
    reader = torch.empty(num_rows, length + 1, dtype=torch.long)
    for number, firsts in enumerate(sequences):
        place = 0
        for first in firsts:
            start, end = place, place + prompt_len[first]
            source[number, start:end] = torch.arange(first * width + width - length - prompt_len[first],
                                                     first * width + width - length)
            place = end
            for row in rows_of[first]:
                count = completion_len[row]
                span = slice(place, place + count)
                source[number, span] = torch.arange(count) + row * width + width - length
                completion[number, span] = row
                reader[row] = number * capacity + (torch.arange(length + 1) + place - 1).clamp(max=place + count - 1)
                reader[row, 0] = number * capacity + end - 1
                place += count
            owner[number, start:place] = first
    parts = (part.to(mask.device) for part in (source, owner, completion, source % width, reader))
    return _Layout([first for firsts in sequences for first in firsts], *parts)


def _cost(model: PreTrainedModel, num_rows: int, width: int) -> float:
    """Operations of a layer for so many sequences of so many tokens. Attention grows with the square of the width, so that long
    completions in one sequence can cost more than sharing their prompts saves."""
    config = model.config.get_text_config()
    hidden, shared = config.hidden_size, config.num_key_value_heads / config.num_attention_heads
    weights = hidden * (2 * hidden * (1 + shared) + 3 * config.intermediate_size)
    return num_rows * width * (2 * weights + 4 * hidden * width)


def _packed_forward(model: PreTrainedModel, inputs: dict[str, Any], layout: _Layout) -> CausalLMOutputWithPast:
    """(B, C + 1, vocabulary) logits as the plain forward's with `logits_to_keep` C + 1."""
    pictures = {name: inputs[name][layout.prompts] for name in PICTURES if inputs.get(name) is not None}
    blocked = torch.zeros((), dtype=model.dtype, device=layout.source.device).masked_fill(~layout.mask(), float("-inf"))
    hidden = model.model(input_ids=inputs["input_ids"].flatten()[layout.source], attention_mask=blocked,
                         position_ids=layout.position, use_cache=False, **pictures).last_hidden_state
    return CausalLMOutputWithPast(logits=model.lm_head(hidden.flatten(0, 1)[layout.reader]))
