"""`ThreadedStorage`: what it fetches ahead, in which memory, and what it gives back."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringload import ByteRange, ContentTooLargeError, ThreadedStorage
from ringload.system.arrivals import ARRIVALS

SIZES = st.one_of(st.integers(1, 2000), st.integers(1, 300_000), st.sampled_from([65_536, 65_537, 81_920, 1 << 20, 3 << 20]))


def made_of(key: str, n_bytes: int) -> bytes:
    """A content that is a function of its key."""
    return (key.encode() * (n_bytes // len(key) + 1))[:n_bytes]


class Counted(ThreadedStorage):
    """Contents of given sizes; counts what is fetched, and how many bytes all fetches hold that are under way or done."""

    def __init__(self, sizes: dict[str, int], n_threads: int = 8) -> None:
        super().__init__(n_threads)
        self.sizes, self.fetched, self.lock = sizes, Counter[str](), threading.Lock()
        self.gate: Callable[[str], object] = lambda key: None

    def fetch(self, key: str, max_bytes: int) -> bytes:
        self.gate(key)
        if key not in self.sizes:
            raise FileNotFoundError(key)
        if self.sizes[key] > max_bytes:
            raise ContentTooLargeError(self.sizes[key], max_bytes)
        with self.lock:
            self.fetched[key] += 1
        return made_of(key, self.sizes[key])

    def held_bytes(self) -> int:
        """Of what was fetched ahead and not read."""
        contents = [entry.future.result() for entry in self._ahead.values() if entry.future is not None and entry.is_there]
        return sum(len(content) for content in contents if content is not None)


@pytest.fixture
def opened() -> Iterator[list[ThreadedStorage]]:
    storages: list[ThreadedStorage] = []
    yield storages
    for storage in storages:
        storage.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ringload-fetch")]


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=40), st.integers(100_000, 4_000_000), st.data())
def test_contents_are_right_and_within_their_memory(sizes: list[int], max_bytes: int, data: st.DataObject) -> None:
    storage = Counted({f"key{number}": n_bytes for number, n_bytes in enumerate(sizes)})
    try:
        keys = data.draw(st.lists(st.sampled_from(sorted(storage.sizes)), min_size=1, max_size=80))
        places = data.draw(st.lists(st.integers(0, len(keys)), max_size=4).map(sorted))
        for first, last in zip([0, *places], [*places, len(keys)], strict=True):
            storage.prefetch(keys[first:last], max_bytes)
            assert storage.held_bytes() <= max_bytes
        for key in data.draw(st.permutations(keys)):
            limit = data.draw(st.sampled_from([10_000_000, storage.sizes[key], storage.sizes[key] - 1]))
            if limit < storage.sizes[key]:
                with pytest.raises(ContentTooLargeError) as raised:
                    storage.read(key, limit)
                assert (raised.value.n_bytes, raised.value.max_bytes) == (storage.sizes[key], limit)
            assert bytes(storage.read(key, 10_000_000)) == made_of(key, storage.sizes[key])
            assert storage.held_bytes() <= max_bytes
    finally:
        storage.close()


def test_each_content_that_fits_is_fetched_once(opened: list[ThreadedStorage]) -> None:
    storage = Counted({f"key{number}": 1000 for number in range(100)})
    opened.append(storage)
    keys = [*storage.sizes, "key7", "key7", "key0"]  # as a weighted order has them
    storage.prefetch(keys[:60], 16 << 20)
    storage.prefetch(keys[60:], 16 << 20)
    for key in keys:
        assert bytes(storage.read(key, 10_000)) == made_of(key, 1000)
    assert storage.fetched == dict.fromkeys(storage.sizes, 1)
    assert not storage._ahead
    assert storage._kept_bytes == 0


def test_as_many_are_under_way_as_there_are_threads(opened: list[ThreadedStorage]) -> None:
    storage = Counted({f"key{number}": 10 for number in range(50)}, n_threads=20)
    opened.append(storage)
    barrier = threading.Barrier(20)  # breaks, and fails the fetches, if less than 20 come together
    storage.sizes["key0"] = 10
    storage.gate = lambda key: barrier.wait(60)
    storage._sizes.append(10)  # else room for a megabyte is reserved for each of the first
    storage.prefetch(list(storage.sizes)[:20], 16 << 20)
    assert bytes(storage.read("key19", 100)) == made_of("key19", 10)


def test_the_first_that_is_there_is_ready(opened: list[ThreadedStorage]) -> None:
    storage, event = Counted({f"key{number}": 10 for number in range(4)}), threading.Event()
    opened.append(storage)
    storage.gate = lambda key: key == "key0" and event.wait()
    n_ended = ARRIVALS.n_ended
    storage.prefetch(["key0", "key1"], 16 << 20)
    while not storage.is_ready(["key1"]):
        assert ARRIVALS.wait(n_ended)
        n_ended = ARRIVALS.n_ended
    assert not storage.is_ready(["key1", "key0"])
    assert storage.is_ready(["key3"])  # not asked for: reading it waits for nothing that is under way
    n_ended = ARRIVALS.n_ended
    event.set()
    assert ARRIVALS.wait(n_ended)
    assert storage.is_ready(["key1", "key0"])
    assert not ARRIVALS.wait(ARRIVALS.n_ended)  # nothing is under way


def test_those_without_room_follow_as_room_becomes_free(opened: list[ThreadedStorage]) -> None:
    storage = Counted({f"key{number}": 900_000 for number in range(12)})
    opened.append(storage)
    storage.prefetch(list(storage.sizes), 3_500_000)
    assert sum(entry.future is not None for entry in storage._ahead.values()) == 3  # a megabyte each, at first
    for number, key in enumerate(storage.sizes):
        storage.read(key, 1 << 20)
        assert number > 8 or storage._ahead[f"key{number + 3}"].future is not None
    assert storage.fetched == dict.fromkeys(storage.sizes, 1)


def test_one_that_is_larger_than_its_room_is_asked_for_again(opened: list[ThreadedStorage]) -> None:
    storage = Counted({"small": 100, "large": 5_000_000, "huge": 20_000_000, "next": 100})
    opened.append(storage)
    storage.prefetch(["small"], 16 << 20)
    storage.read("small", 1000)
    storage.prefetch(["large", "huge", "next"], 16 << 20)
    while not storage.is_ready(["large", "huge", "next"]):
        assert ARRIVALS.wait(ARRIVALS.n_ended if storage._n_ended == ARRIVALS.n_ended else -1)
    assert storage.fetched == {"small": 1, "large": 1, "next": 1}  # for the huge one there is never room
    assert storage._kept_bytes <= 16 << 20
    assert len(storage.read("large", 10_000_000)) == 5_000_000
    assert len(storage.read("huge", 30_000_000)) == 20_000_000
    assert storage.fetched == {"small": 1, "large": 1, "next": 1, "huge": 1}
    storage.forget(["large", "huge", "next"])
    assert (len(storage._ahead), storage._kept_bytes) == (0, 0)


def test_what_is_not_read_is_let_go_of(opened: list[ThreadedStorage]) -> None:
    storage = Counted({f"key{number}": 900_000 for number in range(6)})
    opened.append(storage)
    first, second = ["key0", "key1", "key1"], ["key1", "key2", "key3"]
    storage.prefetch(first, 3_500_000)
    storage.prefetch(second, 3_500_000)
    storage.read("key1", 1 << 20)  # of three times
    storage.forget(first)
    assert {key: entry.n_reads for key, entry in storage._ahead.items()} == {"key1": 1, "key2": 1, "key3": 1}
    assert storage._ahead["key3"].future is not None  # which has room now
    storage.read("key2", 1 << 20)
    storage.forget(second)
    assert not storage._ahead
    assert storage._kept_bytes == 0


def test_a_fetch_that_does_not_keep_to_its_limit_keeps_within_the_memory(opened: list[ThreadedStorage]) -> None:
    class Careless(ThreadedStorage):
        def fetch(self, key: str, max_bytes: int) -> bytes:
            return bytes(5_000_000)

    storage = Careless()
    opened.append(storage)
    storage.prefetch(["a", "b"], 16 << 20)
    while not storage.is_ready(["a", "b"]):
        assert ARRIVALS.wait(-1)
    assert [entry.room_bytes for entry in storage._ahead.values()] == [5_000_000, 5_000_000]  # asked for again
    assert storage._kept_bytes == 10_000_000
    with pytest.raises(ContentTooLargeError):
        storage.read("b", 1000)


def test_an_error_is_raised_where_its_content_is_read(opened: list[ThreadedStorage]) -> None:
    storage = Counted({"a": 10})
    opened.append(storage)
    storage.prefetch(["missing", "a"], 16 << 20)
    assert bytes(storage.read("a", 100)) == made_of("a", 10)
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.read("missing", 100)
    with pytest.raises(FileNotFoundError, match="missing"):
        storage.read("missing", 100)
    assert not storage._ahead


def test_ranges(opened: list[ThreadedStorage]) -> None:
    class Ranges(ThreadedStorage):
        def fetch_range(self, part: ByteRange) -> bytes:
            return bytes(range(256))[part.start : part.start + part.n_bytes]

    storage = Ranges()
    opened.append(storage)
    parts = [ByteRange("a", start, 3) for start in (0, 7, 250)]
    storage.prefetch_ranges(parts, 1 << 20)
    assert [bytes(storage.read_range(part, 10)) for part in parts] == [b"\x00\x01\x02", b"\x07\x08\x09", b"\xfa\xfb\xfc"]
    with pytest.raises(NotImplementedError, match=r"Ranges has no method fetch\(key, max_bytes\)"):
        storage.read("a", 10)
    with pytest.raises(NotImplementedError, match=r"Counted has no method fetch_range\(part\)"):
        Counted({}).read_range(parts[0], 10)


def test_close_ends_what_waits(opened: list[ThreadedStorage]) -> None:
    storage = Counted({f"key{number}": 10 for number in range(50)}, n_threads=2)
    storage.prefetch(list(storage.sizes), 100 << 20)
    storage.close()
    storage.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ringload-fetch")]
    assert not ARRIVALS.wait(ARRIVALS.n_ended)  # those that were cancelled have ended, too
