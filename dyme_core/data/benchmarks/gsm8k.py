"""GSM8K to records: word problems without a picture, with their solutions as traces.

Official files: <split>.jsonl with rows {question, answer}; the hub (openai/gsm8k, config main) has the same columns. A solution
ends in "#### " and the gold number; it contains calculator notes like <<2*3=6>>.
"""
from __future__ import annotations

import re
from pathlib import Path

from dyme_core.data.bad_rows import BadRows
from dyme_core.data.benchmarks.rows import SPLITS, Row, read_rows, text_of
from dyme_core.data.schema import DataError, Record, known

COLUMNS = ("question", "answer")
SOURCE = "GSM8K (Cobbe et al. 2021)"

_NOTE = re.compile(r"<<[^<>]*>>")


def gsm8k_records(source: Path | str, split: str, bad: BadRows | None = None) -> list[Record]:
    """Read the problems of one split.

    Args:
        source: a folder that holds <split>.jsonl, a hub id, or a folder in the hub's layout.
        split: "train" or "test".
        bad: collects the rows that are refused; None raises.
    Returns:
        records without a picture; the answer as it stands behind "####", the steps before it, without notes, as the trace.
    Raises:
        DataError: naming the row.
    """
    bad = bad or BadRows()
    rows = read_rows(source, split, COLUMNS, [f"{split}.jsonl"], "main", bad)
    return bad.records(rows, lambda row, number: _record(row, f"gsm8k_{split}-{number - 1:05d}", split))


def _record(row: Row, item: str, split: str) -> Record:
    solution = text_of(row, "answer", item)
    steps, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise DataError.of(item, "a solution that ends in '#### ' and its number", repr(solution[-40:]), "correct it")
    return Record(item, text_of(row, "question", item), answer.strip(), "text", SOURCE, SPLITS.get(split, split), None,
                  known(trace=_NOTE.sub("", steps).strip()))
