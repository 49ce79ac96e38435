"""The model card of a trained policy, written from its manifest; and a folder that holds everything of one run.

    dyme card --profile gpu --run svlm-full_dyme-s0 --out FOLDER
"""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from dyme_core import config, utils
from dyme_core.supervision.llm.usage import LEDGER_FILE
from dyme_core.utils import read_rows, run_file, write_rows

SHOWN = ("steps", "prompts_per_step", "num_generations", "max_completion_tokens", "switch", "memorize_weight", "mastered",
         "reward_gate", "correct_needs_format", "learning_rate", "warmup_steps")
PAPER = "arXiv 2506.23061"


def model_card(manifest: dict[str, Any]) -> str:
    """Markdown: the policy, its data, method and settings, the scores, the machine and the commit.

    Every number is from the manifest; none is the paper's.
    """
    # A setting that the manifest lacks has its default.
    made, settings = {"processes": 1, "hardware": None, **manifest}, {**config.default_settings(), **manifest["settings"]}
    data, told, engine = settings["data"], made["supervision"], settings["engine"]
    source = f"{data['name']} ({data['source']})" if data["source"] else f"the {data['name']} charts drawn by this repository"
    judge = "deterministic rules" if told["backend"] == "rule" else f"the language model {told['model']} ({told['backend']})"
    lines = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text",
             "tags: [dyme, grpo, visual-question-answering]", "---", "", f"# {made['run']}", "",
             f"A small vision-language model trained from `{made['base']}` with {config.METHOD_NAMES[made['method']]}, by the "
             f"reference artifact of DyME ({PAPER}). It is asked for its thinking and then one `<answer>` line.", "",
             "## Training", "",
             f"- data: {source}, profile `{made['profile']}`, at most {settings['world']['train_questions']} questions",
             f"- checked and refined by: {judge}",
             f"- {made['rollouts']} rollouts, {made['tokens']} tokens, {made['train_s']:.0f} s, {made['processes']} processes",
             f"- {'adapters of rank ' + str(engine['lora_rank']) if engine['lora_rank'] else 'every weight'} but the vision "
             f"tower's, {'16 bits' if engine['bf16'] else '32 bits'}, seed {made['seed']}", "",
             "| setting | value |", "| --- | --- |", *(f"| {name} | {settings[name]} |" for name in SHOWN), "",
             "## Measured", "", _scores(made["results"]), "",
             "An answer counts with thinking before it, compared strictly. Intervals (95 %, Wilson) are of the questions: "
             "another seed may differ by more.", "",
             "## Origin", "", f"- started {made['started']}, commit {made['commit'] or 'unknown'}"
             + (" with changes that were not committed" if made["dirty"] else ""),
             f"- {made['hardware'] or made['cpu']}, {made['platform']}",
             "- " + ", ".join(f"{name} {version}" for name, version in made["versions"].items()), "",
             "## Limits", "", "Trained on questions about charts, for research. The vision tower is the base's. The licence is "
             "that of the base and of the data.", ""]
    return "\n".join(lines)


def interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`."""
    return tuple(map(float, binomtest(round(share * count), count).proportion_ci(method="wilson")))


def _scores(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| split | questions | correct (%) | format (%) |", "| --- | ---: | ---: | ---: |"]
    for split, score in results.items():
        low, high = interval(score["correct"], score["num_items"])
        lines.append(f"| {split} | {score['num_items']} | {100 * score['correct']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | "
                     f"{100 * score['has_format']:.1f} |")
    return "\n".join(lines)


def gather(paths: config.Paths, run: str, folder: Path) -> Path:
    """Put manifest, rows, log, ledger of calls (where there was a judge) and card of one run into a folder; returns it.

    Raises:
        FileNotFoundError: where the run is not finished.
    """
    made = paths.manifests / f"{run}.json"
    if not made.is_file():
        raise FileNotFoundError(f"no manifest {made.name} in {made.parent}: the run is not finished, or has another name")
    manifest = json.loads(made.read_text())
    utils.write_json(folder / "manifest.json", manifest)
    for name, stored in (("rows", paths.rows), ("log", paths.logs)):
        write_rows(folder / f"{name}.jsonl", read_rows(run_file(stored, run)))
    utils.write_atomic(folder / "README.md", model_card(manifest))
    ledger = paths.runs / run / LEDGER_FILE
    if ledger.is_file():
        shutil.copyfile(ledger, folder / LEDGER_FILE)
    return folder
