"""What a trace says of the answer: winners, results, yes or no, wherever they stand, and the one that it ends on."""
from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from dyme_core.supervision.mentions import Token

_NAMES = r"[eas](?:[,&|]+[eas])*"
_VERDICT = re.compile(rf"(?:A[iI:=,]*|(?:^|[vz:=_]|[iI])[,&]?)[pPt]?(?P<names>{_NAMES})(?=[,&]?(?:$|[zv?])|[iI]?$)"
                      rf"|A[iI:=,]+[pPt]?(?P<names2>{_NAMES})|(?P<names3>{_NAMES})[iI]A")
_GAP = re.compile(r"D[pPiI=:Bte]*(n)(?![,&]n)|(n)D")
_TOPIC = re.compile(rf"[pPb]{_NAMES}")
_GAPS = re.compile(r"D[iI=:]*n(?:[,&]+n)+")
_EXTREME = re.compile(r"[XN][_pPzae]*[iI=:,]+[_e]?[pi,(]*t?[nm]|[XNGL][iI=:][nm]|[nm],?[iI][XNGL]|[nm],[XN](?![_pPae]*[iI:])")
_LEADS = re.compile(r"[vA][^ea]*$|[iI=:]$")  # "so", "the answer"; or "is" right before


@dataclass(frozen=True)
class Statement:
    """One thing that is said of the answer or on the way to it.

    Attributes:
        kind: "verdict": this name, number, yes or no; "most", "least": this name or number is the highest, the lowest; "gap":
            this number is a difference (of `entity`); "gaps": one of several, in order; "number": it stands without a name;
            "count": so many things; "result": a working ends on it; "fact": it is claimed of the picture; "mention": a name
            without a part in anything; "seen": the same where something is looked at.
        text: the name, number, yes or no as written.
        value: of a number.
        entity: named last before it.
        is_led: "so" or "the answer" leads to it.
        noun: "S", "D" or "M" where it is called a sum, a difference or an average.
    """

    kind: str
    text: str
    start: int
    end: int
    value: float | None = None
    entity: str | None = None
    is_led: bool = False
    noun: str = ""


def find_statements(sentence: Sequence[Token], used: Set[int], claimed: Set[int], entity: str | None) -> list[Statement]:
    """The statements of one sentence, in order.

    Args:
        used: places of tokens that workings take up.
        claimed: of names and numbers that are claims of facts.
        entity: the one named last in the sentences before.
    """
    shape = "".join("_" if place in used or place in claimed and token.kind != "n" else "m" if place in claimed else token.kind
                    for place, token in enumerate(sentence))
    found: dict[int, str] = {}
    for match in _GAP.finditer(shape):
        found[match.start(match.lastindex)] = "gap"
    for match in _GAPS.finditer(shape):
        found.update((place, "gaps") for place in range(*match.span()) if shape[place] == "n")
    for match in _EXTREME.finditer(shape):
        place = next(place for place in range(match.start(), match.end()) if shape[place] in "nm")
        word = next(shape[place] for place in range(match.start(), match.end()) if shape[place] in "XNGL")
        found.setdefault(place, "most" if word in "XG" else "least")
    for match in re.finditer("[XNSDM][iI=:]*y", shape):  # "the highest is Yes", "the sum is Yes"
        found[match.end() - 1] = "most"
    compared = [place for place, kind in enumerate(shape) if kind in "XNGLgl"]
    for place, kind in enumerate(shape):
        is_topic = kind == "a" and (shape[place - 1: place] in tuple("XNGL") or shape[place + 1: place + 2] in ("p", "P"))
        if kind in "eas" and compared and not is_topic:
            word = shape[min(compared, key=lambda other: abs(other - place))]
            found[place] = "most" if word in "XGg" else "least"
    for match in () if compared else _VERDICT.finditer(shape):
        found.update((place, "verdict") for place in range(*match.span(match.lastgroup)) if shape[place] in "eas")
    if "A" in shape:  # "Kenya: the answer is Peru"
        led = {place for match in _TOPIC.finditer(shape) for place in range(*match.span())}
        found.update((place, "verdict") for place, kind in enumerate(shape) if kind in "es" and place not in led | found.keys())
    mention = "seen" if "Q" in shape else "mention"
    for place, kind in enumerate(shape):
        default = {"y": "verdict", "n": "number", "c": "count", "e": mention, "a": mention, "s": mention, "m": "fact"}.get(kind)
        if default:
            found.setdefault(place, default)
    return [_statement(sentence, place, kind, shape, entity) for place, kind in sorted(found.items())]


def _statement(sentence: Sequence[Token], place: int, kind: str, shape: str, entity: str | None) -> Statement:
    token = sentence[place]
    after = sentence[place + 2] if re.match(r"[nm][pP]e", shape[place:]) else None
    named = (after.name if after else None, *(other.name for other in reversed(sentence[:place]) if other.kind == "e"), entity)
    return Statement(kind, token.name, token.start, token.end, token.value if token.kind in "nc" else None,
                     next((name for name in named if name), None), bool(_LEADS.search(shape[:place])),
                     next((word for word in reversed(shape[:place]) if word in "SDM"), ""))
