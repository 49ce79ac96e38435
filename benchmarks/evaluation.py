"""Evaluation in batches with pictures encoded once, against asking `generate` item by item; the answers must be the same."""
from __future__ import annotations

import logging
import time

import torch
from arms import NATURAL_TOKENS, SAVINGS, Shape, policy

from dyme_core.data.datasets import mini_records
from dyme_core.models import processors
from dyme_core.models.generation import decode, prompt_inputs

COUNT = 200
logger = logging.getLogger(__name__)


def one_by_one(model, processor, records) -> list[str]:
    """What a reader of the model card would write: `generate` for each question."""
    said = []
    with torch.inference_mode():
        for record in records:
            inputs = prompt_inputs(processor, [record])
            output = model.generate(**inputs, max_new_tokens=NATURAL_TOKENS, do_sample=False,
                                    suppress_tokens=processors.suppressed_ids(model, processor))
            said.append(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
    return said


def in_batches(model, processor, records) -> list[str]:
    """As `evaluate` does it."""
    return [response.text for response in decode(model, processor, records, max_new_tokens=NATURAL_TOKENS)]


def evaluation() -> list[dict]:
    """Seconds for the same questions, three ways."""
    records, plain, fast = mini_records("test", COUNT, 0), policy(Shape(), ()), policy(Shape(), SAVINGS)
    said, lines = {}, []
    for name, ask, (model, processor) in (("one by one", one_by_one, plain), ("in batches", in_batches, fast),
                                          ("in batches, pictures known", in_batches, fast)):
        start = time.perf_counter()
        said[name] = ask(model.eval(), processor, records)
        seconds = time.perf_counter() - start
        same = sum(one == other for one, other in zip(said["one by one"], said[name], strict=True))
        lines.append({"way": name, "questions": COUNT, "seconds": round(seconds, 2), "same_answers": same,
                      "times_as_fast": round(lines[0]["seconds"] / seconds, 2) if lines else 1.0})
        logger.info("  %s: %d questions in %.1f s, %.1f times as fast, %d answers the same", name, COUNT, seconds,
                    lines[-1]["times_as_fast"], same)
    return lines
