"""One ledger from several attempts at a run: that of an uninterrupted run, without losing a paid call."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from dyme_core.supervision.llm.parsing import Request
from dyme_core.supervision.llm.usage import LEDGER_FILE, Attempts, Ledger, Tally, identity, merge
from dyme_core.utils import read_rows


def row(step: int, key: str, hit: bool = False, outcome: str = "ok", item: str = "a") -> dict:
    return {"step": step, "purpose": "check", "item": item, "key": key, "hit": hit, "outcome": outcome}


WHOLE = [row(0, "x"), row(1, "y"), row(1, "y", hit=True), row(2, "x", hit=True), row(2, "z"),
         row(3, "w", outcome="InvalidReply")]


@pytest.mark.parametrize("attempts", [
    [WHOLE],
    [WHOLE[:3], WHOLE[3:]],
    [WHOLE[:5], WHOLE[3:]],  # from the checkpoint after step 1; step 2 was under way
    [WHOLE[:4], WHOLE[1:5], WHOLE[4:2:-1] + WHOLE[5:]],
    [WHOLE[:2], WHOLE],  # from the start
], ids=["never stopped", "between steps", "inside a step", "twice", "before any checkpoint"])
def test_a_resumed_run_has_the_ledger_of_an_uninterrupted_one(attempts: list[list[dict]]) -> None:
    assert merge(attempts) == merge([WHOLE])


def test_a_paid_call_stays_in_the_ledger_if_no_later_attempt_repeats_it() -> None:
    assert merge([[row(1, "x"), row(1, "y", hit=True)], [row(1, "z")]]) == [row(1, "x"), row(1, "z")]
    assert merge([[row(1, "x", outcome="NotAsked")], [row(1, "z")]]) == [row(1, "z")], "nobody was asked"


def test_calls_paid_by_earlier_attempts_are_known_until_the_ledger_is_written(tmp_path: Path, caplog) -> None:
    first = Attempts(tmp_path)
    odd = row(1, "x", item="a\u2028b")  # which str.splitlines would take for two lines
    lines = [json.dumps(odd, ensure_ascii=False), json.dumps(row(1, "no", outcome="InvalidReply")), '{"step": 1, "pu']
    first.path.write_text("\n".join(lines))
    first.close()
    second = Attempts(tmp_path)
    assert second.path != first.path and second.paid == {(1, "a\u2028b", "x"): odd}
    assert "a line was torn" in caplog.text
    second.path.write_text(json.dumps(odd) + "\n")
    second.write()
    assert read_rows(tmp_path / LEDGER_FILE) == [row(1, "no", outcome="InvalidReply"), odd]
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER_FILE] and Attempts(tmp_path).paid == {}


def test_a_recorded_reply_that_an_earlier_attempt_paid_is_booked_as_that_call_and_only_once(tmp_path: Path) -> None:
    paid = {**row(1, "x"), "model": "m", "tokens_in": 11, "tokens_out": 7, "seconds": 2.0, "retries": 1, "repairs": 0,
            "cost_usd": 0.5}
    ledger = Ledger(tmp_path / "ledger.jsonl", "m", paid={identity(paid): paid})
    for _ in range(2):
        ledger.book(Request("check", "a", [{"role": "user", "content": "?"}], BaseModel), Tally(1, "x"), is_hit=True)
    first, second = read_rows(tmp_path / "ledger.jsonl")
    assert first == paid and second["hit"]
    sums = ledger.sums()
    assert (sums["calls"], sums["hits"], sums["tokens_in"], sums["cost_usd"]) == (1, 1, 11, 0.5)
