"""The words of a trace by what they do: sentences of tokens, each of a kind that one letter names.

    n number            c a count of things ("two bars")    e entity      a attribute (series)
    + - * / =           signs, or words for them            < > l g       relations in signs, in words ("below", "exceeds")
    L G h               "less", "greater"; "than"           N X           "lowest", "highest"
    S T D d M V         nouns and verbs of sum, difference, mean, division
    i I states a value  p P prepositions    f t B b             from, to, by, between
    , & | : ( )         lists           q o others, both    z joins clauses
    v A y               "so", "the answer", yes or no       Q names what is looked at and says nothing of it
    ! ~ ?               denied; doubted or taken back; asked
    s u                 a name that the chart does not have; a word that is not known

Words that change nothing ("the", "chart", "clearly") are left out: "the sum of the two values 94 and 37" has the shape "Spn&n".
All patterns are bounded: time grows with the text's length.
"""
from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from dyme_core.data.numbers import is_year
from dyme_core.data.schema import Fact

_WORDS = {  # by kind; a word also counts with its usual endings
    "I": "are were have",
    "i": """is was be been has had having get got show shown display reach stand stood sit sat hold held record
        register represent indicate measure receive score earn sell sold produce generate report list print rise
        rose risen climb fall fell fallen drop decline grow grew land come came start begin welcome contain belong
        run stay remain become attain hit post said mark carry lie draw drawn go went end experience gain increase
        decrease jump dip slip sink plot depict hover occupy finish close open boast feature cost weigh vote respond
        correspond employ export import equate""",
    "=": "equal give gave make made yield leave left bring", "+": "plus", "-": "minus", "*": "times",
    "g": "exceed surpass beat lead above over outnumber outweigh outdo", "l": "below under beneath trail",
    "h": "than", "G": "greater larger higher more bigger taller longer wider ahead stronger win",
    "X": "highest largest greatest biggest most maximum max tallest longest widest peak top winner",
    "L": "less smaller lower fewer shorter narrower behind weaker",
    "N": "lowest smallest least minimum min fewest shortest narrowest", "S": "sum total count",
    "T": "add adding together combine altogether", "d": "subtract deduct", "M": "average mean", "V": "divide",
    "D": "difference gap divergence distance margin spread apart", "p": "at of on with", "P": "in for during within among",
    "f": "from", "t": "to", "B": "by", "b": "between", "&": "and versus vs against", "|": "or either",
    "q": "other others rest remaining", "o": "both all", "y": "yes yeah yep", "A": "answer result conclusion",
    "z": "because since while whereas but however although though yet still where when until",
    "v": "so therefore thus hence consequently accordingly",
    "Q": """locate find found look read extract see seen compare check consider identify focus examine take
        question ask need want determine search inspect view visible appear notice know use calculate compute
        calculation computation note observe comparison comparing""",
    "!": """nope nah not never none nobody nothing neither nor without except excluding unlike cannot hardly
        barely scarcely lack deny miss fail exclude refuse""",
    "~": """maybe perhaps possibly probably might may could would should likely seem guess suppose assume imagine
        pretend if unless unsure think believe claim allege rumour rumor doubt wait actually sorry oops correction
        correct mistake mistaken wrong false untrue incorrect nonsense unknown invented fake random ignore nearly
        almost half double twice instead rather otherwise sometimes often usually once estimate supposedly
        presumably uncertain hypothetical say""",
    "w": """a an the this that these those it its they their them he she we us our i me my you your one ones each
        every away only just also too very now then next first second third fourth last finally here there which who
        what whose how as into onto across out up down again back let can do does did will must such same different
        own chart graph figure picture plot image diagram bar line column row table legend axis label data value
        number point percentage share level height size length year month quarter country group category city item
        series colour color blue red green name pair set order title reading individual respective respectively
        corresponding relevant exactly precisely clearly directly simply carefully about approximately roughly
        around visibly indeed likewise similarly meanwhile after before beside well overall main whole full task
        problem step fact working list following small large high low big great tall short long time place
        side way information statement per able thing sign obtain arrive printed given shown written meaning namely
        follow beginning amount please obviously evidently certainly definitely surely easily quickly accurately
        survey people respondent population portion part position tip according based basis mention purpose final
        initial simple single sole separate current remember remind recap finding inspection closer careful
        counts counted counting""",
}
_KINDS = {word: kind for kind, words in reversed(_WORDS.items()) for word in words.split()}
_PHRASES = {  # first words, what may follow, and the kinds of the tokens that the phrase becomes
    "add adds adding added": ((r" up to", "T="),), "sum sums summing": ((r" (?:up )?to", "T="),),
    "make makes": ((" up", "i"),), "made": ((r"[ -]up", "~"),), "account accounts accounted": ((" for", "i"),),
    "come comes came coming amount amounts amounted work works worked": ((r" (?:out )?(?:to|at|as)", "="),),
    "result results": ((" in", "="),), "is are was were": ((" equal to", "="),),
    "to": ((" (?:get|give|make|obtain|reach)", "="),),
    "divided": ((" by", "/"),), "multiplied": ((" by", "*"),),
    "take takes taking taken": ((r"(?= (?:away )?[\d.,]{1,12}%? (?:away )?from)", "d"),),
    "as": ((" well as", "&"), (" follows", "")), "compared": ((" (?:to|with)", "&"),), "ahead": ((" of", "g"),),
    "in": ((" comparison (?:to|with)", "&"), (" excess of", "g"), (" (?-i:total|all|order)", "")), "short": ((" of", "l"),),
    "all": ((" but", "!"), (r"(?: of)?(?: the)? others?", "q")), "anything everything": ((" but", "!"),),
    "other apart rather": ((" (?:than|from)", "!"),), "instead": ((" of", "!"),), "but": ((" not", "!"),),
    "far": ((" from", "~"),), "by": ((" no means", "~"),),
    "at": ((" (?:least|most)", "~"),), "up": ((" to", "~"),), "no": ((" (?:more|less|fewer) than", "~"),),
    "of": ((" course", ""),), "each": ((" other", ""), (r"(?: of)?(?: the)? others?", "q")),
    "every any": ((r"(?: of)?(?: the)? others?", "q"),), "the": ((" (?:rest|others?|remaining)", "q"),)}
_AFTER = {word: [(re.compile(rf"{more}(?!\w)", re.IGNORECASE), kinds) for more, kinds in choices]
          for words, choices in _PHRASES.items() for word in words.split()}
_SIGNS = {"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2264": "<",
          "\u2265": ">", "\u2248": "=", "\u2019": "'"}
_ONES = dict(zip("""zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen""".split(), range(20), strict=True))
_TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_MORE = "|".join((*sorted(_ONES, key=len, reverse=True), *_TENS, "hundred", "thousand"))
_SPOKEN = re.compile(rf"(?:[\s-](?:and\s)?(?:{_MORE}))*(?!\w)", re.IGNORECASE)  # the words of a number after its first
LONGEST = 120  # tokens of a sentence
_NUMBER = (r"\d{1,3}(?:,\d{3})+(?:\.\d{1,12})?(?!,?\d)|\d{1,12},\d{1,2}(?![,.]?\d)"
           r"|\d{1,3}(?:[ \u00a0\u202f]\d{3})+(?![,.]?\d)|\d{1,15}(?:\.\d{1,12})?")
_THINGS = frozenset("""of bars values groups numbers labels marks categories countries months years quarters cities lines
    columns series steps items points are""".split())
_STEP = re.compile(r"(?:^|(?<=\n)|(?<=[.;!?]\s))[\s>*#|-]{0,6}\(?\d{1,2}[.)](?=\s)"
                   r"|\bstep\s{1,2}\d{1,2}\b(?:\s(?:is\sto|is))?", re.IGNORECASE)
_CONTRACTED = re.compile("'(?:s|ve|re|ll|m)$")
_NAMED = re.compile(r"n(?:[pP]?[ea]){1,2}$")
_NEXT_WORD = re.compile(r"\s(?:more\s)?([a-z]{2,12})\b", re.IGNORECASE)
_BEFORE_MINUS = frozenset(" \t\n([=,:|*`+-/<>\u00a0")


@dataclass(frozen=True, slots=True)
class Token:
    """One word or sign: its kind (above), its name as the facts spell it, its place, the value of a number."""

    kind: str
    name: str
    start: int
    end: int
    value: float = 0.0


@dataclass(frozen=True)
class Chart:
    """What the words of a trace are compared with."""

    facts: tuple[Fact, ...]
    question: str = ""
    answer: str = ""

    @functools.cached_property
    def names(self) -> dict[str, tuple[str, str]]:
        """Lower-case name -> kind and spelling; a name of both an entity and a series counts as the entity."""
        series = {fact.attribute.lower(): ("a", fact.attribute) for fact in self.facts if fact.attribute}
        return series | {fact.entity.lower(): ("e", fact.entity) for fact in self.facts if fact.entity}

    @functools.cached_property
    def usual(self) -> frozenset[str]:
        """Words of the question and the units, which a trace may use freely."""
        return self.units | set(re.findall(r"[^\W\d_]+", self.question.lower()))

    @functools.cached_property
    def units(self) -> frozenset[str]:
        spelled = {fact.unit.lower().replace("\u00b0", "\u00b0 degree degrees ") for fact in self.facts}
        return frozenset(word for unit in spelled for word in re.findall(r"[^\W\d_]+|\u00b0", unit))

    @functools.cached_property
    def values(self) -> frozenset[float]:
        return frozenset(abs(fact.value) for fact in self.facts)

    @functools.cached_property
    def numbers(self) -> frozenset[float]:
        """Sizes of the numbers that a trace may print: values, those of the question and the answer."""
        printed = re.findall(_NUMBER, f"{self.question} {self.answer}")
        return self.values | {float(re.sub(r"[^\d.]", "", text)) for text in printed}

    @functools.cached_property
    def has_percent(self) -> bool:
        """True where "%" may stand behind a value: the unit says so, or there is no unit and nothing is above 1,000."""
        units = {fact.unit.lower() for fact in self.facts}
        return bool(units & {"%", "percent", "per cent"}) or units <= {""} and max(self.values, default=0) <= 1000

    @functools.cached_property
    def has_money(self) -> bool:
        units = {fact.unit.lower() for fact in self.facts}
        return any(not unit or re.search("dollar|euro|pound|usd|eur|[$\u20ac\u00a3]", unit) for unit in units)

    @functools.cached_property
    def has_years(self) -> bool:
        """True where another year can only be a name: years are names, and no value or result is as large."""
        return any(is_year(name) for name in self.names) and max(self.values, default=0) < 900

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        """Names (those in capitals, or that are usual words, only as written: "MAY" and "May" are not "may"), then the rest."""
        names = sorted({spelled for _, spelled in self.names.values()}, key=len, reverse=True)
        exact = [f"(?-i:{re.escape(name)})" if name.isupper() or _kind_of(name.lower()) else re.escape(name) for name in names]
        return re.compile(
            rf"(?<!\w)(?P<name>{'|'.join(exact) or '(?!)'})(?!\w)(?:'s?(?!\w))?|(?<![\w.])(?P<number>{_NUMBER})"
            r"|(?P<word>[^\W\d_]{1,40}(?:'[^\W\d_]{1,3}(?!\w))?)|(?P<end>[.;!?](?=[\s\"'`)]|$)|\n)"
            r"|(?P<sign>[-+*/=<>,&|:()%$\u20ac\u00a3])|(?P<odd>[^\s\"'.`_#\[\]!?;])", re.IGNORECASE)


chart_of = functools.lru_cache(maxsize=4096)(Chart)  # the charts of a run: its training set and test sets


@functools.lru_cache(maxsize=8192)
def _kind_of(word: str) -> str | None:
    """The kind of a lower-case word, also with its usual endings ("reads", "dropped", "adding"); None for an unknown one."""
    if word in _KINDS:
        return _KINDS[word]
    for ending, more in (("s", ""), ("es", ""), ("ed", ""), ("d", ""), ("ing", ""), ("ing", "e"), ("ly", "")):
        stem = word.removesuffix(ending) + more
        if word.endswith(ending) and len(stem) > 2:
            kind = _KINDS.get(stem) or (_KINDS.get(stem[:-1]) if stem[-1] == stem[-2] else None)
            if kind:
                return kind
    return None


def read_words(text: str, chart: Chart) -> list[list[Token]]:
    """The sentences of `text` as tokens; the chart's question, where it is repeated word by word, is left out."""
    text = text.replace("**", "  ").translate(str.maketrans(_SIGNS))
    text = _STEP.sub(lambda step: ("" if "st" in step.group().lower() else "\n").ljust(len(step.group())), text)
    if len(chart.question) > 9:
        text = re.sub(re.escape(chart.question), lambda question: " " * len(question.group()), text, flags=re.IGNORECASE)
    has_commas = any(float(printed.replace(",", ".")) in chart.numbers for printed in re.findall(r"\b\d{1,12},\d{1,2}\b", text))
    reader = _Words(text, chart, has_commas)
    for match in chart.pattern.finditer(text):
        reader.read(match)
    return [sentence for sentence in reader.sentences if sentence]


def _as_number(printed: str, has_commas: bool, known: frozenset[float]) -> float | None:
    """The value of a number as printed; None where it is several."""
    if printed.isdigit():
        return float(printed)
    if re.fullmatch(r"\d+,\d{1,2}", printed):
        return float(printed.replace(",", ".")) if has_commas else None
    value = float(re.sub(r"[^\d.]", "", printed))
    return None if re.search(r"\s", printed) and value not in known else value


class _Words:
    """Makes tokens of matches, one after the other."""

    def __init__(self, text: str, chart: Chart, has_commas: bool) -> None:
        self.text, self.chart, self.has_commas = text, chart, has_commas
        self.sentences: list[list[Token]] = [[]]
        self.is_negative = False  # a minus stands right before
        self.read_to = 0

    def read(self, match: re.Match) -> None:
        start, end, printed, group = match.start(), match.end(), match.group(), match.lastgroup
        if start < self.read_to:  # already read as a part of what comes before it
            return
        if group == "word":
            self.word(printed, start, end)
        elif group == "name":
            kind, spelled = self.chart.names[match["name"].lower()]
            self.add(kind, start, match.end("name"), spelled)
        elif group == "number":
            self.number(printed, start)
        elif group == "sign":
            self.sign(printed, start, end)
        elif group == "end":
            if printed == "?":
                self.add("?", start, end)
            self.sentences.append([])
        elif printed not in self.chart.units:
            self.add("u", start, end)

    def add(self, kind: str, start: int, end: int, name: str = "", value: float = 0.0) -> None:
        self.is_negative = False
        if len(self.sentences[-1]) == LONGEST:  # no one writes so: a new sentence, which cannot be read
            self.sentences.append([Token("u", "", start, end)])
        self.sentences[-1].append(Token(kind, name, start, end, value))

    def last(self) -> str:
        return self.sentences[-1][-1].kind if self.sentences[-1] else ""

    def follows_value(self) -> bool:
        """True behind a number, a bracket, or a number with its name ("412 in 2005")."""
        return self.last() in ("n", ")") or bool(_NAMED.search("".join(token.kind for token in self.sentences[-1][-5:])))

    def number(self, printed: str, start: int) -> None:
        """A number in digits, with its sign and scale; "8,9" and "9 750" are one number only where the chart can show it."""
        value, end = _as_number(printed, self.has_commas, self.chart.numbers), start + len(printed)
        if value is None:
            for match in re.finditer(r"\d+|,", printed):
                at = start + match.start()
                self.add(",", at, at + 1) if match.group() == "," else self.number(match.group(), at)
            return
        is_thing = False
        if self.text[end: end + 1].isspace() and (after := _NEXT_WORD.match(self.text, end)):
            scale = _SCALES.get(after[1].lower())
            if scale and value * scale in self.chart.numbers:
                value, self.read_to = value * scale, after.end()
            is_small = value <= 20 and value.is_integer() and self.last() not in tuple("lgh")
            is_thing = is_small and after[1] in _THINGS - self.chart.units
        if is_thing and value not in self.chart.values:
            self.add("c", start, end, value=value)
        elif self.chart.has_years and is_year(printed) and value not in self.chart.numbers:
            self.add("s", start, end, printed)
        else:
            self.add("n", start, end, printed, -value if self.is_negative else value)

    def spoken(self, start: int, end: int) -> None:
        """A number in words; up to ten it is a count of things ("two bars"), unless it is a value or the answer."""
        self.read_to = end
        total = part = 0
        for word in re.findall(r"[a-z]+", self.text[start: end].lower()):
            if word in _SCALES:
                part = max(part, 1) * _SCALES[word]
                total, part = (total + part, 0) if word == "thousand" else (total, part)
            else:
                part += _ONES.get(word, _TENS.get(word, 0))
        value = float(total + part)
        thing = _NEXT_WORD.match(self.text, end)
        if value > 10 or value in self.chart.numbers and not thing:
            self.add("n", start, end, f"{value:g}", -value if self.is_negative else value)
        elif value != 1:
            self.add("c", start, end, value=value)

    def word(self, written: str, start: int, end: int) -> None:
        low = _CONTRACTED.sub("", written.lower())
        for more, kinds in _AFTER.get(low, ()):
            if phrase := more.match(self.text, end):
                self.read_to = phrase.end()
                for kind in kinds:
                    self.add(kind, start, phrase.end(), self.text[start: phrase.end()])
                return
        if (low in _ONES or low in _TENS) and (rest := _SPOKEN.match(self.text, end)):
            self.spoken(start, rest.end())
            return
        kind = "!" if low.endswith("n't") else _kind_of(low)
        if low in _SCALES and low in self.chart.usual or low in ("percent", "cent", "percentage") and self.chart.has_percent:
            kind = "w"
        elif low in ("no", "not") and written not in ("NO", "NOT"):
            is_verdict = re.match(r"[\s*`\"']*(?:[,.;:!)\n]|$|(?:because|since|as|and)\b)", self.text[end: end + 14])
            kind = "y" if low == "no" and is_verdict else "!"
        elif low == "minus" and not self.follows_value() or low == "negative":
            self.is_negative = True
            return
        elif self._may_be_name(written, low, kind):
            kind = "s"  # "PER", "WAS", "MAX": a name that looks like a word
        elif kind is None:
            is_first = not self.sentences[-1] and not self.text[:start].rstrip(" *`\"'(")[-1:].isalnum()
            is_usual = any(low.removesuffix(ending) in self.chart.usual for ending in ("", "s", "es", "d", "ed", "ing"))
            kind = "w" if is_usual else "s" if written[0].isupper() and not is_first else "u"
        if kind != "w":
            self.add(kind, start, end, written)

    def _may_be_name(self, written: str, low: str, kind: str | None) -> bool:
        is_no_word = kind in (None, "w") or kind in "iIXN" and len(written) == 3
        return (written.isupper() and len(written) > 1 and is_no_word and low not in self.chart.units
                and not re.search(rf"(?<!\w){written}(?!\w)", self.chart.question))

    def sign(self, sign: str, start: int, end: int) -> None:
        """A sign, where it is one: no hyphen, no mark of a list, no emphasis."""
        if sign in ",:()&+=<>":
            self.add(sign, start, end)
            return
        before, after = self.text[start - 1: start], self.text[end: end + 8].lstrip(" (")[:1]
        follows_number = self.follows_value()
        if sign == "-":
            if self.text[end: end + 1].isdigit() and not follows_number and (not before or before in _BEFORE_MINUS):
                self.is_negative = True
            elif follows_number and (after.isdigit() or after and after in "-$\u20ac\u00a3"):
                self.add("-", start, end)
            elif not (before.isalpha() and self.text[end: end + 1].isalpha()):
                self.add("z", start, end)
        elif sign == "%":
            if not self.chart.has_percent:
                self.add("u", start, end)
        elif sign in "$\u20ac\u00a3":
            if not self.chart.has_money:
                self.add("u", start, end)
        elif sign == "|" and (before.isdigit() or self.text[end: end + 1].isdigit()):
            return  # |62 - 36|
        elif sign in "*/":
            if follows_number and (after.isdigit() or not after.isspace() and sign == "/"):
                self.add(sign, start, end)
        else:
            self.add(",", start, end)
