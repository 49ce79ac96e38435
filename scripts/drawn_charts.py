"""Charts drawn from known tables, to measure readers of charts on pictures that no rule was written for.

Nine matplotlib styles times twelve layouts give 108 charts. Numbers, names, fonts, percent signs, bar edges and axis titles
are drawn from one seed a chart. Odd numbers are for development, even ones are held back.
"""
from __future__ import annotations

import io
import random
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dyme_core.supervision.fact_extraction import Picture

STYLES = ("default", "classic", "ggplot", "fivethirtyeight", "bmh", "seaborn-v0_8-whitegrid", "seaborn-v0_8-darkgrid",
          "Solarize_Light2", "tableau-colorblind10")
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral", "cmr10")
LAYOUTS = (("bar", 1, "none"), ("bar", 2, "top"), ("bar", 3, "column"), ("barh", 1, "none"), ("barh", 2, "column"),
           ("barh", 3, "top"), ("stacked", 2, "top"), ("stacked", 3, "column"), ("line", 1, "none"), ("line", 2, "top"),
           ("line", 3, "column"), ("pie", 1, "none"))  # kind, number of series, place of the legend
COUNTRIES = ("Chile", "Ghana", "Norway", "South Africa", "Peru", "Vietnam", "New Zealand", "Malta", "Kenya", "Costa Rica")
SERIES = (("Men", "Women", "Children"), ("Very confident", "Somewhat confident", "Not confident"), ("Coal", "Gas", "Wind"),
          ("Strongly agree", "Neutral", "Disagree"), ("Rural areas", "Towns", "Cities"), ("Exports", "Imports", "Balance"))
TITLES = ("Share of adults", "Output in tonnes", "Visits per month", "Rate per 1,000")


@dataclass(frozen=True)
class Table:
    """What a chart shows: `values[series][entity]`, and how its numbers are printed ("{:g}%")."""

    entities: tuple[str, ...]
    series: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    form: str

    @property
    def csv(self) -> str:
        rows = [("Name", *self.series), *zip(self.entities, *self.values, strict=True)]
        return "\n".join(",".join(map(str, row)) for row in rows)


SEEN = (8, 20, 36)  # while rules were written


def drawn_pictures(held_back: bool) -> list[Picture]:
    """One half of the charts, each with its table; of those held back without the pictures that were looked at."""
    count = len(STYLES) * len(LAYOUTS)
    return [draw(number) for number in range(1, count + 1) if (number % 2 == 0) == held_back and number not in SEEN]


def draw(number: int) -> Picture:
    """Chart `number` from 1: style and layout by its place, everything else by chance with the number as seed."""
    style, (kind, count, legend) = STYLES[(number - 1) // len(LAYOUTS)], LAYOUTS[(number - 1 + (number - 1) // 12) % 12]
    rng = random.Random(number)
    table = _table(kind, count, rng)
    with plt.style.context(style), mpl.rc_context({"font.family": rng.choice(FONTS), "axes.formatter.use_mathtext": True,
                                                   "font.size": rng.choice((10, 11, 12))}):
        figure, axes = plt.subplots(figsize=rng.choice(((8, 5), (7, 5), (9, 6))), dpi=100)
        axes.set_title(f"{rng.choice(TITLES)} by group, {rng.randint(2001, 2022)}")
        edge = rng.choice(("none", "grey", "grey"))
        {"bar": _bars, "barh": _bars, "stacked": _stack, "line": _lines, "pie": _pie}[kind](axes, table, kind, edge)
        if kind != "pie" and rng.random() < 0.6:
            axes.set_ylabel(rng.choice(TITLES), rotation=90)
        if legend == "top":
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=count)
        elif legend == "column":
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight")
        plt.close(figure)
    return Picture(f"drawn_{number:03}_{kind}{count}_{style}", file.getvalue(), table.csv)


def _table(kind: str, count: int, rng: random.Random) -> Table:
    num_entities = rng.randint(3, 5) if kind == "pie" else rng.randint(4, 6)
    first = rng.randint(2000, 2012)
    years = tuple(str(first + place) for place in range(num_entities))
    is_timed = kind == "line" or kind == "bar" and rng.random() < 0.4
    entities = years if is_timed else tuple(rng.sample(COUNTRIES, num_entities))
    form = rng.choice(("{:g}", "{:g}%", "{:.1f}"))
    digits = 1 if form == "{:.1f}" else 0
    if kind in ("pie", "stacked"):
        columns = [_shares(num_entities if kind == "pie" else count, rng) for _ in range(1 if kind == "pie" else num_entities)]
        values = tuple(columns) if kind == "pie" else tuple(zip(*columns, strict=True))
        form = "{:g}%" if kind == "pie" else form
    else:  # some series rise slowly and evenly, as an axis does
        values = tuple(_rising(num_entities, digits, rng) if rng.random() < 0.4 else
                       tuple(round(rng.uniform(5, 95), digits) for _ in range(num_entities)) for _ in range(count))
    return Table(entities, rng.choice(SERIES)[:count], values, form)


def _shares(count: int, rng: random.Random) -> tuple[float, ...]:
    cuts = sorted(rng.sample(range(2, 19), count - 1))
    return tuple(5.0 * (after - before) + shift for before, after, shift in
                 zip((0, *cuts), (*cuts, 20), (2, -2, *(0,) * count), strict=False))


def _rising(count: int, digits: int, rng: random.Random) -> tuple[float, ...]:
    start, step = rng.uniform(10, 60), rng.choice((1, 2, 3))
    return tuple(round(start + step * place, digits) for place in range(count))


def _bars(axes: Axes, table: Table, kind: str, edge: str) -> None:
    width, upright = 0.8 / len(table.series), kind == "bar"
    for rank, (name, values) in enumerate(zip(table.series, table.values, strict=True)):
        places = [place + width * (rank - (len(table.series) - 1) / 2) for place in range(len(values))]
        bars = (axes.bar if upright else axes.barh)(places, values, width, label=name, edgecolor=edge)
        axes.bar_label(bars, [table.form.format(value) for value in values], padding=2, fontsize="small")
    (axes.set_xticks if upright else axes.set_yticks)(range(len(table.entities)), table.entities)


def _stack(axes: Axes, table: Table, kind: str, edge: str) -> None:
    bottoms = [0.0] * len(table.entities)
    for name, values in zip(table.series, table.values, strict=True):
        bars = axes.bar(range(len(values)), values, 0.7, bottoms, label=name, edgecolor=edge)
        axes.bar_label(bars, [table.form.format(value) for value in values], label_type="center", fontsize="small")
        bottoms = [bottom + value for bottom, value in zip(bottoms, values, strict=True)]
    axes.set_xticks(range(len(table.entities)), table.entities)


def _lines(axes: Axes, table: Table, kind: str, edge: str) -> None:
    for name, values in zip(table.series, table.values, strict=True):
        [line] = axes.plot(range(len(values)), values, marker="o", label=name)
        for place, value in enumerate(values):
            axes.annotate(table.form.format(value), (place, value), (0, 6), textcoords="offset points", ha="center",
                          fontsize="small", color=line.get_color() if len(table.series) > 1 else None)
    axes.set_xticks(range(len(table.entities)), table.entities)
    axes.margins(0.1, 0.15)


def _pie(axes: Axes, table: Table, kind: str, edge: str) -> None:
    labels = [f"{name}\n{table.form.format(value)}" for name, value in zip(table.entities, table.values[0], strict=True)]
    axes.pie(table.values[0], labels=labels)
