"""The arithmetic of a trace: written in signs or in words, found and computed again.

Words become signs of the same length ("62 minus 36 equals 26", "the sum of 55 and 46 is 101"), so that every position in the
text stays the same. All patterns are bounded: a text of any length takes time in proportion to it.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = r"\d{1,12}(?:,\d{3})+(?:\.\d{1,12})?|\d{1,15}(?:\.\d{1,12})?"
OPERATORS = "-+*/=<>"  # the minus first: these stand inside a character class
SMALL_COUNT = 10  # numbers up to this may be counts (the 3 of a mean) that the picture does not show
UNICODE_SIGNS = {"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2264": "<", "\u2265": ">"}

_LEVELS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
           "/": lambda a, b: a / b if b else float("nan")}
_ARE = r"(?:is |are |was |were )?"
_WORDS = (("+", "plus"), ("-", "minus"), ("*", r"times|multiplied by"), ("/", r"divided by"),
          ("=", r"equals|is equal to|gives|makes|yields|comes to"),
          (">", _ARE + r"(?:greater|more|larger|higher|bigger) than|exceeds|is above"),
          ("<", _ARE + r"(?:less|smaller|lower|fewer) than|is below"))
_SPOKEN = [(sign, re.compile(rf"(?<=[\d)%])\s{{1,3}}(?:{words})\s{{1,3}}(?=[\d(])", re.IGNORECASE)) for sign, words in _WORDS]
_RESULT = r"(?P<is>\s(?:is|equals|gives|makes|yields|are|=)\s{1,3})(?P<result>\d)"
_SUM = re.compile(rf"\b(?P<what>sum of|total of|adding|difference between|difference of|subtracting)\s{{1,3}}(?P<a>{NUMBER})%?"
                  rf"(?P<glue>\s(?:and|from|to)\s{{1,3}})(?P<b>{NUMBER})%?{_RESULT}", re.IGNORECASE)
_CHAIN = re.compile(rf"(?<![\w.])-?(?:{NUMBER})%?(?:\s{{0,4}}[{OPERATORS}]\s{{0,30}}-?(?:{NUMBER})%?)+(?!\w)")
_TERM = re.compile(rf"(?P<sign>[-+*/])?\s*(?P<minus>-)?(?P<number>{NUMBER})")


@dataclass(frozen=True)
class Chain:
    """One piece of working, "62 - 36 = 26 < 65 - 35 = 30": its place, and the values between its relations."""

    start: int
    end: int
    sides: tuple[str, ...]
    relations: tuple[str, ...]


def into_signs(text: str) -> str:
    """The text with arithmetic in words turned into signs and Markdown bold into spaces; its length stays the same."""
    text = text.replace("**", "  ").translate(str.maketrans(UNICODE_SIGNS))
    text = _SUM.sub(_sign_sum, text)
    for sign, words in _SPOKEN:
        text = words.sub(lambda match, sign=sign: f" {sign}".ljust(len(match.group())), text)
    return text


def _sign_sum(match: re.Match) -> str:
    """"sum of 55 and 46 is 101" -> "       55  +  46  = 101"; "subtracting 36 from 62" keeps its order as 36 ~ 62."""
    what = match["what"].lower()
    sign = "+" if what.startswith(("sum", "total", "add")) else "-"
    swapped = what == "subtracting" or sign == "-" and _number(match["a"]) < _number(match["b"])
    first, second = (match["b"], match["a"]) if swapped else (match["a"], match["b"])
    spoken = f"{first} {sign} {second} = {match['result']}"
    return spoken.rjust(len(match.group()))


def find_chains(text: str, names: Iterable[tuple[int, int]] = ()) -> list[Chain]:
    """The pieces of working in a text of signs; `names` are positions of labels, which may be numbers ("2016 = 51")."""
    flat = list(text)
    for start, end in names:
        flat[start:end] = "x" * (end - start)
    chains = []
    for match in _CHAIN.finditer("".join(flat).replace("(", " ").replace(")", " ").replace("$", " ")):
        parts = re.split(r"([=<>])", match.group().replace("%", ""))
        chains.append(Chain(match.start(), match.end(), tuple(parts[::2]), tuple(parts[1::2])))
    return chains


def check(chains: Iterable[Chain], shown: Iterable[float]) -> tuple[bool, set[float]]:
    """Compute every chain again.

    Args:
        chains: in the order of the text.
        shown: values that the picture shows.
    Returns:
        whether all relations hold and every operand is shown, an earlier result or a small count; and the results.
    """
    known, results, is_right = {abs(value) for value in shown}, set(), True
    for chain in chains:
        values = [_evaluate(side) for side in chain.sides]
        for place, relation in enumerate(chain.relations):
            is_right &= _holds(values[place], relation, values[place + 1], chain.sides[place + 1])
        results.update(abs(right) for right, relation in zip(values[1:], chain.relations, strict=True) if relation == "=")
        operands = [_number(number) for side in chain.sides if re.search(r"\d[^\d.,]*[+*/-]", side)
                    for number in re.findall(NUMBER, side)]
        is_right &= all(value in known or value in results or value <= SMALL_COUNT for value in operands)
    return bool(is_right), results


def _holds(left: float, relation: str, right: float, printed: str) -> bool:
    """"26 < 65 - 35 = 30" chains: every relation compares its neighbours; "=" allows the rounding of what is printed."""
    if relation == "=":
        last = re.findall(NUMBER, printed)[-1]
        return abs(left - right) <= 0.5 * 10.0 ** -len(last.partition(".")[2]) + 1e-9
    return left < right if relation == "<" else left > right


def _evaluate(side: str) -> float:
    """Value of "a op b op c", left to right (sums come before one division in a bracketed mean)."""
    total = 0.0
    for place, term in enumerate(_TERM.finditer(side)):
        value = -_number(term["number"]) if term["minus"] or place == 0 and term["sign"] == "-" else _number(term["number"])
        total = _LEVELS[term["sign"] or "+"](total, value) if place else value
    return total


def _number(text: str) -> float:
    return float(text.replace(",", ""))
