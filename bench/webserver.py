"""A web server on loopback, in a process of its own, whose answers to GET take as long as those of a bucket do.

    with served(Path("data"), delay_ms=20) as url:  # data/photos/a.jpg is f"{url}/photos/a.jpg"

It waits `delay_ms` before it sends, for as many requests at once as there are, and sends from the page cache. It is written for
little CPU, as the loaders that are measured run on the same cores. It knows ranges and ETags, and as much of S3 as a client
needs that gets objects by path-style addressing.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Answers one request after the other."""

    def __init__(self, root: Path, delay_s: float) -> None:
        self._root, self._delay_s, self._received = root, delay_s, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are complete. None has a body."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            request, self._received = self._received[: end + 2], self._received[end + 4 :]
            method, target, _ = request.split(b" ", 2)
            delay_s = self._delay_s if method == b"GET" else 0.0
            asyncio.get_running_loop().call_later(delay_s, self._answer, method, target, RANGE.search(request))

    def _answer(self, method: bytes, target: bytes, wanted: re.Match[bytes] | None) -> None:
        path = self._root / unquote(target.partition(b"?")[0].decode()).lstrip("/")
        if not path.is_file():
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            first, last = 0, status.st_size - 1
            if wanted is not None:
                first = int(wanted[1])
                last = min(last, int(wanted[2] or last))
            headers = [
                "HTTP/1.1 200 OK" if wanted is None else "HTTP/1.1 206 Partial Content",
                f"Content-Length: {last - first + 1}",
                f'ETag: "{status.st_mtime_ns:x}-{status.st_size:x}"',
                "Last-Modified: Mon, 30 Nov 2026 00:00:00 GMT",
                "Accept-Ranges: bytes",
            ]
            if wanted is not None:
                headers.append(f"Content-Range: bytes {first}-{last}/{status.st_size}")
            self._transport.write(("\r\n".join(headers) + "\r\n\r\n").encode())
            if method == b"GET":
                file.seek(first)
                self._transport.write(file.read(last - first + 1))


async def serve(root: Path, delay_s: float) -> None:
    """Serve until the process is ended. The first line that is printed is the port."""
    server = await asyncio.get_running_loop().create_server(partial(Connection, root, delay_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def served(root: Path, delay_ms: float) -> Iterator[str]:
    """The URL of a server of the files below `root`, while this is entered."""
    command = [sys.executable, "-m", "bench.webserver", str(root), str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
