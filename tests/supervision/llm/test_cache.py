"""Cache, recording, replay and ledger: no request is repeated, no reply is lost, and all of it is readable text."""
from __future__ import annotations

import json
import random
import socket
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from scripted_server import ScriptedServer, answer, outcomes, status

from dyme_core.config import Endpoint
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import NotAsked, Rating, Request
from dyme_core.supervision.llm.usage import Ledger, cost_usd

ROOT = Path(__file__).resolve().parents[3]


class Verdict(BaseModel):
    rating: Rating


class Renamed(BaseModel):
    grade: Rating


def request(item: str, **parameters: object) -> Request:
    return Request("check", item, [{"role": "user", "content": f"Rate {item}."}], Verdict, parameters)


def row(key: str, rating: str = "high") -> dict:
    return {"key": key, "purpose": "check", "item": f"item {key}", "model": "m", "reply": {"rating": rating}, "tokens_in": 1,
            "tokens_out": 2}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))
PARAMETERS = st.dictionaries(st.text(max_size=5).map("p_{}".format), JSON, max_size=4)


def shuffled(value: object, rng: random.Random) -> object:
    """The same value with the keys of every dict in another order."""
    if isinstance(value, dict):
        names = list(value)
        rng.shuffle(names)
        return {name: shuffled(value[name], rng) for name in names}
    return [shuffled(one, rng) for one in value] if isinstance(value, list) else value


@given(PARAMETERS, PARAMETERS, st.randoms(use_true_random=False))
def test_the_key_depends_on_content_and_not_on_the_order_of_keys(first: dict, second: dict, rng: random.Random) -> None:
    key = request("a", **first).key("m")
    assert request("a", **shuffled(first, rng)).key("m") == key
    is_same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (request("a", **second).key("m") == key) is is_same


def test_model_messages_and_schema_are_in_the_key_and_names_are_not() -> None:
    messages = request("a").messages
    key = request("a").key("m")
    assert Request("facts", "b", messages, Verdict).key("m") == key
    assert len({key, request("a").key("n"), request("b").key("m"), Request("check", "a", messages, Renamed).key("m")}) == 4


def test_a_reply_is_asked_once_and_replayed_without_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    asked = [request("a"), request("b")]
    with ScriptedServer([answer('{"rating": "Low"}'), answer('{"rating": "high"}')]) as server:
        endpoint = Endpoint(model="m", base_url=server.base_url)
        with Recording(tmp_path / "cache.sqlite") as recording:
            with Client(endpoint, recording) as client:
                first = outcomes(client, asked, one_by_one=True)
            with Client(Endpoint(model="m", base_url="http://127.0.0.1:1/v1"), recording, ledger=ledger) as client:
                assert outcomes(client, asked) == first == [Verdict(rating="low"), Verdict(rating="high")]
                assert client.counts()["hits"] == 2 and client.counts()["calls"] == client.counts()["tokens_in"] == 0
            assert recording.export_jsonl(tmp_path / "export.jsonl") == 2
    assert len(server.seen) == 2
    assert [(entry["hit"], entry["tokens_in"], entry["cost_usd"]) for entry in ledger.rows()] == [(True, 11, 0.0)] * 2

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    for name in ("export.jsonl", "cache.sqlite"):
        with Recording(tmp_path / name, read_only=True) as recording:
            client = Client(Endpoint(model="m"), recording, "replay")
            assert outcomes(client, asked) == first
            [missing] = outcomes(client, [request("chart-9")])
            assert type(missing) is NotAsked and (missing.item, missing.purpose) == ("chart-9", "check")
            assert "check of item 'chart-9' by 'm'" in str(missing) and name in str(missing)
            assert type(outcomes(client, [request("a", temperature=1)])[0]) is NotAsked
            assert client.counts()["refused"] == 2


def test_the_next_call_does_not_wait_for_the_disk_and_closing_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_writing, may_write, put = threading.Event(), threading.Event(), Recording.put

    def put_slowly(recording: Recording, row: dict) -> None:
        is_writing.set()
        assert may_write.wait(30)
        put(recording, row)

    monkeypatch.setattr(Recording, "put", put_slowly)
    with ScriptedServer([answer('{"rating": "low"}'), answer('{"rating": "high"}')]) as server, \
            Recording(tmp_path / "cache.sqlite") as recording:
        client = Client(Endpoint(model="m", base_url=server.base_url, max_concurrency=1), recording)
        futures = [client.submit(request(item)) for item in "ab"]
        assert is_writing.wait(30)
        while client.counts()["calls"] < 2:  # the second reply has come while the first is being written
            wait(futures, 0.01)
        assert not any(future.done() for future in futures)  # a reply is given out when it is on disk, not before
        threading.Timer(0.2, may_write.set).start()
        client.close()
        assert recording.export_jsonl(tmp_path / "export.jsonl") == 2
    assert len(server.seen) == 2


def test_failures_are_not_recorded_so_that_a_rerun_asks_only_for_them(tmp_path: Path) -> None:
    with ScriptedServer([answer('{"rating": "low"}'), status(404), answer('{"rating": "high"}')]) as server:
        with Recording(tmp_path / "cache.sqlite") as recording:
            for _ in range(2):
                with Client(Endpoint(model="m", base_url=server.base_url), recording) as client:
                    got = outcomes(client, [request("a"), request("b")], one_by_one=True)
    assert got == [Verdict(rating="low"), Verdict(rating="high")] and len(server.seen) == 3


def test_a_recorded_reply_that_no_longer_fits_is_asked_again(tmp_path: Path) -> None:
    with ScriptedServer([answer('{"rating": "low"}')]) as server, Recording(tmp_path / "cache.sqlite") as recording:
        recording.put(row(request("a").key("m"), "follows"))
        with Client(Endpoint(model="m", base_url=server.base_url), recording) as client:
            assert outcomes(client, [request("a")]) == [Verdict(rating="low")]
        assert recording.get(request("a").key("m"))["reply"] == {"rating": "low"}


def test_an_export_is_sorted_text_and_comes_back_whole(tmp_path: Path) -> None:
    with Recording(tmp_path / "one.sqlite") as one:
        for key in ("b", "a", "c"):
            one.put({**row(key), "item": "Köln – 'x'"})
        one.export_jsonl(tmp_path / "one.jsonl")
    with Recording(tmp_path / "one.jsonl") as two:
        assert two.get("a") == {**row("a"), "item": "Köln – 'x'"}
        assert two.export_jsonl(tmp_path / "two.jsonl") == 3
    text = (tmp_path / "one.jsonl").read_text()
    assert text == (tmp_path / "two.jsonl").read_text() and "Köln" in text
    assert [entry["key"] for entry in rows_of(tmp_path / "one.jsonl")] == ["a", "b", "c"]


WRITER = """import sys
from dyme_core.supervision.llm.cache import Recording
prefix, count, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with Recording(path) as recording:
    for number in range(count):
        key = f"{prefix}{number}" if number % 2 else f"both{number}"
        recording.put({"key": key, "purpose": "check", "item": key, "model": "m", "reply": {"n": number}, "tokens_in": 1,
                       "tokens_out": 1})
        print(number, flush=True)"""


def test_two_processes_share_a_cache_and_one_killed_harms_nothing(tmp_path: Path) -> None:
    def writer(prefix: str, count: int) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", WRITER, prefix, str(count), str(tmp_path / "cache.sqlite")],
                                env={"PYTHONPATH": ":".join([str(ROOT), *sys.path])}, stdout=subprocess.PIPE, text=True)

    one, two, killed = writer("one-", 50), writer("two-", 50), writer("killed-", 100_000)
    written = [int(killed.stdout.readline()) for _ in range(20)]
    killed.kill()
    assert (one.communicate()[0].count("\n"), two.communicate()[0].count("\n")) == (50, 50)
    assert (one.returncode, two.returncode) == (0, 0)
    killed.communicate()
    with Recording(tmp_path / "cache.sqlite") as recording:
        for prefix in ("one-", "two-"):
            assert all(recording.get(f"{prefix}{n}" if n % 2 else f"both{n}") for n in range(50))
        assert all(recording.get(f"killed-{n}" if n % 2 else f"both{n}") for n in written), "put returned, so it is there"
    assert sqlite3.connect(tmp_path / "cache.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_ledger_has_a_row_for_each_request(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new folder")
    script = [answer('{"rating": "low"}'), status(429), answer('{"score": 1}'), answer('{"rating": "high"}'), status(404)]
    with ScriptedServer(script) as server, Recording(tmp_path / "cache.sqlite") as recording:
        with Client(Endpoint(model="gpt-4o", base_url=server.base_url), recording, ledger=ledger) as client:
            outcomes(client, [request("a"), request("a"), request("b"), request("c")], one_by_one=True)
            counts = client.counts()
    names = ("purpose", "item", "model", "tokens_in", "tokens_out", "hit", "retries", "repairs", "outcome")
    price = 11 * 2.50 / 1e6 + 7 * 10.00 / 1e6
    assert [tuple(entry[name] for name in names) for entry in ledger.rows()] == [
        ("check", "a", "gpt-4o", 11, 7, False, 0, 0, "ok"), ("check", "a", "gpt-4o", 11, 7, True, 0, 0, "ok"),
        ("check", "b", "gpt-4o", 22, 14, False, 1, 1, "ok"),
        ("check", "c", "gpt-4o", None, None, False, 0, 0, "SupervisionError")]
    assert [entry["cost_usd"] for entry in ledger.rows()] == [pytest.approx(price), 0.0, pytest.approx(2 * price), None]
    assert all(0 <= entry["seconds"] < 5 for entry in ledger.rows())
    assert {name: counts[name] for name in ("calls", "hits", "retries", "repairs", "failures", "tokens_in", "tokens_out")} == {
        "calls": 3, "hits": 1, "retries": 1, "repairs": 1, "failures": 1, "tokens_in": 33, "tokens_out": 21}
    assert counts["cost_usd"] == pytest.approx(3 * price)


def test_a_cost_is_known_or_null_and_zero_only_on_the_users_word() -> None:
    assert cost_usd("gpt-4o-mini", 1_000_000, 2_000_000) == pytest.approx(0.15 + 1.20)
    assert cost_usd("SmolLM2-135M", 10, 10) is None and cost_usd("gpt-4o", None, 10) is None
    assert cost_usd("SmolLM2-135M", 10, 10, (0.0, 0.0)) == 0.0


def test_what_is_no_recording_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="record one with a live client"):
        Recording(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="none.sqlite"):
        Recording(tmp_path / "none.sqlite", read_only=True)
    (tmp_path / "text.sqlite").write_text("no database, but long enough to be read as a header of one")
    with pytest.raises(ValueError, match="is no recording"):
        Recording(tmp_path / "text.sqlite")
    (tmp_path / "bad.jsonl").write_text(json.dumps(row("a")) + "\n<<<<<<< ours\n")
    with pytest.raises(ValueError, match="line 2: expected a JSON object"):
        Recording(tmp_path / "bad.jsonl")
    (tmp_path / "good.jsonl").write_text(json.dumps(row("a")) + "\n")
    with Recording(tmp_path / "good.jsonl") as recording:
        with pytest.raises(ValueError, match="read-only; record into a SQLite file"):
            recording.put(row("b"))
        with pytest.raises(ValueError, match="is read-only; name a SQLite file"):
            Client(Endpoint(model="m", base_url="http://127.0.0.1:1/v1"), recording)
    with pytest.raises(ValueError, match="replay needs a recording"):
        Client(Endpoint(model="m"), mode="replay")
    with pytest.raises(ValueError, match="mode must be"):
        Client(Endpoint(model="m"), mode="offline")
