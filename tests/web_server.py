"""A web server on loopback that does what servers do: knows ranges and ETags, takes its time, fails, ends answers early.

with WebServer(contents) as server:
    server.url("a/1.jpg")
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Fault = Callable[["Answer"], bool]  # whether it has answered


class Answer(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Any

    def setup(self) -> None:
        super().setup()
        self.server.owner.connected(self.connection)

    def do_GET(self) -> None:
        owner: WebServer = self.server.owner
        with owner.asked(self.key):
            if owner.latency_s:
                time.sleep(owner.latency_s)
            if (hold := owner.held.get(self.key)) is not None:
                hold.wait()
            if (fault := owner.faults.get(self.key)) is None or not fault(self):
                self._send()

    do_HEAD = do_GET  # noqa: N815  (named by http.server)

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def key(self) -> str:
        """What the URL names, with its query."""
        path, mark, query = self.path.partition("?")
        return unquote(path).lstrip("/") + mark + query

    def plain(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        """Send an answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def _send(self) -> None:
        owner: WebServer = self.server.owner
        content = owner.contents.get(self.key)
        if content is None:
            self.plain(404)
            return
        headers = {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        wanted = self.headers.get("Range")
        if (match := self.headers.get("If-Match")) not in (None, headers["ETag"]):
            self.plain(412, b"<Error><Code>PreconditionFailed</Code></Error>" if match else b"")
            return
        if wanted is None or not owner.knows_ranges:
            self.plain(200, content, {**headers, "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"})
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if first >= len(content):
            self.plain(416, headers={"Content-Range": f"bytes */{len(content)}"})
            return
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self.plain(206, part, {**headers, "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT"})


class Server(ThreadingHTTPServer):
    """Each connection has a thread, which ends with it."""

    daemon_threads = False
    owner: WebServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the client was killed
            super().handle_error(request, client_address)


class WebServer:
    """Contents by their keys, which tests may change while it runs.

    `faults`: key -> a function that answers in place of the server. `held`: key -> an event that is waited for. `n_asked`: how
    often each key was asked for. `n_most`: how many requests were answered at once, at most.
    """

    def __init__(self, contents: dict[str, bytes], latency_s: float = 0.0, knows_ranges: bool = True) -> None:
        self.contents, self.latency_s, self.knows_ranges = contents, latency_s, knows_ranges
        self.faults: dict[str, Fault] = {}
        self.held: dict[str, threading.Event] = {}
        self.n_asked: Counter[str] = Counter()
        self.n_most = self._n_now = 0
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> WebServer:
        self._server = Server(("127.0.0.1", 0), Answer)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self.held.values():
            event.set()
        self._server.shutdown()
        for connection in self._connections:
            with suppress(OSError):  # it is closed
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()  # which waits for the threads
        self._thread.join()

    @property
    def root(self) -> str:
        """The URL that keys are relative to."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, key: str) -> str:
        """The URL of a key that needs no encoding."""
        return f"{self.root}/{key}"

    def asked(self, key: str) -> Asked:
        return Asked(self, key)

    def connected(self, connection: socket.socket) -> None:
        self._connections.append(connection)

    def count(self, key: str, change: int) -> None:
        with self._lock:
            self.n_asked[key] += max(0, change)
            self._n_now += change
            self.n_most = max(self.n_most, self._n_now)


class Asked:
    """While a request is answered."""

    def __init__(self, server: WebServer, key: str) -> None:
        self._server, self._key = server, key

    def __enter__(self) -> None:
        self._server.count(self._key, 1)

    def __exit__(self, *_: object) -> None:
        self._server.count(self._key, -1)


def first(n: int, fault: Fault) -> Fault:
    """A fault of the first `n` requests."""
    left = [n]

    def or_none(answer: Answer) -> bool:
        left[0] -= 1
        return left[0] >= 0 and fault(answer)

    return or_none


def cut_short(answer: Answer) -> bool:
    """Half of the content, then the connection is closed."""
    content = answer.server.owner.contents[answer.key]
    answer.send_response(200)
    answer.send_header("Content-Length", str(len(content)))
    answer.end_headers()
    answer.wfile.write(content[: len(content) // 2])
    answer.wfile.flush()
    answer.close_connection = True
    return True


def status(number: int, body: bytes = b"", **headers: str) -> Fault:
    """An answer with this status."""
    return lambda answer: answer.plain(number, body, {name.replace("_", "-"): value for name, value in headers.items()})
