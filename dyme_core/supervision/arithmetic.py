"""The workings of a trace: sums, differences and comparisons in signs or in words, found by their shape and computed again.

"62 - 36 = 26 < 65 - 35 = 30", "the sum of 94 and 37 is 131", "45 is not above 50", "good leads by 26". A number
may stand with its name: "94 (March) + 37 in June".
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dyme_core.data.numbers import decimals
from dyme_core.supervision.mentions import Token

_NUM = r"(?:(?<![^,z&])[ip]n,[ea]|[ea]{1,2}\(n\)|(?:[ea]{1,2}[ipI:=]{0,2})?n(?:\([ea]{1,2}\)|(?:[pP][ea]){1,2})?)"
_ITEM = rf"(?:{_NUM}|(?:D[pP]?)?[ea]{{1,2}}D?)"
_LIST = rf"{_NUM}(?:[,&t]+{_NUM})+"
_REST = rf"(?:[-+*/]\(*{_NUM}\)*|[*/]c\)*)"
_SIDE, _SUMMED = (rf"\(*{_NUM}\)*{_REST}{times}" for times in "*+")
_THAN = r"(?:,?[iI])?!?(?:[<>lg]|[GL][ae]?h(?:a?[pP])?)"
_IS = r"(?:[iI]?=|[iI:])"
_END = r"(?![-+*/])"
_NOT = r"(?![-+*/=<>lgGLBiI!(:])"
_RIGHT = rf"(?:{_ITEM}(?:,{_ITEM})*&+{_ITEM}{_NOT}|{_ITEM}(?:[,&]+{_NUM}{_NOT})*|o?q)"
_ITEMS = rf"{_ITEM}(?:[,&]+{_ITEM}{_NOT})*"
_SHAPES = re.compile("|".join((
    rf"(?P<margin>(?P<m_left>{_ITEM})[iI]?(?:g|l|[GL][ae]?h?)(?P<m_right>{_ITEM})?B(?P<m_by>n)"
    rf"|(?P<m_left2>{_ITEM}),?[iI](?P<m_by2>n)(?:[gl]|[GL]h)(?P<m_right2>{_ITEM}(?![ip:]?n))"
    rf"|(?P<m_by3>n)[GL](?P<m_left3>[ea]{{1,2}})h(?P<m_right3>[ea]{{1,2}}))",
    rf"(?P<chain>(?:{_SUMMED}(?:,?(?:{_THAN}|{_IS}){_SIDE})*|{_SIDE}(?:(?:[iI]?=|{_THAN}){_SIDE})+)"
    rf"(?![,&]+{_NUM}{_NOT}|c))",
    rf"(?P<sum>[ST]+[pPb:]?(?P<s_list>{_LIST}),?{_IS}(?P<s_is>{_NUM}){_END}"
    rf"|(?P<s_list2>{_LIST})[,&z]*T+=?(?P<s_is2>{_NUM}){_END})",
    rf"(?P<mean>M[pPb:]?(?P<a_list>{_LIST}),?{_IS}(?P<a_is>{_NUM}){_END})",
    rf"(?P<minus>D[pPb](?P<d_a>{_NUM})[&t](?P<d_b>{_NUM}),?{_IS}(?P<d_is>{_NUM}){_END}"
    rf"|d(?P<d_b2>{_NUM})f(?P<d_a2>{_NUM})[,&]*{_IS}(?P<d_is2>{_NUM}){_END})",
    rf"(?P<back>(?P<b_sum>T+q?[,z]*[=iI])(?P<b_is>n){_END}|(?P<b_minus>d[LGNXfq]*[,z]*=)(?P<b_is2>n){_END}"
    rf"|(?:V(?P<b_of>n)?B|/)(?P<b_by>[nc]),?{_IS}(?P<b_is3>n){_END})",
    rf"(?P<many>(?:{_ITEM}[,&]+)*{_ITEM}&{_ITEM}(?:,?I!?(?:[lg]|[GL][ae]?h)|!?[lg]))(?P<many_to>{_NUM}|o?q){_END}"
    rf"(?:[,&z]+(?P<rest>{_ITEM}(?:[,&]+{_ITEM})*)[iI]?!(?=[,&z]|$))?",
    rf"(?P<among>(?:[lg]|[GL]h)n[:,]?[iI]?)(?P<among_is>{_ITEMS})(?![-+*/=<>lgGL!(:])",
    rf"(?P<others>o?q)(?P<others_is>{_THAN})(?P<others_to>{_ITEM})",
    rf"(?P<than>{_ITEM}(?P<than_is>{_THAN}))(?P<than_to>{_RIGHT})")))


_BETWEEN = re.compile(rf",?(?:{_THAN}|{_IS})")  # two sides
_PIECE = re.compile(rf"(?P<num>{_NUM}|c)|(?P<sign>[-+*/()])")  # of a side


@dataclass(frozen=True)
class Term:
    """A number of a working, or a name in place of one ("May is above June"), with the names that stand at it."""

    value: float | None
    start: int
    end: int
    owners: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Side:
    """One side of a relation.

    Attributes:
        value: computed; None where only a name stands, or where words refer back ("adding them").
        form: number -> how often it is added, for sums, differences and their multiples: "(8 - 2) / 3" is {8: 1/3, 2: -1/3}.
        terms: its numbers, without those that it is divided or multiplied by.
        factors: these.
        does: "+", "-" where words refer back to the facts; "q" for "all the others".
    """

    value: float | None
    form: dict[float, float] = field(default_factory=dict)
    terms: tuple[Term, ...] = ()
    factors: tuple[float, ...] = ()
    operators: str = ""
    does: str = ""

    @property
    def is_plain(self) -> bool:
        return not self.operators and not self.does


@dataclass(frozen=True)
class Working:
    """One piece of working: its place, the relations ("=", "<", ">", "≤", "≥") between neighbouring sides, and the entity that
    was named last before it."""

    start: int
    end: int
    sides: tuple[Side, ...]
    relations: tuple[str, ...]
    entity: str | None = None

    @property
    def pairs(self) -> Iterator[tuple[Side, str, Side]]:
        return zip(self.sides[:-1], self.relations, self.sides[1:], strict=True)


def find_workings(sentence: Sequence[Token], entity: str | None = None) -> tuple[list[Working], set[int]]:
    """The workings of a sentence, and the places of the tokens that they take up."""
    shape = "".join(token.kind for token in sentence)
    workings: list[Working] = []
    used: set[int] = set()
    if not re.search(r"[nc]|[ea].*[lgh]", shape):
        return workings, used
    for match in _SHAPES.finditer(shape):
        named = match.end() + 2 if re.match("[pP]e", shape[match.end(): match.end() + 2]) else match.end()
        about = next((token.name for token in reversed(sentence[:named]) if token.kind == "e"), entity)
        found = list(_read(match, sentence, about))
        workings += found
        if found:
            used.update(range(match.start(), match.end()))
    return workings, used


def _read(match: re.Match, sentence: Sequence[Token], entity: str | None) -> Iterator[Working]:
    group = {name: _Part(sentence, match.string, *match.span(name))
             for name, text in match.groupdict().items() if text is not None}
    start, end = sentence[match.start()].start, sentence[match.end() - 1].end

    def working(*sides: Side, relations: str) -> Working:
        return Working(start, end, sides, tuple(relations), entity)

    def first(*names: str) -> _Part:
        return next((group[name] for name in names if name in group), None)

    if "margin" in group:
        left, right, by = (first(f"m_{part}", f"m_{part}2", f"m_{part}3") for part in ("left", "right", "by"))
        is_less = bool(re.search("[lL]", match.group()))
        if right is None:  # "good leads by 26"
            yield working(Side(None, terms=left.side().terms, does="q<" if is_less else "q>"), by.side(), relations="=")
        else:
            sides = (right.side(), left.side()) if is_less else (left.side(), right.side())
            yield working(_combined(sides, (1, -1), "-"), by.side(), relations="=")
    elif "chain" in group:
        sides, relations = _chain(group["chain"])
        yield working(*sides, relations="".join(relations))
    elif "sum" in group or "mean" in group:
        parts = first("s_list", "s_list2", "a_list").items()
        yield working(_combined(parts, [1 / (len(parts) if "mean" in group else 1)] * len(parts), "+"),
                      first("s_is", "s_is2", "a_is").side(), relations="=")
    elif "minus" in group:
        a, b, result = first("d_a", "d_a2").side(), first("d_b", "d_b2").side(), first("d_is", "d_is2").side()
        if "d_a" in group and a.value < b.value:  # "the difference between 36 and 62"
            a, b = b, a
        yield working(_combined((a, b), (1, -1), "-"), result, relations="=")
    elif "back" in group:
        result = first("b_is", "b_is2", "b_is3").side()
        does = "+" if "b_sum" in group else "-" if "b_minus" in group else "/"
        by = (first("b_by").side().value,) if "b_by" in group else ()
        if "b_of" in group and by[0]:  # "dividing 24.9 by 3"
            of = group["b_of"].side()
            quotient = Side(of.value / by[0], {key: times / by[0] for key, times in of.form.items()}, of.terms, by, "/")
            yield working(quotient, result, relations="=")
        else:
            yield working(Side(None, factors=by, does=does), result, relations="=")
    elif "many" in group:
        names, right = group["many"].items(), group["many_to"].side()
        if match.group("many")[-1] in "lg" and sentence[match.end("many") - 1].name.endswith("s"):
            names = names[-1:]  # "... and June exceeds 50"
        sign = _relation(match.group("many"))
        yield from (working(left, right, relations=sign) for left in names)
        if "rest" in group:
            yield from (working(left, right, relations=_NEGATED[sign]) for left in group["rest"].items())
    elif "among" in group:
        limit = Side(sentence[match.start() + match.group("among").index("n")].value)
        yield from (working(left, limit, relations=_relation(match.group("among"))) for left in group["among_is"].items())
    elif "others" in group:  # "all others are below 94"
        yield working(group["others_to"].side(), Side(None, does="q"), relations=_SWAPPED[_relation(match.group("others_is"))])
    else:
        left, sign = group["than"].items()[0], _relation(match.group("than_is"))
        yield from (working(left, right, relations=sign) for right in group["than_to"].items())


_NEGATED = {"<": "\u2265", ">": "\u2264"}
_SWAPPED = {"<": ">", ">": "<", "\u2265": "\u2264", "\u2264": "\u2265"}


def _relation(shape: str) -> str:
    sign = "<" if re.search("[<lL]", shape) else ">"
    return _NEGATED[sign] if "!" in shape else sign


def _chain(part: _Part) -> tuple[list[Side], list[str]]:
    """"62 - 36 = 26 < 65 - 35 = 30": sides, and the relations between them."""
    sides, relations = [], []
    places = [0, *(place for match in _BETWEEN.finditer(part.shape) if _divides(part.shape, match)
                   for place in match.span()), len(part.shape)]
    for begin, stop in zip(places[::2], places[1::2], strict=True):
        sides.append(part.cut(begin, stop).side())
    for begin, stop in zip(places[1:-1:2], places[2:-1:2], strict=True):
        shape = part.shape[begin: stop]
        relations.append(_relation(shape) if re.search("[<>lgGL]", shape) else "=")
    return sides, relations


def _divides(shape: str, match: re.Match) -> bool:
    """False for an "is" or "=" between a name and its number ("May = 45 > June = 37", "May is 45 - 37")."""
    before = shape[: match.start()]
    return bool(re.search("[<>lgGL]", match.group())) or not re.search(r"(?:^|[-+*/(<>=lgh])[ea]{1,2}$", before)


@dataclass(frozen=True)
class _Part:
    """A stretch of a sentence: all of it, or one operand."""

    sentence: Sequence[Token]
    whole: str  # the sentence's shape
    start: int
    end: int

    @property
    def shape(self) -> str:
        return self.whole[self.start: self.end]

    def cut(self, begin: int, end: int) -> _Part:
        return _Part(self.sentence, self.whole, self.start + begin, self.start + end)

    def items(self) -> list[Side]:
        if "q" in self.shape:
            return [Side(None, does="q")]
        return [self.cut(*match.span()).side() for match in re.finditer(_ITEM, self.shape)]

    def side(self) -> Side:
        """The value of the stretch: brackets first, then products, then sums."""
        if "q" in self.shape:
            return Side(None, does="q")
        if not re.search("[nc]", self.shape):
            names = tuple(token for token in self.sentence[self.start: self.end] if token.kind in "ea")
            return Side(None, terms=(Term(None, names[0].start, names[-1].end, names),)) if names else Side(math.nan)
        pieces: list[Side | str] = []
        at = 0
        for match in _PIECE.finditer(self.shape):
            if match["num"]:
                pieces.append(self._number(*match.span()))
            else:
                pieces.append(match["sign"])
            at = match.end()
        return _sum(pieces[::-1]) if at else Side(None)

    def _number(self, begin: int, end: int) -> Side:
        tokens = self.sentence[self.start + begin: self.start + end]
        number = next(token for token in tokens if token.kind in "nc")
        before = self.sentence[max(0, self.start + begin - 2): self.start + begin]
        in_list = len(before) == 2 and before[0].kind in "ea" and before[1].kind in ",&|"  # "March and June: 94 + 37"
        names = tuple(token for token in tokens if token.kind in "ea" and not (in_list and token.start < number.start))
        term = Term(number.value, number.start, number.end, names)
        return Side(number.value, {abs(number.value): math.copysign(1.0, number.value)}, (term,))


def _sum(pieces: list[Side | str]) -> Side:
    total = _product(pieces)
    while pieces and pieces[-1] in ("+", "-"):
        sign = pieces.pop()
        total = _combined((total, _product(pieces)), (1, 1 if sign == "+" else -1), sign)
    return total


def _product(pieces: list[Side | str]) -> Side:
    total = _factor(pieces)
    while pieces and pieces[-1] in ("*", "/"):
        sign, factor = pieces.pop(), _factor(pieces)
        if factor.value is None or total.value is None or sign == "/" and not factor.value:
            return Side(math.nan, operators=sign)
        times = factor.value if sign == "*" else 1 / factor.value
        total = Side(total.value * times, {key: count * times for key, count in total.form.items()}, total.terms,
                     (*total.factors, *factor.factors, factor.value), total.operators + factor.operators + sign)
    return total


def _factor(pieces: list[Side | str]) -> Side:
    piece = pieces.pop() if pieces else ""
    if isinstance(piece, Side):
        return piece
    if piece != "(":
        return Side(math.nan)
    inside = _sum(pieces)
    if pieces and pieces[-1] == ")":
        pieces.pop()
    return inside


def _combined(sides: Iterable[Side], times: Iterable[float], operators: str) -> Side:
    """The sum of sides, each so many times; None as value where one of them is a name."""
    form: dict[float, float] = {}
    value, terms, factors = 0.0, (), ()
    for side, count in zip(sides, times, strict=True):
        value = None if value is None or side.value is None else value + count * side.value
        for key, each in side.form.items():
            form[key] = form.get(key, 0.0) + count * each
        terms, factors, operators = (*terms, *(side.terms or ())), (*factors, *side.factors), operators + side.operators
    return Side(value, form, terms, factors, operators)


def holds(left: Side, relation: str, right: Side, is_rounded: bool) -> bool:
    """True where a relation between two computed sides holds; a product or quotient may be rounded, by at most 1 %."""
    if relation != "=":
        return {"<": left.value < right.value, ">": left.value > right.value, "\u2264": left.value <= right.value,
                "\u2265": left.value >= right.value}[relation]
    gap, rounding = abs(left.value - right.value), 0.5 * 10.0 ** -decimals(right.value)
    return gap <= 1e-9 * max(1.0, abs(right.value)) or is_rounded and gap <= min(rounding + 1e-9, 0.01 * abs(left.value))
