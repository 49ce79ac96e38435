"""docs/gpu.md from results/gpu and the fixed parts in page.md: what ran, on which card and versions; else "not yet"."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import OK, summary
from dyme_core import config
from dyme_core.pipeline import estimate
from dyme_core.utils import write_atomic

TEMPLATE = Path(__file__).with_name("page.md")
CPU = "cpu"  # the folder of what was measured without a card
PACKAGES = ("torch", "transformers", "trl")
ESTIMATED = (("gpu", "RTX 3090", 1), ("gpu", "RTX 4090", 1), ("gpu", "L4", 1), ("gpu", "A100", 1), ("gpu", "H100", 1),
             ("paper", "A100", 8), ("paper", "H100", 8))
GENERATION = ("rows", "tokens", "first_s", "tokens_per_s")
SHAPES = ("s_per_step", "generate_s", "update_s", "tokens_per_s", "share_of_peak", "peak_gib")
Results = dict[str, dict[str, dict[str, Any]]]  # card -> stage -> what its file holds


def write(root: Path, shown: Mapping[str, str]) -> Path:
    """Write docs/gpu.md below `root`; `shown` says what each stage shows."""
    path = root / "docs" / "gpu.md"
    write_atomic(path, render(read(root / "results" / "gpu"), shown))
    return path


def read(folder: Path) -> Results:
    """What results/gpu holds; a run at toy size is none."""
    found: Results = {}
    for path in sorted(folder.glob("*/*.json")):
        result = json.loads(path.read_text())
        if not result["dry"]:
            found.setdefault(path.parent.name, {})[path.stem] = result
    return found


def render(results: Results, shown: Mapping[str, str]) -> str:
    """The whole page."""
    cards = {card: stages for card, stages in results.items() if card != CPU}
    measured = results.get(CPU, {}).get("generation")
    return (TEMPLATE.read_text().replace("{{verdict}}", _verdict(cards)).replace("{{stages}}", _stages(cards, shown))
            .replace("{{details}}", "".join(_details(card, stages) for card, stages in cards.items()))
            .replace("{{generation}}", _generation(measured) if measured else "Not measured yet.")
            .replace("{{estimates}}", _estimates()))


def _verdict(cards: Results) -> str:
    if not cards:
        return "**Nothing here has run on a GPU yet.** Everything measured ran on CPUs, in 32 bits."
    lines = [f"{card}: {len(stages)} stages ({_versions(next(iter(stages.values())))})" for card, stages in cards.items()]
    return "**Ran on:** " + "; ".join(lines) + "."


def _stages(cards: Results, shown: Mapping[str, str]) -> str:
    rows = [[f"`{name}`", shows, *([_state(stages.get(name)) for stages in cards.values()] or ["not yet"])]
            for name, shows in shown.items()]
    return _table(["stage", "what it shows", *(cards or ["on a card"])], rows)


def _state(result: dict[str, Any] | None) -> str:
    return ", ".join(f"{count} {state}" for state, count in summary(result).items()) if result else "not yet"


def _details(card: str, stages: dict[str, dict[str, Any]]) -> str:
    text = f"### {card}\n\n"
    for name, result in stages.items():
        text += f"`{name}`: {result['seconds']:.0f} s, {_versions(result)}, commit {str(result.get('commit'))[:10]}.\n\n"
        columns = {"shapes": SHAPES, "generation": GENERATION}.get(name)
        text += _numbers(result, columns) if columns else _checks(result)
    return text


def _numbers(result: dict[str, Any], columns: Sequence[str]) -> str:
    return _table(["", *columns], [[part, *(_number(found.get(name)) for name in columns)] if found["state"] == OK
                                   else [part, _failure(found), *[""] * (len(columns) - 1)]
                                   for part, found in result["parts"].items()]) + "\n"


def _checks(result: dict[str, Any]) -> str:
    rows = []
    for part, found in result["parts"].items():
        rows += [[part, each["what"], _number(each["found"]), _number(each["limit"]), "yes" if each["holds"] else "**no**"]
                 for each in found.get("checks", ())] or [[part, _failure(found), "", "", found["state"]]]
    return _table(["part", "compared", "found", "limit", "holds"], rows) + "\n"


def _failure(found: dict[str, Any]) -> str:
    return f"{found['state']}: {found.get('error', '')}".replace("|", "/").replace("\n", " ")[:200].rstrip(": ")


def _generation(result: dict[str, Any]) -> str:
    heading = (f"On a CPU ({result['cpu']}, one thread, {_versions(result)}; seconds of CPU time; a model of 8 layers of "
               "256):\n\n")
    return heading + _numbers(result, GENERATION).rstrip("\n")


def _estimates() -> str:
    rows = []
    for profile, card, processes in ESTIMATED:
        chosen, facts = config.load_profile(profile), estimate.CARDS[card]
        step_s, gib = (sum(each(chosen, estimate.ONEVISION, facts, processes).values())
                       for each in (estimate.step_seconds, estimate.step_gib))
        steps, many = chosen.training.steps, f"{processes} x " if processes > 1 else ""
        rows.append([f"`{profile}`", f"{many}{card} ({facts.memory_gib:.0f} GB)", f"{step_s:.0f}",
                     f"{steps} steps, {step_s * steps / 3600:.1f} h", f"{gib:.0f} GiB"])
    return _table(["profile", "cards", "s a step", "in all", "memory a card"], rows)


def _versions(result: dict[str, Any]) -> str:
    return ", ".join(f"{name} {result['versions'][name]}" for name in PACKAGES if name in result["versions"])


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
