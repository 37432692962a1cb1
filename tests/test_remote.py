"""Images on web servers, in object stores and in file systems of fsspec: by real servers on loopback."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

import ringload
from ringload import (
    ByteRange,
    ContentTooLargeError,
    FsspecStorage,
    HttpStorage,
    ImageFrame,
    Loader,
    ObjectStorage,
    SampleError,
    Storage,
)
from ringload.fields import Row
from ringload.storage import http
from tests.conftest import Injected, Times
from tests.deaths import kill_all, members
from tests.helpers import content
from tests.web_server import WebServer, cut_short, first, status

OPTIONS: dict[str, Any] = {"ram_budget": "600MB", "seed": 5, "epochs": 2}
ON_LOOPBACK = {"config": {"access_key_id": "a", "secret_access_key": "b", "region": "us-east-1"}}


@pytest.fixture
def contents(photos: Path) -> dict[str, bytes]:
    return {str(path.relative_to(photos)): path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))}


@pytest.fixture
def server(contents: dict[str, bytes], storages: Any) -> Iterator[WebServer]:  # closed before `storages` looks for sockets
    with WebServer(contents) as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def runtime() -> None:
    """obstore's threads and their descriptors, which stay until the process ends."""
    obstore = pytest.importorskip("obstore")
    obstore.put(obstore.store.MemoryStore(), "a", b"a")


def sockets() -> int:
    """How many this process has open."""
    return sum(1 for connection in psutil.Process().net_connections("inet"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again soon. In workers too, which get the factory by value: they wait as long as users' do."""
    monkeypatch.setattr(http, "BACKOFF_S", 0.01)


@pytest.fixture
def storages() -> Iterator[Callable[[Storage], Any]]:
    """Closes storages that a test has made."""
    made: list[Storage] = []
    before = sockets()

    def closed_later(storage: Storage) -> Storage:
        made.append(storage)
        return storage

    yield closed_later
    while made:
        made.pop().close()
    gc.collect()
    until_s = time.monotonic() + 5
    while sockets() > before and time.monotonic() < until_s:  # obstore's threads close them; conftest says what is left
        time.sleep(0.01)


def frame(photos: Path, root: Any, **options: Any) -> ImageFrame:
    table = pd.read_csv(photos / "photos.csv")
    return ImageFrame(table, root=root, label="multi", size=(40, 50), resize="random_crop", flip=True, **options)


def expected(photos: Path, **options: Any) -> list[dict[str, bytes]]:
    with Loader(frame(photos, photos), 4, workers=0, **{**OPTIONS, **options}) as made:
        return content(made) + content(made)


def pixels_of(source: ImageFrame, index: int) -> np.ndarray:
    row = Row({name: np.zeros(field.shape, field.dtype) for name, field in source.fields.items()})
    source.load(index, np.random.default_rng(0), row)
    return row["image"]


# -- web servers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "method"), [(0, "forkserver"), (2, "forkserver"), (2, "fork"), (1, "spawn")])
def test_the_same_pixels_come_from_a_web_server(photos: Path, server: WebServer, workers: int, method: Any) -> None:
    source = frame(photos, server.root)
    assert source.describe(0) == server.url("a/00.jpg")
    pixels_of(source, 0)  # in the trainer, whose connections a fork does not use
    with Loader(source, 4, workers=workers, start_method=method, **OPTIONS) as made:
        assert content(made) + content(made) == expected(photos)
    n_asked = sum(server.n_asked.values()) - 1 - 4  # 4 are looked for
    assert n_asked == 2 * 24 if workers == 0 else 24 <= n_asked <= 2 * 24  # once for both epochs, if ahead at once


def test_requests_are_under_way_at_once(photos: Path, server: WebServer) -> None:
    server.latency_s = 0.05
    with Loader(frame(photos, server.root), 4, workers=2, **OPTIONS) as made:
        assert content(made) + content(made) == expected(photos)
    assert server.n_most >= 8


def test_a_slow_read_does_not_hold_up_those_that_are_there(photos: Path, server: WebServer) -> None:
    source = frame(photos, server.root)
    server.held["a/00.jpg"] = threading.Event()
    with Loader(source, 4, workers=1, shuffle=False, last="drop", **OPTIONS) as made:
        batches = iter(made)
        taken: list[Any] = []
        waiting = threading.Thread(target=lambda: taken.append(next(batches)))
        waiting.start()
        while made.poll().n_full < 3:  # batches 1 and later, which one worker fills while it has the first, too
            assert waiting.is_alive()
        assert not taken
        server.held["a/00.jpg"].set()
        waiting.join()
        assert content(taken) + content(batches) == expected(photos, shuffle=False, last="drop")[:6]
        taken.clear()


@pytest.mark.parametrize(
    ("fault", "said", "n_asked"),
    [
        (status(404), "[Errno 2] the server answers with status 404 Not Found: 'URL'", 1),
        (status(410), "[Errno 2] the server answers with status 410 Gone: 'URL'", 1),
        (status(403), "[Errno 13] the server answers with status 403 Forbidden: a signature or a token is missing", 1),
        (status(401), "[Errno 13] the server answers with status 401 Unauthorized: a signature or a token is", 1),
        (status(418), "[Errno 5] the server answers with status 418 I'm a Teapot: 'URL'", 1),
        (status(503), "[Errno 5] the server answers with status 503 Service Unavailable: 'URL'", 5),
        (status(429, Retry_After="3600"), "[Errno 5] the server answers with status 429 Too Many Requests: 'URL'", 5),
        (cut_short, "[Errno 5] the answer ended early, 5 times: ", 5),
        (status(302, Location="/b/01.jpg?again"), "[Errno 2] the server answers with status 404 Not Found: 'URL'", 1),
        (status(200, b"not an image"), "cannot identify image", 1),
    ],
)
def test_what_a_server_fails_at_is_a_bad_sample_with_the_reason(
    photos: Path, server: WebServer, fault: Any, said: str, n_asked: int
) -> None:
    server.faults["b/01.jpg"] = fault
    source = frame(photos, server.root)
    with Loader(source, 4, workers=0, shuffle=False, **OPTIONS) as made, pytest.raises(SampleError) as raised:
        next(iter(made))
    assert said.replace("URL", server.url("b/01.jpg")) in raised.value.reason
    assert (raised.value.index, raised.value.where) == (1, server.url("b/01.jpg"))
    assert server.n_asked["b/01.jpg"] == n_asked


@pytest.mark.parametrize("fault", [status(503), status(500), status(429, Retry_After="3600"), cut_short])
def test_what_passes_is_tried_again(photos: Path, server: WebServer, fault: Any) -> None:
    source = frame(photos, server.root)
    for key in server.contents:
        server.faults[key] = first(1, fault)
    n_before = sum(server.n_asked.values())
    with Loader(source, 4, workers=2, **{**OPTIONS, "epochs": 1}) as made:
        assert content(made) == expected(photos)[: len(made)]
    assert sum(server.n_asked.values()) == n_before + 2 * 24


def test_a_wrong_root_is_found_when_the_frame_is_made(photos: Path, server: WebServer) -> None:
    with pytest.warns(UserWarning, match=r"none of the first 4 files of column 'path' exists: .*404.*/photo/a/00.jpg"):
        frame(photos, server.url("photo"))
    for key in list(server.contents):
        server.faults[key] = status(403)
    n_before = sum(server.n_asked.values())
    with pytest.warns(UserWarning, match=r"status 403 Forbidden: a signature or a token is missing"):
        frame(photos, server.root)
    assert sum(server.n_asked.values()) == n_before + 1  # which says it of all


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_the_length_of_a_content(knows_ranges: bool, storages: Any) -> None:
    with WebServer({"a": b"12345", "empty": b""}, knows_ranges=knows_ranges) as server:
        storage = storages(HttpStorage())
        assert storage.stat(server.url("a")).n_bytes == 5
        if not knows_ranges:
            assert storage.stat(server.url("empty")).n_bytes == 0
        with pytest.raises(FileNotFoundError):
            storage.stat(server.url("none"))


def test_no_server_is_a_bad_sample(photos: Path, server: WebServer, storages: Any) -> None:
    port = WebServer({}).__enter__()
    root = port.root
    port.__exit__()
    with pytest.raises(OSError, match=r"Connection refused|Failed to establish") as raised:
        storages(HttpStorage()).read(f"{root}/a.jpg", 100)
    assert raised.value.filename == f"{root}/a.jpg"


def test_urls_are_asked_for_as_they_are(server: WebServer, storages: Any) -> None:
    storage = storages(HttpStorage())
    for name, url in {
        "a b.jpg": "a%20b.jpg",
        "é.jpg": "%C3%A9.jpg",
        "50%.jpg": "50%25.jpg",
        "q?X-Sig=a%2Fb&n=1": "q?X-Sig=a%2Fb&n=1",
        "c#d.jpg": "c%23d.jpg",
        "d//e.jpg": "d//e.jpg",
        "~t.jpg": "~t.jpg",
        "a+b.jpg": "a+b.jpg",
    }.items():
        server.contents[name] = name.encode()
        assert bytes(storage.read(server.url(url), 100)) == name.encode()
    assert bytes(storage.read(server.url("é.jpg"), 100)) == "é.jpg".encode()  # as a browser would take it


def test_names_below_a_url_are_those_of_files(server: WebServer, storages: Any) -> None:
    names = ["a b.jpg", "é.jpg", "c#d.jpg", b"\xff.jpg", "50%25.jpg", "q?n=1"]
    table = pd.DataFrame({"path": pd.Series(names, dtype=object)})
    for name, key in zip(names, ["a b.jpg", "é.jpg", "c#d.jpg", "\ufffd.jpg", "50%.jpg", "q?n=1"], strict=True):
        server.contents[key] = str(name).encode()
    source = ImageFrame(table, root=server.root, size=(8, 8))
    storage = storages(HttpStorage())
    assert [bytes(storage.read(source.describe(row), 100)) for row in range(6)] == [str(name).encode() for name in names]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["http", "s3", "local"])
def test_a_transform_of_the_users(photos: Path, bucket: WebServer, workers: int, kind: str) -> None:
    """The search for generators in a source that calls a user's code does not go into connections."""
    root = {"http": bucket.root, "s3": "s3://photos", "local": f"local://{photos}"}[kind]
    options = {"transform": lambda image, rng: image[::-1]}
    with Loader(frame(photos, photos, **options), 4, workers=0, **OPTIONS) as made:
        truth = content(made)
    with Loader(frame(photos, root, **options), 4, workers=workers, **OPTIONS) as made:
        assert content(made) == truth


def test_what_is_not_used_is_let_go_of(photos: Path, server: WebServer, tmp_path: Path) -> None:
    """As where another worker has kept a sample in a cache meanwhile."""
    table = pd.read_csv(photos / "photos.csv")
    frames = [ImageFrame(table, root=server.root, size=(40, 50)).cached(tmp_path, max_bytes=10**8) for _ in range(2)]
    indices = np.arange(24)
    for source in frames:
        source.prefetch(indices)
    fields = {name: np.zeros(field.shape, field.dtype) for name, field in frames[0].fields.items()}
    for source in frames:
        for index in indices.tolist():
            source.load(index, None, Row(fields))
        source.forget(indices)
        storage = source.source.contents._storage
        assert (len(storage._ahead), storage._kept_bytes) == (0, 0)


def test_headers_are_sent(server: WebServer, storages: Any) -> None:
    seen: list[Any] = []

    def note(answer: Any) -> bool:
        seen.append(answer.headers.get("Authorization"))
        return False

    server.faults["a/00.jpg"] = note
    storages(HttpStorage(headers={"Authorization": "Bearer x"})).read(server.url("a/00.jpg"), 10**6)
    assert seen == ["Bearer x"]


def test_a_redirect_is_followed(server: WebServer, storages: Any) -> None:
    server.faults["old"] = status(302, Location="/a/00.jpg")
    assert bytes(storages(HttpStorage()).read(server.url("old"), 10**6)) == server.contents["a/00.jpg"]


def test_a_content_that_is_too_large_is_not_read(server: WebServer, storages: Any) -> None:
    server.contents["large"] = bytes(10_000_000)
    storage = storages(HttpStorage())
    with pytest.raises(ContentTooLargeError) as raised:
        storage.read(server.url("large"), 1_000_000)
    assert raised.value.n_bytes == 10_000_000
    assert bytes(storage.read(server.url("large"), 10_000_000)) == server.contents["large"]


# -- object stores ----------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(server: WebServer, contents: dict[str, bytes]) -> WebServer:
    """A server that answers as S3 does, and has the photographs in the bucket `photos`. `s3://photos` leads to it."""
    server.contents.update({f"photos/{key}": value for key, value in contents.items()})
    ringload.register_storage("s3", partial(ObjectStorage, **at(server.root)))
    return server


def at(endpoint: str) -> dict[str, Any]:
    """Options of a store on loopback, which tries again soon."""
    return {
        "config": {**ON_LOOPBACK["config"], "endpoint": endpoint},
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 2},
    }


@pytest.mark.parametrize(("workers", "method"), [(2, "forkserver"), (1, "spawn")])
def test_the_same_pixels_come_from_s3(photos: Path, bucket: Any, workers: int, method: Any) -> None:
    with Loader(frame(photos, "s3://photos"), 4, workers=workers, start_method=method, **OPTIONS) as made:
        assert content(made) + content(made) == expected(photos)


def test_the_environment_leads_to_a_store(bucket: WebServer, monkeypatch: pytest.MonkeyPatch, storages: Any) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.root)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    bucket.faults["photos/signed"] = lambda answer: answer.plain(200, answer.headers["Authorization"].encode())
    signed = bytes(storages(ObjectStorage()).read("s3://photos/signed", 1000)).decode()
    assert signed.startswith("AWS4-HMAC-SHA256 Credential=a/")


def test_keys_of_s3(bucket: WebServer, storages: Any) -> None:
    storage = storages(ObjectStorage(**at(bucket.root)))
    names = "a b.jpg,a%20b.jpg,c#d.jpg,é.jpg,~t.jpg,plus+.jpg,star*.jpg,a[1].jpg,lead.jpg"
    for key in names.split(","):
        bucket.contents[f"photos/{key}"] = key.encode()
        assert bytes(storage.read(f"s3://photos/{key}", 100)) == key.encode()
    bucket.contents["photos/lead.jpg/"] = b"another"
    for key in ["/lead.jpg", "lead.jpg/", "a//b.jpg", "a/../b.jpg", ""]:
        with pytest.raises(ValueError, match=r"its key begins or ends with a slash|Could not parse path"):
            storage.read(f"s3://photos/{key}", 100)


def test_errors_of_s3(bucket: WebServer, storages: Any) -> None:
    storage = storages(ObjectStorage(**at(bucket.root)))
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 's3://photos/none.jpg'"):
        storage.read("s3://photos/none.jpg", 100)
    with pytest.raises(ContentTooLargeError):
        storage.read("s3://photos/a/00.jpg", 100)


def test_credentials_that_have_expired(server: WebServer, storages: Any) -> None:
    said = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    server.faults["photos/a.jpg"] = status(403, said)
    with pytest.raises(PermissionError, match=r"ExpiredToken.*The provided token has expired") as raised:
        storages(ObjectStorage(**at(server.root))).read("s3://photos/a.jpg", 100)
    assert raised.value.filename == "s3://photos/a.jpg"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fault", [status(503), cut_short])
def test_a_store_that_fails(server: WebServer, storages: Any, fault: Any) -> None:
    server.contents["photos/a.jpg"] = bytes(1000)
    server.faults["photos/a.jpg"] = first(2, fault) if fault is not cut_short else fault
    storage = storages(ObjectStorage(**at(server.root)))
    if fault is cut_short:
        with pytest.raises(OSError, match=r"s3://photos/a\.jpg"):
            storage.read("s3://photos/a.jpg", 10_000)
    else:
        assert bytes(storage.read("s3://photos/a.jpg", 10_000)) == bytes(1000)
    assert server.n_asked["photos/a.jpg"] >= 1


def test_a_panic_of_rust_is_an_error(storages: Any) -> None:
    storage = storages(ObjectStorage(config={"aws_allow_http": "true"}))
    with pytest.raises((OSError, ValueError)):
        storage.read("s3://photos/a.jpg", 100)


def test_a_fork_of_a_process_that_has_used_obstore_says_so(photos: Path, bucket: Any) -> None:
    source = frame(photos, "s3://photos")  # `runtime` has used it, and not by ringload
    options: dict[str, Any] = {**OPTIONS, "start_method": "fork", "stall_timeout": 20}
    with Loader(source, 4, workers=1, **options) as made, pytest.raises(SampleError) as raised:
        next(iter(made))
    assert "obstore was used before this process was forked" in raised.value.reason
    with Loader(source, 4, workers=1, **OPTIONS) as made:
        assert content(made) + content(made) == expected(photos)


# -- fsspec -----------------------------------------------------------------------------------------------------------


def test_the_same_pixels_come_from_a_file_system_of_fsspec(photos: Path) -> None:
    with Loader(frame(photos, f"local://{photos}"), 4, workers=2, **OPTIONS) as made:
        assert content(made) + content(made) == expected(photos)


def test_errors_of_fsspec(photos: Path, storages: Any) -> None:
    storage = storages(FsspecStorage())
    n_bytes = (photos / "a/00.jpg").stat().st_size
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        storage.read(f"local://{photos}/none.jpg", 100)
    with pytest.raises(ContentTooLargeError) as raised:
        storage.read(f"local://{photos}/a/00.jpg", n_bytes - 1)
    assert raised.value.n_bytes == n_bytes
    assert len(storage.read(f"local://{photos}/a/00.jpg", n_bytes)) == n_bytes


# -- ranges and versions ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["http", "s3", "fsspec"])
def ranged(request: Any, server: WebServer, tmp_path: Path, storages: Any) -> tuple[Any, str, Callable[[bytes], None]]:
    """A storage, the key of a content, and what replaces the content."""
    if request.param == "fsspec":

        def write(value: bytes) -> None:
            (tmp_path / "new").write_bytes(value)
            os.replace(tmp_path / "new", tmp_path / "shard.tar")

        write(bytes(range(200)))
        return storages(FsspecStorage()), f"local://{tmp_path}/shard.tar", write

    def replace(value: bytes) -> None:
        server.contents["photos/shard.tar"] = value

    replace(bytes(range(200)))
    if request.param == "s3":
        return storages(ObjectStorage(**at(server.root))), "s3://photos/shard.tar", replace
    return storages(HttpStorage()), server.url("photos/shard.tar"), replace


def test_ranges(ranged: Any) -> None:
    storage, key, replace = ranged
    stat = storage.stat(key)
    assert stat.n_bytes == 200
    part = ByteRange(key, 10, 5, stat.version)
    storage.prefetch_ranges([part], 1 << 20)
    assert bytes(storage.read_range(part, 100)) == bytes(range(10, 15))
    assert bytes(storage.read_range(ByteRange(key, 0, 200), 1000)) == bytes(range(200))
    assert bytes(storage.read_range(ByteRange(key, 20, 0), 1000)) == b""
    with pytest.raises(ContentTooLargeError):
        storage.read_range(part, 4)
    with pytest.raises(OSError, match="it ends before byte 210") as raised:
        storage.read_range(ByteRange(key, 190, 20), 1000)
    assert raised.value.errno == errno.EIO
    with pytest.raises(OSError, match=r"it ends before|416|Range"):
        storage.read_range(ByteRange(key, 300, 20), 1000)
    replace(bytes(range(1, 201)))
    assert storage.stat(key).version != stat.version
    with pytest.raises(OSError, match="it has changed") as raised:
        storage.read_range(part, 100)
    assert raised.value.errno == errno.ESTALE


def test_a_server_without_ranges_is_refused(contents: dict[str, bytes], storages: Any) -> None:
    with WebServer(contents, knows_ranges=False) as server, pytest.raises(OSError, match="knows no ranges"):
        storages(HttpStorage()).read_range(ByteRange(server.url("a/00.jpg"), 0, 5), 10**6)


# -- processes and packages -------------------------------------------------------------------------------------------


@pytest.mark.fault
def test_workers_are_killed_while_reads_are_under_way(
    photos: Path, server: WebServer, injected: Injected, times: Times
) -> None:
    server.latency_s = 0.02
    n_kills = times(3, 60)
    options: dict[str, Any] = {**OPTIONS, "epochs": None, "restarts": n_kills + 1}
    with Loader(frame(photos, photos), 4, workers=0, **{**options, "restarts": 0}) as made:
        truth = [content(made) for _ in range(n_kills + 1)]
    with Loader(frame(photos, server.root), 4, workers=2, **options) as made:
        for epoch in range(n_kills + 1):
            batches = iter(made)
            got = content([next(batches)])
            if epoch < n_kills:
                asked = sum(server.n_asked.values())
                while sum(server.n_asked.values()) == asked and made.poll().n_full < made.plan().n_slots - 2:
                    pass  # until a request is under way
                kill_all(list(members(made))[-1:])
            assert got + content(batches) == truth[epoch]
    injected("kill -9 of a worker while it reads from a web server", n_kills)


def test_nothing_is_left(photos: Path, server: WebServer) -> None:
    """Connections and threads of the trainer's end with the source; conftest looks for the rest."""
    source = frame(photos, server.root)
    source.prefetch(np.arange(8))
    pixels_of(source, 0)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("ringload-fetch")]
    del source
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ringload-fetch")]


@pytest.mark.parametrize(
    ("package", "url", "said"),
    [
        ("urllib3", "https://host/a.jpg", "reading http:// and https:// URLs needs urllib3"),
        ("obstore", "s3://bucket/a.jpg", "reading s3://, gs:// and az:// URLs needs obstore"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, package: str, url: str, said: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=said):
        ImageFrame(pd.DataFrame({"path": [url]}), size=(8, 8))
