"""A chat completions server on loopback that follows a script, on real sockets, and records its requests.

    with ScriptedServer([status(429, {"Retry-After": "1"}), answer('{"rating": "high"}')]) as server:
        ... Endpoint(base_url=server.base_url, model="m") ...
    assert len(server.seen) == 2

Each request takes the next act of the script; after the last one it repeats. In place of a list a function from the
request's body (a dict) to an act may be given.
"""
from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


@dataclass(frozen=True)
class Seen:
    """One request as it came in; header names in lower case."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def text(self) -> str:
        """All text that was sent to the model."""
        return json.dumps(self.body["messages"])

    @property
    def has_schema(self) -> bool:
        return "response_format" in self.body


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an acknowledgement

    def do_POST(self) -> None:
        owner: ScriptedServer = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        act = owner.next_act(Seen(body, {name.lower(): value for name, value in self.headers.items()}))
        try:
            act(self)
        except (BrokenPipeError, ConnectionResetError):  # the client gave up
            self.close_connection = True
        finally:
            owner.leave()

    def send(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than the server lives."""
        self.server.owner.stopping.wait(seconds)

    def log_message(self, *arguments: object) -> None:
        pass


def completion(content: Any, finish: str = "stop", **message: Any) -> bytes:
    """The body of a chat completion; it reports 11 tokens in and 7 out."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
                       "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}}).encode()


def answer(content: Any, finish: str = "stop", after_s: float = 0.0, **message: Any) -> Act:
    """A whole reply with this text, after a while."""
    def act(handler: Handler) -> None:
        handler.pause(after_s)
        handler.send(200, completion(content, finish, **message))
    return act


def body(text: str, headers: dict[str, str] | None = None) -> Act:
    """HTTP 200 with exactly this body."""
    return lambda handler: handler.send(200, text.encode(), headers)


def status(code: int, headers: dict[str, str] | None = None, message: str = "scripted") -> Act:
    """An HTTP error."""
    return lambda handler: handler.send(code, json.dumps({"error": {"message": message}}).encode(), headers)


def hang(seconds: float = 30.0) -> Act:
    """Nothing, not even headers."""
    def act(handler: Handler) -> None:
        handler.pause(seconds)
        handler.close_connection = True
    return act


def hang_in_body(content: str, seconds: float = 30.0) -> Act:
    """Headers and half of the body, then nothing."""
    def act(handler: Handler) -> None:
        whole = completion(content)
        handler.send(200, whole[: len(whole) // 2], length=len(whole))
        handler.pause(seconds)
        handler.close_connection = True
    return act


def cut_in_body(content: str) -> Act:
    """Headers and half of the body, then the connection ends."""
    return hang_in_body(content, 0.0)


def drip(content: str, every_s: float = 0.05) -> Act:
    """The whole reply, one byte at a time: no read ever times out."""
    def act(handler: Handler) -> None:
        whole = completion(content)
        handler.send(200, b"", length=len(whole))
        for position in range(len(whole)):
            if handler.server.owner.stopping.wait(every_s):
                break
            handler.wfile.write(whole[position: position + 1])
        handler.close_connection = True
    return act


def reset() -> Act:
    """The connection is reset (RST) without a reply."""
    def act(handler: Handler) -> None:
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        handler.rfile.close()
        handler.wfile.close()
        handler.connection.close()
    return act


def outcomes(client: Any, requests: Iterable[Any], one_by_one: bool = False) -> list[Any]:
    """What each request came to, in order: the reply, or the error in the place of one that got none."""
    futures = (client.submit(request) for request in requests)
    return [future.exception() or future.result() for future in (futures if one_by_one else list(futures))]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], owner: ScriptedServer) -> None:
        self.owner, self.open = owner, set()
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        try:
            super().shutdown_request(request)
        except OSError:  # the script closed it
            pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection that a test broke on purpose


class ScriptedServer:
    """See the top of this file.

    Attributes:
        seen: the requests in the order they came.
        most_at_once: the largest number of requests that were under way at one time.
    """

    def __init__(self, script: Sequence[Act] | Callable[[dict[str, Any]], Act]) -> None:
        self.script, self.seen, self.most_at_once, self._now = script, [], 0, 0
        self._lock, self.stopping, self._port = threading.Lock(), threading.Event(), 0
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> ScriptedServer:
        """Listen; after a `stop` on the same port as before."""
        self.stopping.clear()
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop listening and break every connection, as a killed server does."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed already
                pass

    def next_act(self, seen: Seen) -> Act:
        with self._lock:
            place = len(self.seen)
            self.seen.append(seen)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        return self.script(seen.body) if callable(self.script) else self.script[min(place, len(self.script) - 1)]

    def leave(self) -> None:
        with self._lock:
            self._now -= 1

    def __enter__(self) -> ScriptedServer:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()
