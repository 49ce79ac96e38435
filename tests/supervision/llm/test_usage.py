"""One ledger from several attempts at a run: that of an uninterrupted run, without losing a paid call."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from dyme_core.supervision.llm.usage import LEDGER_FILE, ROWS_FILE, Ledger, Tally, merge
from dyme_core.utils import read_rows


def row(step: int, key: str, hit: bool = False, outcome: str = "ok", item: str = "a") -> dict:
    return {"step": step, "purpose": "check", "item": item, "key": key, "hit": hit, "outcome": outcome}


def merged(*attempts: list[dict]) -> list[dict]:
    return merge([{**one, "attempt": number} for number, rows in enumerate(attempts) for one in rows])


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
    assert merged(*attempts) == WHOLE


def test_a_paid_call_stays_in_the_ledger_if_no_later_attempt_repeats_it() -> None:
    assert merged([row(1, "x"), row(1, "y", hit=True)], [row(1, "z")]) == [row(1, "x"), row(1, "z")]
    assert merged([row(1, "x", outcome="NotAsked")], [row(1, "z")]) == [row(1, "z")], "nobody was asked"


def tally(key: str = "x", item: str = "a", **spent: object) -> Tally:
    return Tally(1, "check", item, key, "m", **spent)


def test_calls_paid_by_earlier_attempts_are_entered_as_such_once_until_the_ledger_is_written(tmp_path: Path, caplog) -> None:
    odd = "a\u2028b\ud800"  # which str.splitlines would take for two lines, and UTF-8 does not have
    first = Ledger(tmp_path)
    first.book(tally(item=odd, tokens_in=11, tokens_out=7, retries=1, cost_usd=0.5, seconds=2.0))
    first.close()
    with (tmp_path / ROWS_FILE).open("ab") as file:
        file.write(b'\n{"step": 1, "pu')  # torn by a kill
    second = Ledger(tmp_path)
    assert "a line was torn" in caplog.text
    for _ in range(2):
        second.book(tally(item=odd, hit=True, cost_usd=0.0))
    sums = second.sums()
    assert (sums["calls"], sums["hits"], sums["tokens_in"], sums["cost_usd"]) == (1, 1, 11, 0.5)
    second.write()
    paid, hit = read_rows(tmp_path / LEDGER_FILE)
    assert (paid["item"], paid["tokens_out"], paid["seconds"], paid["hit"]) == (odd, 7, 2.0, False) and hit["hit"]
    assert "attempt" not in paid and first.rows() == second.rows() == [paid, hit]
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER_FILE]
    third = Ledger(tmp_path)
    third.book(tally(item=odd, hit=True, cost_usd=0.0))
    assert third.sums()["calls"] == 0, "the run after a finished one has paid nothing"


def test_rows_are_whole_lines_also_behind_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / ROWS_FILE).write_text('{"torn')
    ledger = Ledger(tmp_path)
    ledger.book(tally())
    ledger.book(tally("y"))
    assert [json.loads(line)["key"] for line in (tmp_path / ROWS_FILE).read_text().splitlines() if line.endswith("}")] == [
        "x", "y"]
