"""The refiner, which writes the thinking to memorize, and the template bank, which keeps structures that the model itself
writes well, so that targets stay within its reach.

A back end is anything with the methods of `VisualRefiner`. The rule refiner here fills templates with computed steps and
needs no model; `llm.refiner` asks a language model.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dyme_core.data.datasets import Refine
from dyme_core.data.prompt_format import MIN_THINKING_WORDS, is_well_formed, write_response
from dyme_core.data.schema import Item, item_of, write_facts
from dyme_core.supervision.checker import SCORES, Judgement, RuleChecker, VisualChecker

SLOTS = ("labels", "facts", "working", "conclusion")


class VisualRefiner(Protocol):
    """Writes the thinking to memorize for a question."""

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """A target per data record, in order; None where there is none."""


def target_writer(refiner: VisualRefiner | Refine | None) -> Refine:
    """Give the function from data rows to the whole responses that trainers memorize (None without one).

    Args:
        refiner: writes the thinking, to which the answer line is added; or a function that writes whole responses; or None. A
            row's own `target` (a whole response) or trace (thinking) comes before what any of them writes.
    """
    def write(rows: Sequence[dict[str, Any]]) -> list[str | None]:
        targets = own_targets(rows)
        rest = [row for row, target in zip(rows, targets, strict=True) if target is None]
        if not rest or refiner is None:
            return targets
        written = iter(_respond_all(refiner, rest) if hasattr(refiner, "refine_all") else refiner(rest))
        return [next(written) if target is None else target for target in targets]

    return write


def own_targets(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    """The response that comes with each data row: its `target`, or its trace with the answer line; None without either."""
    traces = _respond_all(TraceRefiner(), rows)
    return [row.get("target") or trace for row, trace in zip(rows, traces, strict=True)]


def _respond_all(refiner: VisualRefiner, rows: Sequence[dict[str, Any]]) -> list[str | None]:
    return [None if thinking is None else write_response(thinking, row["answer"])
            for thinking, row in zip(refiner.refine_all(rows), rows, strict=True)]


@dataclass(frozen=True)
class Template:
    """The structure of a target: a sentence pattern with the slots {labels} {facts} {working} {conclusion}."""

    text: str

    @staticmethod
    def fits(text: str) -> bool:
        """Whether a text has {facts} and {conclusion}, perhaps the other slots, each once, and no other word in braces."""
        found = re.findall(r"{(\w*)}", text)
        return {"facts", "conclusion"} <= set(found) <= set(SLOTS) and len(found) == len(set(found))

    def __post_init__(self) -> None:
        if not self.fits(self.text):
            raise ValueError(f"a template needs {{facts}} and {{conclusion}} once, and may have {SLOTS}: got {self.text!r}")

    def fill(self, item: Item) -> str:
        """The thinking for `item`; without a working (a look-up) the part of the sentence that would hold it is left out."""
        text = self.text if item.working else _WITHOUT_WORKING.sub(" Therefore, ", self.text)
        values = {"labels": " and ".join(item.labels), "facts": write_facts(item.evidence), "working": item.working,
                  "conclusion": item.conclusion}
        return re.sub(r"{(\w+)}", lambda slot: values[slot[1]], text)


_WITHOUT_WORKING = re.compile(r"(?<=\.) [^.]*{working}(?:\. [^.{]*|, )")
FIRST_TEMPLATE = Template("We locate {labels}. Then, extract {facts}. Comparing {working}, {conclusion}.")  # the poster's
DEFAULT_TEMPLATES = (FIRST_TEMPLATE,
                     Template("Step 1 is to extract {facts}. Step 2 is to compute {working}. Therefore, {conclusion}."))


@dataclass
class TemplateBank:
    """Structures of rollouts rated "high", most often seen first (ties: first seen), so that targets drift toward what the
    model can say. One bank per run; `state_dict` goes into checkpoints.

    Attributes:
        counts: times each template was seen; starts with the given first template, counted once.
    """

    counts: dict[str, int] = field(default_factory=lambda: {FIRST_TEMPLATE.text: 1})

    def best(self) -> Template:
        return Template(max(self.counts, key=self.counts.__getitem__))

    def observe(self, thinking: str, item: Item) -> bool:
        """Learn from a trace rated "high"; True where its structure could be read (all its parts stand in it verbatim)."""
        text = thinking.strip()
        for slot, part in (("facts", write_facts(item.evidence)), ("working", item.working), ("conclusion", item.conclusion),
                           ("labels", " and ".join(item.labels))):
            if not part or slot == "labels" and part not in text:
                continue
            if text.count(part) != 1 and slot != "labels":
                return False
            text = text.replace(part, f"{{{slot}}}", 1)
        if "{working}" not in text or re.search(r"\d{2}", text) or len(text.split()) < MIN_THINKING_WORDS:
            return False  # a structure without working, or with a number left in it, is no template
        if not text.isprintable() or "\ufffd" in text or not Template.fits(text):
            return False  # a byte-level tokenizer can sample bytes that are no text, a model braces of its own
        self.counts[text] = self.counts.get(text, 0) + 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {Template(text).text: int(number) for text, number in state["counts"].items()}


@dataclass
class RuleRefiner:
    """Writes targets from computed steps with a template, and checks each of them."""

    bank: TemplateBank = field(default_factory=TemplateBank)
    checker: RuleChecker = field(default_factory=RuleChecker)

    def refine(self, item: Item) -> str:
        """The thinking to memorize: rated "high" by the rule checker, ending in the answer.

        Raises:
            ValueError: where even the first template's target fails the checker, with the reasons (the record is wrong).
        """
        for template in (self.bank.best(), FIRST_TEMPLATE):
            thinking = template.fill(item)
            judgement = self.checker.judge(thinking, item)
            if judgement.rating == "high":
                return thinking
        raise ValueError(f"no target for {item.question!r} passes the checker: {'; '.join(judgement.reasons)}; check the "
                         f"record's facts, working and answer")

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """A target per data record, None for one without evidence; raises as `refine` does for one that is wrong."""
        items = [item_of(record) for record in records]
        return [self.refine(item) if item.evidence else None for item in items]


class TraceRefiner:
    """Gives the thinking that comes with the data set itself: GSM8K's solution, A-OKVQA's rationale, your own `trace`."""

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """The trace of each data record; None without one, or where it makes no well-formed response."""
        traces = [item_of(record).trace for record in records]
        return [trace if trace and is_well_formed(write_response(trace, record["answer"])) else None
                for trace, record in zip(traces, records, strict=True)]


@dataclass
class LearningChecker:
    """A checker whose "high" ratings feed the template bank (Full DyME)."""

    checker: VisualChecker
    bank: TemplateBank

    def judge(self, thinking: str, item: Item) -> Judgement:
        judgement = self.checker.judge(thinking, item)
        if judgement.rating == "high":
            self.bank.observe(thinking, item)
        return judgement

    def prefetch(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
        self.checker.prefetch(thinkings, records)

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        scores = self.checker.score_all(thinkings, records)
        for thinking, record, score in zip(thinkings, records, scores, strict=True):
            if score == SCORES["high"]:
                self.bank.observe(thinking, item_of(record))
        return scores
