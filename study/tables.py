"""Tables: views of the stored rows, written as CSV (full numbers), Markdown and LaTeX (for reading)."""
from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dyme_core.config import METHOD_NAMES
from study import statistics

logger = logging.getLogger(__name__)

FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d.,%+\[\] -]*$)")  # how texts begin that spreadsheets compute
MODEL_NAMES = {"svlm": "SVLM", "large": "Large VLM"}
MEASURED, REPORTED = "measured ({profile}, {cpu})", "reported (poster, ChartQA)"
SHARES = {"strict": "Answer only, strict (%)", "relaxed": "Answer only, 5 % (%)", "has_format": "Format (%)",
          "groundedness": "Groundedness (%)"}
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
# What stands in for the external model where a run's settings name none (`external_model`).
RULE_EXPERTS = {"base": "none", "grpo": "none", "full_dyme": "none (rule experts, online)"}
OFFLINE_RULES = "none (rule experts, offline)"

_LATEX = {"\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"}


def main_table(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Build the table of methods: correct on both test sets with intervals, and its parts on the test set.

    Returns:
        One line per (model, method). Percentages; `<column> low` and `<column> high` bound the 95 % interval.
    """
    def column(metric: str, split: str) -> pd.DataFrame:
        summary = statistics.summarise(rows[rows["split"] == split], metric, seed=seed).set_index(["model", "method"])
        return summary.drop(columns=["split", "metric"])

    test, unseen = column("correct", "test"), column("correct", "unseen")
    table = pd.DataFrame({"Seeds": test["num_seeds"], "Items": test["num_items"]})
    for name, summary in (("Test (%)", test), ("Unseen (%)", unseen)):
        for suffix, bound in (("", "value"), (" low", "low"), (" high", "high")):
            table[name + suffix] = 100 * summary[bound]
    for metric, name in SHARES.items():
        table[name] = 100 * column(metric, "test")["value"]
    # The SVLM is the subject, so its lines come first.
    rank = table.index.get_level_values("model").map(list(MODEL_NAMES).index)
    table = table.iloc[rank.argsort(kind="stable")].reset_index()
    table.insert(0, "Model", table.pop("model").map(MODEL_NAMES))
    table.insert(1, "Method", table.pop("method").map(METHOD_NAMES))
    return table


def cost_table(logs: pd.DataFrame, rows: pd.DataFrame, manifests: Iterable[Mapping[str, Any]],
               seed: int = 0) -> pd.DataFrame:
    """Build the poster's cost table: our measured SVLM lines first, the poster's reported lines after them.

    The two kinds are of different worlds and hardware: `Source` says which is which; no line mixes them.

    Args:
        logs: training logs; a run's time is the mean of `seconds` over its steps (no evaluation), a method's the median.
        rows: per-item rows; accuracy is `correct` on the test set.
        manifests: of the same runs, for `profile`, `settings["external_model"]`, and rollouts,
            tokens and cpu_s, of which a method has the median over its seeds.
    """
    manifests = list(manifests)
    source = MEASURED.format(**{name: " and ".join(sorted({made[name] for made in manifests if made["model"] == "svlm"}))
                                for name in ("profile", "cpu")})
    external = {manifest["method"]: manifest["settings"].get("external_model") for manifest in manifests
                if manifest["model"] == "svlm"}
    steps = logs[(logs["event"] == "step") & (logs["model"] == "svlm")]
    times = steps.groupby(["method", "seed"])["seconds"].mean().groupby("method").median()
    spent = _medians(manifests)
    test = rows[(rows["split"] == "test") & (rows["model"] == "svlm")]
    measured = [{"Method": METHOD_NAMES[line.method],
                 "External model": external.get(line.method) or RULE_EXPERTS.get(line.method, OFFLINE_RULES),
                 "Time (s/step)": times.get(line.method), **spent.get(line.method, {}), "Accuracy (%)": 100 * line.value,
                 "Accuracy (%) low": 100 * line.low, "Accuracy (%) high": 100 * line.high,
                 "Seeds": line.num_seeds, "Source": source}
                for line in statistics.summarise(test, "correct", seed=seed).itertuples()]
    reported = [dict(zip(("Method", "External model", "Time (s/step)", "Accuracy (%)", "Source"), (*line, REPORTED),
                         strict=True)) for line in REPORTED_COSTS]
    return pd.DataFrame(measured + reported).astype(
        {"Time (s/step)": float, "Seeds": "Int64"} | dict.fromkeys(SPENT.values(), "Int64"))


def _medians(manifests: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of SPENT over the SVLM's runs of each method, whole numbers; runs that do not say are left out."""
    frame = pd.DataFrame([manifest for manifest in manifests if manifest["model"] == "svlm"])
    medians = frame.reindex(columns=["method", *SPENT]).groupby("method").median().rename(columns=SPENT).round()
    return medians.to_dict("index")


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


def write_table(frame: pd.DataFrame, folder: Path, name: str, caption: str) -> dict[str, Path]:
    """Write a table as `<name>.csv`, `.md` and `.tex`; the same frame always gives the same bytes.

    The CSV keeps every column. Markdown and LaTeX join `x`, `x low` and `x high` into "x [low, high]".

    Returns:
        The three paths, by suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = _readable(frame)
    texts = {"csv": csv_text(frame),
             "md": _markdown(shown, caption), "tex": _latex(shown, frame, name, caption)}
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        path.write_text(texts[suffix], encoding="utf-8", newline="\n")
    logger.info("table %s: %d lines in %s", name, len(frame), folder)
    return paths


def csv_text(frame: pd.DataFrame) -> str:
    """A frame as CSV. A text that spreadsheets would compute ("=1+1", "@x", "-x") gets an apostrophe in front; numbers stay."""
    return frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell).to_csv(
        index=False, float_format="%.6g", lineterminator="\n")


def escape_latex(text: str) -> str:
    """Escape the characters that LaTeX would read as commands; on one line."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def escape_markdown(text: str) -> str:
    """Keep a text inside its cell, and HTML, links and pictures from being more than text; on one line."""
    for mark, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("](", "]\\(")):
        text = text.replace(mark, escaped)
    return " ".join(text.split())


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Format each cell as text, intervals inside their value's cell, an empty cell as a dash."""
    bounds = {f"{column} {bound}" for column in frame.columns for bound in ("low", "high")} & set(frame.columns)
    shown = pd.DataFrame(index=frame.index)
    for column in frame.columns:
        if column in bounds:
            continue
        shown[column] = [_cell(value, "%" in column) for value in frame[column]]
        if f"{column} low" in bounds:
            shown[column] = [text if pd.isna(low) else f"{text} [{low:.1f}, {high:.1f}]" for text, low, high
                             in zip(shown[column], frame[f"{column} low"], frame[f"{column} high"], strict=True)]
    return shown


def _cell(value: Any, is_percentage: bool) -> str:
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if is_percentage else f"{value:#.3g}"


def _markdown(shown: pd.DataFrame, caption: str) -> str:
    lines = [list(shown.columns), ["---"] * shown.shape[1], *shown.to_numpy().tolist()]
    cells = "\n".join("| " + " | ".join(map(escape_markdown, line)) + " |" for line in lines)
    return f"{cells}\n\n{caption}\n"


def _latex(shown: pd.DataFrame, frame: pd.DataFrame, name: str, caption: str) -> str:
    columns = "".join("r" if pd.api.types.is_numeric_dtype(frame[column]) else "l" for column in shown.columns)
    lines = [" & ".join(map(escape_latex, line)) + r" \\" for line in [list(shown.columns), *shown.to_numpy().tolist()]]
    body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
    return (f"% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n\\caption{{{escape_latex(caption)}}}\n"
            f"\\label{{tab:{name}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n")
