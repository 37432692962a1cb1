"""A storage whose contents are fetched by threads, many at once, so that the latency of all of them is waited for once.

How many are fetched ahead depends on their size: each takes a share of the memory for bytes that are read ahead. How large a
content is, is known only when the answer to its request begins. So room is reserved that nine of ten
contents before would have fitted into. One that does not fit is asked for again, with the room that it needs.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ringload.errors import ContentTooLargeError
from ringload.protocols import ByteRange
from ringload.system.arrivals import ARRIVALS

N_THREADS = 64  # of a worker; each starts when it is needed
FIRST_ROOM_BYTES = 1 << 20  # for a content, before any is known
LEAST_ROOM_BYTES = 1 << 16
N_SIZES = 64  # contents, whose sizes tell how much room the next needs
FITTING = 0.9  # of them

Content = bytes | bytearray | memoryview
Key = str | ByteRange


class _Entry:
    """A content that was asked for, and will be read `n_reads` times. Not begun yet where `future` is None."""

    __slots__ = ("future", "known_bytes", "n_reads", "room_bytes")

    def __init__(self) -> None:
        self.future: Future[Content | None] | None = None  # None: it did not fit
        self.n_reads = 1
        self.room_bytes = self.known_bytes = 0  # the latter, once it was too large

    @property
    def is_there(self) -> bool:
        return self.future is not None and self.future.done()


class ThreadedStorage:
    """The base class for storages of your own: you write `fetch`, and threads call it ahead of decoding.

    Example::

        class Web(ringload.ThreadedStorage):
            def fetch(self, key, max_bytes):
                with urllib.request.urlopen(key, timeout=30) as answer:
                    content = answer.read(max_bytes + 1)
                if len(content) > max_bytes:
                    raise ringload.ContentTooLargeError(len(content), max_bytes)
                return content

        ringload.register_storage("web", Web)

    Arguments:
        n_threads: how many contents are fetched at once, at most, by each worker.
    """

    def __init__(self, n_threads: int = N_THREADS) -> None:
        self._n_threads = n_threads
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: dict[Key, _Entry] = {}
        self._waiting: deque[Key] = deque()  # of these, those that are not begun
        self._read: list[Key] = []  # since the last `forget`
        self._max_bytes = self._kept_bytes = 0
        self._sizes: deque[int] = deque(maxlen=N_SIZES)
        self._too_large: deque[tuple[Key, int]] = deque()  # which did not fit, and what they need
        self._n_ended = -1  # what `ARRIVALS` had counted when room was looked for last

    def fetch(self, key: str, max_bytes: int) -> Content:
        """The whole content of a key. Several threads call this at once.

        Raises:
            ContentTooLargeError: it has more than `max_bytes`; found out before it is read, if possible.
            Exception: the sample is a bad one, for this reason. The message names the key.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method fetch(key, max_bytes)")

    def fetch_range(self, part: ByteRange) -> Content:
        """Some bytes of a content, 1 or more, for archives that are read in place; fewer if it ends before. Optional."""
        raise NotImplementedError(f"{type(self).__name__} has no method fetch_range(part)")

    def prefetch(self, keys: Iterable[Key], max_bytes: int) -> None:
        """Begin to fetch what fits into `max_bytes`, and the others as room becomes free."""
        self._max_bytes = max_bytes
        for key in keys:
            entry = self._ahead.get(key)
            if entry is not None:
                entry.n_reads += 1
            else:
                self._ahead[key] = _Entry()
                self._waiting.append(key)
        self._begin_waiting()

    def read(self, key: Key, max_bytes: int) -> Content:
        """A content, once it is there."""
        entry = self._ahead.get(key)
        if entry is None:
            return self._fetch(key, max_bytes)
        future = entry.future
        self._read.append(key)
        self._let_go(key, entry, 1)
        content = None if future is None else future.result()  # None: it is not begun, and is fetched now
        self._begin_waiting()
        if content is None:
            content = self._fetch(key, max_bytes)
        if len(content) > max_bytes:
            raise ContentTooLargeError(len(content), max_bytes)
        return content

    def is_ready(self, keys: Sequence[Key]) -> bool:
        """Whether all contents are there, or were not asked for."""
        if self._n_ended != ARRIVALS.n_ended:  # else there is no more room than before
            self._n_ended = ARRIVALS.n_ended
            self._begin_waiting()
        return all(entry is None or entry.is_there for entry in map(self._ahead.get, keys))

    def forget(self, keys: Iterable[Key]) -> None:
        """Let go of contents that were asked for, once for each time that they come in `keys`, and not read since the last call
        of this."""
        unread = Counter(keys)
        unread.subtract(self._read)
        self._read.clear()
        for key, n in unread.items():
            if n > 0 and (entry := self._ahead.get(key)) is not None:
                self._let_go(key, entry, n)
        self._begin_waiting()

    def _let_go(self, key: Key, entry: _Entry, n_reads: int) -> None:
        entry.n_reads -= n_reads
        if entry.n_reads <= 0:
            del self._ahead[key]
            self._kept_bytes -= entry.room_bytes

    def prefetch_ranges(self, parts: Iterable[ByteRange], max_bytes: int) -> None:
        """As `prefetch`, for parts of contents."""
        self.prefetch(parts, max_bytes)

    def read_range(self, part: ByteRange, max_bytes: int) -> Content:
        """As `read`, for a part of a content."""
        return self.read(part, max_bytes)

    def close(self) -> None:
        """End the threads, once what they fetch now is there. Idempotent."""
        self._ahead.clear()
        self._waiting.clear()
        self._too_large.clear()
        self._kept_bytes = 0
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None

    # -- ahead --------------------------------------------------------------------------------------------------------

    def _begin_waiting(self) -> None:
        """Begin to fetch those that wait, the first first, as far as there is room."""
        while self._too_large:
            key, n_bytes = self._too_large.popleft()
            if (entry := self._ahead.get(key)) is not None and n_bytes <= self._max_bytes:
                self._kept_bytes -= entry.room_bytes
                entry.future, entry.room_bytes, entry.known_bytes = None, 0, n_bytes
                self._waiting.appendleft(key)
        while self._waiting:
            key = self._waiting[0]
            entry = self._ahead.get(key)
            if entry is not None and entry.future is None:
                room_bytes = min(entry.known_bytes or self._room_bytes(), self._max_bytes)
                if self._kept_bytes + room_bytes > self._max_bytes and not self._find_room(room_bytes):
                    return
                self._begin(key, entry, room_bytes)
            self._waiting.popleft()

    def _room_bytes(self) -> int:
        """Room that most contents before would have fitted into."""
        sizes = sorted(self._sizes)
        return max(LEAST_ROOM_BYTES, sizes[int(FITTING * len(sizes))]) if sizes else FIRST_ROOM_BYTES

    def _find_room(self, room_bytes: int) -> bool:
        """Give back the room that contents did not need, now that they are there. Whether there is so much room then."""
        self._kept_bytes = 0
        for entry in self._ahead.values():
            if entry.is_there:
                assert entry.future is not None
                entry.room_bytes = _size_of(entry.future)
            self._kept_bytes += entry.room_bytes
        return self._kept_bytes + room_bytes <= self._max_bytes

    def _begin(self, key: Key, entry: _Entry, room_bytes: int) -> None:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._n_threads, "ringload-fetch")
        entry.room_bytes = room_bytes
        self._kept_bytes += room_bytes
        entry.future = ARRIVALS.follow(self._threads.submit, self._fetch_ahead, key, room_bytes)

    def _fetch_ahead(self, key: Key, room_bytes: int) -> Content | None:
        try:
            content = self._fetch(key, room_bytes)
            n_bytes = len(content)
        except ContentTooLargeError as error:
            n_bytes = error.n_bytes
            self._sizes.append(n_bytes)
        if n_bytes <= room_bytes:
            return content
        self._too_large.append((key, n_bytes))  # before its future is done
        return None

    def _fetch(self, key: Key, max_bytes: int) -> Content:
        content = self._fetch_range(key, max_bytes) if isinstance(key, ByteRange) else self.fetch(key, max_bytes)
        self._sizes.append(len(content))
        return content

    def _fetch_range(self, part: ByteRange, max_bytes: int) -> Content:
        if part.n_bytes > max_bytes:
            raise ContentTooLargeError(part.n_bytes, max_bytes)
        content = self.fetch_range(part) if part.n_bytes else b""
        if len(content) != part.n_bytes:
            raise OSError(errno.EIO, f"it ends before byte {part.start + part.n_bytes:,}", part.key)
        return content


def _size_of(future: Future[Content | None]) -> int:
    """What a content that is there takes; 0 if it could not be fetched, or did not fit."""
    if future.cancelled() or future.exception() is not None:
        return 0
    content = future.result()
    return 0 if content is None else len(content)
