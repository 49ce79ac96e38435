"""Idle slots refilled: groups of a step that would teach nothing give way to fresh prompts, within a budget of rollouts.

DAPO's dynamic sampling (arXiv:2503.14476) with a bound. What a step learns from then leans to prompts with mixed results, as
there. The batch keeps its size: a fresh group takes the rows of the one that it replaces.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dyme_core.trainer import batching


class Refill:
    """Goes before a GRPO trainer in the bases of a class. `args.refill` is the share of a step's rollouts that may be generated
    again; `idle_groups` says which groups give way.

    With several processes each replaces as many groups as the one that has the fewest idle ones, since all must make the same
    calls; a fresh prompt is none of its own process's. TRL's own columns of the log (reward, completion lengths) are means of
    the first rollouts' and each round's means; the others, and the table of completions, are of the final rows. Logs in
    addition: refilled, groups that gave way; rollouts, all generated.
    """

    drawn = 0  # places of the training set that this process has gone through
    _shuffled: tuple[int, list[int]] = (-1, [])  # an epoch and its order

    def init_refill(self) -> None:
        """Check the settings.

        Raises:
            ValueError: where processes share a group, the data set is a stream, or TRL would need old log-probs or a reference.
        """
        args = self.args
        rows = args.per_device_train_batch_size * args.steps_per_generation
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("refill needs a training set of known length, to draw fresh prompts from: got a stream; load it "
                             "whole")
        if rows % self.num_generations:
            raise ValueError(f"refill needs whole groups in each process: got {rows} rows in groups of {self.num_generations}; "
                             "make per_device_train_batch_size x gradient_accumulation_steps a multiple of num_generations")
        if args.beta or args.num_iterations != 1 or args.steps_per_generation != args.gradient_accumulation_steps:
            raise ValueError("refill needs beta=0, num_iterations=1 and steps_per_generation unset: log-probs of the replaced "
                             "rows would be stale")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.drawn = state.get("drawn", 0)  # checkpoints of before this setting

    def idle_groups(self) -> Tensor:
        """(P,) booleans of all processes' groups, rank by rank: all rollouts earn the same reward."""
        raise NotImplementedError

    def ask(self, rows: list[dict[str, Any]]) -> batching.Batch:
        """TRL's batch for these rows, generated and scored; `matrix` and `traits` then describe its rollouts."""
        raise NotImplementedError

    def refill(self, inputs: list[dict[str, Any]], batch: batching.Batch) -> batching.Batch:
        """The batch with its idle groups replaced; `inputs` (in place), rewards and TRL's table of completions follow."""
        size, world = self.num_generations, self.accelerator.num_processes
        own, left = len(inputs) // size, int(self.args.refill * (len(inputs) // size))
        replaced = 0
        while left and (count := min(left, int((idle := self.idle_groups().view(world, own)).sum(dim=1).min()))):
            groups = [row.nonzero().flatten().tolist()[:count] for row in idle]  # of each process
            mine = groups[self.accelerator.process_index]
            fresh = [dict(row) for row in self.fresh_rows(inputs, mine) for _ in range(size)]
            before = self.matrix, self.traits, _tables(self._logs)
            added = self.ask(fresh)
            place = _places(mine, own, size, len(inputs))
            everywhere = torch.cat([torch.tensor(_places(each, own, size, len(inputs) * world, rank, count))
                                    for rank, each in enumerate(groups)]).tolist()
            batch = batching.take_rows(batching.join([batching.with_own_log_probs(each) for each in (batch, added)],
                                                     self._tokenizer.pad_token_id), place)
            inputs[:] = [[*inputs, *fresh][row] for row in place]
            self.matrix = torch.cat([before[0], self.matrix])[everywhere]
            self.traits = torch.cat([before[1], self.traits], dim=1)[:, place]
            _rewrite(self._logs, before[2], everywhere, count * size * world)
            left, replaced = left - count, replaced + count * world
        batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        self._metrics["train"]["refilled"].append(float(replaced))
        self._metrics["train"]["rollouts"].append(float(len(inputs) * world + replaced * size))
        return batch

    def fresh_rows(self, inputs: list[dict[str, Any]], groups: list[int]) -> list[dict[str, Any]]:
        """A data row for each of these groups of `inputs`, which give way: the next of the shuffled training set that are not
        among the inputs; of several processes each takes every so many-th."""
        found, asked, end = [], {row["item"] for row in inputs}, self.drawn + len(self.train_dataset)
        while len(found) < len(groups):
            row = self.train_dataset[self._next_place()]
            if row["item"] not in asked or self.drawn >= end:  # a whole round: there are no others
                found.append(row)
                asked.add(row["item"])
        return found

    def _next_place(self) -> int:
        epoch, place = divmod(self.drawn * self.accelerator.num_processes + self.accelerator.process_index,
                              len(self.train_dataset))
        self.drawn += 1
        if self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(self.args.seed + epoch + 1)  # the sampler's begins with the seed itself
            self._shuffled = epoch, torch.randperm(len(self.train_dataset), generator=generator).tolist()
        return self._shuffled[1][place]


def _places(groups: list[int], own: int, size: int, total: int, rank: int = 0, count: int = 0) -> list[int]:
    """For each row of a process the place of its successor among all rows, the added ones being behind the first `total`."""
    places = list(range(rank * own * size, (rank + 1) * own * size))
    for number, group in enumerate(groups):
        start = total + (rank * count + number) * size
        places[group * size: (group + 1) * size] = range(start, start + size)
    return places


def _tables(logs: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of TRL's table of completions, as lists."""
    return {name: _tables(column) if isinstance(column, dict) else list(column) for name, column in logs.items()}


def _rewrite(logs: Mapping[str, Any], before: Mapping[str, Any], places: list[int], added: int) -> None:
    """Put the successors of replaced rows in their places; the newest `added` entries of each column are the fresh rows'."""
    for name, column in logs.items():
        if isinstance(column, dict):
            _rewrite(column, before.get(name, {}), places, added)
        elif column:
            entries = [*before.get(name, [])[-len(places):], *list(column)[-added:]]
            if len(entries) == len(places) + added:
                column.clear()
                column.extend(entries[place] for place in places)
