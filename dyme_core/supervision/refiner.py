"""The refiner, which writes the thinking to memorize, and the template bank, which keeps structures that the model itself
writes well, so that targets stay within its reach.

A back end is anything with the methods of `VisualRefiner`. The rule refiner here fills templates with computed steps and
needs no model; `llm.refiner` asks a language model.
"""
from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from dyme_core.data.datasets import Refine
from dyme_core.data.prompt_format import MIN_THINKING_WORDS, is_well_formed, write_response
from dyme_core.data.schema import Item, item_of, write_facts, write_number
from dyme_core.supervision.checker import SCORES, Judgement, RuleChecker, VisualChecker

SLOTS = ("labels", "facts", "working", "conclusion", "answer")  # of templates, besides numbered ones
CANDIDATES = 4  # targets of a prompt that are weighed against each other


class VisualRefiner(Protocol):
    """Writes the thinking to memorize for a question."""

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """A target per data record, in order; None where there is none."""


def target_writer(refiner: VisualRefiner | Refine | None) -> Refine:
    """Give the function from data rows to the whole responses that trainers memorize (None without one).

    Args:
        refiner: writes the thinking, to which the answer line is added; or a function that writes whole responses; or None. A
            row's own `target` (a whole response) or trace (thinking) comes before what any of them writes.
    Raises:
        TypeError: for a class, or what cannot be called.
    """
    if isinstance(refiner, type) or not (refiner is None or hasattr(refiner, "refine_all") or callable(refiner)):
        raise TypeError("refiner must be an object with refine_all, or a function from rows to responses: got "
                        f"{getattr(refiner, '__name__', refiner)!r}; write RuleRefiner(), for example")

    def write(rows: Sequence[dict[str, Any]]) -> list[str | None]:
        targets = own_targets(rows)
        rest = [row for row, target in zip(rows, targets, strict=True) if target is None]
        if not rest or refiner is None:
            return targets
        written = iter(_respond_all(refiner, rest) if hasattr(refiner, "refine_all") else refiner(rest))
        return [next(written) if target is None else target for target in targets]

    return write


def candidate_writer(refiner: VisualRefiner) -> Callable[[Sequence[dict[str, Any]]], list[list[str]]]:
    """Give the function from data rows to all their right targets, whole responses: the row's own, and those that the refiner
    writes by `candidates_all`."""
    def write(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
        own, written = own_targets(rows), refiner.candidates_all(rows)
        return [list(dict.fromkeys([*filter(None, [target]), *(write_response(text, row["answer"]) for text in texts)]))
                for row, target, texts in zip(rows, own, written, strict=True)]

    return write


def own_targets(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    """The response that comes with each data row: its `target`, or its trace with the answer line; None without either."""
    traces = _respond_all(TraceRefiner(), rows)
    return [row.get("target") or trace for row, trace in zip(rows, traces, strict=True)]


def _respond_all(refiner: VisualRefiner, rows: Sequence[dict[str, Any]]) -> list[str | None]:
    return [None if thinking is None else write_response(thinking, row["answer"])
            for thinking, row in zip(refiner.refine_all(rows), rows, strict=True)]


def parts_of(item: Item) -> dict[str, str]:
    """What the slots of a template stand for in a question: its name and text, the larger parts first.

    conclusion, facts ("2010 has 62 and 36, 2012 has 65 and 35"), working, labels ("2010 and 2012"); then of each fact of the
    evidence value1, entity1, attribute1, and so on; result1, ... of the working; and the answer.
    """
    parts = {"conclusion": item.conclusion, "facts": write_facts(item.evidence), "working": item.working,
             "labels": " and ".join(item.labels)}
    for number, fact in enumerate(item.evidence, start=1):
        parts |= {f"value{number}": write_number(fact.value), f"entity{number}": fact.entity,
                  f"attribute{number}": fact.attribute}
    results = re.findall(r"= (-?\d+(?:\.\d+)?)", item.working)
    parts |= {f"result{number}": text for number, text in enumerate(results, start=1)} | {"answer": item.answer}
    return {slot: text for slot, text in parts.items() if text}


@dataclass(frozen=True)
class Template:
    """The structure of a target: a text with slots for the parts of a question (`parts_of`).

    It states facts, by {facts} or by {value1}, ..., and ends in {conclusion} or {answer}.
    """

    text: str

    @property
    def slots(self) -> list[str]:
        return re.findall(r"{(\w*)}", self.text)

    @staticmethod
    def fits(text: str) -> bool:
        """Whether a text states facts and concludes, each once, and has no braces but those of slots."""
        slots = re.findall(r"{(\w*)}", text)
        numbered = re.compile(r"(?:value|entity|attribute|result)[1-9]\d*")
        return (all(slot in SLOTS or numbered.fullmatch(slot) for slot in slots) and text.count("{") == len(slots)
                and ("facts" in slots or "value1" in slots) and ("conclusion" in slots) + slots.count("answer") == 1
                and all(slots.count(slot) <= 1 for slot in ("facts", "working", "conclusion")))

    def __post_init__(self) -> None:
        if not self.fits(self.text):
            raise ValueError(f"a template needs {{facts}} or {{value1}}, ... and {{conclusion}} or {{answer}} once, and may "
                             f"have {SLOTS} and numbered slots: got {self.text!r}")

    def suits(self, item: Item) -> bool:
        """Whether it has a place for all the evidence and for the working, and no slot that the question lacks."""
        parts, slots = parts_of(item), set(self.slots)
        if not item.working and _WITHOUT_WORKING.search(self.text):
            slots -= {"working"}
        return (slots <= parts.keys() and ("facts" in slots or {part for part in parts if part.startswith("value")} <= slots)
                and (not item.working or any(slot == "working" or slot.startswith("result") for slot in slots)))

    def fill(self, item: Item) -> str:
        """The thinking for `item`; without a working (a look-up) the part of the sentence that would hold it is left out."""
        text = self.text if item.working else _WITHOUT_WORKING.sub(" Therefore, ", self.text)
        parts = parts_of(item)
        return re.sub(r"{(\w+)}", lambda slot: parts.get(slot[1], ""), text)


_WITHOUT_WORKING = re.compile(r"(?<=\.) [^.]*{working}(?:\. [^.{]*|, )")
FIRST_TEMPLATE = Template("We locate {labels}. Then, extract {facts}. Comparing {working}, {conclusion}.")  # the poster's
DEFAULT_TEMPLATES = (FIRST_TEMPLATE,
                     Template("Step 1 is to extract {facts}. Step 2 is to compute {working}. Therefore, {conclusion}."))


def structure_of(thinking: str, item: Item) -> str:
    """A trace with slots in place of the question's parts, the longest part first; what concludes is {conclusion}, or the last
    mention of the answer."""
    parts = parts_of(item)
    slots = {text: slot for slot, text in reversed(parts.items())}  # a text that is two parts is the larger one's
    either = "|".join(map(re.escape, sorted(slots, key=len, reverse=True)))
    pieces = re.split(rf"(?<![\w.-])(?<![Ss]tep )({either})(?!\w|[.,]\d)", thinking)
    found = [slots[text] for text in pieces[1::2]]
    if "conclusion" not in found and item.answer in pieces[1::2]:
        last = len(found) - 1 - pieces[1::2][::-1].index(item.answer)
        found[last] = "answer"
    pieces[1::2] = [f"{{{slot}}}" for slot in found]
    return "".join(pieces)


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

    def suiting(self, item: Item) -> Iterator[Template]:
        """Those that suit `item`, most often seen first, then the default ones."""
        ordered = map(Template, sorted(self.counts, key=self.counts.__getitem__, reverse=True))
        return itertools.chain((template for template in ordered if template.suits(item)), DEFAULT_TEMPLATES)

    def observe(self, thinking: str, item: Item) -> bool:
        """Learn from a trace rated "high"; True where its structure could be read."""
        if not item.evidence or "{" in thinking:
            return False
        text = structure_of(thinking.strip(), item)
        if re.search(r"\d{2}", re.sub(r"{\w+}", "", text)) or len(text.split()) < MIN_THINKING_WORDS:
            return False  # a number is left in it
        if not text.isprintable() or "\ufffd" in text or not Template.fits(text) or not Template(text).suits(item):
            return False  # a byte-level tokenizer can sample bytes that are no text
        self.counts[text] = self.counts.get(text, 0) + 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = {Template(text).text: int(number) for text, number in state["counts"].items()}


@dataclass
class RuleRefiner:
    """Writes targets from computed steps with the bank's templates, and checks each of them."""

    bank: TemplateBank = field(default_factory=TemplateBank)
    checker: RuleChecker = field(default_factory=RuleChecker)

    def refine(self, item: Item) -> str:
        """The thinking to memorize: rated "high" by the rule checker, ending in the answer.

        Raises:
            ValueError: where even the first template's target fails the checker, with the reasons (the record is wrong).
        """
        return self.candidates(item, 1)[0]

    def candidates(self, item: Item, most: int = CANDIDATES) -> list[str]:
        """At most `most` targets, each rated "high", that of the template seen most often first; raises as `refine` does."""
        found: list[str] = []
        for template in self.bank.suiting(item):
            thinking = template.fill(item)
            judgement = self.checker.judge(thinking, item)
            if judgement.rating == "high" and thinking not in found:
                found.append(thinking)
            if len(found) == most:
                break
        if not found:
            raise ValueError(f"no target for {item.question!r} passes the checker: {'; '.join(judgement.reasons)}; check the "
                             f"record's facts, working and answer")
        return found

    def candidates_all(self, records: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The candidates of each data record; none without evidence."""
        items = [item_of(record) for record in records]
        return [self.candidates(item) if item.evidence else [] for item in items]

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
