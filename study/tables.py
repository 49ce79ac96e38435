"""Tables: views of the stored rows, written as CSV (full numbers), Markdown and LaTeX (for reading)."""
from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

from dyme_core import config
from dyme_core.config import METHOD_NAMES, MODEL_NAMES
from study import plan, statistics

logger = logging.getLogger(__name__)

FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.,%+\[\] -]*$)")  # first characters of texts that spreadsheets compute
MEASURED, REPORTED = "measured ({profile}, {cpu})", "reported (poster, ChartQA)"
BOTH, ANSWER = (name.capitalize() for name in statistics.MEASURES.values())  # headings
SHARES = {"relaxed": f"{ANSWER}, 5 % (%)", "has_format": "Format (%)", "groundedness": "Groundedness (%)"}
BOUNDS = {"": "value", " low": "low", " high": "high"}  # suffix of a table's column -> column of an estimate
SPENT = {"rollouts": "Rollouts a run", "tokens": "Tokens a run", "cpu_s": "CPU (s) a run"}  # by key of the manifest

# The poster's table "Lower data construction costs" (docs/method.md): method, external model, seconds a step, accuracy.
# "offline": used for building the data only.
REPORTED_COSTS = (
    ("GRPO", "Qwen2.5-14B, offline", 14.8, 60.8),
    ("Pure DyME", "Qwen2.5-14B, offline", 14.0, 64.9),
    ("Pure DyME", "GPT-4o, offline", 19.1, 68.5),
    ("Full DyME", "Qwen2.5-7B", 21.2, 66.8),
    ("Full DyME", "Qwen2.5-14B", 23.4, 67.5),
)
# Shown as the external model where a run's settings name none (`external_model`).
RULE_EXPERTS = {"base": "none", "grpo": "none", "full_dyme": "none (rule experts, online)"}
OFFLINE_RULES = "none (rule experts, offline)"

# Paper, LLaVA-OV-0.5B on charts (docs/method.md; second-hand): correct in % by switch. Reported, never measured here.
REPORTED_SWITCHES = {"DyME (binary)": 64.9, "HPT gate": 52.4, "SFT budget": 59.6, "Cosine annealing": 64.0}
# Paper, average of its data sets (docs/method.md; second-hand). Reported.
REPORTED_ABLATION = {"Full DyME": 55.4, "without memorize": 43.9, "without explore": 50.4, "without refiner": 51.6,
                     "without checker": 52.8}

_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def main_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Build the table of methods: answer and thinking right on both test sets, and other measures on the test set.

    Returns:
        One line per (model, method). Percentages; `<column> low` and `<column> high` bound the 95 % interval.
    """
    def column(metric: str, split: str) -> pd.DataFrame:
        return statistics.summarise(rows[rows["split"] == split], metric).set_index(["model", "method"])

    test = column(statistics.FIRST, "test")
    table = pd.DataFrame({"Seeds": test["num_seeds"], "Items": test["num_items"]})
    for name, summary in ((f"{BOTH} (%)", test), (f"{BOTH}, unseen (%)", column(statistics.FIRST, "unseen")),
                          (f"{ANSWER} (%)", column(statistics.SECOND, "test"))):
        for suffix, bound in BOUNDS.items():
            table[name + suffix] = 100 * summary[bound]
    for metric, name in SHARES.items():
        table[name] = 100 * column(metric, "test")["value"]
    table = table.sort_index(level="model", key=lambda models: models.map(list(MODEL_NAMES).index), kind="stable",
                             sort_remaining=False).reset_index()  # the SVLM is the subject, so its lines come first
    table.insert(0, "Model", table.pop("model").map(MODEL_NAMES))
    table.insert(1, "Method", table.pop("method").map(METHOD_NAMES))
    return table


def kinds_table(rows: pd.DataFrame, luck: Mapping[tuple[str, str], float]) -> pd.DataFrame:
    """Build the table of kinds of question: both measures of each SVLM method on the test set beside the level of luck.

    Args:
        luck: by split and kind, the share of answers that the best blind guess gets right (`chart_audit.luck`).
    """
    test = rows[(rows["split"] == "test") & (rows["model"] == "svlm")]
    first, second = (statistics.summarise(test, metric, ("kind", "method")) for metric in statistics.MEASURES)
    by_luck = [100 * luck.get(("test", kind), math.nan) for kind in first["kind"]]
    table = pd.DataFrame({"Kind": first["kind"], "Items": first["num_items"], "Luck (%)": by_luck,
                          "Method": first["method"].map(METHOD_NAMES), "Seeds": first["num_seeds"]})
    for name, summary in ((BOTH, first), (ANSWER, second)):
        for suffix, bound in BOUNDS.items():
            table[f"{name} (%){suffix}"] = 100 * summary[bound]
    return table


def cost_table(logs: pd.DataFrame, rows: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the poster's cost table: our measured SVLM lines first, the poster's reported lines after them.

    The two kinds come from different data and hardware: `Source` says which is which; no line mixes them.

    Args:
        logs: training logs; a run's time is the mean of `seconds` over its steps (no evaluation), a method's the median.
        rows: per-item rows; both measures are of the test set. What the poster reports is the answer's accuracy.
        manifests: of the same runs, for `profile`, `settings["external_model"]`, and rollouts,
            tokens and cpu_s, of which a method has the median over its seeds; runs that do not say are left out.
    """
    made = pd.DataFrame([manifest for manifest in manifests if manifest["model"] == "svlm"])
    source = MEASURED.format(**{name: " and ".join(sorted(made[name].unique())) for name in ("profile", "cpu")})
    external = {run.method: run.settings.get("external_model") for run in made.itertuples()}
    spent = made.reindex(columns=["method", *SPENT]).groupby("method").median().rename(columns=SPENT).round().to_dict("index")
    steps = logs[(logs["event"] == "step") & (logs["model"] == "svlm")]
    times = steps.groupby(["method", "seed"])["seconds"].mean().groupby("method").median()
    test = rows[(rows["split"] == "test") & (rows["model"] == "svlm")]
    scored = zip(*(statistics.summarise(test, metric).itertuples() for metric in statistics.MEASURES), strict=True)
    measured = [{"Method": METHOD_NAMES[line.method],
                 "External model": external.get(line.method) or RULE_EXPERTS.get(line.method, OFFLINE_RULES),
                 "Time (s/step)": times.get(line.method), **spent.get(line.method, {}),
                 **{f"{name} (%){suffix}": 100 * getattr(score, bound) for name, score in ((BOTH, line), (ANSWER, answers))
                    for suffix, bound in BOUNDS.items()},
                 "Seeds": line.num_seeds, "Source": source} for line, answers in scored]
    reported = [dict(zip(("Method", "External model", "Time (s/step)", f"{ANSWER} (%)", "Source"), (*line, REPORTED),
                         strict=True)) for line in REPORTED_COSTS]
    return pd.DataFrame(measured + reported).astype(
        {"Time (s/step)": float, "Seeds": "Int64"} | dict.fromkeys(SPENT.values(), "Int64"))


def supervision_table(ledger: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the cost of a language model's supervision from its ledger: a line per purpose, amounts per 1,000 requests.

    Tokens are those of the answer that was used, recorded ones included; seconds are those of calls that were made (none in
    a replay), each from asking to answer; dollars are known for priced models alone.
    """
    lines = []
    for purpose, rows in pd.DataFrame(ledger).groupby("purpose", sort=True):
        called = rows[~rows["hit"].astype(bool)]
        lines.append({"Purpose": purpose, "Requests": len(rows), "Calls": len(called), "Repaired": int(rows["repairs"].sum()),
                      "Without a usable reply": int((rows["outcome"] != "ok").sum()),
                      "Tokens in per 1,000": 1000 * rows["tokens_in"].astype(float).mean(),
                      "Tokens out per 1,000": 1000 * rows["tokens_out"].astype(float).mean(),
                      "Seconds per 1,000 calls": 1000 * called["seconds"].astype(float).mean(),
                      "Dollars per 1,000 calls": 1000 * called["cost_usd"].astype(float).mean()})
    return pd.DataFrame(lines)


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Full DyME and its ablations: both measures, the difference to Full DyME, and the paper's averages."""
    return _settings_table(rows, "ablation", REPORTED_ABLATION)


def switch_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The switches: both measures, the difference to the paper's binary switch, and the paper's numbers."""
    return _settings_table(rows, "switch", REPORTED_SWITCHES)


def _settings_table(rows: pd.DataFrame, experiment: str, reported: Mapping[str, float]) -> pd.DataFrame:
    """One line per point that has rows; differences, in points, are to the first one, on the seeds that both settings have.

    Raises:
        NoRows: if the experiment adds nothing to the main runs yet.
    """
    points = plan.points(experiment)
    base = points[0].setting
    scores = statistics.scores(rows, points, ("test", "unseen")).set_index(["setting", "split"])
    others = {name: statistics.scores(rows, points, metric=metric).set_index("setting")["value"]
              for name, metric in ((f"{ANSWER} (%)", statistics.SECOND), ("Groundedness (%)", "groundedness"))}
    rows, lines = statistics.with_setting(rows), []
    for setting, own in scores.groupby("setting", sort=False):
        own = own.droplevel("setting")
        line = {"Setting": own["label"].iloc[0], "Seeds": own["num_seeds"].max(), "Items": own["num_items"].max()}
        for split, name in (("test", f"{BOTH} (%)"), ("unseen", f"{BOTH}, unseen (%)")):
            line |= {f"{name}{suffix}": own[bound].get(split) for suffix, bound in BOUNDS.items()}
        line |= _difference(rows, setting, base)
        line |= {name: values.get(setting) for name, values in others.items()}
        lines.append(line | {"Reported (%)": reported.get(line["Setting"])})
    return pd.DataFrame(lines).astype({"Reported (%)": float})


def _difference(rows: pd.DataFrame, setting: str, base: str) -> dict[str, float | None]:
    name = "Difference on test (% points)"
    parts, seeds = statistics.shared(rows, (setting, base), "test")
    if setting == base or not seeds:
        return {f"{name}{suffix}": None for suffix in BOUNDS}
    estimate = statistics.paired(*(statistics.score_matrix(part, statistics.FIRST) for part in parts))
    return {f"{name}{suffix}": 100 * getattr(estimate, bound) for suffix, bound in BOUNDS.items()}


def tuning_table(rows: pd.DataFrame, manifests: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The grids on validation: learning rate x warm-up of every method, learning rate x own number of every switch.

    Returns:
        One line per point that has rows, the best of its grid (of those with most seeds) marked "best", what the profile
        uses "used".
    """
    points = {point.setting: point for point in plan.points("tuning", "switch_tuning")}
    steps = {manifest["run"]: manifest["steps"] for manifest in manifests}
    lines = []
    for score in statistics.scores(rows, list(points.values()), ("validation",), "correct").itertuples():
        point = points[score.setting]
        is_switch, run = point.experiment == "switch_tuning", point.runs()[0]
        lines.append({"Grid": point.label,
                      "Learning rate": f"{run.profile.learning_rates[point.method]:g}",
                      "Warm-up (steps)": run.profile.warmup_steps[point.method],
                      "Switch value": f"{point.value:g}" if is_switch and point.value is not None else None,
                      "Steps": steps.get(run.name), "Seeds": score.num_seeds, "Items": score.num_items,
                      **{f"Validation (%){suffix}": getattr(score, bound) for suffix, bound in BOUNDS.items()},
                      "is_used": _is_used(point)})
    table = pd.DataFrame(lines)
    final = table["Validation (%)"].where(table["Seeds"] == table.groupby("Grid")["Seeds"].transform("max"))
    best = final == final.groupby(table["Grid"]).transform("max")  # among those that all seeds have judged
    marks = {(True, True): "best, used", (True, False): "best", (False, True): "used"}
    table["Chosen"] = [marks.get(pair) for pair in zip(best, table.pop("is_used"), strict=True)]
    return table.astype({"Steps": "Int64"})


def _is_used(point: plan.Point) -> bool:
    """Whether the study's other runs have this point's settings."""
    if point.experiment == "switch_tuning":
        return plan.CHOSEN_SWITCHES[point.settings["training.switch"]] == (
            point.value, point.settings["learning_rates.pure_dyme"])
    traces = plan.REFINED if "world.traces" in point.settings else {}
    own, used = point.runs()[0].profile, config.load_profile(plan.PROFILE, **traces)
    return all(getattr(own, name)[point.method] == getattr(used, name)[point.method]
               for name in ("learning_rates", "warmup_steps"))


def write_table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> dict[str, Path]:
    """Write a table as `<name>.csv`, `.md` and `.tex`; the same frame always gives the same bytes.

    The CSV keeps every column. Markdown and LaTeX join `x`, `x low` and `x high` into "x [low, high]".

    Returns:
        The three paths, by suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = readable(frame)
    texts = {"csv": csv_text(frame), "md": f"{markdown_table(shown)}\n\n{caption}\n",
             "tex": _latex(shown, frame, name, caption)}
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        path.write_text(texts[suffix], encoding="utf-8", newline="\n")
    logger.info("table %s: %d lines in %s", name, len(frame), folder)
    return paths


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV. A text that spreadsheets would compute ("=1+1", "@x", "-x") gets an apostrophe in front; numbers stay."""
    return frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell).to_csv(
        index=False, float_format="%.6g", lineterminator="\n")


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of texts as a Markdown table, empty cells as dashes."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(escape_markdown(str(cell)) or "–" for cell in line) + " |" for line in lines)


def escape_latex(text: str) -> str:
    """Escape the characters that LaTeX would read as commands; on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Keep a text inside its cell, and HTML, links and pictures from being more than text; on one line."""
    for mark, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\(")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format each cell as text, intervals inside their value's cell, an empty cell as a dash."""
    shown = pd.DataFrame(index=frame.index)
    for column in frame.columns:
        if column.removesuffix(" low").removesuffix(" high") in shown:
            continue  # a bound, already in its value's cell
        shown[column] = [_cell(value, "%" in column) for value in frame[column]]
        if f"{column} low" in frame:
            shown[column] = [text if pd.isna(low) else f"{text} [{low:.1f}, {high:.1f}]" for text, low, high
                             in zip(shown[column], frame[f"{column} low"], frame[f"{column} high"], strict=True)]
    return shown


def _cell(value: Any, is_percentage: bool) -> str:
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, Integral) and value >= 10_000 else str(value)
    return f"{value:.1f}" if is_percentage else f"{value:#.3g}"


def _latex(shown: pd.DataFrame, frame: pd.DataFrame, name: str, caption: str) -> str:
    columns = "".join("r" if pd.api.types.is_numeric_dtype(frame[column]) else "l" for column in shown.columns)
    lines = [" & ".join(map(escape_latex, line)) + r" \\" for line in [list(shown.columns), *shown.to_numpy().tolist()]]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return (f"% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n\\caption{{{escape_latex(caption)}}}\n"
            f"\\label{{tab:{name}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n")
