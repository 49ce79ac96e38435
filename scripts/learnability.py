"""How learnable a wording is for a policy: the mean negative log-likelihood of its targets, in nats per token."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core.data.prompt_format import write_response
from dyme_core.data.schema import Record
from dyme_core.models.generation import prompt_inputs
from dyme_core.models.processors import target_ids


@torch.no_grad()
def nats_per_token(model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record], thinkings: Sequence[str]
                   ) -> list[float]:
    """The mean negative log-likelihood per token of each thinking with its record's answer line, end token included.

    Args:
        model, processor: the policy.
        records: the questions.
        thinkings: one for each record.
    """
    model.eval()
    return [_nats(model, prompt_inputs(processor, [record]), target_ids(processor, write_response(thinking, record.answer)))
            for record, thinking in zip(records, thinkings, strict=True)]


def _nats(model: PreTrainedModel, inputs: dict[str, Any], ids: list[int]) -> float:
    target = torch.tensor([ids])
    whole = torch.cat([inputs["input_ids"], target], dim=1)
    known = {name: value for name, value in inputs.items() if name == "pixel_values" or name.startswith("image")}
    logits = model(input_ids=whole, attention_mask=torch.ones_like(whole), **known).logits[0, -len(ids) - 1: -1]
    return torch.nn.functional.cross_entropy(logits.float(), target[0]).item()
