"""Object stores as a storage, by obstore: s3://bucket/key, gs://bucket/key, az://container/key.

Credentials, region and endpoint come from the environment, as for each store's own tools (AWS_ACCESS_KEY_ID, AWS_REGION,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...), or from the options of `ObjectStorage`.
obstore tries requests again that fail for a reason that may pass, with backoff, and for `RETRY_S` at most.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ringload.errors import ContentTooLargeError, missing
from ringload.protocols import ByteRange, ContentStat
from ringload.storage.threaded import N_THREADS, Content, ThreadedStorage

RETRY_S = 60
MAX_REASON = 300
FORKED = (
    "obstore was used before this process was forked, and does not survive that: use start_method='forkserver' (the default) "
    "or 'spawn'"
)
RUNTIME = "tokio"  # what the names of its threads begin with


class _Fork:
    """Whether this process was forked from one whose obstore had threads. If it used obstore, it would wait for them for ever,
    or crash its parent, with which it shares an epoll."""

    has_lost_threads = False
    _has_threads = False

    def before(self) -> None:
        self._has_threads = "obstore" in sys.modules and any(map(_is_of_runtime, os.listdir("/proc/self/task")))

    def after(self) -> None:
        self.has_lost_threads |= self._has_threads


def _is_of_runtime(thread: str) -> bool:
    try:
        with open(f"/proc/self/task/{thread}/comm") as name:
            return name.read().startswith(RUNTIME)
    except OSError:  # it has just ended
        return False


_FORK = _Fork()
os.register_at_fork(before=_FORK.before, after_in_child=_FORK.after)


class ObjectStorage(ThreadedStorage):
    """s3://, gs:// and az://. See `ringload.Storage`.

    Example: `ringload.register_storage("s3", functools.partial(ringload.ObjectStorage, config={"endpoint": "http://host:9000"}))`

    Arguments:
        n_threads: how many contents are fetched at once, at most, by each worker.
        options: of `obstore.store.from_url`: config=, client_options=, retry_config=, credential_provider=.
    """

    def __init__(self, n_threads: int = N_THREADS, **options: Any) -> None:
        super().__init__(n_threads)
        self._obstore = require_obstore()
        retry = {"retry_config": {"max_retries": 8, "retry_timeout": timedelta(seconds=RETRY_S)}}
        self._options = {**retry, **options}
        self._stores: dict[str, Any] = {}  # by bucket

    def stat(self, key: str) -> ContentStat:
        """Its length, and its ETag."""
        with _in_words(key):
            store, path = self._place(key)
            found = self._obstore.head(store, path)
        return ContentStat(found["size"], _version(found))

    def fetch(self, key: str, max_bytes: int) -> Content:
        """The whole content of an object."""
        with _in_words(key):
            store, path = self._place(key)
            answer = self._obstore.get(store, path)
            if (n_bytes := answer.meta["size"]) > max_bytes:
                raise ContentTooLargeError(n_bytes, max_bytes)
            return memoryview(answer.bytes())

    def fetch_range(self, part: ByteRange) -> Content:
        """Some bytes of an object."""
        with _in_words(part.key):
            store, path = self._place(part.key)
            answer = self._obstore.get(store, path, options={"range": (part.start, part.start + part.n_bytes)})
            if part.version not in ("", now := _version(answer.meta)):
                raise OSError(errno.ESTALE, f"it has changed: its version is {now!r}, and was {part.version!r}", part.key)
            return memoryview(answer.bytes())

    def close(self) -> None:
        """End the threads and the connections. Idempotent."""
        super().close()
        self._stores.clear()

    def _place(self, key: str) -> tuple[Any, str]:
        """(store, path in it) of a URL."""
        if _FORK.has_lost_threads:
            raise OSError(errno.ENOTSUP, FORKED, key)
        scheme, _, rest = key.partition("://")
        bucket, _, path = rest.partition("/")
        if not path or path.startswith("/") or path.endswith("/"):  # obstore would drop a slash, and read another object
            raise ValueError(f"not scheme://bucket/key, or its key begins or ends with a slash: {key}")
        if bucket not in self._stores:
            self._stores[bucket] = self._obstore.store.from_url(f"{scheme}://{bucket}", **self._options)
        return self._stores[bucket], path


@contextmanager
def _in_words(key: str) -> Iterator[None]:
    """obstore's errors, which name the request, as those of files."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key) from None
        raise
    except BaseException as error:  # a panic of Rust code is no Exception, and would end the process
        kind = type(error).__name__
        if kind in ("PermissionDeniedError", "UnauthenticatedError"):
            raise PermissionError(errno.EACCES, _reason(error), key) from None
        if isinstance(error, Exception) or kind == "PanicException":
            raise OSError(errno.EIO, f"{kind}: {_reason(error)}", key) from None
        raise


def _version(meta: Any) -> str:
    """An ETag, or the time of a store that has none."""
    return meta["e_tag"] or str(meta["last_modified"])


def _reason(error: BaseException) -> str:
    """Without the dump of Rust's structures that follows, in one line."""
    return " ".join(str(error).partition("Debug source:")[0].split())[:MAX_REASON]


def require_obstore() -> Any:
    """The module, imported when a store's URLs are read."""
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise missing("reading s3://, gs:// and az:// URLs", "obstore", error) from error
    return obstore
