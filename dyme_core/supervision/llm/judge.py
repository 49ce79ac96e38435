"""The checker that asks a language model, with the interface of the rule checker; and what it shares with the refiner.

A model's rating is capped by what the rule checker can prove. So hostile text in charts, questions and rollouts, and a weak
judge, can lower a score but never lift a bad trace. A call without a usable reply is no
score; the policy decides: "rule" (the rule back end takes over), "raise", or "skip" (no thinking term, no target).
"""
from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from pydantic import BaseModel

from dyme_core.config import POLICIES, Supervision
from dyme_core.data.schema import Fact, Item, item_of
from dyme_core.supervision.checker import Judgement, RuleChecker
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import Request, SupervisionError
from dyme_core.supervision.llm.prompts import CheckReply, FactRow, check_messages

logger = logging.getLogger(__name__)
PARAMETERS = Supervision().parameters


class Expert:
    """Calls a model, counts, and applies the policy to failures.

    Attributes:
        waited_s: seconds in which training waited for replies.

    Args:
        client: asks the model.
        policy: for a call without a usable reply, also one that was not made after too many failures: "rule", "raise" or
            "skip".
        parameters: sent with each request.
    """

    COUNTS: tuple[str, ...] = ()

    def __init__(self, client: Client, policy: str, parameters: Mapping[str, Any]) -> None:
        if policy not in POLICIES:
            raise ValueError(f"policy must be one of {POLICIES}: got {policy!r}")
        self.client, self.policy, self.parameters = client, policy, dict(parameters)
        self._counts: dict[str, int] = dict.fromkeys(self.COUNTS, 0)
        self.waited_s, self._said = 0.0, set()

    def counts(self) -> dict[str, int]:
        """Sums since the start; the class documents the names."""
        return dict(self._counts)

    def _submit(self, purpose: str, name: str, messages: list[dict[str, Any]], schema: type[BaseModel]) -> Future:
        self._counts["asked"] += 1
        return self.client.submit(Request(purpose, name, messages, schema, self.parameters))

    def _reply(self, future: Future) -> Any:
        """The reply, or None where there is none and the policy lets training go on."""
        start = time.monotonic()
        try:
            return future.result()
        except SupervisionError as error:
            self._go_on_without(error)
            return None
        finally:
            self.waited_s += time.monotonic() - start

    def _go_on_without(self, error: SupervisionError) -> None:
        """Raise the error where the policy says so; else log the first of its kind, as the others are counted anyway."""
        if self.policy == "raise":
            raise error
        kind = type(error), type(error.__cause__)
        if kind not in self._said:
            self._said.add(kind)
            logger.warning("%s; policy %r goes on without (more of the same are counted, not shown)", error, self.policy)


class LLMChecker(Expert):
    """Rates thinking by the rubric, with a language model; arguments as Expert, and

    Args:
        guard: cap ratings by what the rule checker proves. "low" where it says "low" (no right fact is named, or more wrong
            ones than right); no call is made for such a trace. At most "medium" where a claim or the arithmetic is wrong, or
            the trace does not close on the answer. Off only to measure the model alone.

    Counts: asked: requests; settled: "low" without a call; capped: replies that the guard lowered; fell_back: no reply, so the
    rule checker rated; skipped: not rated.
    """

    COUNTS = ("asked", "settled", "capped", "fell_back", "skipped")

    def __init__(self, client: Client, policy: str = "rule", *, guard: bool = True,
                 parameters: Mapping[str, Any] = PARAMETERS) -> None:
        super().__init__(client, policy, parameters)
        self.guard, self.rule = guard, RuleChecker()
        self._under_way: dict[tuple[str, str], tuple[Judgement, Future | None]] = {}  # by name and thinking; None: no call

    def prefetch(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
        """Ask about traces and return at once; the next `score_all` waits for the replies."""
        for thinking, record in zip(thinkings, records, strict=True):
            self._ask(thinking, item_of(record), record["item"])

    def judge(self, thinking: str, item: Item) -> Judgement:
        """One rating with the model's reasons, and the rule checker's reading, which marks the claims.

        Raises:
            SupervisionError: where there is none and the policy is not "rule".
        """
        [judgement] = self._judge_all([thinking], [item], [item.question])
        if judgement is None:
            raise SupervisionError(f"check of {item.question!r}: there is no rating, for the reason that was logged; "
                                   "score_all gives NaN in this place", item.question, "check")
        return judgement

    def score_all(self, thinkings: Sequence[str], records: Sequence[dict[str, Any]]) -> list[float]:
        """Scores in order, requested all at once; NaN for a trace that the policy skips.

        Raises:
            SupervisionError: under policy "raise".
        """
        judgements = self._judge_all(thinkings, [item_of(record) for record in records], [record["item"] for record in records])
        return [math.nan if judgement is None else judgement.score for judgement in judgements]

    def _judge_all(self, thinkings: Sequence[str], items: Sequence[Item], names: Sequence[str]) -> list[Judgement | None]:
        for row in zip(thinkings, items, names, strict=True):
            self._ask(*row)
        under_way, self._under_way = self._under_way, {}
        return [self._settle(*under_way[name, thinking], thinking, item)
                for thinking, item, name in zip(thinkings, items, names, strict=True)]

    def _ask(self, thinking: str, item: Item, name: str) -> None:
        if (name, thinking) not in self._under_way:
            by_rule = self.rule.judge(thinking, item)
            self._under_way[name, thinking] = by_rule, None if self.guard and by_rule.rating == "low" else self._submit(
                "check", name, check_messages(fact_rows(item.facts), item.question, item.answer, thinking), CheckReply)

    def _settle(self, by_rule: Judgement, future: Future | None, thinking: str, item: Item) -> Judgement | None:
        if future is None:
            self._counts["settled"] += 1
            return by_rule
        reply = self._reply(future)
        if reply is None:
            self._counts["fell_back" if self.policy == "rule" else "skipped"] += 1
            return by_rule if self.policy == "rule" else None
        is_capped = self.guard and reply.rating == "high" and _is_faulty(by_rule, thinking, item)
        self._counts["capped"] += is_capped
        reasons = (*reply.reasons, *(f"capped: {reason}" for reason in by_rule.reasons if is_capped))
        return Judgement("medium" if is_capped else reply.rating, reasons, by_rule.reading)


def fact_rows(facts: Sequence[Fact]) -> list[FactRow]:
    """Facts as requests carry them; 62.0 is written 62."""
    return [(fact.entity, fact.attribute, int(fact.value) if fact.value.is_integer() else fact.value, fact.unit)
            for fact in facts]


def _is_faulty(by_rule: Judgement, thinking: str, item: Item) -> bool:
    """True where the trace has a proven fault that rules out "high". A missing fact is no such fault: the model may know
    another way to the answer."""
    reading, last_sentence = by_rule.reading, re.split(r"[.!?]\s+", thinking.strip())[-1]
    closes = reading.conclusion.lower() == item.answer.lower() or _names(last_sentence, item.answer)
    return not (closes and reading.is_arithmetic_right and all(claim.is_right for claim in reading.claims))


def _names(sentence: str, answer: str) -> bool:
    """True where the answer stands in the sentence as a whole word."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", sentence.replace("**", ""), re.IGNORECASE) is not None
