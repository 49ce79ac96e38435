"""What a step's cost is owed to, as tables in docs/reproducibility.md: from the files of `step_cost`.

    .venv/bin/python benchmarks/attribution.py      # `make bench` does it, too, after all its sections
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from arms import FULL, KEPT, PICTURES, ROOT, STOCK, WITH_ENGINE
from judged import SHAPES

from dyme_core import utils

FOLDER, PAGE = ROOT / "results" / "bench", ROOT / "docs" / "reproducibility.md"
START, END = "<!-- results/bench/attribution.json -->\n", "\n<!-- end -->\n"  # the tables stand between them
GROWTH = ("generations", "image_tokens", "tokens", "model")
WAYS = ROOT / "results" / "gpu" / "cpu" / "generation.json"  # tokens a second of every way to write rollouts
LEFT_OUT = {
    "Liger's loss": "use_liger_kernel needs Triton, and so a card: liger-kernel (0.8.5) imports it, and so do TRL's own "
                    "chunked log-probs (trl/kernels)",
    "continuous batching": "TRL refuses it for models that read pictures; of text alone it writes fewer tokens a second than "
                           "eager generation (tokens_per_s)"}


def attribute(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write attribution.json, and its tables into the page."""
    found = {name: utils.read_json(folder / f"{name}.json") for name in ("headline", "judged", "operations", *GROWTH)}
    shapes = pd.DataFrame(found["headline"]["lines"]).groupby(["side", "tokens", "shortest"], sort=False, dropna=False)
    races = [part.set_index("arm") for _, part in shapes]
    ways = utils.read_json(WAYS)["parts"]
    result = {"steps": [shares(race) for race in races if PICTURES.name in race.index],
              "judge": [calls(line) for line in found["judged"]["lines"] if line["arm"] == line["race"]],
              "roofline": found["operations"]["lines"], "growth": {name: found[name]["exponents"] for name in GROWTH},
              "left_out": LEFT_OUT, "tokens_per_s": {name: round(ways[f"text, {name}"]["tokens_per_s"])
                                                     for name in ("eager", "continuous batching")},
              **{name: found["headline"][name] for name in ("cpu", "commit", "dirty", "versions")}}
    utils.write_json(folder / "attribution.json", result)
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(START)], text[text.index(END):]
    utils.write_atomic(page, before + START + tables(result) + after)


def shares(race: pd.DataFrame) -> dict[str, Any]:
    """Each saving as a share of a stock TRL step: the ratio of its arm less that of the arm before it in CHAIN.

    Args:
        race: the lines of one shape, by arm. The engine's rest is told apart by the phase that it shortens.
    """
    stock, pictures, engine, kept, full = (race.loc[arm.name] for arm in (STOCK, PICTURES, WITH_ENGINE, KEPT, FULL))
    generation = (engine["generate"] - pictures["generate"]) / stock["seconds"]
    changes = {"pictures encoded once": pictures["ratio"] - 1, "prompts once, own decoding loop (generation)": generation,
               "prompts once, no padding (update)": engine["ratio"] - pictures["ratio"] - generation,
               "DyME's switch and targets": kept["ratio"] - engine["ratio"], "idle rows dropped": full["ratio"] - kept["ratio"]}
    return {"mean_tokens": round(stock["generated"] / (stock["prompts"] * stock["generations"])),
            "image_tokens": int(stock["image_tokens"]), "stock_s": float(stock["seconds"]),
            "changes": {name: round(float(value), 3) for name, value in changes.items()},
            "engine": float(engine["ratio"]), "dyme": float(full["ratio"]),
            "dyme_same_engine": float(full["ratio_same_engine"])}


def calls(line: dict[str, Any]) -> dict[str, Any]:
    """How often a step asks the judge, beside the rollouts that it would have to rate if it rated all."""
    shape, warm_up, steps = SHAPES[line["shape"]]
    return {"race": line["race"], "image_tokens": shape.image_tokens, "rollouts_a_step": shape.prompts * shape.generations,
            "calls_a_step": round(line["requests"] / (warm_up + steps), 1), "ratio_to_pure": line["ratio"]}


def tables(result: dict[str, Any]) -> str:
    """The tables in Markdown: shares of a step, judge calls, roofline, growth."""
    steps, growth = result["steps"], result["growth"]

    def row(name: str, form: str, values: list[float]) -> list[str]:
        return [name, *(form.format(value) for value in values)]

    changes = [row(name, "{:+.2f}", [line["changes"][name] for line in steps]) for name in steps[0]["changes"]]
    heading = [f"{line['mean_tokens']} tokens, {line['image_tokens']} image tokens" for line in steps]
    owed = [["in steps of TRL GRPO", *heading],
            row(STOCK.name, "1 ({:.2f} s)", [line["stock_s"] for line in steps]), *changes[:3],
            row(f"**{WITH_ENGINE.name}**", "**{:.2f}**", [line["engine"] for line in steps]), *changes[3:],
            row(f"**{FULL.name}**", "**{:.2f}**", [line["dyme"] for line in steps]),
            row(f"{FULL.name} / {WITH_ENGINE.name}", "{:.2f}", [line["dyme_same_engine"] for line in steps])]
    judge = [["", "rollouts a step", "judge calls a step", "step / Pure DyME step"],
             *([f"{line['race']}, {line['image_tokens']} image tokens", f"{line['rollouts_a_step']}",
                f"{line['calls_a_step']:g}", f"{line['ratio_to_pure']:.2f}"] for line in result["judge"])]
    roofline = [["", "operations (10^9)", "needed", "pace / matrix peak", "s", "matrix products, attention (s)",
                 "other operators (s)", "operators"],
                *([f"{line['arm']}, {line['phase']}, {line['mean_tokens']} tokens", f"{line['counted_gflop']:.1f}",
                   f"{line['share_needed']:.0%}", f"{line['share_of_peak']:.0%}", f"{line['cpu_s']:.2f}",
                   f"{line['matrix_s']:.2f}", f"{line['other_operators_s']:.2f}", f"{line['calls']:,}"]
                  for line in result["roofline"])]
    grown = [["CPU seconds a step grow with the power", "G", "image tokens", "tokens a rollout", "parameters"],
             *(row(arm, "{:.2f}", [growth[name][arm] for name in GROWTH]) for arm in growth[GROWTH[0]])]
    return "\n\n".join(map(_table, (owed, judge, roofline, grown)))


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


if __name__ == "__main__":
    attribute()
