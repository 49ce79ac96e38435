"""The words of a trace that matter, in order: names of the chart, numbers, and strangers (names that the chart does not have).

Also how words belong together: which name follows its number ("62 in 2010"), which numbers are no claims, where the text
closes. All patterns are bounded, so that time grows in proportion to the text.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dyme_core.arithmetic import NUMBER, Chain

# Capitalised words that are no labels; any other that owns a number is taken for an entity which the picture does not show.
COMMON = frozenset("""about above add adding all also an and answer anyway are as at average bar bars because below both but by
    calculate calculation chart compare comparing comparison compute conclusion count counting difference each extract figure
    final finally first for from gap given graph greater grader hence here highest how however if ignore image important in is it
    its largest last later left let look looking lowest maximum mean median minimum next no not note now number of on only our
    over per percent picture please question rate rating ratio read reading reason result right same second see share since
    smallest so step still subtract subtracting sum system taking that the their them then there therefore these they thinking
    third this those thus to together total trace trust under value values we what when where which who with year years
    yes""".split())
NO_CLAIM_BEFORE = re.compile(r"\b(?:step|above|below|over|under|than|exceed(?:s|ing)?|threshold of|limit of)\s{0,3}$", re.I)
NO_CLAIM_AFTER = re.compile(r"\s{1,3}(?:of|values|bars|groups|numbers|labels|marks|categories|countries|months)\b", re.I)

_OWNER = re.compile(r"\s{0,3}%?\s{0,3}(?:\w{1,12}\s{1,3})?(?:(?:in|for|at|during|by)\s{1,3}(?:the\s{1,3})?|\(\s{0,3})", re.I)
_GLUE = re.compile(r"[\s,%]{0,6}(?:(?:and|or|respectively)\b|&)?[\s,]{0,6}", re.I)
_CLOSING = re.compile(r"(?:\b(?:is|are|was|equals|approximately|about|of|gives|makes|yields|reaches|to|be)|[=:])[\s*`$]{0,4}$", re.I)
_STATES = re.compile(r"[\s*`]{0,4}(?:has|had|have|is|was|are|shows|showed|stands|stood|with|at|reaches|reached|[:=(])", re.I)
_SENTENCE_END = re.compile(r"[.;!?](?=\s|$)|\n")


@dataclass(frozen=True)
class Word:
    """One word: `kind` is "entity", "attribute", "number" or "stranger"; `name` as the facts spell it."""

    kind: str
    name: str
    start: int
    end: int
    value: float = 0.0


def find_words(text: str, entities: Mapping[str, str], attributes: Mapping[str, str], question: str = "") -> list[Word]:
    """The words of `text` in order.

    Args:
        text: in signs (`arithmetic.into_signs`).
        entities, attributes: lower-case name -> name as the facts spell it; a name that is both counts as entity here.
        question: its words are no strangers.
    """
    usual = COMMON | {word.lower() for word in re.findall(r"\w+", question)}
    words: list[Word] = []
    for match in _pattern((*entities.values(), *attributes.values())).finditer(text):
        low = match.group().lower()
        if match["number"]:
            words.append(Word("number", match.group(), match.start(), match.end(), _signed(text, match)))
        elif match["name"]:
            kind = "entity" if low in entities else "attribute"
            words.append(Word(kind, entities.get(low) or attributes[low], match.start(), match.end()))
        elif low not in usual and _may_be_label(text, match, words):
            words.append(Word("stranger", match.group(), match.start(), match.end()))
    return words


def _pattern(names: Sequence[str]) -> re.Pattern:
    """Names (in capitals only as written, for "MAY" is no "may"), numbers, capitalised words."""
    spelled = [f"(?-i:{re.escape(name)})" if name.isupper() else re.escape(name)
               for name in sorted(set(names), key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?P<name>{'|'.join(spelled) or '(?!)'})(?!\w)|(?<![\w.])(?P<number>{NUMBER})(?!\w)"
                      r"|(?<!\w)(?P<word>(?-i:[A-Z])[^\W\d_]{1,20})(?!\w)", re.IGNORECASE)


def _signed(text: str, match: re.Match) -> float:
    """The number's value; a minus that touches it and follows no number or bracket is its sign."""
    before = text[max(0, match.start() - 4): match.start()]
    is_negative = before.endswith("-") and not re.search(r"[\w)%]\s*-$", before.replace("and", "   "))
    value = float(match.group().replace(",", ""))
    return -value if is_negative else value


def _may_be_label(text: str, match: re.Match, words: Sequence[Word]) -> bool:
    """False for units ("287 TWh") and for a sentence's first word, unless it states something or is all in capitals."""
    if words and words[-1].kind == "number" and not text[words[-1].end: match.start()].strip(" %"):
        return False
    before = text[max(0, match.start() - 4): match.start()].rstrip(" *`")
    is_first = not before or before[-1] in ".;:!?\n"
    return not is_first or match.group().isupper() or bool(_STATES.match(text, match.end()))


def ends_sentence(text: str, start: int, end: int) -> bool:
    """True where a sentence ends between two places."""
    return bool(_SENTENCE_END.search(text, start, end))


def owners_after(words: Sequence[Word], text: str) -> dict[int, list[Word]]:
    """Places of numbers -> the names that follow and own them: "62 in 2010", "62 for FAV in 2010", "3, 9 and 13 for A, B and C"."""
    owned: dict[int, list[Word]] = {}
    for run in _runs(words, text):
        names = _names_after(words, run[-1], text)
        if len(run) > 1 and len(names) == len(run) and len({name.kind for name in names}) == 1:
            owned |= {place: [name] for place, name in zip(run, names, strict=True)}
        elif names and len(run) > 1 and (run[0] == 0 or words[run[0] - 1].kind != "entity") and names[0].kind == "entity":
            owned |= {place: names[:1] for place in run}
        elif names:
            owned[run[-1]] = _chained(words, run[-1], text)
    return owned


def _runs(words: Sequence[Word], text: str) -> list[list[int]]:
    """Places of numbers with nothing but commas and "and" between them."""
    runs: list[list[int]] = []
    for place, word in enumerate(words):
        if word.kind != "number":
            continue
        if runs and runs[-1][-1] == place - 1 and _GLUE.fullmatch(text, words[place - 1].end, word.start):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _names_after(words: Sequence[Word], place: int, text: str) -> list[Word]:
    """The list of names that a preposition right after a number leads to."""
    names: list[Word] = []
    for word in words[place + 1: place + 20]:
        before = words[place + len(names)]
        link = _GLUE if names else _OWNER
        if word.kind == "number" or not link.fullmatch(text, before.end, word.start):
            break
        names.append(word)
    return names


def _chained(words: Sequence[Word], place: int, text: str) -> list[Word]:
    """One name after a number, and one more after that: "62 for FAV in 2010"."""
    names: list[Word] = []
    for word in words[place + 1: place + 3]:
        before = words[place + len(names)]
        if word.kind == "number" or not _OWNER.fullmatch(text, before.end, word.start) or word.kind in {n.kind for n in names}:
            break
        names.append(word)
    return names


def closing_place(words: Sequence[Word], text: str, results: set[float]) -> int | None:
    """Place of the number that the text closes on ("... is 8.3"), None where it closes on a name or states a fact last."""
    if not words or words[-1].kind != "number" or not _CLOSING.search(text, max(0, words[-1].start - 30), words[-1].start):
        return None
    number = words[-1]
    states = len(words) > 1 and words[-2].kind in ("entity", "stranger") and _STATES.match(text, words[-2].end, number.start)
    return None if states and abs(number.value) not in results else len(words) - 1


def conclusion(words: Sequence[Word], text: str) -> str:
    """The yes or no, number or name that the text ends on; a stranger only where "is" or "in" leads to it."""
    verdict = re.search(r"\b(yes|no)\b\W{0,20}$", text[-40:], re.IGNORECASE)
    if verdict:
        return verdict[1]
    for word in reversed(words):
        if word.kind != "stranger" or re.search(r"\b(?:is|in)[\s*`]{1,4}$", text[max(0, word.start - 8): word.start]):
            return text[word.start: word.end]
    return ""


def is_no_claim(word: Word, text: str, chains: Sequence[Chain], results: set[float]) -> bool:
    """True for numbers of the working, results told again, bounds ("above 50"), counts ("3 bars") and list numbers ("1. ")."""
    if any(chain.start <= word.start < chain.end for chain in chains):
        return True
    is_retold = abs(word.value) in results and any(chain.end <= word.start for chain in chains)
    starts_line = text[:word.start].rpartition("\n")[2].strip(" (") == ""
    return bool(is_retold or NO_CLAIM_BEFORE.search(text, max(0, word.start - 20), word.start)
                or NO_CLAIM_AFTER.match(text, word.end) or starts_line and re.match(r"[.)]\s", text[word.end: word.end + 2]))
