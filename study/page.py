"""The reader's page: the whole study in one HTML file that opens anywhere, offline (`make page`).

Nothing is measured or judged here: table and claims are those of `report`, figures and captions are files that it drew, the
traces are stored rows beside their charts, which are drawn again. `page.html` is the template.
"""
from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from dyme_core import config
from dyme_core.config import METHOD_NAMES, MODEL_NAMES
from dyme_core.data import datasets
from dyme_core.data.schema import DataError, Record, item_of
from dyme_core.supervision import markup
from dyme_core.utils import write_atomic
from study import claims, report, tables
from study.statistics import NoRows

logger = logging.getLogger(__name__)
NUM_QUESTIONS = 32  # whose traces are shown
SHOWN = 0.45  # of a figure's pixels: 300 dots an inch become 135
STORY = {  # by section, those of the claims among them: what it is about, and its figures
    "Charts, questions and a checker": (
        "Every question is about a drawn chart whose values are known. So rules can check each value that a trace states, and "
        "thinking is scored apart from the answer.", "gallery scores"),
    "Preliminary study": (
        "A supervised step and a step of GRPO have one gradient form: the target is a rollout with ratio 1 and advantage 1. So "
        "both fit in one batch, which is what DyME does.", "gradient_equivalence off_policy"),
    "The two failures": (
        "Memorizing traces that it would not write itself teaches a small model their words and not the values. Exploring "
        "alone finds too little that is right.", "failures pseudo_thinking learnability"),
    "Better performance": (
        "What counts first is a right answer after right thinking, because luck does not give it. The answer alone stands "
        "beside it.", "performance kinds pairs"),
    "What is memorized, and at what cost": (
        "The same methods on a teacher's traces and on refined targets, which are short and in words that the base knows.",
        "memorized targets"),
    "Stable training": (
        "What happens from step to step, and how often DyME memorizes.",
        "stability modes thinking gradients entropy forgetting"),
    "Lower costs": ("Seconds on the same CPU, of a step and of a whole run.", "expense"),
    "Ablation": ("Full DyME with one part taken away.", "ablation"),
    "Switches, on refined targets": ("Other rules for when to memorize and when to explore.", "switches"),
    "Rollouts and supervision, on refined targets": (
        "How many rollouts and prompts a step has, and how good the targets are.", "rollouts prompts supervision"),
    "Kinds of question that training left out (gap and count), on refined targets": (
        "What carries over to kinds of question that training did not show.", "transfer"),
    "Real models and data": ("What a small world cannot show.", ""),
}


def write_page(profile: str, own: bool = False, out: Path | None = None) -> Path:
    """Write the page of a profile's published study, or of the own runs; what has no rows is named on it.

    Args:
        own: of the own runs, also where the profile has a published study.
        out: the file; None: results/local/page.html.
    Returns:
        the file.
    """
    paths = config.paths(profile)
    stored = report.Stored(paths if own else report.study_of(profile).paths)  # the figures as they were published
    out = out or paths.root / "results" / "local" / "page.html"
    write_atomic(out, render(stored))
    logger.info("the page is %s, %.1f MB", out, out.stat().st_size / 1e6)
    return out


def render(stored: report.Stored) -> str:
    """The page as HTML; the same results give the same text."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"digest": _digest, "slug": lambda title: re.sub(r"\W+", "-", title).strip("-").lower()}
    parts = {"table": _main_table, "claims": _claims, "traces": _traces, "progress": _progress}
    return environment.get_template("page.html").render(
        {name: _or_missing(make, stored) for name, make in parts.items()}, profile=stored.paths.profile,
        story=list(_story(stored)), num_questions=NUM_QUESTIONS, versions=claims.versions(stored.manifests))


def commands(paths: config.Paths) -> dict[str, str]:
    """The command that draws it, for every figure of the report and of the notebooks."""
    suffix = "" if paths.profile == config.DEFAULT else f" PROFILE={paths.profile}"
    found = dict.fromkeys(report.FIGURES, f"make figures{suffix}")
    for book in sorted((paths.root / "notebooks").glob("*.ipynb")):
        for name in re.findall(r'save_figure\(figure, \\"(\w+)', book.read_text(encoding="utf-8")):
            found[name] = f"make paper{suffix} ARGS='--only {book.name[:2]}'"
    return found


def _story(stored: report.Stored) -> Iterator[dict[str, Any]]:
    """The sections in order: title, what they are about, their figures, and the names of figures that are not there."""
    known = commands(stored.paths)
    placed = {name for _, names in STORY.values() for name in names.split()}
    more = {title: ("", "") for title in claims.claims() if title not in STORY}
    if left := [name for name in known if name not in placed]:
        more["More figures"] = ("", " ".join(left))
    for title, (about, names) in (STORY | more).items():
        files = {name: stored.figures / f"{name}.png" for name in names.split()}
        yield {"title": title, "about": about, "absent": [name for name, png in files.items() if not png.is_file()],
               "figures": [_figure(png, known.get(name, "")) for name, png in files.items() if png.is_file()]}


def _figure(png: Path, command: str) -> dict[str, Any]:
    """A figure with its caption, its size in CSS pixels, and what a screen reader says of it: the caption's first sentence."""
    sidecar = png.with_suffix(".md")
    caption = sidecar.read_text(encoding="utf-8").strip() if sidecar.is_file() else ""
    with Image.open(png) as image:
        width, height = (round(SHOWN * side) for side in image.size)
    return {"uri": markup.data_uri(png.read_bytes()), "width": width, "height": height, "caption": caption, "command": command,
            "alt": f"{png.stem.replace('_', ' ')}: {re.split(r'(?<=[.:]) ', caption)[0]}"}


def _or_missing(make: Callable[[report.Stored], Any], stored: report.Stored) -> dict[str, Any]:
    """What there is, under "found", or the sentence that says what is missing, under "missing"."""
    try:
        return {"found": make(stored), "missing": ""}
    except (NoRows, DataError, OSError) as missing:
        return {"found": None, "missing": str(missing).replace(f"{stored.paths.root}/", "")}


def _main_table(stored: report.Stored) -> dict[str, Any]:
    build, caption = report.TABLES["main"]
    return tables.readable(build(stored)).to_dict("split") | {"caption": caption}


def _claims(stored: report.Stored) -> dict[str, Any]:
    frame = claims.table(stored.evidence)
    sections = {title: group.to_dict("records") for title, group in frame.groupby("Section", sort=False)}
    return {"tally": claims.tally(frame), "sections": sections, "ours": claims.findings(stored.evidence)}


def _traces(stored: report.Stored) -> list[dict[str, Any]]:
    """The first test questions of each kind, with what the main runs of the first seed say to them."""
    rows = _first_seed(stored.main_rows)
    said = dict(list(rows[rows["split"] == "test"].groupby(["item", "question"])))
    records = datasets.limited(datasets.of_profile(config.load_profile(stored.paths.profile), "test", 0), NUM_QUESTIONS)
    asked = [record for record in records if (record.item, record.question) in said]
    if not asked:
        raise NoRows("no stored row answers a question of the present test set; train and evaluate first")
    return [{"record": record, "picture": _picture(record), "said": list(_said(record, said[record.item, record.question]))}
            for record in sorted(asked, key=lambda record: record.kind)]


def _picture(record: Record) -> str:
    return "" if record.image is None else markup.picture(record.load_image(), f"The chart of: {record.question}")


def _said(record: Record, rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each run's response as HTML with its facts marked, and what answer and thinking are worth; in the order of tables."""
    for row in rows.sort_values(["model", "method"], key=_rank).to_dict("records"):
        text, judgement = markup.judged(row["prediction"], item_of(record.row))
        yield {"name": _name(row["model"], row["method"]), "step": row["step"], "is_right": bool(row["strict"]), "text": text,
               "judgement": judgement}


def _progress(stored: report.Stored) -> dict[str, Any]:
    """By main run of the first seed and step: right answers with thinking before them, on validation, in per cent."""
    logs = _first_seed(stored.main_logs)
    shares = logs[logs["event"] == "eval"].pivot(index=["model", "method"], columns="step", values="correct")
    shown = (100 * shares).sort_index(key=_rank).map(lambda share: "–" if pd.isna(share) else f"{share:.0f}")
    return {"steps": list(shown), "runs": [(_name(*run), line.tolist()) for run, line in shown.iterrows()]}


def _first_seed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["seed"] == frame["seed"].min()]


def _rank(names: Any) -> Any:
    """Sort key: models and methods in the order of tables."""
    return names.map([*MODEL_NAMES, *METHOD_NAMES].index)


def _name(model: str, method: str) -> str:
    return f"{MODEL_NAMES[model]}, {METHOD_NAMES[method]}"


def _digest(script: str) -> str:
    """What the page's security policy calls its script by, so that no other one runs there."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
