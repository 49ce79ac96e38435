"""Adaptive rollouts, weighed: the first F of a prompt's G rollouts, and the others only where all of these failed.

    .venv/bin/python benchmarks/adaptive.py        # writes results/bench/adaptive.json; 2 min

Two halves. The expected gradient for a prompt that is solved with probability p, exact, by enumeration: a policy of two
actions, its gradient with respect to the logit of success; a group that is not finished keeps the weight of a whole one. And
what writing so many rollouts together costs.
"""
from __future__ import annotations

import logging
import sys
import time
from math import comb

import numpy as np
import torch
from arms import ENGINE, ROOT, Shape, policy

from dyme_core import utils
from dyme_core.data.datasets import mini_records
from dyme_core.models import generation, processors

GROUP, FIRST, PROMPTS, TOKENS = 8, 4, 4, 56
CHANCES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
logger = logging.getLogger(__name__)


def binomial(size: int, p: float) -> np.ndarray:
    return np.array([comb(size, n) * p**n * (1 - p)**(size - n) for n in range(size + 1)])


def explored(size: int, num_right: int, p: float) -> float:
    """Gradient of a mixed group: mean over rollouts of the standardised reward times the score of its action."""
    rewards = np.repeat([1.0, 0.0], [num_right, size - num_right])
    advantages = (rewards - rewards.mean()) / rewards.std(ddof=1)
    return float((advantages * (rewards - p)).mean())


def whole(p: float, memorizes: bool = True) -> float:
    """Expected gradient where all G rollouts are written. Under DyME an all-wrong group memorizes its target, weighed as G
    rows; under GRPO it teaches nothing."""
    chances = binomial(GROUP, p)
    return memorizes * chances[0] * (1 - p) + sum(chances[n] * explored(GROUP, n, p) for n in range(1, GROUP))


def adaptive(p: float, memorizes: bool = True) -> float:
    """The same where a group that has a success among its first F rollouts is not finished."""
    first, rest = binomial(FIRST, p), binomial(GROUP - FIRST, p)
    early = sum(first[n] * explored(FIRST, n, p) for n in range(1, FIRST))
    late = memorizes * rest[0] * (1 - p) + sum(rest[n] * explored(GROUP, n, p) for n in range(1, GROUP - FIRST + 1))
    return early + first[0] * late


def seconds_to_write(counts: tuple[int, ...], repeats: int = 5) -> dict[int, float]:
    """CPU seconds to write so many rollouts of TOKENS tokens about PROMPTS prompts together; the least of several, by turns."""
    model, processor = policy(Shape(tokens=TOKENS), ENGINE)
    records = mini_records("train", PROMPTS, 0)
    ends = [*processors.suppressed_ids(model, processor), *processors.end_ids(model, processor)]
    found = dict.fromkeys(counts, float("inf"))
    for _ in range(repeats):
        for count in counts:
            inputs = generation.prompt_inputs(processor, [records[row * PROMPTS // count] for row in range(count)])
            start = time.process_time()
            model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=TOKENS, suppress_tokens=ends, pad_token_id=0)
            found[count] = min(found[count], time.process_time() - start)
    return found


def main() -> None:
    """Both halves, a line for each p."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    counts = tuple(PROMPTS * size for size in (1, 2, GROUP - FIRST, GROUP))
    write_s = seconds_to_write(counts)
    lines = []
    for p in CHANCES:
        unfinished = np.arange(PROMPTS + 1)  # prompts whose first rollouts all fail
        chances, more = binomial(PROMPTS, (1 - p)**FIRST), unfinished * (GROUP - FIRST)
        seconds = write_s[PROMPTS * FIRST] + chances @ np.interp(more, [0, *counts], [0, *write_s.values()])
        lines.append({"p": p, "gradient": round(whole(p), 4), "adaptive": round(adaptive(p), 4),
                      "bias": round(adaptive(p) / whole(p) - 1, 3),
                      "bias_grpo": round(adaptive(p, False) / whole(p, False) - 1, 3),
                      "rollouts": round((PROMPTS * FIRST + float(chances @ more)) / (PROMPTS * GROUP), 3),
                      "seconds": round(float(seconds) / write_s[PROMPTS * GROUP], 3)})
        logger.info("p %.2f: gradient %.4f, adaptive %.4f (%+.0f %%), %.2f of the rollouts, %.2f of the seconds to write them",
                    p, *(lines[-1][name] for name in ("gradient", "adaptive")), 100 * lines[-1]["bias"],
                    lines[-1]["rollouts"], lines[-1]["seconds"])
    utils.write_json(ROOT / "results" / "bench" / "adaptive.json", {
        "group": GROUP, "first": FIRST, "prompts": PROMPTS, "tokens": TOKENS,
        "seconds_to_write": {str(count): round(value, 4) for count, value in write_s.items()}, "lines": lines,
        **utils.provenance(ROOT)})


if __name__ == "__main__":
    main()
