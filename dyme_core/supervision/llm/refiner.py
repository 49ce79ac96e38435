"""The refiner that asks a language model, with the interface of the rule refiner. The rule checker must rate its drafts
"high", so that every target states the picture's facts and leads to the answer, whatever the model writes.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dyme_core.data.prompt_format import is_well_formed, write_response
from dyme_core.data.schema import Item, item_of
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.judge import PARAMETERS, Expert, fact_rows
from dyme_core.supervision.llm.parsing import MARK, SupervisionError
from dyme_core.supervision.llm.prompts import RefineReply, refine_messages
from dyme_core.supervision.refiner import RuleRefiner, TemplateBank

# Answer flags, special tokens such as <image> and marks of thinking, but not "26 < 30".
_MARKUP = re.compile(rf"<[^\s<>][^<>]*>|{MARK.pattern}", re.IGNORECASE)


@dataclass(frozen=True)
class Draft:
    """A target as the model wrote it, and what is wrong with it."""

    text: str
    faults: tuple[str, ...]


class LLMRefiner(Expert):
    """Writes targets with a language model; arguments as Expert, and

    Args:
        bank: its best template for the question at that time goes into the request; the rule refiner uses it, too.
        objection: what is wrong with a response (thinking and answer line), for example its length; None where nothing is.

    A draft is accepted where it is plain text and the rule checker rates it "high". Otherwise the model gets one more try with
    the reasons; after that the rule refiner's target takes its place.

    Counts: asked: requests; drafts: first drafts received; retried: second requests; replaced: both drafts were faulty, so the
    rule refiner wrote the target; fell_back: no reply, so the rule refiner wrote it; skipped: no target, by the policy, without
    facts to check a draft, or because the rule refiner was needed and the record has no steps.
    """

    COUNTS = ("asked", "drafts", "retried", "replaced", "fell_back", "skipped")

    def __init__(self, client: Client, bank: TemplateBank | None = None, policy: str = "rule", *,
                 objection: Callable[[str], str | None] | None = None, parameters: Mapping[str, Any] = PARAMETERS) -> None:
        super().__init__(client, policy, parameters)
        self.bank = bank if bank is not None else TemplateBank()
        self.rule, self.objection = RuleRefiner(self.bank), objection
        self._under_way: dict[str, Future] = {}  # first drafts, by the record's name

    def prefetch(self, records: Sequence[dict[str, Any]]) -> None:
        """Ask for the first drafts of `records` and return at once; the next `refine_all` waits for them."""
        for record in records:
            self._ask_first(item_of(record), record["item"])

    def refine_all(self, records: Sequence[dict[str, Any]]) -> list[str | None]:
        """Targets in order, requested all at once; None for a record without one.

        Raises:
            SupervisionError: under policy "raise", for a failed call or for a record without steps that needs the rules.
        """
        self.prefetch(records)
        items, names = [item_of(record) for record in records], [record["item"] for record in records]
        drafts = [self._read(self._under_way.get(name), item) for item, name in zip(items, names, strict=True)]
        self._under_way.clear()
        self._counts["drafts"] += sum(draft is not None for draft in drafts)
        again = [self._ask_again(*row) for row in zip(items, names, drafts, strict=True)]
        last = [draft if future is None else self._read(future, item)
                for draft, future, item in zip(drafts, again, items, strict=True)]
        return [self._settle(*row) for row in zip(items, names, last, strict=True)]

    def _ask_first(self, item: Item, name: str) -> None:
        if item.facts and name not in self._under_way:
            messages = refine_messages(fact_rows(item.facts), item.question, item.answer, next(self.bank.suiting(item)).text)
            self._under_way[name] = self._submit("refine", name, messages, RefineReply)

    def _ask_again(self, item: Item, name: str, draft: Draft | None) -> Future | None:
        if draft is None or not draft.faults:
            return None
        self._counts["retried"] += 1
        messages = refine_messages(fact_rows(item.facts), item.question, item.answer, next(self.bank.suiting(item)).text,
                                   draft.text, draft.faults)
        return self._submit("refine", name, messages, RefineReply)

    def _read(self, future: Future | None, item: Item) -> Draft | None:
        reply = None if future is None else self._reply(future)
        if reply is None:
            return None
        text = " ".join(reply.thinking.split())
        return Draft(text, tuple(self._faults(text, item)))

    def _faults(self, text: str, item: Item):
        response = write_response(text, item.answer)
        if _MARKUP.search(text) or not text.isprintable() or not is_well_formed(response):
            yield "it must be plain prose of a few words at least, without tags or markup"
        if self.objection is not None and (reason := self.objection(response)):
            yield reason
        judgement = self.rule.checker.judge(text, item)
        if judgement.rating != "high":
            yield from judgement.reasons

    def _settle(self, item: Item, name: str, draft: Draft | None) -> str | None:
        if draft is not None and not draft.faults:
            return draft.text
        if not item.facts or (draft is None and self.policy == "skip"):
            self._counts["skipped"] += 1
            return None
        return self._by_rule(item, name, "fell_back" if draft is None else "replaced")

    def _by_rule(self, item: Item, name: str, why: str) -> str | None:
        try:
            target = self.rule.refine(item)
        except ValueError as cause:
            error = SupervisionError(f"refine of item {name!r}: no usable draft came, and the rules have no target ({cause})",
                                     name, "refine")
            error.__cause__ = cause
            self._go_on_without(error)
            self._counts["skipped"] += 1
            return None
        self._counts[why] += 1
        return target
