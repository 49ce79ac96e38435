"""Greedy evaluation: one JSONL row per question, and the scores of docs/evaluation.md.

    dyme evaluate --model FOLDER_OR_HUB_ID --data chartqa --source FOLDER --split test [--limit N] --out FOLDER
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from dyme_core import ranks, utils
from dyme_core.config import Training
from dyme_core.data import datasets, metrics, prompt_format
from dyme_core.data.bad_rows import BadRows
from dyme_core.data.datasets import no_target
from dyme_core.data.metrics import RELAXED_TOLERANCE, score_answer
from dyme_core.data.schema import Record, item_of
from dyme_core.models import loading, processors
from dyme_core.models.generation import Decoded, decode
from dyme_core.pipeline.preflight import without_bad_rows
from dyme_core.supervision.checker import RuleChecker
from dyme_core.utils import write_rows

logger = logging.getLogger(__name__)
MEASURES = ("relaxed", "strict", "year_exact", "correct", "has_format", "thinking", "groundedness", "is_truncated",
            "num_thinking_tokens", "num_tokens")
RULES = {"relaxed": f"tolerance {RELAXED_TOLERANCE:.0%}", "strict": "tolerance 0",
         "year_exact": f"tolerance {RELAXED_TOLERANCE:.0%}, 0 where the target is a year 1800-2100"}
EXTRACTION = (f"the text inside the first complete {prompt_format.ANSWER_OPEN}...{prompt_format.ANSWER_CLOSE}, stripped; "
              "no such tag: wrong")


def evaluate(model: PreTrainedModel, processor: ProcessorMixin, data: Sequence[Record] | Dataset, *,
             batch_size: int = 100, max_new_tokens: int = Training.max_completion_tokens, task: str = "chartqa",
             run_columns: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Answer every question greedily and score the answers.

    Args:
        model, processor: as `load_policy` gives them, on any device; the model may be in training.
        data: records of one or more splits, or a data set as the trainer takes it: `answer` and `question`, which is asked
            with the instruction to think, or `prompt`, which is asked as it is; and where they are known `image`, `item`,
            `kind`, `source`, `split` and `supervision`. `load_dataset` gives one.
        batch_size: questions answered together.
        max_new_tokens: longest response.
        task: whose rules score the answer, a key of `metrics.SCORERS`; rows of tasks other than "chartqa" and "own" have its
            own scores under "scores" as well, and "correct" is its training accuracy's.
        run_columns: copied into every row, for example the run and its seed.
    Returns:
        one row a question, in order: split, item, kind, source, question, target, prediction (the whole response), answer
        (what stands in its answer tags); has_format, strict, relaxed, year_exact, correct, is_truncated (0 or 1);
        thinking (the rule checker's score), groundedness and wrong_facts, None where no facts are known; num_thinking_tokens,
        num_tokens. `summarise` gives their means.
    Raises:
        ValueError: for a data set without rows or these columns, a picture that cannot be read, or a size below 1.
    """
    (records, instruction), tokenizer = _records(data), processors.tokenizer_of(processor)
    if not records:
        raise ValueError("expected questions to answer, got none; give at least one")
    decoded = decode(model, processor, records, batch_size=batch_size, max_new_tokens=max_new_tokens, instruction=instruction)
    return [{**(run_columns or {}), **_score(record, response, tokenizer, task)}
            for record, response in zip(records, decoded, strict=True)]


def _records(data: Sequence[Record] | Dataset) -> tuple[list[Record], str]:
    """The records, or those that a data set's rows make, and the instruction that stands behind each question."""
    if not isinstance(data, Dataset):
        return list(data), prompt_format.THINK_INSTRUCTION
    columns = set(data.column_names)
    if "answer" not in columns or not columns & {"question", "prompt"}:
        raise ValueError(f"expected a data set with the columns answer, and question or prompt: got {data.column_names}; "
                         "add or rename them")
    if "question" in columns:
        return [_record(row, number) for number, row in enumerate(data)], prompt_format.THINK_INSTRUCTION
    return [_record(row, number) for number, row in enumerate(datasets.with_defaults(data))], ""


def _record(row: dict[str, Any], number: int) -> Record:
    pictures = row["images"] if "images" in row else [row.get("image")]
    if len(pictures) > 1:
        raise ValueError(f"expected at most one picture a question, got {len(pictures)} in row {number}; leave the row out")
    known = {field.name: row[field.name] for field in fields(Record) if field.name in row}
    unknown = {"item": str(number), "kind": "", "source": "", "split": ""}
    return Record(**{**unknown, **known, "answer": str(row["answer"]), "image": pictures[0] if pictures else None})


def _score(record: Record, response: Decoded, tokenizer: Any, task: str) -> dict[str, Any]:
    thinking, answer = prompt_format.split_response(response.text)
    scores, has_format = score_answer(answer, record.answer, task), int(prompt_format.is_well_formed(response.text))
    is_right, own = scores["strict"], {}
    if task not in ("chartqa", "own"):
        is_right = metrics.training_accuracy(task, answer, record.row) > 0.5
        own = {"scores": metrics.score_response(task, response.text, record.row)}
    return {"split": record.split, "item": record.item, "kind": record.kind, "source": record.source,
            "question": record.question, "target": record.answer, "prediction": response.text, "answer": answer or "",
            "has_format": has_format, **scores, "correct": int(is_right and has_format), **own,
            **_judge(record, thinking),
            "num_thinking_tokens": len(tokenizer(thinking, add_special_tokens=False)["input_ids"]) if thinking else 0,
            "num_tokens": response.num_tokens, "is_truncated": int(response.is_truncated)}


def _judge(record: Record, thinking: str) -> dict[str, Any]:
    item = item_of(record.row)
    if not item.facts:
        return {"thinking": None, "groundedness": None, "wrong_facts": None}
    judgement = RuleChecker().judge(thinking, item)
    wrong = [thinking[claim.start: claim.end] for claim in judgement.reading.claims if not claim.is_right]
    return {"thinking": judgement.score, "groundedness": judgement.reading.groundedness, "wrong_facts": wrong}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, float | int | None]:
    """Means of every measure over the rows that have it (None where none has), and num_items."""
    summary: dict[str, float | int | None] = {"num_items": len(rows)}
    for name in MEASURES:
        values = [row[name] for row in rows if row[name] is not None]
        summary[name] = sum(values) / len(values) if values else None
    for name in dict.fromkeys(name for row in rows for name in row.get("scores", ())):  # the task's own
        values = [row["scores"][name] for row in rows if row["scores"].get(name) is not None]
        summary[f"scores.{name}"] = sum(values) / len(values) if values else None
    return summary


def scores_by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | int | None]]:
    """`summarise` for each kind in order of appearance (ChartQA: human, augmented), then "overall"."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    scores = {kind: summarise([row for row in rows if row["kind"] == kind]) for kind in kinds}
    return {**scores, "overall": summarise(rows)}


def score_report(rows: Sequence[dict[str, Any]]) -> str:
    """The scores as text, in per cent, with the prompt and the rules that they rest on."""
    lines = [f"{'':<12}{'items':>7}" + "".join(f"{rule:>12}" for rule in RULES) + f"{'format':>12}{'truncated':>12}"]
    for kind, scores in scores_by_kind(rows).items():
        measures = [scores[name] for name in (*RULES, "has_format", "is_truncated")]
        lines.append(f"{kind:<12}{scores['num_items']:>7}" + "".join(f"{100 * value:>11.1f}%" for value in measures))
        lines += [f"{'':<12}{name.removeprefix('scores.')}: {100 * value:.1f}%" for name, value in scores.items()
                  if name.startswith("scores.") and value is not None]
    lines += ["", f"prompt: {prompt_format.question_text('{question}')}", f"answer: {EXTRACTION}", "decoding: greedy"]
    return "\n".join([*lines, *(f"{rule}: {meaning}" for rule, meaning in RULES.items())]) + "\n"


def evaluate_saved(model: str, data: str, out: Path, *, source: str = "", split: str = "test", limit: int | None = None,
                   batch_size: int = 100, max_new_tokens: int = Training.max_completion_tokens, on_bad_row: str = "raise",
                   **options: Any) -> str:
    """Score a saved model on a data set; rows.jsonl, scores.txt and manifest.json go to the folder `out`.

    Args:
        model: folder of a saved model, or a hub id.
        data: "mini" or a key of `sources.KNOWN`.
        source: the data set's folder, or its hub id.
        limit: at most this many questions, kinds in equal numbers.
        on_bad_row: "skip" leaves bad rows out and counts them.
        options: of the data set's reader.
    Returns:
        the scores as text.
    Raises:
        DataError: for a data set that is not there or cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written to is refused before the questions are asked
    bad = BadRows(on_bad_row)
    records = datasets.limited(datasets.load_records(data, source, split, bad, **options), limit)
    policy, processor = loading.load_policy(model)
    records = without_bad_rows(records, processor, bad, no_target, max_new_tokens)
    policy = policy if policy.device.type != "cpu" else policy.to(ranks.device())
    logger.info("%d questions of %s, model %s", len(records), data, model)
    rows = evaluate(policy, processor, records, batch_size=batch_size, max_new_tokens=max_new_tokens,
                    run_columns={"run": Path(model).name}, task=datasets.task_of(data))
    write_rows(out / "rows.jsonl", rows)
    utils.write_atomic(out / "scores.txt", report := score_report(rows))
    utils.write_json(out / "manifest.json", {
        "model": model, "data": data, "split": split, "skipped_rows": bad.summary(), "scores": scores_by_kind(rows),
        "prompt": prompt_format.question_text("{question}"), **utils.provenance(Path.cwd())})
    return report
