"""The model card of a trained policy, written from its manifest; and a folder that holds everything of one run.

    dyme card --profile gpu --run svlm-full_dyme-s0 --out FOLDER
"""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from dyme_core import config, utils
from dyme_core.data.prompt_format import THINK_INSTRUCTION
from dyme_core.supervision.llm.usage import LEDGER_FILE
from dyme_core.utils import read_rows, run_file, write_rows

CARD = """---
library_name: transformers
pipeline_tag: image-text-to-text
tags: [dyme, grpo, visual-question-answering]
---

# {run}

A small vision-language model trained from `{base}` with {name}, by the reference artifact of DyME (arXiv 2506.23061).
It is asked for its thinking and then one `<answer>` line:

```python
from transformers import pipeline

ask = pipeline("image-text-to-text", model=".")  # this folder
question = "What is the value of FAV in 2010? {instruction}"
turn = {{"role": "user", "content": [{{"type": "image", "image": "chart.png"}}, {{"type": "text", "text": question}}]}}
print(ask(text=[turn], max_new_tokens={max_tokens}, return_full_text=False)[0]["generated_text"])
```

- data: {data}, profile `{profile}`, at most {questions} questions
- checked and refined by: {judge}
- {rollouts} rollouts, {tokens} tokens, {train_s:.0f} s, {processes} processes
- {weights} but the vision tower's, {bits} bits, seed {seed}
- settings: {settings}
- started {started}, commit {commit}{changes}; {machine}, {platform}; {packages}

| split | questions | correct (%) | format (%) |
| --- | ---: | ---: | ---: |
{scores}

An answer counts with thinking before it, compared strictly. Intervals (95 %, Wilson) are of the questions: another seed
may differ by more. Trained on questions about charts, for research; the licence is that of the base and of the data.
"""


def model_card(manifest: dict[str, Any]) -> str:
    """Markdown: the policy, its data, method and settings, the scores, the machine and the commit, all from the manifest."""
    settings = {**config.default_settings(), **manifest["settings"]}  # what the manifest lacks has its default
    data, engine, told = settings["data"], settings["engine"], manifest["supervision"]
    judge = "deterministic rules" if told["backend"] == "rule" else f"the language model {told['model']} ({told['backend']})"
    source = f"{data['name']} ({data['source']})" if data["source"] else f"the {data['name']} charts drawn by this repository"
    return CARD.format_map({
        "processes": 1, **manifest, "name": config.METHOD_NAMES[manifest["method"]], "data": source, "judge": judge,
        "questions": settings["world"]["train_questions"],
        "instruction": THINK_INSTRUCTION, "max_tokens": settings["max_completion_tokens"],
        "weights": f"adapters of rank {engine['lora_rank']}" if engine["lora_rank"] else "every weight",
        "bits": 16 if engine["bf16"] else 32,
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items() if not isinstance(value, dict)),
        "scores": "\n".join(_score_line(split, score) for split, score in manifest["results"].items()),
        "commit": manifest["commit"] or "unknown",
        "changes": " with changes that were not committed" if manifest["dirty"] else "",
        "machine": manifest.get("hardware") or manifest["cpu"],
        "packages": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())})


def _score_line(split: str, score: dict[str, Any]) -> str:
    count = score["num_items"]
    low, high = binomtest(round(score["correct"] * count), count).proportion_ci(method="wilson")
    return (f"| {split} | {count} | {100 * score['correct']:.1f} [{100 * low:.1f}, {100 * high:.1f}] | "
            f"{100 * score['has_format']:.1f} |")


def gather(paths: config.Paths, run: str, folder: Path) -> Path:
    """Put manifest, rows, log, ledger of calls (where there was a judge) and card of one run into a folder; returns it.

    Raises:
        FileNotFoundError: where the run is not finished.
    """
    made = paths.manifests / f"{run}.json"
    if not made.is_file():
        raise FileNotFoundError(f"no manifest {made.name} in {made.parent}: the run is not finished, or has another name")
    manifest = utils.read_json(made)
    utils.write_json(folder / "manifest.json", manifest)
    for name, stored in (("rows", paths.rows), ("log", paths.logs)):
        write_rows(folder / f"{name}.jsonl", read_rows(run_file(stored, run)))
    utils.write_atomic(folder / "README.md", model_card(manifest))
    ledger = paths.runs / run / LEDGER_FILE
    if ledger.is_file():
        shutil.copyfile(ledger, folder / LEDGER_FILE)
    return folder
