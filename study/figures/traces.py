"""Figures of charts with the texts written about them: facts marked right or wrong, words wrapped by their true width.

Placed by hand in inches rather than by a layout engine: the height of a text is known before the figure is made.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from PIL.Image import Image

from dyme_core.config import METHOD_NAMES, MODEL_NAMES
from dyme_core.supervision.checker import Judgement
from study import statistics
from study.figures import theme
from study.figures.theme import finish, name_lines, panels, themed

LINE = theme.SMALL * 1.35 / 72  # inches from one line of text to the next
MARGIN = 0.08  # inches
FONTS = {"right": {"color": theme.RIGHT, "fontweight": "bold"}, "wrong": {"color": theme.WRONG, "fontweight": "bold"},
         "question": {"color": "black", "fontstyle": "italic"}, "": {"color": "black"}}
IMAGE_SIDE = 1.45  # inches, of a chart beside its traces
BARS_HEIGHT = 1.68  # inches that the two panels of bars need
TRACE_COLUMNS = ["item", "question", "target", "prediction", "wrong_facts"]
MODELS = ("large", "svlm")
FAILURES = ("sft", "grpo", "full_dyme")
Mark = str | tuple[int, int]  # a fact as written in the trace, or its place there


@dataclass(frozen=True)
class Piece:
    """A run of characters of one kind, placed: x and width in inches, line counted from 0."""

    text: str
    kind: str
    x: float
    width: float
    line: int


def wrap(text: str, kinds: Sequence[str], width: float) -> list[Piece]:
    """Break a text into placed pieces, none wider than `width` inches unless a single word is.

    Args:
        text: one or several words; every space between words is drawn as one.
        kinds: (len(text),) a key of FONTS for each character.
    """
    pieces: list[Piece] = []
    x, line = 0.0, 0
    for word in re.finditer(r"\S+(?: [.,:;?](?!\S))*", text):  # spaced punctuation never starts a line
        runs = ((kind, "".join(text[place] for place in run)) for kind, run in groupby(range(*word.span()), kinds.__getitem__))
        parts = [(part, kind, _width(part, kind)) for kind, part in runs]
        if x and x + sum(length for *_, length in parts) > width:
            x, line = 0.0, line + 1
        for part, kind, length in parts:
            pieces.append(Piece(part, kind, x, length, line))
            x += length
        x += _width(" ", "")
    return pieces


def kinds_of(text: str, right: Sequence[Mark] = (), wrong: Sequence[Mark] = ()) -> list[str]:
    """Say for each character whether it belongs to a right or a wrong fact; wrong wins where both claim it.

    Args:
        right, wrong: places (start, end), or strings as written in the text; a string given n times marks its first
            n places.
    Raises:
        ValueError: if a string does not stand in the text as often as it is given.
    """
    kinds = [""] * len(text)
    for kind, marks in (("right", right), ("wrong", wrong)):
        for start, end in _places(text, marks):
            kinds[start:end] = [kind] * (end - start)
    return kinds


def marked(image: Image, question: str, trace: str, judgement: Judgement) -> dict[str, Any]:
    """One item of `gallery`: a trace with the claims that the checker found right and wrong."""
    claims = judgement.reading.claims
    return {"image": image, "question": question, "trace": trace, "score": judgement.score,
            "right": [(claim.start, claim.end) for claim in claims if claim.is_right],
            "wrong": [(claim.start, claim.end) for claim in claims if not claim.is_right]}


@themed()
def gallery(items: Sequence[Mapping[str, Any]], columns: int = 2) -> Figure:
    """Draw a grid of charts, each with its question, its trace with the facts marked, and the checker's score.

    Args:
        items: mappings with image (PIL), question, trace, score (0..1), and right and wrong (lists of Mark).
        columns: charts side by side.
    """
    cell = (theme.PAGE - MARGIN) / columns
    side = 0.36 * cell
    width = cell - side - 3 * MARGIN
    texts = [wrap(item["question"], ["question"] * len(item["question"]), width) for item in items]
    traces = [wrap(item["trace"], kinds_of(item["trace"], item["right"], item["wrong"]), width) for item in items]
    heights = [max(side, LINE * (_lines(question) + _lines(trace) + 1.6)) + 3 * MARGIN
               for question, trace in zip(texts, traces, strict=True)]
    rows = [max(heights[start: start + columns]) for start in range(0, len(items), columns)]
    figure, page = _page(sum(rows))
    for index, (item, question, trace) in enumerate(zip(items, texts, traces, strict=True)):
        x, y = MARGIN + cell * (index % columns), MARGIN + sum(rows[: index // columns])
        _show(figure, item["image"], x, y, side)
        x += side + MARGIN
        y = _write(page, question, x, y) + 0.3 * LINE
        y = _write(page, trace, x, y) + 0.3 * LINE
        page.text(x, y, f"checker {item['score']:.1f}", fontsize=theme.SMALL, va="top", color=theme.GREY)
    frame = pd.DataFrame([{"question": item["question"], "trace": item["trace"], "score": item["score"],
                           "num_right": len(item["right"]), "num_wrong": len(item["wrong"])} for item in items])
    return finish(figure, frame, "Charts with a question and a trace: facts of the chart stated rightly in bold, wrongly in "
                  "bold and underlined; the checker's score beneath each.")


@themed()
def pseudo_thinking(rows: pd.DataFrame, image_of: Callable[[str], Image]) -> Figure:
    """Draw one test chart with the CoT-SFT traces of the large and the small model, beside their rates on the test set.

    Args:
        rows: per-item rows; method "sft" of the models "large" and "svlm" on the test split is read.
        image_of: gives the chart of an item id.
    Raises:
        NoRows: if the two models share no test item.
    """
    rows = rows[(rows["method"] == "sft") & (rows["split"] == "test") & rows["model"].isin(MODELS)]
    shown, num_shown = _choose(rows)
    summary = pd.concat(statistics.summarise(rows, metric, ("model",)) for metric in ("groundedness", "pseudo"))
    bars_width, named = 1.95, [(MODEL_NAMES[model], theme.GREY, row) for model, row in shown.items()]
    figure = _beside_chart(image_of(shown["large"]["item"]), named, 2.75, BARS_HEIGHT)
    _bars(figure, summary, theme.PAGE - bars_width - MARGIN, bars_width)
    chosen = pd.DataFrame([{"model": model, "metric": "trace", **row[TRACE_COLUMNS]} for model, row in shown.items()])
    seeds, num_items = summary.groupby("model")["num_seeds"].min(), summary["num_items"].max()
    rates = ("Right: groundedness (right facts / stated facts) and pseudo-thinking rate (well-formed traces with a wrong "
             "fact), with 95 % intervals.")
    note = (f" Seeds: {seeds['large']} large, {seeds['svlm']} small; one seed does not show the spread between "
            "training runs.") if seeds.min() == 1 else ""
    rule = (f"Left: the first test chart, in order of item ids, on which the large model is correct and states no wrong fact "
            f"while the small model's trace is well-formed with wrong facts ({num_shown} of {num_items} charts); wrong facts "
            "underlined." if num_shown else
            f"On none of the {num_items} test charts is the large model correct without a wrong fact while the small one is "
            "well-formed with wrong facts: the chart shown has the largest gap in groundedness.")
    return finish(figure, pd.concat([summary, chosen]), f"After CoT-SFT. {rule} {rates}{note}")


@themed()
def failures(rows: pd.DataFrame, image_of: Callable[[str], Image]) -> Figure:
    """Draw one test chart with what the small model says of it after CoT-SFT, GRPO and Full DyME, each with its rates.

    Args:
        rows: per-item rows; methods FAILURES of the model "svlm" on the test split are read.
        image_of: gives the chart of an item id.
    Raises:
        NoRows: if a method is missing, or no chart fits the rule that the caption states.
    """
    rows = rows[(rows["split"] == "test") & (rows["model"] == "svlm") & rows["method"].isin(FAILURES)]
    summary = pd.concat([statistics.summarise(rows, metric, ("method",)) for metric in ("pseudo", "groundedness", "right")])
    rates = 100 * summary.pivot(index="method", columns="metric", values="value")
    if set(rates.index) != set(FAILURES):
        raise statistics.NoRows(f"needs test rows of {', '.join(FAILURES)}: got {', '.join(rates.index)}; train the others")
    first = rows[rows["seed"] == rows["seed"].min()].set_index(["method", "item"], drop=False).sort_index()
    memorized, explored, dyme = (first.loc[method] for method in FAILURES)
    fits = (memorized["pseudo"] == 1) & (explored["has_format"] == 1) & (explored["groundedness"] == 0) & (dyme["right"] == 1)
    if not fits.any():
        raise statistics.NoRows("on no test chart does CoT-SFT state a wrong fact, GRPO no right one, and Full DyME well")
    item, shown = fits.idxmax(), []
    for method, row in zip(FAILURES, (part.loc[item] for part in (memorized, explored, dyme)), strict=True):
        pseudo, grounded, right = rates.loc[method, ["pseudo", "groundedness", "right"]]
        head = (f"{METHOD_NAMES[method]}: wrong fact in {pseudo:.0f} % of traces, groundedness {grounded:.0f} %, right with "
                f"right thinking {right:.0f} %")
        shown.append((head, theme.STYLES[method].text_color, row))
    figure = _beside_chart(image_of(item), shown, theme.PAGE - IMAGE_SIDE - 3 * MARGIN)
    chosen = pd.DataFrame([{"metric": "trace", **row[["method", *TRACE_COLUMNS]]} for *_, row in shown])
    frame = pd.concat([summary, chosen], ignore_index=True)
    return finish(figure, frame, "The two failures, and DyME; test, mini world, a teacher's traces. The first chart, in order "
                  "of item ids, on which CoT-SFT's trace is well-formed with a wrong fact, GRPO's well-formed without a right "
                  f"one, and Full DyME's answer and thinking are right ({fits.sum()} of {len(fits)} charts); wrong facts "
                  "underlined. Groundedness: right facts of those that a trace states, 0 where it states none. Rates are means "
                  f"over {summary['num_seeds'].min()} seeds.")


def _beside_chart(image: Image, shown: Sequence[tuple[str, str, pd.Series]], width: float, height: float = 0.0) -> Figure:
    """A page with a chart, its question beside it, and below that the traces, wrong facts underlined.

    Args:
        shown: each trace's head, the head's colour, and its row.
        width: of the text, inches.
        height: that other parts of the page need, inches.
    """
    text = shown[0][2]["question"]
    question = wrap(text, ["question"] * len(text), width)
    traces = [wrap(row["prediction"], kinds_of(row["prediction"], wrong=row["wrong_facts"]), width) for *_, row in shown]
    # Each trace stands under its head, with a gap after it.
    text_height = LINE * (_lines(question) + 0.5 + sum(1.6 + _lines(trace) for trace in traces))
    figure, page = _page(max(IMAGE_SIDE, text_height, height) + 2 * MARGIN)
    _show(figure, image, MARGIN, MARGIN, IMAGE_SIDE)
    x, y = 2 * MARGIN + IMAGE_SIDE, MARGIN
    y = _write(page, question, x, y) + 0.5 * LINE
    for (head, color, _), trace in zip(shown, traces, strict=True):
        page.text(x, y, head, fontsize=theme.SMALL, va="top", color=color)
        y = _write(page, trace, x, y + LINE) + 0.6 * LINE
    return figure


def _choose(rows: pd.DataFrame) -> tuple[dict[str, pd.Series], int]:
    """The item to show, by the rule that the caption states, and how many items fit it (first seed of each model)."""
    first = {model: part[part["seed"] == part["seed"].min()].set_index("item", drop=False).sort_index()
             for model, part in rows.groupby("model")}
    if set(first) != set(MODELS) or first["large"].index.intersection(first["svlm"].index).empty:
        raise statistics.NoRows(f"needs CoT-SFT test rows of {list(MODELS)} on shared items: got {list(first)}; evaluate both")
    items = first["large"].index.intersection(first["svlm"].index)
    large, small = first["large"].loc[items], first["svlm"].loc[items]
    is_grounded = (large["correct"] == 1) & (large["wrong_facts"].str.len() == 0) & (large["groundedness"] > 0)
    fits = is_grounded & (small["pseudo"] == 1)
    item = fits.idxmax() if fits.any() else (large["groundedness"] - small["groundedness"]).idxmax()
    return {"large": large.loc[item], "svlm": small.loc[item]}, int(fits.sum())


def _bars(figure: Figure, summary: pd.DataFrame, x: float, width: float) -> None:
    """Two small panels of bars with intervals, one line per model, at the right of the page."""
    titles = {"groundedness": "groundedness (%)", "pseudo": "pseudo thinking (%)"}
    names = 0.62  # inches for the models' names
    tall = 0.42
    for index, (metric, title) in enumerate(titles.items()):
        top = 0.22 + index * (tall + 0.52)
        axes = _place(figure, x + names, top, width - names - 0.1, tall)
        part = summary[summary["metric"] == metric].set_index("model").loc[list(MODELS), ["value", "low", "high"]] * 100
        axes.barh(range(len(part)), part["value"], height=0.6, color=theme.STYLES["sft"].color)
        axes.hlines(range(len(part)), part["low"], part["high"], color="black", linewidth=1.0)
        name_lines(axes, [MODEL_NAMES[model] for model in MODELS])
        axes.set(xlim=(0, 100), xticks=(0, 50, 100))
        axes.grid(visible=False, axis="y")
        axes.set_title(title, fontsize=theme.BODY, x=-0.02)


def _page(height: float) -> tuple[Figure, Axes]:
    """A page-wide figure with invisible axes over all of it, in inches, y down."""
    figure, ((page,),) = panels(1, 1, theme.PAGE, height, layout="none")
    page.set_position((0, 0, 1, 1))
    page.set(xlim=(0, theme.PAGE), ylim=(height, 0))
    page.axis("off")
    return figure, page


def _place(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes whose upper left corner is (x, y), all in inches, y down."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((x / wide, 1 - (y + height) / high, width / wide, height / high))


def _show(figure: Figure, image: Image, x: float, y: float, side: float) -> None:
    axes = _place(figure, x, y, side, side)
    axes.imshow(image)
    axes.set_anchor("N")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.5)


def _write(page: Axes, pieces: Sequence[Piece], x: float, y: float) -> float:
    """Write wrapped text from (x, y) down; returns the y below its last line."""
    for piece in pieces:
        base = y + LINE * (piece.line + 0.78)
        page.text(x + piece.x, base, piece.text, va="baseline", fontsize=theme.SMALL, parse_math=False, **FONTS[piece.kind])
        if piece.kind == "wrong":
            page.hlines(base + 0.025, x + piece.x, x + piece.x + piece.width, color=theme.WRONG, linewidth=0.8)
    return y + LINE * _lines(pieces)


def _places(text: str, marks: Sequence[Mark]) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    for mark in marks:
        if isinstance(mark, str):
            pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, mark.split())) + r"(?!\w)"
            free = (match.span() for match in re.finditer(pattern, text) if match.span() not in places)
            mark = next(free, mark)
        if isinstance(mark, str):
            raise ValueError(f"fact {mark!r} is not written in the trace {text!r}; give facts as they stand there")
        places.append((int(mark[0]), int(mark[1])))
    return places


def _lines(pieces: Sequence[Piece]) -> int:
    return pieces[-1].line + 1 if pieces else 0


def _width(text: str, kind: str) -> float:
    """Width in inches as drawn."""
    font = FONTS[kind]
    properties = FontProperties(family=theme.FAMILY, size=theme.SMALL, weight=font.get("fontweight", "normal"),
                                style=font.get("fontstyle", "normal"))
    return text_to_path.get_text_width_height_descent(text, properties, ismath=False)[0] / 72
