"""A scripted model on loopback, in a process of its own: it drafts the rule refiner's targets and rates every trace "high"."""
from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dyme_core.data.datasets import mini_records
from dyme_core.data.schema import item_of
from dyme_core.supervision.llm.judge import fact_rows
from dyme_core.supervision.refiner import RuleRefiner


@contextmanager
def serving(questions: int, after_s: float) -> Iterator[tuple[str, Any]]:
    """The server's address, and a function that says how often it was asked; it knows the first `questions` of training."""
    pipe, end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(end, questions, after_s), daemon=True)
    server.start()

    def asked() -> int:
        pipe.send("count")
        return pipe.recv()

    yield pipe.recv(), asked
    pipe.send("stop")
    server.join()


def _serve(pipe: Any, questions: int, after_s: float) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from scripted_judge import judge
    from scripted_server import ScriptedServer

    refiner, targets = RuleRefiner(), {}
    for record in mini_records("train", questions, 0):
        item = item_of(record.row)
        targets[json.dumps([item.question, fact_rows(item.facts)])] = refiner.refine(item)
    script = judge(draft=lambda data: targets[json.dumps([data["question"], data["facts"]])], after_s=after_s)
    with ScriptedServer(script) as server:
        pipe.send(server.base_url)
        while pipe.recv() != "stop":
            pipe.send(len(server.seen))
