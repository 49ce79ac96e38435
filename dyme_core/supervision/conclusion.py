"""What a trace concludes on, and which of its numbers say nothing about the picture."""
from __future__ import annotations

import bisect
import re
from collections.abc import Sequence

from dyme_core.supervision.arithmetic import Chain
from dyme_core.supervision.mentions import SENTENCE_END, STATES, Word

LAST_SENTENCES = 20  # searched for a conclusion, from the end

_NO_CLAIM_BEFORE = re.compile(r"\b(?:step|above|below|over|under|than|exceed(?:s|ing)?|threshold of|limit of)\s{0,3}$", re.I)
_NO_CLAIM_AFTER = re.compile(r"\s{1,3}(?:of|values|bars|groups|numbers|labels|marks|categories|countries|months)\b", re.I)
_CLOSING = re.compile(r"(?:\b(?:is|are|was|equals|approximately|about|of|gives|makes|yields|reaches|to|be|in)|[=:])"
                      r"[\s*`$]{0,4}$", re.I)
_CONCLUDES = re.compile(r"\W{0,5}(?:therefore|so|thus|hence|finally|this shows|the answer)\b", re.I)
_VERDICT = re.compile(r"\b(yes|no)\b[^\w]{0,20}$", re.I)


def closing_place(words: Sequence[Word], text: str, results: set[float]) -> int | None:
    """Place of the number that the text closes on ("... is 8.3"), None where it closes on a name or states a fact last."""
    place = max((place for place, word in enumerate(words) if _may_close(word, text)), default=None)
    if place is None or words[place].kind != "number" or not _is_led_to(words[place], text):
        return None
    before, number = words[place - 1] if place else None, words[place]
    states = before and before.kind in ("entity", "stranger") and STATES.match(text, before.end, number.start)
    return None if states and abs(number.value) not in results else place


def _is_led_to(word: Word, text: str) -> bool:
    return bool(_CLOSING.search(text, max(0, word.start - 30), word.start))


def _may_close(word: Word, text: str) -> bool:
    """A stranger ends a text only after "is" or "in"; anything may follow the conclusion."""
    return word.kind != "stranger" or bool(re.search(r"\b(?:is|in)[\s*`]{1,4}$", text[max(0, word.start - 8): word.start]))


def conclusion(words: Sequence[Word], text: str, chains: Sequence[Chain] = ()) -> str:
    """The yes or no, number or name that the text concludes on.

    That is what the last sentence with "therefore", "so", "the answer" leads to, whatever follows it; without such a
    sentence, the last word.
    """
    for start, end in reversed(_sentences(text)[-LAST_SENTENCES:]):
        if _CONCLUDES.match(text, start):
            verdict = _VERDICT.search(text, max(start, end - 40), end)
            inside = [word for word in words if start <= word.start < end and _may_close(word, text)]
            if verdict or inside and _is_led_to(inside[-1], text) and not _is_in(inside[-1], chains):
                return verdict[1] if verdict else text[inside[-1].start: inside[-1].end]
    verdict = _VERDICT.search(text, max(0, len(text) - 40))
    if verdict:
        return verdict[1]
    return next((text[word.start: word.end] for word in reversed(words) if _may_close(word, text)), "")


def _sentences(text: str) -> list[tuple[int, int]]:
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return list(zip([0, *ends], [*ends, len(text)], strict=True))


def _is_in(word: Word, chains: Sequence[Chain]) -> bool:
    place = bisect.bisect_right(chains, word.start, key=lambda chain: chain.start) - 1
    return place >= 0 and word.start < chains[place].end


def is_no_claim(words: Sequence[Word], place: int, text: str, chains: Sequence[Chain], results: set[float]) -> bool:
    """True for numbers that say nothing about the picture.

    Those are numbers of the working, repeated results, bounds ("above 50"), counts ("3 bars"), list numbers ("1. "), and
    answers: what "therefore ... is" or "the answer is" leads to without a name.
    """
    word = words[place]
    if _is_in(word, chains) or _is_answer(words, place, text):
        return True
    is_retold = abs(word.value) in results and chains[0].end <= word.start
    starts_line = not text[max(0, word.start - 8): word.start].rpartition("\n")[2].strip(" (")
    return bool(is_retold or _NO_CLAIM_BEFORE.search(text, max(0, word.start - 20), word.start)
                or _NO_CLAIM_AFTER.match(text, word.end) or starts_line and re.match(r"[.)]\s", text[word.end: word.end + 2]))


def _is_answer(words: Sequence[Word], place: int, text: str) -> bool:
    word = words[place]
    start = max(0, word.start - 200)
    start = max((end.end() for end in SENTENCE_END.finditer(text, start, word.start)), default=start)
    has_name = place > 0 and words[place - 1].start >= start and words[place - 1].kind != "number"
    return bool(not has_name and _CONCLUDES.match(text, start) and _is_led_to(word, text))
