"""The checker, refiner and template bank of one run, as the profile's `supervision` says: rules, a language model behind an
API, or a recording of one.
"""
from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dyme_core import config, ranks, utils
from dyme_core.data.datasets import Refine
from dyme_core.data.metrics import accuracy_reward
from dyme_core.data.schema import Record
from dyme_core.supervision.checker import RuleChecker
from dyme_core.supervision.corruption import GradedRefiner, corrupt
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.judge import LLMChecker
from dyme_core.supervision.llm.refiner import LLMRefiner
from dyme_core.supervision.llm.usage import LEDGER_FILE, Ledger, add_up
from dyme_core.supervision.refiner import RuleRefiner, TemplateBank, own_targets, target_writer

logger = logging.getLogger(__name__)
CHUNK = 256  # records refined together before training: memory stays flat and progress is seen
BANK_FILE = "bank.json"
SHOWN = ("calls", "hits", "failures")  # of the client's counts, at each step
LOST = ("fell_back", "skipped")  # of the experts' counts


class Experts(AbstractContextManager):
    """Who supervises a run; a context manager, which closes what it opened.

    Attributes:
        client: None where rules supervise.
        bank: one per run; Full DyME's checker feeds it.
        rules: writes targets by rule, of the chosen quality; the preflight uses it, because it calls no model.
        checker, refiner: of the chosen back end.

    Args:
        settings: the back end and its limits.
        paths: of the profile; the recording is in its `runs` folder unless another is named.
        folder: of the run, for the ledger of calls.
        objection: what is wrong with a drafted response, None where nothing is (see `too_long`).
        accuracy: the accuracy that is trained on (`metrics.accuracy_of`).
    """

    def __init__(self, settings: config.Supervision, paths: config.Paths, folder: Path,
                 objection: Callable[[str], str | None] | None = None,
                 accuracy: Callable[..., list[float]] = accuracy_reward) -> None:
        self.settings, self.bank, self.client, self._folder = settings, TemplateBank(), None, folder
        self.rules, self.accuracy = GradedRefiner(settings.quality, RuleRefiner(self.bank)), accuracy
        self.checker, self.refiner = RuleChecker(), self.rules
        if settings.backend != "rule":
            self._open(paths, folder)
            options = {"policy": settings.policy, "parameters": settings.parameters}
            self.checker = LLMChecker(self.client, **options)
            self.refiner = LLMRefiner(self.client, self.bank, objection=objection, **options)
        self._before, self._shared = self.counts(), dict(self.bank.counts)
        self._sums_before: dict[str, dict[str, float]] = {}  # of an interrupted run, less counts before resuming

    def _open(self, paths: config.Paths, folder: Path) -> None:
        settings, is_replay = self.settings, self.settings.backend == "replay"
        path = paths.root / settings.recording if settings.recording else paths.runs / "supervision.sqlite"
        self._recording = Recording(path, read_only=is_replay)
        self._ledger = Ledger(folder)
        ranks.gather(None)  # all processes read the rows of earlier attempts before one writes
        self.client = Client(settings, self._recording, "replay" if is_replay else "live", self._ledger)

    def with_corruption(self, records: Sequence[Record]) -> list[Record]:
        """The training records with the facts that supervision works from: a share of them is wrong (`corruption.corrupt`)."""
        return corrupt(records, self.settings.corruption)

    def share_bank(self) -> None:
        """Share the structures that any process has seen since the last call, in the order of ranks, so that all processes
        write the targets that one process would. All of them must call it."""
        before, seen = self._shared, {text: number - self._shared.get(text, 0) for text, number in self.bank.counts.items()}
        self.bank.counts = dict(before)
        for others in ranks.gather({text: number for text, number in seen.items() if number}):
            for text, number in others.items():
                self.bank.counts[text] = self.bank.counts.get(text, 0) + number
        self._shared = dict(self.bank.counts)

    def begin_step(self, step: int) -> None:
        """Set the training step that later calls belong to."""
        if self.client is not None:
            self.client.step = step

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs: the bank, which all processes share between steps, and the sums over all processes.
        All of them must call it."""
        return {"bank": self.bank.state_dict(), "sums": self._sums()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bank.load_state_dict(state["bank"])
        self._shared = dict(self.bank.counts)
        self._sums_before, until_now = {}, self._sums()
        self._sums_before = {name: {each: value - until_now[name][each] for each, value in sums.items()}
                             for name, sums in state["sums"].items()}

    def _sums(self) -> dict[str, dict[str, float]]:
        """The experts' counts and the seconds of waiting, over all processes and since the run's first start."""
        if self.client is None:
            return {}
        own = {"checker": self.checker.counts(), "refiner": self.refiner.counts(), "waited": {"waited_s": self._waited_s()}}
        sums = {name: ranks.total(counts) for name, counts in own.items()}
        return {name: {each: value + self._sums_before.get(name, {}).get(each, 0) for each, value in counts.items()}
                for name, counts in sums.items()}

    def _waited_s(self) -> float:
        """Seconds in which this process waited for replies."""
        return self.checker.waited_s + self.refiner.waited_s

    def prefetch(self, rows: Sequence[dict[str, Any]]) -> None:
        """Ask a language model for the targets of data rows, except those that bring their own, and return at once."""
        self.refiner.prefetch([row for row, own in zip(rows, own_targets(rows), strict=True) if own is None])

    def offline(self, records: Sequence[Record]) -> Refine:
        """Pure DyME and SFT: write every target now, each process its share; the returned function only looks them up."""
        write, targets, start, own = target_writer(self.refiner), {}, time.monotonic(), ranks.share(records)
        for first in range(0, len(own), CHUNK):
            rows = [record.row for record in own[first: first + CHUNK]]
            targets |= zip((row["item"] for row in rows), write(rows), strict=True)
            left_s = (time.monotonic() - start) / len(targets) * (len(own) - len(targets))
            if self.client is not None:
                logger.info("targets: %d of %d, %d without one, %s, about %.0f s left", len(targets), len(own),
                            list(targets.values()).count(None), describe(self.take_counts()), left_s)
        targets = {item: target for others in ranks.gather(targets) for item, target in others.items()}
        return lambda rows: [targets[row["item"]] for row in rows]

    def counts(self) -> dict[str, float]:
        """Sums since the start, named as in a step's log row; empty where rules supervise."""
        if self.client is None:
            return {}
        client, experts = self.client.counts(), (self.checker.counts(), self.refiner.counts())
        return {**{f"supervision_{name}": client[name] for name in SHOWN}, "supervision_waited_s": self._waited_s(),
                **{f"supervision_{name}": sum(counts[name] for counts in experts) for name in LOST}}

    def take_counts(self) -> dict[str, float]:
        """The change of `counts` since the last call."""
        before, self._before = self._before, self.counts()
        return {name: value - before[name] for name, value in self._before.items()}

    def summary(self) -> dict[str, Any]:
        """The supervision part of the run's manifest, over all processes; without address and key."""
        summary = {"backend": self.settings.backend, "quality": self.settings.quality, "corruption": self.settings.corruption,
                   "bank": self.bank.state_dict()}
        if self.client is None:
            return summary
        sums = self._sums()  # of all processes: every call is in the ledger from here on
        client = {**add_up(self._ledger.rows()), **sums.pop("waited"), "fallbacks": self.client.counts()["fallbacks"]}
        return {**summary, "policy": self.settings.policy, "model": self.client.endpoint.name, "client": client, **sums}

    def write_ledger(self) -> None:
        """Write the ledger of the finished run; where rules supervised there is none."""
        if self.client is None:
            (self._folder / LEDGER_FILE).unlink(missing_ok=True)
        else:
            self._ledger.write()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close client and recording; may be called twice."""
        if self.client is not None:
            self.client.close()
            self._recording.close()
            self._ledger.close()


def save_bank(bank: TemplateBank, folder: Path) -> None:
    """Write the bank's state into a run's folder."""
    utils.write_json(folder / BANK_FILE, bank.state_dict())


def too_long(tokenizer: Any, max_tokens: int) -> Callable[[str], str | None]:
    """An objection to responses that are longer than `max_tokens` tokens of the policy, the end token included."""
    def objection(response: str) -> str | None:
        num_tokens = len(tokenizer(response, add_special_tokens=False)["input_ids"]) + 1
        return f"it takes {num_tokens} tokens with the answer line, at most {max_tokens} are allowed; be shorter" \
            if num_tokens > max_tokens else None
    return objection


def describe(counts: dict[str, float]) -> str:
    """Counts of `take_counts` in words, for the line on the terminal."""
    parts = "{supervision_calls:.0f} calls, {supervision_hits:.0f} hits, {supervision_failures:.0f} failed, " \
            "{supervision_waited_s:.1f} s waited"
    return parts.format(**counts)
