"""A decoding loop for many responses to few prompts: what `generate` of a model with the engine runs.

Tokens have the probabilities that they have in transformers' own loop, up to float rounding. What is saved: a prompt's keys and
values are computed, kept and read once, however many rows ask it; rows that have ended leave the batch; new keys and values are
written into room that is there, in place of a concatenation per token; a token takes one random number, not one for each word
of the vocabulary.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from dyme_core.models.prefix_sharing import PICTURES, owners_of

BY_ROW = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor)
ROOM = 64  # tokens for which keys and values have room at first; it doubles
LEAVE_AT = 8  # rows leave together, when they are one in so many of the batch
GIVEN = {"input_ids", "attention_mask", "use_cache", "logits_to_keep"}
OTHER_WAYS = ("past_key_values", "assistant_model", "cache_implementation", "inputs_embeds", "prompt_lookup_num_tokens",
              "streamer", "synced_gpus", "custom_generate", "return_dict_in_generate", "prefill_chunk_size", "guidance_scale",
              "token_healing", "negative_prompt_ids", "continuous_batching_config", "prefix_allowed_tokens_fn",
              "penalty_alpha", "dola_layers", "constraints", "force_words_ids")  # settings of `generate`


def can_decode(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """True where `generate` would sample or decode greedily, one response a row, from inputs that this loop knows."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    ids, mask = tensors.get("input_ids"), tensors.get("attention_mask")
    if ids is None or mask is None or ids.ndim != 2 or mask.shape != ids.shape or not mask[:, -1].all():
        return False
    if tensors.keys() - GIVEN - PICTURES or any(not value.ndim or len(value) != len(ids) for value in tensors.values()):
        return False
    if is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model) or model.is_gradient_checkpointing and model.training:
        return False  # weights are dealt to several devices; no cache is kept
    settings = {**(inputs.get("generation_config") or model.generation_config).to_dict(), **inputs}
    return (all((settings.get(name) or 1) == 1 for name in ("num_beams", "num_return_sequences"))
            and settings.get("use_cache") is not False and not any(settings.get(name) for name in OTHER_WAYS))


def decode(model: PreTrainedModel, input_ids: Tensor, logits_processor: LogitsProcessorList,
           stopping_criteria: StoppingCriteriaList, generation_config: GenerationConfig, **inputs: Any) -> Tensor:
    """The loop of `generate`, with the arguments that it hands to one: (B, L) prompts -> (B, L + T) prompts and responses.

    Args:
        input_ids: padded on the left, as `inputs["attention_mask"]` says.
        logits_processor: rows are treated apart by those of BY_ROW; with any other no row leaves before the end.
        stopping_criteria: called after every token with all rows, ended ones padded.
    """
    with torch.inference_mode():  # operations on a token a row are so short that autograd's bookkeeping counts
        ids = _decode(model, input_ids, logits_processor, stopping_criteria, generation_config, inputs)
    return ids.clone()  # a tensor that can be trained on


def _decode(model, ids, processors, stopping_criteria, generation_config, inputs):
    (size, length), pad = ids.shape, generation_config._pad_token_tensor
    forbidden, others = _forbidden(processors, model.config.get_text_config().vocab_size, ids.device)
    may_leave = all(isinstance(each, BY_ROW) for each in others)
    logits, rows = _prefill(model, ids, inputs)
    ids = functional.pad(ids, (0, generation_config.max_length - length), value=0 if pad is None else pad.item())
    is_open = torch.ones(size, dtype=torch.bool, device=ids.device)
    while True:
        scores = logits.float() if forbidden is None else logits.float() + forbidden
        scores = others(ids[rows.active, :length], scores) if others else scores
        tokens = _sample(scores, rows.active, size) if generation_config.do_sample else scores.argmax(dim=-1)
        ids[rows.active, length] = tokens if pad is None else tokens.where(is_open[rows.active], pad)
        length += 1
        is_open &= ~stopping_criteria(ids[:, :length], None)
        if not is_open.any():
            return ids[:, :length]
        if may_leave:
            rows.leave(is_open)
        logits = _next(model, ids[rows.active, length - 1], rows)


def _forbidden(processors: LogitsProcessorList, vocabulary: int, device: torch.device
               ) -> tuple[Tensor | None, LogitsProcessorList]:
    """What is added to the logits so that suppressed tokens are never sampled, (V,), and the other processors."""
    suppressing = [each for each in processors if isinstance(each, SuppressTokensLogitsProcessor)]
    others = LogitsProcessorList(each for each in processors if each not in suppressing)
    if not suppressing:
        return None, others
    forbidden = torch.zeros(vocabulary, device=device)
    for each in suppressing:
        forbidden[torch.as_tensor(each.suppress_tokens, device=device)] = float("-inf")
    return forbidden, others


def _sample(scores: Tensor, active: Tensor, size: int) -> Tensor:
    """One token a row: the first up to which the probabilities sum to more than a uniform number. All `size` rows draw one, so
    that a row's tokens do not depend on which others have ended."""
    uniform = torch.rand(size, 1, dtype=torch.float64, device=scores.device)[active]
    sums = scores.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    most = sums[:, -1:]
    return torch.searchsorted(sums, torch.minimum(uniform * most, most.nextafter(-most)), right=True)[:, 0]


@dataclass
class _Rows:
    """The keys and values of the rows that are still being written.

    Attributes:
        active: (R,) places of these rows in the batch; `owner` (R,) numbers of their prompts.
        position: (R, 1) place of the next token in its own row.
        prompt: by layer the keys and values of the S prompts, (S, heads, P, channels).
        blocked: (S, 1, 1, P), added to the scores of their tokens; None where no prompt is padded.
        own: by layer those of the tokens behind them, (R, heads, room, channels); the first `length` are there.
        slots: (S * most,) rows by prompt, each prompt as many as the most that one has; `slot` (R,) the place of a row there.
    """

    active: Tensor
    owner: Tensor
    position: Tensor
    prompt: list[tuple[Tensor, Tensor]]
    blocked: Tensor | None
    own: dict[int, list[Tensor]] = field(default_factory=dict)
    length: int = 0

    def __post_init__(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        num = len(self.prompt[0][0])
        counts = torch.bincount(self.owner, minlength=num)
        most, order = int(counts.max()), self.owner.argsort(stable=True)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[self.owner[order]]
        self.slots = order.new_zeros(num * most)
        self.slots[self.owner[order] * most + place] = order
        self.slot = torch.empty_like(order)
        self.slot[order] = self.owner[order] * most + place
        self.is_plain = len(order) == len(self.slots) and bool((self.slots.diff() == 1).all())

    def leave(self, is_open: Tensor) -> None:
        """Drop the rows that have ended, where they are many enough."""
        stays = is_open[self.active]
        if int((~stays).sum()) * LEAVE_AT < len(stays):
            return
        kept = stays.nonzero().flatten()
        self.active, self.owner, self.position = self.active[kept], self.owner[kept], self.position[kept]
        self.own = {layer: [each.index_select(0, kept) for each in pair] for layer, pair in self.own.items()}
        self._arrange()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """(R, heads * channels), from the (R, heads, channels) query, key and value of each row's newest token."""
        (prompt_keys, prompt_values), (keys, values) = self.prompt[layer], self._write(layer, key, value)
        num, heads, width, channels = prompt_keys.shape
        query = (query * scaling).view(len(query), heads, -1, channels)  # heads that share a key stand together
        group = query.shape[2]
        scores = self._by_prompt(query, num) @ prompt_keys.mT
        scores = self._by_row(scores if self.blocked is None else scores + self.blocked, group)
        weights = torch.cat([scores, query @ keys.mT], dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        read = self._by_row(self._by_prompt(weights[..., :width], num) @ prompt_values, group)
        return (read + weights[..., width:] @ values).flatten(1)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> list[Tensor]:
        pair, room = self.own.get(layer), max(ROOM, 2 * self.length)
        if pair is None or self.length == pair[0].shape[2]:
            old, pair = pair, [each.new_empty(*each.shape[:2], room, each.shape[2]) for each in (key, value)]
            for new, written in zip(pair, old or (), strict=False):
                new[:, :, : self.length] = written
            self.own[layer] = pair
        for room_of, new in zip(pair, (key, value), strict=True):
            room_of[:, :, self.length] = new
        return [each[:, :, : self.length + 1] for each in pair]

    def _by_prompt(self, rows: Tensor, num: int) -> Tensor:
        """(R, heads, group, n) -> (S, heads, most * group, n)"""
        rows = rows if self.is_plain else rows.index_select(0, self.slots)
        return rows.unflatten(0, (num, -1)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, rows: Tensor, group: int) -> Tensor:
        """(S, heads, most * group, n) -> (R, heads, group, n)"""
        rows = rows.unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1)
        return rows if self.is_plain else rows.index_select(0, self.slot)


def _prefill(model: PreTrainedModel, ids: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, _Rows]:
    """The logits of each row's first token, (B, V), and the rows; each prompt goes through the model once."""
    prompts = {"input_ids": ids, "attention_mask": inputs["attention_mask"],
               **{name: inputs[name] for name in PICTURES if inputs.get(name) is not None}}
    owners = owners_of(prompts, torch.full((len(ids),), ids.shape[1]))
    firsts = sorted(set(owners))
    owner = torch.tensor([firsts.index(each) for each in owners], device=ids.device)
    once, cache = {name: value[firsts] for name, value in prompts.items()}, DynamicCache(config=model.config.get_text_config())
    mask = once["attention_mask"]
    position = mask.cumsum(dim=1) - 1
    hidden = model.model(**once, position_ids=position.clamp(min=0), past_key_values=cache, use_cache=True).last_hidden_state
    blocked = torch.zeros(mask.shape, dtype=model.dtype, device=ids.device).masked_fill(mask == 0, float("-inf"))[:, None, None]
    rows = _Rows(torch.arange(len(ids), device=ids.device), owner, position[owner, -1:] + 1,
                 [(layer.keys, layer.values) for layer in cache.layers], None if mask.all() else blocked)
    return model.lm_head(hidden[:, -1])[owner], rows


def _next(model: PreTrainedModel, tokens: Tensor, rows: _Rows) -> Tensor:
    """The logits behind each row's newest token, (R, V): a forward pass of the text model for one token a row."""
    decoder = model.get_decoder()
    hidden = decoder.embed_tokens(tokens)
    turns = decoder.rotary_emb(hidden, rows.position)
    for number, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, _norm(layer.input_layernorm, hidden)
        query, key, value = (part(normed).unflatten(-1, (-1, attention.head_dim))
                             for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        query, key = _turn(torch.cat([query, key], dim=1), *turns).split([query.shape[1], key.shape[1]], dim=1)
        hidden = hidden + attention.o_proj(rows.attend(number, query, key, value, attention.scaling))
        hidden = hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden))
    rows.length, rows.position = rows.length + 1, rows.position + 1
    return model.lm_head(_norm(decoder.norm, hidden))


def _norm(norm: torch.nn.Module, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (RoFormer, arXiv:2104.09864) of (R, heads, channels) by (R, 1, channels)."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-right, left], dim=-1) * sin
