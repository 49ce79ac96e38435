"""The questions of a run, by data set and split: the mini charts, or a data set's own.

World's numbers are how many mini questions are drawn, and the most that are taken of any other data set.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from dyme_core.config import Profile, World
from dyme_core.data import metrics
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks import sources
from dyme_core.data.schema import Record, mini_records
from dyme_core.trainer.rewards import accuracy_reward


def load(name: str, source: str, split: str, bad: BadRows | None = None, **options: Any) -> list[Record]:
    """All questions of one split.

    Args:
        name: "mini", whose test splits have World's numbers, or a data set of `sources.KNOWN`.
        source: the data set's folder or hub id.
        split: one of config.SPLITS that the data set has.
        bad: takes the rows that are refused; None raises.
        options: of the data set's reader.
    Raises:
        DataError: for an unknown data set or split, or a data set without a source, and what its reader raises.
    """
    if name == "mini":
        return mini_records(split, _count(World(), split), seed=0)
    return sources.load(name, source, split, bad=bad, **options)


def task_of(name: str) -> str:
    """The rules that a data set is scored by, a key of `metrics.SCORERS`."""
    return sources.KNOWN[name].task if name in sources.KNOWN else "chartqa"


def accuracy_of(name: str) -> Callable[..., list[float]]:
    """The accuracy that is trained on, as a TRL reward function."""
    task = task_of(name)
    return accuracy_reward if task == "chartqa" else metrics.accuracy_of(task)


def of_profile(profile: Profile, split: str, seed: int, bad: BadRows | None = None) -> list[Record]:
    """A split's questions as a profile asks for them, bad rows as in `load`; mini training questions are the seed's own."""
    world = profile.world
    if profile.data.name != "mini":
        return limited(load(*profile.data.place(split), bad, **profile.data.options), _count(world, split))
    if split != "train":
        return mini_records(split, _count(world, split), 0, world.real_share)
    real_share = world.real_share if world.train_real_share is None else world.train_real_share
    return mini_records(split, world.train_questions, seed, real_share, world.left_out_kinds)


def limited(records: Sequence[Record], limit: int | None) -> list[Record]:
    """The first questions of each kind in turn, `limit` of them in all, in their order."""
    ranks: Counter[str] = Counter()
    ranked = []
    for number, record in enumerate(records):
        ranked.append((ranks[record.kind], number))
        ranks[record.kind] += 1
    return [records[number] for number in sorted(number for _, number in sorted(ranked)[:limit])]


def _count(world: World, split: str) -> int:
    return {"train": world.train_questions, "validation": world.validation_questions}.get(split, world.test_questions)
