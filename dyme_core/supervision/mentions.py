"""The words of a trace that matter, in order: names of the chart, numbers, and strangers (names that the chart does not have).

Also which name follows its number and owns it ("62 in 2010"). All patterns are bounded: time grows with the text's length.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dyme_core.supervision.arithmetic import NUMBER

# Capitalised words that are no labels; any other one with a number counts as an entity that the picture does not show.
COMMON = frozenset("""about above add adding all also an and answer anyway are as at average bar bars because below both but by
    calculate calculation chart compare comparing comparison compute conclusion count counting difference each extract figure
    final finally first for from gap given graph greater grader hence here highest how however if ignore image important in
    is it its largest last later left let look looking lowest maximum mean median minimum next no not note now number of on only
    our over per percent picture please question rate rating ratio read reading reason result right same second see share since
    smallest so step still subtract subtracting sum system taking that the their them then there therefore these they thinking
    third this those thus to together total trace trust under value values we what when where which who with year years
    yes""".split())


_OWNER = re.compile(r"\s{0,3}%?\s{0,3}(?:\w{1,12}\s{1,3})?(?:(?:in|for|at|during|by)\s{1,3}(?:the\s{1,3})?|\(\s{0,3})", re.I)
_GLUE = re.compile(r"[\s,%]{0,6}(?:(?:and|or|respectively)\b|&)?[\s,]{0,6}", re.I)
STATES = re.compile(r"[\s*`]{0,4}(?:has|had|have|is|was|are|shows|showed|stands|stood|with|at|reaches|reached|[:=(])", re.I)
STATES_NUMBER = re.compile(STATES.pattern + r"\s{0,3}(?:\w{1,20}\s)?\d", re.I)
SENTENCE_END = re.compile(r"[.;!?](?=\s|$)|\n")


@dataclass(frozen=True)
class Word:
    """One word.

    Attributes:
        kind: "entity", "attribute", "number" or "stranger".
        name: as the facts spell it.
        start, end: its place.
        value: of a number.
        is_listed: only a comma or "and" stands between the name before and this one.
    """

    kind: str
    name: str
    start: int
    end: int
    value: float = 0.0
    is_listed: bool = False


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
        elif match["name"] or low not in usual and _may_be_label(text, match, words):
            kind = "stranger" if match["word"] else "entity" if low in entities else "attribute"
            is_listed = bool(words) and words[-1].kind != "number" and _GLUE.fullmatch(text, words[-1].end, match.start())
            name = entities.get(low) or attributes.get(low) or match.group()
            words.append(Word(kind, name, match.start(), match.end(), is_listed=bool(is_listed)))
    return words


@functools.lru_cache(maxsize=4096)  # the charts of a run: its training set and test sets; re's own cache holds 512 patterns
def _pattern(names: tuple[str, ...]) -> re.Pattern:
    """Names (those in capitals only as written: "MAY" is not "may"), numbers, capitalised words."""
    spelled = [f"(?-i:{re.escape(name)})" if name.isupper() else re.escape(name)
               for name in sorted(set(names), key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?P<name>{'|'.join(spelled) or '(?!)'})(?!\w)|(?<![\w.])(?P<number>{NUMBER})(?!\w)"
                      r"|(?<!\w)(?P<word>(?-i:[A-Z])[^\W\d_]{1,20})(?!\w)", re.IGNORECASE)


def _signed(text: str, match: re.Match) -> float:
    """The number's value; a minus that touches it and follows no number or bracket is its sign."""
    before = text[max(0, match.start() - 4): match.start()]
    is_negative = before.endswith("-") and not re.search(r"(?:[\d)%]\s*|\w)-$", before)
    value = float(match.group().replace(",", ""))
    return -value if is_negative else value


def _may_be_label(text: str, match: re.Match, words: Sequence[Word]) -> bool:
    """False for units ("287 TWh") and for a sentence's first word, unless it states a number or is all in capitals."""
    if words and words[-1].kind == "number" and not text[words[-1].end: match.start()].strip(" %"):
        return False
    before = text[max(0, match.start() - 4): match.start()].rstrip(" *`")
    is_first = not before or before[-1] in ".;:!?\n"
    return not is_first or match.group().isupper() or bool(STATES_NUMBER.match(text, match.end()))


def ends_sentence(text: str, start: int, end: int) -> bool:
    """True where a sentence ends between two places."""
    return bool(SENTENCE_END.search(text, start, end))


def owners_after(words: Sequence[Word], text: str) -> dict[int, list[Word]]:
    """Places of numbers -> the names that follow and own them.

    "62 in 2010", "62 for FAV in 2010", and lists: "3, 9 and 13 for A, B and C", "62 and 36 in 2010".
    """
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
