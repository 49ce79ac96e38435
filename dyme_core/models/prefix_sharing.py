"""An update that computes a prompt once: rows of a batch that share a prompt and its picture go through its tokens together.

A GRPO step asks G times about the same prompt. Its rows become one sequence without padding, prompts first, then completions:
linear layers see every token once, and in attention a completion reads its prompt's keys and its own (the idea of "Prefix
Grouper", arXiv:2506.05433).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

ATTENTION = "prefix_sharing"  # name of the text model's attention: sdpa, but where a forward pass is given a layout
PICTURES = {"pixel_values", "image_sizes", "batch_num_images"}  # one row a prompt each
ROWS = {"input_ids", "attention_mask", "labels", *PICTURES}
NUMBERS = {"use_cache", "logits_to_keep", "num_items_in_batch"}
IGNORED = -100  # label of a token that is not learned


def packed_forward(model: PreTrainedModel, inputs: dict[str, Any]) -> CausalLMOutputWithPast | None:
    """What the model's `forward` gives for these inputs, prompts computed once.

    None where no prompt is shared, or the inputs do not say which tokens of a row are its completion: by `logits_to_keep` (the
    last so many tokens but one, as in TRL's GRPO and RLOO) or `labels` (the tokens from the first that is learned, as in SFT).
    """
    if inputs.get("use_cache") or (starts := _completion_starts(inputs)) is None:
        return None
    owners = owners_of(inputs, starts)
    if len(set(owners)) == len(owners):
        return None
    return _forward(model, inputs, _lay_out(inputs["attention_mask"].bool(), starts, owners))


def _completion_starts(inputs: dict[str, Any]) -> Tensor | None:
    """(B,) column of each row's first token of its completion; None where the inputs do not say so, or cannot be packed."""
    ids, mask, labels, kept = (inputs.get(name) for name in ("input_ids", "attention_mask", "labels", "logits_to_keep"))
    given = {name: value for name, value in inputs.items() if value is not None and name not in NUMBERS}
    if not all(isinstance(each, Tensor) and each.ndim == 2 for each in (ids, mask)) or given.keys() - ROWS or any(
            len(value) != len(ids) for value in given.values()):
        return None
    if labels is None and isinstance(kept, int) and kept > 1:
        starts = torch.full((len(ids),), ids.shape[1] - kept + 1, device=ids.device)
    elif labels is not None and not isinstance(kept, Tensor) and not kept:
        starts = (labels != IGNORED).int().argmax(dim=1)
    else:
        return None
    has_no_hole = (mask.diff(dim=1) != 0).sum(dim=1) == (mask[:, 0] == 0).int() + (mask[:, -1] == 0).int()
    has_prompt = mask.gather(1, (starts[:, None] - 1).clamp(min=0)).bool()[:, 0] & (starts > 0)
    return starts if bool((has_no_hole & has_prompt).all()) else None


def owners_of(inputs: dict[str, Any], starts: Tensor) -> list[int]:
    """For each row the first row with the same prompt, which ends before column `starts` (B,), and the same picture."""
    pictures = [inputs[name] for name in PICTURES if inputs.get(name) is not None]
    rows = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), starts.tolist(), strict=True)
    firsts: dict[tuple[int, ...], list[int]] = {}
    owners = []
    for row, (ids, mask, start) in enumerate(rows):
        alike = firsts.setdefault(tuple(ids[mask.index(1): start]), [])
        owner = next((first for first in alike if all(torch.equal(value[row], value[first]) for value in pictures)), row)
        if owner == row:
            alike.append(row)
        owners.append(owner)
    return owners


@dataclass(frozen=True)
class _Layout:
    """Where the tokens of (B, L) rows stand in one sequence: S prompts, padded on the left to P, then N completion tokens.

    Attributes:
        prompts: (S,) rows whose prompts are there; `source` (S * P + N,) places of the tokens among the B * L.
        prompt_seen: (S, 1, P, P) booleans: what each token of a prompt reads; None where no prompt is padded.
        owner: (B,) number of each row's prompt.
        completions: (N,) places of the completions' tokens among B * C, C being the longest.
        own_mask: (B, 1, C, P + C) booleans: what each token of a completion reads.
        reader: (B, L) places in the sequence of each row's tokens; one past its end at padding.
    """

    prompts: Tensor
    source: Tensor
    prompt_seen: Tensor | None
    owner: Tensor
    completions: Tensor
    own_mask: Tensor
    reader: Tensor

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor:
        """(1, S * P + N, heads, channels), from queries (1, heads, S * P + N, channels), keys and values."""
        num, size = len(self.prompts), self.own_mask.shape[2]
        width = self.own_mask.shape[3] - size
        prompts = [each[0, :, : num * width].unflatten(1, (num, width)).transpose(0, 1) for each in (query, key, value)]
        first = sdpa_attention_forward(module, *prompts, self.prompt_seen, **settings)[0].flatten(0, 1)
        own = [_Place.apply(each[0, :, num * width:].transpose(0, 1), self.completions, len(self.owner) * size)
               .unflatten(0, (-1, size)).transpose(1, 2) for each in (query, key, value)]
        keys, values = (torch.cat([of_prompt.index_select(0, self.owner), its], dim=2)
                        for of_prompt, its in zip(prompts[1:], own[1:], strict=True))
        second = sdpa_attention_forward(module, own[0], keys, values, self.own_mask, **settings)[0].flatten(0, 1)
        return torch.cat([first, _Take.apply(second, self.completions)])[None]


class _Place(torch.autograd.Function):
    """(size, ...) zeros with these rows at these places, each once."""

    @staticmethod
    def forward(ctx, rows, places, size):
        ctx.save_for_backward(places)
        return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.index_select(0, *ctx.saved_tensors), None, None


class _Take(torch.autograd.Function):
    """The rows at these places, each once: `index_select`, whose own backward pass adds row by row."""

    @staticmethod
    def forward(ctx, rows, places):
        ctx.save_for_backward(places)
        ctx.size = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, *ctx.saved_tensors, gradient), None


def _lay_out(mask: Tensor, starts: Tensor, owners: Sequence[int]) -> _Layout:
    """Prompts once, then every completion, from the (B, L) mask of tokens."""
    (size, length), device = mask.shape, mask.device
    columns = torch.arange(length, device=device)
    is_completion = mask & (columns >= starts[:, None])
    firsts = sorted(set(owners))
    prompts, owner = (torch.tensor(rows, device=device) for rows in (firsts, [firsts.index(each) for each in owners]))
    is_prompt = (mask & ~is_completion)[prompts]
    width, most = int(is_prompt.sum(dim=1).max()), int(is_completion.sum(dim=1).max())
    back = starts[prompts, None] - width + torch.arange(width, device=device)  # columns of the prompts, aligned at their ends
    prompt_mask = (back >= 0) & is_prompt.gather(1, back.clamp(min=0))
    eye = torch.eye(width, dtype=torch.bool, device=device)
    causal = torch.ones_like(eye).tril()
    prompt_seen = None if prompt_mask.all() else (prompt_mask[:, None] & causal | eye)[:, None]  # padding reads itself
    pad = back.clamp(min=0).where(prompt_mask, starts[prompts, None] - 1)  # at padding a token that is no picture's
    row, column = is_completion.nonzero(as_tuple=True)
    place = column - starts[row]
    own = torch.arange(most, device=device)
    own_mask = torch.cat([prompt_mask[owner][:, None].expand(-1, most, -1),
                          (own <= own[:, None]).expand(size, -1, -1)], dim=2)[:, None]
    reader = torch.full((size, length), len(firsts) * width + len(row), device=device)
    offset = columns - starts[:, None] + width
    is_read = mask & ~is_completion
    reader[is_read] = (owner[:, None] * width + offset)[is_read]
    reader[row, column] = len(firsts) * width + torch.arange(len(row), device=device)
    return _Layout(prompts, torch.cat([(prompts[:, None] * length + pad).flatten(), row * length + column]), prompt_seen, owner,
                   row * most + place, own_mask, reader)


def _forward(model: PreTrainedModel, inputs: dict[str, Any], layout: _Layout) -> CausalLMOutputWithPast:
    """The plain forward's logits, of the tokens that `logits_to_keep` asks for or of all, and the loss if there are labels."""
    pictures = {name: inputs[name][layout.prompts] for name in PICTURES if inputs.get(name) is not None}
    ids, length = inputs["input_ids"].flatten()[layout.source][None], inputs["input_ids"].shape[1]
    no_mask = torch.zeros(1, 1, 1, 1, device=ids.device)  # of four dimensions: handed on as it is; the layout says what is read
    hidden = model.model(input_ids=ids, attention_mask=no_mask, position_ids=(layout.source % length)[None], use_cache=False,
                         layout=layout, **pictures).last_hidden_state[0]
    hidden = torch.cat([hidden, hidden.new_zeros(1, hidden.shape[1])])
    reader = layout.reader[:, -(inputs.get("logits_to_keep") or length):]
    logits = model.lm_head(hidden.index_select(0, reader.flatten()).unflatten(0, reader.shape))
    labels = inputs.get("labels")
    loss = None if labels is None else model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1],
                                                           num_items_in_batch=inputs.get("num_items_in_batch"))
    return CausalLMOutputWithPast(loss=loss, logits=logits)


def _attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
               layout: _Layout | None = None, **settings: Any) -> tuple[Tensor, None]:
    """An attention function of transformers: `layout.attend` where a forward pass was given one, else sdpa."""
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    return layout.attend(module, query, key, value, settings), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
