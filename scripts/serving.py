"""A real OpenAI-compatible server on this machine: `dyme judge-server [--port 8000]`, or `local_server` in code.

The server is `transformers serve` with a model of 135 million parameters (weights.py), on loopback alone, in a process of its
own. Such a model cannot judge a chart: it shows that client and server understand each other, not that supervision works.
The server ignores response_format and samples every request like its first one, so a first one that asks for greedy decoding
is sent here. A prompt of 20,000 tokens blocks all requests behind it; the client's time limit ends such a wait.
"""
from __future__ import annotations

import http.client
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from dyme_core import config
from dyme_core.config import Endpoint
from scripts.weights import LlmMissingError, model_folder

logger = logging.getLogger(__name__)
HOST = "127.0.0.1"
NEEDS = ("fastapi", "uvicorn", "gguf")  # of the extra `llm`; they bring its other packages along
# Without the last two the server takes 90 % of the free memory for its cache (9 GB when measured); 64 blocks of 256 tokens hold
# eight requests of 2,048 in 0.4 GB; others wait their turn.
SETTINGS = ("--device", "cpu", "--dtype", "bfloat16", "--continuous-batching", "--cb-num-blocks", "64",
            "--cb-max-batch-tokens", "1024")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
START_TIMEOUT_S = 600.0  # 10 s on an idle core; the very first start compiles torch's sources: minutes on a busy core
STOP_TIMEOUT_S = 10.0
POLL_S = 0.2
LOG_LINES = 15


class ServerError(RuntimeError):
    """The server could not be started, or ended by itself; the message holds the end of its log."""


@contextmanager
def local_server(port: int | None = None, folder: Path | None = None, start_timeout_s: float = START_TIMEOUT_S,
                 **limits: Any) -> Iterator[Endpoint]:
    """A server that answers for as long as the block runs.

    Args:
        port: on 127.0.0.1; None takes a free one.
        folder: for model and logs; None takes the repository's runs/llm.
        limits: fields of the Endpoint, such as total_timeout_s.
    Returns:
        the Endpoint to hand to a Client: base_url, the model's name at the server (its folder), costs nothing.
    Raises:
        LlmMissingError: without the extra.
        WeightsError: if the model's file is not the one that is pinned.
        ServerError: if the port is taken, or the server does not answer in time.
    """
    with _running(port, folder or config.paths("llm").runs, start_timeout_s) as server:
        yield Endpoint(**{"model": str(server.model), "base_url": server.base_url, "usd_per_million": (0.0, 0.0), **limits})


@dataclass(frozen=True)
class _Server:
    """A process that serves the model of a folder on a port of this machine."""

    process: subprocess.Popen
    port: int
    model: Path
    log: Path

    @property
    def base_url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    def failed(self, what: str) -> ServerError:
        """The error that says what happened, with the end of the log."""
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return ServerError("\n".join([f"the model server {what}; the end of {self.log}:", *lines]))


@contextmanager
def _running(port: int | None, folder: Path, start_timeout_s: float) -> Iterator[_Server]:
    """A server that has answered; it is ended with the block."""
    if missing := [name for name in NEEDS if util.find_spec(name) is None]:
        raise LlmMissingError(", ".join(missing))
    port = _take_port(port)
    model = model_folder(folder.resolve())
    server = _start(port, model, folder / f"server-{port}.log")
    try:
        _wait(server, start_timeout_s)
        yield server
    finally:
        _stop(server.process)


def command(model: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--host", HOST, "--port", str(port),
            *SETTINGS]


def _take_port(port: int | None) -> int:
    """The given port if it is free, or any free one. Raises ServerError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does; a port in use is still refused
        try:
            probe.bind((HOST, port or 0))
        except (OSError, OverflowError) as error:
            raise ServerError(f"port {port} of {HOST} cannot be had ({error}); name another with --port, or none for a free "
                              "one") from error
        return probe.getsockname()[1]


def _start(port: int, model: Path, log: Path) -> _Server:
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | OFFLINE  # one thread, so that other work keeps its core
    environment.pop("OPENAI_API_KEY", None)  # none of the server's business
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(command(model, port), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                   env=environment)
    return _Server(process, port, model, log)


def _wait(server: _Server, timeout_s: float) -> None:
    """Return when the server has answered a request for one token.

    Raises:
        ServerError: if it ends, answers with an error, or does not answer in time.
    """
    until = time.monotonic() + timeout_s
    while (status := _status(server, until - time.monotonic())) != 200:
        if server.process.poll() is not None:
            raise server.failed(f"ended with code {server.process.returncode} before it answered")
        if status is not None:
            raise server.failed(f"answered a first request with HTTP {status}")
        if time.monotonic() > until:
            raise server.failed(f"did not answer within {timeout_s:g} s (a longer start_timeout_s may do)")
        time.sleep(POLL_S)


def _status(server: _Server, timeout_s: float) -> int | None:
    """The HTTP status of a request, None without an answer. The first request sets the server's batching: greedy."""
    body = {"model": str(server.model), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temperature": 0}
    connection = http.client.HTTPConnection(HOST, server.port, timeout=max(timeout_s, POLL_S))
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(port: int | None, folder: Path) -> None:
    """Run the server until it is interrupted, saying how to reach it. Raises ServerError if it ends by itself."""
    logger.info("starting the model server (10 s on an idle core; the first time longer, for the model is converted)")
    with _running(port, folder, START_TIMEOUT_S) as server:
        logger.info("ready; stop it with Ctrl-C. In another terminal:\nexport OPENAI_BASE_URL=%s\nexport OPENAI_MODEL=%s",
                    server.base_url, shlex.quote(str(server.model)))
        raise server.failed(f"ended with code {server.process.wait()}")
