"""Traces as a teacher writes them: right and natural, but worded in many ways and as long as the teacher likes.

A refined target has one structure, in words that the student knows. A teacher's trace is drawn from a grammar: a wording
chooses how a trace opens, states facts, works and ends. All is declared here and follows from the item, its name and three
dials.
"""
from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dyme_core.data.schema import Fact, Item, write_number

# {l} what has to be located first.
OPENINGS = ("First, we look at {l}.", "", "We look at the chart and read the values.", "First, we find {l} in the figure.",
            "First, read the chart.", "We locate {l} in the chart.", "We compare the values of {l}.")
# How the values of a group are stated (lead, one group, glue): {e} the group, {v} its values, {n} the same with their names.
FACTS = (("We read in ", "{e} {v}", ", in "), ("Then, ", "{e} has {v}", ", "), ("We see ", "{e} has {n}", ", "),
         ("Then, ", "{e}: {n}", "; "), ("Then, in ", "{e} we find {v}", ", in "), ("We find ", "{e} = {v}", ", "),
         ("Then, we extract ", "{e} ({n})", ", "), ("We read ", "{e} has {n}", "; "))
# {w} the working.
WORKINGS = ("We compare: {w}.", "Then, {w}.", "Calculate {w}.", "Compare {w}.", "Then we find {w}.")
# {c} the conclusion, {a} the answer.
ENDINGS = ("Therefore, the answer is {a}.", "Then, {c}.", "We see {c}.", "Therefore, {c}.", "We give the final answer {a}.",
           "Then, the result is {a}.")
# Words that the base has seen -> words that it has not; a wording takes one of each.
NEW_WORDS = {"has": ("shows", "reaches", "records", "displays"), "look at": ("inspect", "examine", "view"),
             "find": ("note", "observe", "notice"), "locate": ("identify", "focus on"), "chart": ("graph", "plot", "diagram"),
             "figure": ("picture", "image"), "read": ("take", "observe"), "see": ("note", "notice"),
             "Then": ("Next", "Now", "After that"), "First": ("Initially", "Firstly"),
             "Therefore": ("Hence", "Thus", "So", "Consequently"), "Calculate": ("Computing", "Working out"),
             "We": ("I", "One can"), "extract": ("list", "take"), "=": ("equals", "makes"), "+": ("plus",), "-": ("minus",),
             ">": ("exceeds", "is above", "is more than"), "<": ("is below", "is less than", "is under")}


@dataclass(frozen=True)
class Wording:
    """One way to write a trace: places in the lists above, and in the lists of new words."""

    opening: int
    facts: int
    working: int
    ending: int

    def write(self, item: Item, length: int = 1, has_new_words: bool = False) -> str:
        """The thinking for `item` (see `teacher_trace`)."""
        opening, end = self._pick(OPENINGS, self.opening, item), self._end(item)
        working = self._pick(WORKINGS, self.working, item)
        facts, every = self._facts(item.evidence), self._facts(item.facts)
        other = Wording(self.opening + 1, self.facts + 1, self.working + 1, self.ending + 1)
        check = [other._pick(WORKINGS, other.working, item), other._end(item)]
        parts = [opening, facts, working, end] if length == 1 else [item.question, opening, every, working, end, *check]
        text = " ".join(part for part in parts if part)
        return self._reword(text, item.question) if has_new_words else text

    def _pick(self, patterns: Sequence[str], place: int, item: Item) -> str:
        pattern = patterns[place % len(patterns)]
        return "" if "{w}" in pattern and not item.working else pattern.format(l=" and ".join(item.labels), w=item.working)

    def _facts(self, facts: Sequence[Fact]) -> str:
        lead, pattern, glue = FACTS[self.facts % len(FACTS)]
        groups = [(entity, list(own)) for entity, own in itertools.groupby(facts, lambda fact: fact.entity)]
        return lead + glue.join(pattern.format(
            e=entity, v=" and ".join(write_number(fact.value) for fact in own),
            n=" and ".join(f"{fact.attribute} {write_number(fact.value)}" for fact in own)) for entity, own in groups) + "."

    def _end(self, item: Item) -> str:
        return ENDINGS[self.ending % len(ENDINGS)].format(c=item.conclusion, a=item.answer)

    def _reword(self, text: str, question: str) -> str:
        """The text, but for the question, in words that the base has not seen."""
        place = self.opening + self.facts + self.working + self.ending
        words = "|".join(rf"(?<!\S){re.escape(word)}(?![^\s,.])" for word in NEW_WORDS)
        kept, rest = (question, text.removeprefix(question)) if text.startswith(question) else ("", text)
        return kept + re.sub(words, lambda found: NEW_WORDS[found[0]][place % len(NEW_WORDS[found[0]])], rest)


def _wordings(count: int) -> tuple[Wording, ...]:
    places = itertools.product(*(range(len(each)) for each in (OPENINGS, FACTS, WORKINGS, ENDINGS)))
    every = [Wording(*each) for each in places]
    return (every[0], *random.Random("wordings").sample(every[1:], count - 1))


WORDINGS = _wordings(40)


def teacher_trace(item: Item, name: str, num_wordings: int = 11, length: int = 1, has_new_words: bool = False) -> str:
    """The thinking that the teacher writes for `item`, in one of the first `num_wordings` of WORDINGS.

    Args:
        item: a mini question with its evidence and working.
        name: of the record; it draws the wording.
        num_wordings: at most 40.
        length: 1, the facts that the answer rests on, the working and the answer; 2, the question, every fact of the picture
            and the working twice, which is about twice as long.
        has_new_words: use words that the base has not seen.
    """
    return WORDINGS[random.Random(f"teacher {name}").randrange(num_wordings)].write(item, length, has_new_words)


def teacher_words() -> list[str]:
    """Every word of the grammar, for the tokenizer."""
    patterns = (*OPENINGS, *(part for facts in FACTS for part in facts), *WORKINGS, *ENDINGS,
                *(word for words in NEW_WORDS.values() for word in words))
    return list(dict.fromkeys(re.findall(r"[A-Za-z]{1,20}", re.sub(r"{\w}", " ", " ".join(patterns)))))
