"""Web servers as a storage, by urllib3: a key is the whole URL, with its query, so that signed URLs can be read.

Connections are kept. What fails for a reason that may pass (no connection, status 429 or 5xx, an answer that ends early) is
tried again, `N_TRIES` times in all, after waits that double.
"""

from __future__ import annotations

import errno
from typing import Any

from ringload.errors import ContentTooLargeError, missing
from ringload.protocols import ByteRange, ContentStat
from ringload.storage.threaded import N_THREADS, ThreadedStorage

N_TRIES = 5
BACKOFF_S = 0.2
MOST_BACKOFF_S = 10.0
CONNECT_S = 10.0
TIMEOUT_S = 30.0  # without an answer, or without a byte of it
MAY_PASS = (429, 500, 502, 503, 504)
MAX_REASON = 300


class HttpStorage(ThreadedStorage):
    """http:// and https://. See `ringload.Storage`.

    Arguments:
        headers: sent with each request, such as {"Authorization": "Bearer ..."}.
        n_threads: how many contents are fetched at once, at most, by each worker.
        options: of `urllib3.PoolManager`, such as ca_certs=.
    """

    def __init__(self, headers: dict[str, str] | None = None, n_threads: int = N_THREADS, **options: Any) -> None:
        super().__init__(n_threads)
        urllib3 = require_urllib3()
        retries = urllib3.Retry(
            N_TRIES - 1,
            backoff_factor=BACKOFF_S,
            backoff_max=MOST_BACKOFF_S,
            backoff_jitter=BACKOFF_S,
            status_forcelist=MAY_PASS,
            respect_retry_after_header=False,  # which may say hours
            raise_on_status=False,
        )
        defaults = {"retries": retries, "timeout": urllib3.Timeout(connect=CONNECT_S, read=TIMEOUT_S), "maxsize": n_threads}
        self._pool = urllib3.PoolManager(**{**defaults, **options, "headers": headers})
        self._headers = headers or {}
        self._broken = (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError)
        self._errors = urllib3.exceptions.HTTPError

    def stat(self, key: str) -> ContentStat:
        """Its length, and its ETag or time. By a GET of one byte, as signed URLs allow no HEAD."""
        answer = self._asked("GET", key, {"Range": "bytes=0-0"})
        answer.close()  # a server that knows no ranges sends all of it
        n_bytes = answer.headers.get("Content-Range", "").rpartition("/")[2] or answer.headers.get("Content-Length", "")
        if not n_bytes.isdigit():
            raise OSError(errno.EIO, "the server does not say how long it is", key)
        return ContentStat(int(n_bytes), answer.headers.get("ETag") or answer.headers.get("Last-Modified", ""))

    def fetch(self, key: str, max_bytes: int) -> bytes:
        """The whole content of a URL."""
        return self._whole(key, {}, max_bytes)

    def fetch_range(self, part: ByteRange) -> bytes:
        """Some bytes of the content of a URL, whose server has to know ranges."""
        wanted = {"Range": f"bytes={part.start}-{part.start + part.n_bytes - 1}"}
        return self._whole(part.key, wanted, part.n_bytes, part.version)

    def close(self) -> None:
        """End the threads and the connections. Idempotent."""
        super().close()
        self._pool.clear()

    def _whole(self, url: str, headers: dict[str, str], max_bytes: int, version: str = "") -> bytes:
        """The body of an answer, asked for again if it ends early."""
        for n_left in reversed(range(N_TRIES)):
            answer = self._asked("GET", url, headers)
            try:
                return _body(answer, url, bool(headers), max_bytes, version)
            except self._broken as error:
                answer.close()
                if n_left == 0:
                    raise OSError(errno.EIO, f"the answer ended early, {N_TRIES} times: {error}"[:MAX_REASON], url) from None
            finally:
                answer.release_conn()
        raise AssertionError("unreachable")

    def _asked(self, method: str, url: str, headers: dict[str, str]) -> Any:
        """The begin of a good answer."""
        try:
            answer = self._pool.request(method, url, headers={**self._headers, **headers}, preload_content=False)
        except self._errors as error:
            raise OSError(errno.EIO, str(error)[:MAX_REASON], url) from None
        if answer.status in (200, 206) or (answer.status == 416 and "/" in answer.headers.get("Content-Range", "")):
            return answer
        answer.drain_conn()
        answer.release_conn()
        said = f"the server answers with status {answer.status} {answer.reason or ''}".strip()
        if answer.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, said, url)
        if answer.status in (401, 403):
            raise PermissionError(errno.EACCES, f"{said}: a signature or a token is missing, wrong or too old", url)
        raise OSError(errno.EIO, said, url)


def _body(answer: Any, url: str, is_range: bool, max_bytes: int, version: str) -> bytes:
    if is_range and answer.status == 416:
        answer.close()
        raise OSError(errno.EIO, "it ends before these bytes", url)
    if is_range and answer.status != 206:
        answer.close()
        raise OSError(errno.ENOTSUP, "the server knows no ranges: it answers with the whole content", url)
    now = answer.headers.get("ETag") or answer.headers.get("Last-Modified", "")
    if version and now != version:
        answer.close()
        raise OSError(errno.ESTALE, f"it has changed: its version is {now!r}, and was {version!r}", url)
    n_bytes = answer.headers.get("Content-Length")
    if n_bytes is not None and int(n_bytes) > max_bytes:
        answer.close()
        raise ContentTooLargeError(int(n_bytes), max_bytes)
    content: bytes = answer.read(max_bytes + 1)  # which may be longer than its header says, as it was compressed
    if len(content) > max_bytes or answer.read(1):  # the latter raises if the answer ended early
        answer.close()
        raise ContentTooLargeError(max(len(content), max_bytes + 1), max_bytes)
    return content


def require_urllib3() -> Any:
    """The module, imported when URLs of web servers are read."""
    try:
        import urllib3
    except ImportError as error:
        raise missing("reading http:// and https:// URLs", "urllib3", error) from error
    return urllib3
