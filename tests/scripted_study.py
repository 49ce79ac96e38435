"""A synthetic study with known effects: rows, logs and manifests of the plan's runs, from a chance of being right."""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd

from study import plan, statistics

KINDS = ("lookup", "gap", "peak", "count")
Chance = Callable[[str], float]  # of a setting


def points(*experiments: str) -> list[plan.Point]:
    """The plan's points, each setting once (with its most seeds)."""
    found: dict[str, plan.Point] = {}
    for point in plan.points(*experiments):
        setting = point.setting
        if setting not in found or len(point.seeds) > len(found[setting].seeds):
            found[setting] = point
    return list(found.values())


def study_rows(chosen: Iterable[plan.Point], chance: Chance, items: int = 200, seeds: int = 5) -> pd.DataFrame:
    """Item rows: each item has its own difficulty, the same for all runs, so that methods differ as `chance` says."""
    lines = []
    for point in chosen:
        setting = point.setting
        for seed in point.seeds[:seeds]:
            luck = np.random.default_rng([seed, *setting.encode()])
            for split in point.splits:
                right = luck.random(items) < chance(setting)
                lines += [{"run": f"{setting}-s{seed}", "method": point.method, "variant": point.variant, "model": point.model,
                           "seed": seed, "step": 240, "split": split, "item": f"{split}-0-{item:05d}", "kind": KINDS[item % 4],
                           "source": "generated" if item % 2 else "gapminder", "has_format": 1, "strict": int(right[item]),
                           "relaxed": int(right[item]), "correct": int(right[item]), "thinking": float(right[item]),
                           "answer": "2012", "groundedness": float(right[item]),
                           "wrong_facts": [] if right[item] else ["31"], "num_thinking_tokens": 20 + seed}
                          for item in range(items)]
    return statistics.derived(pd.DataFrame(lines))


def study_logs(chosen: Iterable[plan.Point], chance: Chance, seeds: int = 5) -> pd.DataFrame:
    """Logs of 40 steps: memorize gives way to explore; GRPO's groups mostly teach nothing; DyME's gradients near each other."""
    lines: list[dict[str, Any]] = []
    for point in chosen:
        setting = point.setting
        for seed in point.seeds[:seeds]:
            run = {"run": f"{setting}-s{seed}", "method": point.method, "variant": point.variant, "model": point.model,
                   "seed": seed}
            wobble = 0.04 if point.method == "grpo" else 0.01
            for step in (0, *range(4, 41, 4)):
                swing = wobble * (-1) ** (step // 4) * (1 + seed / 9)
                lines.append(run | {"event": "eval", "step": step, "has_format": 1.0, "groundedness": 0.5,
                                    "correct": chance(setting) * step / 40 + swing})
            seconds = 0.9 if point.method == "grpo" else 0.8
            lines += [run | {"event": "step", "step": step, "seconds": seconds, "memorize": memorize, "explore": 4 - memorize,
                             "mastered": 0, "zero_variance": 0.8, "thinking_tokens": 20 + seed,
                             "entropy": 1 / step + 0.1 * seed}
                      for step, memorize in ((step, 3 if step <= 20 else 1) for step in range(1, 41)) if point.method != "base"]
            for line in lines[-40:] if point.method == "pure_dyme" else ():
                if line["step"] % 4 == 0:
                    line |= {"memorize_norm": 2.0 + seed / 4, "explore_norm": 1.0,
                             "cosine": 0.1 * seed - 0.1 if line["step"] < 30 else None}
    return pd.DataFrame(lines)


def study_manifests(chosen: Iterable[plan.Point], seeds: int = 5) -> list[dict[str, Any]]:
    return [{"run": f"{point.setting}-s{seed}", "method": point.method, "variant": point.variant, "seed": seed,
             "model": point.model, "profile": "mini", "steps": 0 if point.method == "base" else 240, "settings": {},
             "captions": 0.95 if point.method == "base" else 0.6 + 0.05 * seed,
             "rollouts": 7680, "tokens": 10 ** 6, "cpu_s": 240 * (0.9 if point.method == "grpo" else 0.8)}
            for point in chosen for seed in point.seeds[:seeds]]
