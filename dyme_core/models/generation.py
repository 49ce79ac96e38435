"""Generation: records -> prompts, pictures and generated texts, in batches; rollouts reported as they end."""
from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from typing import Any

import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin, StoppingCriteria, StoppingCriteriaList

from dyme_core.config import Training
from dyme_core.data.prompt_format import CAPTION_INSTRUCTION, THINK_INSTRUCTION, messages
from dyme_core.data.schema import Record, item_of, write_facts
from dyme_core.models import processors

logger = logging.getLogger(__name__)
REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class Decoded:
    """A generated text without special tokens; `num_tokens` counts the end token, `is_truncated` says that there is none."""

    text: str
    num_tokens: int
    is_truncated: bool


def render_prompt(processor: ProcessorMixin, question: str, instruction: str = THINK_INSTRUCTION, has_image: bool = True
                  ) -> str:
    """The prompt's text as TRL's trainers render it, with one placeholder for a picture: a tokenizer's template takes the text,
    a processor's a list of parts."""
    turn = messages(question, instruction)
    if isinstance(processor, ProcessorMixin):
        parts = [{"type": "image"}] * has_image + [{"type": "text", "text": turn[0]["content"]}]
        turn = [{"role": "user", "content": parts}]
    return processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)


def prompt_inputs(processor: ProcessorMixin, records: Sequence[Record], instruction: str = THINK_INSTRUCTION
                  ) -> dict[str, torch.Tensor]:
    """The processor's tensors for a batch of prompts with their pictures, padded on the left.

    Raises:
        ValueError: if some of the records have a picture and some have none, or the model reads no pictures.
    """
    has_image = records[0].image is not None
    if any((record.image is not None) != has_image for record in records):
        raise ValueError("a batch must have a picture with every record or with none; ask about them apart")
    texts = [render_prompt(processor, record.question, instruction, has_image) for record in records]
    settings = dict(text=texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    if not has_image:
        return BatchFeature(processor(**settings))  # a tokenizer's result has no cast of its own
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(f"record {records[0].item!r} has a picture, and this model reads text alone: take one that reads "
                         "pictures (loading.FAMILIES)")
    return processor(images=[[record.load_image()] for record in records], **settings)


def decode(model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record], *, batch_size: int = 100,
           max_new_tokens: int = Training.max_completion_tokens, seed: int | None = None,
           instruction: str = THINK_INSTRUCTION) -> list[Decoded]:
    """Generate one response per record; special ids other than those that end it are never produced.

    Args:
        records: in any order; one response each, in the same order.
        batch_size: records generated together.
        max_new_tokens: longest response.
        seed: None decodes greedily; a number samples at temperature 1 with it, leaving the global generator as it was.
        instruction: follows each question.
    Raises:
        ValueError: for a size below 1.
    """
    for name, size in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1: got {size}; give a positive number")
    was_training, tokenizer, ends = model.training, processors.tokenizer_of(processor), processors.end_ids(model, processor)
    model.eval()
    settings: dict[str, Any] = dict(max_new_tokens=max_new_tokens, do_sample=seed is not None,
                                    suppress_tokens=processors.suppressed_ids(model, processor),
                                    pad_token_id=tokenizer.pad_token_id, eos_token_id=ends,
                                    repetition_penalty=1.0)  # a hub model's own settings must not influence the scores
    if seed is not None:
        settings |= dict(temperature=1.0, top_k=0, top_p=1.0)
    decoded: list[Decoded] = []
    start = reported = time.monotonic()
    with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for batch in _batches(records, batch_size):
            inputs = prompt_inputs(processor, batch, instruction).to(model.device, model.dtype)
            output = model.generate(**inputs, **settings)
            decoded += [_read(tokenizer, ids, ends) for ids in output[:, inputs["input_ids"].shape[1]:].tolist()]
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                left_s = (reported - start) / len(decoded) * (len(records) - len(decoded))
                logger.info("%d of %d questions answered in %.0f s, about %.0f s left", len(decoded), len(records),
                            reported - start, left_s)
    model.train(was_training)
    return decoded


def _batches(records: Sequence[Record], size: int) -> Iterator[list[Record]]:
    """At most `size` records each, in order; records with and without a picture apart."""
    for _, alike in groupby(records, key=lambda record: record.image is None):
        while batch := list(islice(alike, size)):
            yield batch


def caption_match(model: PreTrainedModel, processor: ProcessorMixin, records: Sequence[Record]) -> float:
    """Share in [0, 1] of the records' pictures that the policy describes with exactly their facts (greedily). The base is
    taught to; fine-tuning makes it forget. The records' questions are not asked."""
    said = decode(model, processor, [replace(record, question=CAPTION_INSTRUCTION) for record in records], instruction="")
    return sum(response.text == write_facts(item_of(record.row).facts) + "."
               for response, record in zip(said, records, strict=True)) / len(records)


def _read(tokenizer: Any, ids: list[int], ends: Sequence[int]) -> Decoded:
    end = next((place for place, token_id in enumerate(ids) if token_id in ends), None)
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return Decoded(text, len(ids) if end is None else end + 1, end is None)


def generate_in_16_bits(model: PreTrainedModel) -> None:
    """Let `model.generate` work with a copy of the weights in bfloat16, and leave the weights as they are.

    Mixed precision would round every weight again for each token, which takes longer than the token's own arithmetic: reading
    weights is what a token costs. The copy is made once a call and takes half of the weights' memory.
    """
    plain = model.generate

    @functools.wraps(plain)
    def generate(*args: Any, **kwargs: Any) -> Any:
        exact = [(weight, weight.data) for weight in model.parameters() if weight.dtype == torch.float32]
        try:
            for weight, data in exact:
                weight.data = data.bfloat16()
            return plain(*args, **kwargs)
        finally:
            for weight, data in exact:
                weight.data = data

    model.generate = generate


class Watcher(StoppingCriteria):
    """Stops nothing: `generate` calls a stopping criterion after every token.

    Args:
        report: called with the rollouts that have just ended: token ids, end token included, by their row in the batch. Each
            is reported once.
        end_tokens: ids that end a rollout.
        longest: tokens at which `generate` cuts a rollout.
    """

    def __init__(self, report: Callable[[dict[int, list[int]]], None], end_tokens: Sequence[int], longest: int) -> None:
        self.report, self.end_tokens, self.longest = report, torch.tensor(sorted(end_tokens)), longest
        self._start: int | None = None  # where the rollouts begin, after their prompts
        self._ended: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._start is None:
            self._start = input_ids.shape[1] - 1
        is_end = torch.isin(input_ids[:, -1].cpu(), self.end_tokens) | (input_ids.shape[1] - self._start == self.longest)
        new = [row for row in is_end.nonzero().flatten().tolist() if row not in self._ended]  # padding may be an end token
        self._ended.update(new)
        if new:
            self.report({row: input_ids[row, self._start:].tolist() for row in new})
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def watching(model: PreTrainedModel, watcher: Watcher) -> Iterator[None]:
    """Within the block `model.generate` calls the watcher; it samples the same tokens."""
    own = vars(model).get("generate")
    model.generate = partial(model.generate, stopping_criteria=StoppingCriteriaList([watcher]))
    try:
        yield
    finally:
        del model.generate
        if own is not None:
            model.generate = own
