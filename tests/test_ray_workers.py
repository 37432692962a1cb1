"""Workers on Ray, on a real cluster of a head and three nodes on this machine: the contract of local workers, and what may die.

What ends the trainer's connection to Ray, or the trainer, is tried in interpreters of their own.
"""

from __future__ import annotations

import functools
import gc
import operator
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import ringload
from ringload import Arrays, ConfigError, Field, ImageFrame, Loader, SampleError, Stream, WorkerDiedError
from ringload.order.randomness import substitutes
from ringload.system.deaths import Death
from ringload.workers.current_work import CurrentWork
from tests.conftest import Injected, Times, descriptors
from tests.deaths import first_time, wait_while
from tests.helpers import Truth, TruthRows, check, content, order_of, run

pytestmark = [pytest.mark.needs("ray"), pytest.mark.fault, pytest.mark.slow]
CPUS = 2  # of each node
OF_RAY = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}  # by Ray's default, actors wait for all else: 15
LIGHT = {"object_store_memory": 100 << 20}
MEMFD = "/memfd"


class Cluster:
    """A cluster that this process is connected to."""

    def __init__(self) -> None:
        os.environ |= OF_RAY
        import ray
        from ray.cluster_utils import Cluster as OfRay

        self.ray = ray
        self.of_ray = OfRay(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **LIGHT})
        self.address: str = self.of_ray.address
        self.nodes = [self.add() for _ in range(3)]
        ray.init(address=self.address, log_to_driver=False, logging_level="warning")

    def add(self, **options: Any) -> Any:
        return self.of_ray.add_node(**{"num_cpus": CPUS, **LIGHT, **options})

    def kill_raylet(self, node: Any) -> None:
        self.of_ray.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self.ray.shutdown()
        self.of_ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def actors() -> list[psutil.Process]:
    """The processes of ringload's actors."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "ray::Actor" in "".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """In place of conftest's, for which Ray's own processes and connections, that come and go, would be left."""
    memfds, rings = descriptors()[MEMFD], n_mapped()
    yield
    gc.collect()
    assert n_mapped() <= rings  # what Ray keeps of calls that have not ended holds no ring
    deadline_s = time.monotonic() + 10.0
    while actors() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not actors()
    assert descriptors()[MEMFD] <= memfds
    assert "ringload:ray" not in [thread.name for thread in threading.enumerate()]


def n_mapped() -> int:
    """How many segments this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:ringload")


def on_ray(n: int = 3, **options: Any) -> Any:
    import ringload.ray

    return ringload.ray.Workers(n, **options)


def pids(loader: Loader) -> list[int]:
    """Of the actors that have answered."""
    return [actor.hello.pid for actor in [*dispatcher(loader).actors.by_number.values()] if actor.hello is not None]


def dispatcher(loader: Loader) -> Any:
    return loader._engine._state.workers._dispatcher


def contents(source: Any, workers: Any, batch_size: int = 8, epochs: int = 2, **options: Any) -> list[dict[str, bytes]]:
    with Loader(source, batch_size, workers=workers, seed=5, ram_budget="400MB", **options) as loader:
        return [content([batch])[0] for _ in range(epochs) for batch in loader]


class Slow(Truth):
    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        time.sleep(0.003)
        super().load(index, rng, out)


# -- the same bytes ---------------------------------------------------------------------------------------------------


def closure() -> Callable[..., None]:
    table = np.random.default_rng(3).random((60, 4000), np.float32)  # beyond what is pickled in line

    def load(index: int, rng: np.random.Generator, out: Any) -> None:
        out["x"] = table[index] + np.float32(rng.random())

    return load


def test_an_image_table_arrays_and_a_function_give_the_same_bytes(cluster: Cluster, photos: Path) -> None:
    big = np.random.default_rng(1).integers(0, 255, (90, 2000), np.uint8)
    frame = ImageFrame(
        photos / "photos.csv", path="path", label="bi", size=(32, 32), resize="random_crop", flip=True, root=photos
    )
    function: dict[str, Any] = {"fields": {"x": Field((4000,), "float32")}, "n_samples": 60}
    for source, options in (
        (frame, {"last": "pad"}),
        (Arrays(x=big, y=np.arange(90)), {}),
        (closure(), function),
        (TruthRows(50), {"last": "keep"}),
        (Truth(50), {"order": ringload.Weighted(np.arange(1, 51))}),
    ):
        assert contents(source, on_ray(), **options) == contents(source, 1, **options)


def test_every_row_is_right_and_resuming_goes_on_anywhere(cluster: Cluster) -> None:
    with Loader(Truth(100), 8, workers=on_ray(), seed=2, ram_budget="400MB") as loader:
        first = iter(loader)
        head = [check(next(first)).tolist() for _ in range(5)]
        state = loader.state_dict()
        assert functools.reduce(operator.iadd, head, []) == order_of(loader, 0)[:40]
        assert loader.stats.n_samples == 40
    with Loader(Truth(100), 4, workers=1, seed=2, ram_budget="400MB") as local:
        local.load_state_dict(state)
        assert [index for batch in local for index in check(batch).tolist()] == order_of(local, 0)[40:]
    with Loader(Truth(100), 10, workers=on_ray(2), seed=2, ram_budget="400MB", shard=(1, 2)) as other:
        other.load_state_dict(state)
        assert [index for batch in other for index in check(batch).tolist()] == order_of(other, 0)[20 // 1 :][:30]


def test_a_source_that_is_changed_is_sent_again(cluster: Cluster) -> None:
    x = np.zeros((40, 20_000), np.uint8)
    with Loader(Arrays(x=x), 8, workers=on_ray(2), ram_budget="400MB") as loader:
        assert not any(batch["x"].any() for batch in loader)
        x[:] = 7
        assert all((batch["x"] == 7).all() for batch in loader)


def test_a_loader_that_its_own_thread_collects_ends_its_actors(cluster: Cluster) -> None:
    loader = Loader(Truth(40), 4, workers=on_ray(1), ram_budget="400MB")
    check(next(iter(loader)))
    thread = dispatcher(loader)
    cycle: list[Any] = [loader]
    cycle.append(cycle)
    thread._on_collect = gc.collect
    gc.disable()
    try:
        del loader, cycle
        thread.inbox.put(("collect",))
        thread.join(60)
    finally:
        gc.enable()
    assert not thread.is_alive()


def test_a_call_has_a_whole_batch_if_calls_are_enough(cluster: Cluster) -> None:
    two, many = on_ray(2), on_ray(64)
    with Loader(Slow(640), 32, workers=two, ram_budget="400MB") as loader:
        n_tasks = [len(loader._engine._state.ring.newest().split.bounds) for _ in map(check, loader)]
    assert n_tasks[0] == 4  # before a sample's cost was known
    assert n_tasks[-1] <= 2  # of a busy machine; local workers would have 6
    many._job = two._job
    assert [many.most_rows(*of) for of in ((256, 1 << 20), (256, 4), (1, 3))] == [256, 256 * 4 // (2 * 64), 1]


def test_local_workers_beside_actors_share_the_batches(cluster: Cluster) -> None:
    assert contents(Slow(120), on_ray(2, local=1), epochs=3) == contents(Truth(120), 0, epochs=3)
    with Loader(Slow(400), 8, workers=on_ray(2, local=1), ram_budget="400MB") as loader:
        for batch in loader:
            check(batch)
        assert loader.workers == 3


# -- deaths -----------------------------------------------------------------------------------------------------------


def test_kills_of_actors_change_nothing(cluster: Cluster, times: Times, injected: Injected) -> None:
    n_kills, n_killed, choose = times(4, 100), 0, random.Random(1)
    workers = on_ray()
    workers.task_s = 0.01  # several tasks a batch
    with Loader(Slow(240), 8, workers=workers, seed=5, ram_budget="400MB", restarts=None) as loader:
        while n_killed < n_kills:
            seen = []
            kill_at = choose.randrange(30)
            for number, batch in enumerate(loader):
                seen += check(batch).tolist()
                if number == kill_at and (alive := pids(loader)):
                    os.kill(choose.choice(alive), signal.SIGKILL)
                    n_killed += 1
            assert seen == order_of(loader, loader.epoch - 1)
        assert loader.stats.n_restarts >= n_kills - 1  # of the last, nothing may be asked any more
        assert loader.stats.n_bad == 0
    injected("kill -9 of a Ray actor", n_killed)


def test_a_raylet_dies_with_its_actors_and_a_node_joins(cluster: Cluster, injected: Injected) -> None:
    with Loader(Slow(240), 8, workers=on_ray(6), seed=5, ram_budget="400MB", restarts=1) as loader:
        deaths = loader._engine.counters.deaths
        while not deaths:  # what was filled ahead comes first
            seen = []
            for number, batch in enumerate(loader):
                seen += check(batch).tolist()
                if number == 5 and len(pids(loader)) == 6 and len(cluster.nodes) == 3:
                    cluster.kill_raylet(cluster.nodes.pop())
            assert seen == order_of(loader, loader.epoch - 1)
        cluster.nodes.append(cluster.add())
        assert [death.worker_id for death in deaths] == [-1], "two actors died with their node, which is one death"
        assert "node" in deaths[0].cause
        while len(pids(loader)) < 6:  # those that were not placed are, on the node that has joined
            batch = next(iter(loader))
            check(batch)
    injected("kill -9 of a raylet, with all actors of its node", 1)


class Deadly(Truth):
    def __init__(self, n: int, how: str) -> None:
        super().__init__(n)
        self.how = how

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index == 17:
            os._exit(3) if self.how == "exit" else time.sleep(1000)
        super().load(index, rng, out)


@pytest.mark.parametrize("how", ["exit", "hang"])
def test_a_sample_that_kills_or_holds_up_its_actor_is_bad(
    cluster: Cluster, how: str, injected: Injected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringload.engine.schedule.FIRST_ROWS", 48)  # of a call
    limit = {"sample_timeout": 1.5} if how == "hang" else {}  # not for each of the 48
    with Loader(Deadly(96, how), 48, workers=on_ray(2), on_error="skip", ram_budget="400MB", **limit) as loader:
        seen = [index for batch in loader for index in check(batch).tolist()]
        assert seen == [index for index in order_of(loader, 0) if index != 17]
        stats = loader.stats
    assert [bad.index for bad in stats.bad] == [17]
    assert "killed its worker 2 times in a row" in stats.bad[0].reason
    injected(f"a sample has its Ray actor {how}", stats.n_restarts)


class KillsInPlace(Truth):
    """A sample is bad, and two of those that are tried in its place end their process."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.killers = substitutes(5, 0, 17, n, 2).tolist()

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index == 17:
            raise ValueError("bad")
        if index in self.killers:
            os._exit(3)
        super().load(index, rng, out)


@pytest.mark.parametrize("batch_size", [1, 12])
def test_substitutes_that_kill_are_found_and_no_innocent_sample_is_blamed(cluster: Cluster, batch_size: int) -> None:
    contents, bad = [], []
    options: dict[str, Any] = {"seed": 5, "on_error": "replace", "restarts": None, "epochs": 1, "ram_budget": "400MB"}
    for workers in (on_ray(2), 2):
        with Loader(KillsInPlace(60), batch_size, workers=workers, **options) as loader:
            contents.append(content(loader))
            bad.append(sorted((one.index, one.replaced_by) for one in loader.stats.bad))
    assert contents[0] == contents[1]
    assert bad[0] == bad[1]
    assert [index for index, _ in bad[0]] == sorted([17, *KillsInPlace(60).killers])


class HangsOnce(Truth):
    def __init__(self, n: int, hung: Path) -> None:
        super().__init__(n)
        self.hung = hung

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index == 17 and first_time(self.hung):
            self.hung.with_suffix(".pid").write_text(str(os.getpid()))
            time.sleep(1000)
        time.sleep(0.003)
        super().load(index, rng, out)


def test_an_actor_that_hangs_in_what_was_given_up_is_replaced(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ringload.ray.actors.OLD_S", 1.0)
    written = tmp_path / "hung.pid"

    def kill_another() -> None:
        wait_while(lambda: not written.exists() or not written.read_text() or len(pids(loader)) < 2)
        os.kill(next(pid for pid in pids(loader) if pid != int(written.read_text())), signal.SIGKILL)

    with Loader(HangsOnce(96, tmp_path / "hung"), 8, workers=on_ray(2), ram_budget="400MB") as loader:
        killer = threading.Thread(target=kill_another)
        killer.start()
        assert sorted(index for batch in loader for index in check(batch).tolist()) == list(range(96))
        killer.join()
        wait_while(lambda: is_running(int(written.read_text())) or len(pids(loader)) < 2)
        assert sorted(index for batch in loader for index in check(batch).tolist()) == list(range(96))
        assert (loader.stats.n_restarts, loader.stats.n_bad) == (1, 0)


def test_a_late_death_blames_no_successor(cluster: Cluster) -> None:
    with Loader(Truth(40), 4, workers=on_ray(1), ram_budget="400MB", epochs=1) as loader:
        assert sorted(index for batch in loader for index in check(batch).tolist()) == list(range(40))
        thread, workers = dispatcher(loader), loader._engine._state.workers
        thread.work[0] = 77, CurrentWork(0, 0, 17, 0, 1, 0.0)
        for pid in (76, 77):
            thread.deaths.put(Death(0, pid, 0, "it is gone"))
        late, present = workers.events().died
        assert (late.worker_id, late.cause) == (-1, "worker 0 (pid 76) died: it is gone")
        assert present == Death(0, 77, 0, "it is gone")
        thread.work.clear()


def test_a_close_that_is_interrupted_goes_on_when_it_is_called_again(cluster: Cluster) -> None:
    loader = Loader(Truth(40), 4, workers=on_ray(1), ram_budget="400MB")
    check(next(iter(loader)))
    thread = dispatcher(loader)
    is_interrupted = threading.Event()

    def hold() -> None:
        is_interrupted.wait(60)
        time.sleep(0.5)

    thread.actors._calls.put(hold)  # the end waits for it

    def interrupt() -> None:
        wait_while(lambda: not thread._is_closed)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        is_interrupted.set()

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        loader.close()
    interrupting.join()
    loader.close()
    assert not thread.is_alive()


def test_deaths_beyond_restarts_are_an_error_that_names_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringload.engine.schedule.FIRST_ROWS", 48)  # of a call
    with Loader(Deadly(48, "exit"), 48, workers=on_ray(2), restarts=0, shuffle=False, ram_budget="400MB") as loader:
        with pytest.raises(WorkerDiedError, match=r"its process on node .* ended: .*more than restarts=0") as told:
            print([check(batch) for batch in loader])
        assert 17 in told.value.samples


def test_an_object_store_that_is_full(cluster: Cluster) -> None:
    held = [cluster.ray.put(np.zeros(15 << 20, np.uint8)) for _ in range(6)]  # 90 of 100 MiB
    source = Arrays(x=np.random.default_rng(1).integers(0, 255, (24, 1 << 20), np.uint8))
    assert contents(source, on_ray(2), 4, 1, shuffle=False) == contents(source, 0, 4, 1, shuffle=False)
    del held


# -- what cannot be ---------------------------------------------------------------------------------------------------


def missing_on_nodes(index: int, rng: np.random.Generator, out: Any) -> None:
    out["x"] = 0 if index % 2 else len(Path(f"/not/there/{index}").read_bytes())


def test_a_file_that_a_node_does_not_have_is_a_bad_sample_that_names_the_node(cluster: Cluster) -> None:
    fields = {"x": Field((), "int64")}
    with (
        Loader(missing_on_nodes, 4, workers=on_ray(1), fields=fields, n_samples=8, ram_budget="400MB") as loader,
        pytest.raises(SampleError, match=r"FileNotFoundError: .*/not/there/\d'? \(on node \d+\.\d+\.\d+\.\d+\)"),
    ):
        next(iter(loader))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resources": {"GPU": 1}}, r"3 of 3 actors could not be placed within 1 s: .*GPU: 3 for all, the cluster has 0"),
        ({"resources": {"CPU": 3}}, r"CPU: 9 for all, the cluster has \d+"),
        ({"n": 4, "per_node": 1}, r"per_node=1 needs 4 nodes that have {CPU: 1}.*3 of the cluster's 4 nodes"),
    ],
)
def test_actors_that_cannot_be_placed(cluster: Cluster, options: dict[str, Any], said: str) -> None:
    with (
        Loader(Truth(40), 4, workers=on_ray(timeout=1, **options), ram_budget="400MB") as loader,
        pytest.raises(ConfigError, match=said),
    ):
        next(iter(loader))


def test_per_node_places_so_many_on_each(cluster: Cluster) -> None:
    with Loader(Truth(40), 4, workers=on_ray(3, per_node=1), ram_budget="400MB") as loader:
        while len(pids(loader)) < 3:
            for batch in loader:
                check(batch)
        assert len({actor.hello.node_id for actor in dispatcher(loader).actors.by_number.values()}) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n is an integer, 1 or more|n .*0"),
        ({"n": 1, "fallback": "remote"}, "fallback is 'local', not 'remote'|fallback"),
        ({"n": 1, "per_node": 0}, "per_node"),
        ({"n": 1, "local": -1}, "local"),
        ({"n": 1, "timeout": 0}, "timeout is a positive number"),
        ({"n": 1, "resources": {"CPU": "two"}}, "resources is a dict of names and amounts"),
        ({"n": 1, "resources": {"CPU": 0}, "per_node": 1}, "per_node needs actors that take a resource"),
        ({"n": 1, "address": 6379}, "address is 'host:port'"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        on_ray(**options)


def test_another_cluster_a_stream_and_workers_of_another_loader_are_refused(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"this process is connected to the Ray cluster at .*; leave out address="):
        Loader(Truth(40), 4, workers=on_ray(1, address="127.0.0.1:1"), ram_budget="400MB")
    with pytest.raises(ConfigError, match="keeps_parts"):
        Loader(
            Stream(lambda part: iter([{"x": np.zeros(3)}]), parts=1, fields={"x": Field(3, "float64")}), 4, workers=on_ray(1)
        )
    workers = on_ray(1)
    with Loader(Truth(40), 4, workers=workers, ram_budget="400MB") as loader:
        with pytest.raises(ConfigError, match="these Workers belong to another loader"):
            Loader(Truth(40), 4, workers=workers, ram_budget="400MB")
        check(next(iter(loader)))


def test_another_version_on_a_node_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    package = Path(ringload.__file__).parent
    shutil.copytree(package, tmp_path / "ringload", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "ringload" / "__init__.py"
    init.write_text(init.read_text().replace(f'__version__ = "{ringload.__version__}"', '__version__ = "0.0.7"'))
    site = tmp_path / "sitecustomize.py"
    site.write_text("import ringload")  # before Ray puts the trainer's path in front of this one
    node = cluster.add(resources={"old": 1}, env_vars={"PYTHONPATH": str(tmp_path)})
    try:
        with (
            Loader(Truth(40), 4, workers=on_ray(1, resources={"old": 1}), ram_budget="400MB") as loader,
            pytest.raises(ConfigError, match=r"node .* has ringload 0\.0\.7 and Python .* install the same versions"),
        ):
            next(iter(loader))
    finally:
        cluster.kill_raylet(node)


class Unusable(Truth):
    def start(self, worker: Any) -> None:
        raise OSError("no such database here")


def test_a_source_that_cannot_be_used_says_so(cluster: Cluster) -> None:
    with (
        Loader(Unusable(40), 4, workers=on_ray(1), ram_budget="400MB") as loader,
        pytest.raises(ConfigError, match=r"cannot be used in an actor on node(.|\n)*no such database here"),
    ):
        next(iter(loader))


def test_the_plan_has_the_object_store(cluster: Cluster) -> None:
    with Loader(Truth(40), 4, workers=on_ray(2), ram_budget="400MB") as loader:
        plan = loader.plan()
        rows = {what: n_bytes for what, n_bytes, _ in plan.rows()}
        assert rows["object store"] == plan.store_bytes > 0
        assert sum(rows.values()) == plan.total_bytes
        assert dispatcher(loader).store_bytes <= plan.store_bytes
    far = on_ray(200, address=cluster.address)
    with Loader(Truth(40), 4, workers=far, ram_budget="100MB") as loader:
        assert loader.plan().workers_bytes == 0, "that is other machines' memory"


class FailsOnce(Truth):
    """One task cannot be read ahead; samples of others have to be."""

    def start(self, worker: Any) -> None:
        self.asked: set[int] = set()

    def prefetch(self, indices: np.ndarray) -> None:
        if 3 in indices:
            raise ValueError("no network")
        self.asked |= set(indices.tolist())

    def load(self, index: int, rng: np.random.Generator, out: Any) -> None:
        if index >= 8:
            self.asked.remove(index)
        super().load(index, rng, out)


def test_an_error_of_reading_ahead_concerns_one_task(cluster: Cluster) -> None:
    with Loader(FailsOnce(40), 8, workers=on_ray(1), ram_budget="400MB", shuffle=False, epochs=1) as loader:
        assert np.concatenate([check(batch) for batch in loader]).tolist() == list(range(40))


def test_memory_that_workers_share_is_refused(cluster: Cluster) -> None:
    table = Arrays(x=np.arange(40))
    with pytest.raises(ConfigError, match=r"cache='ram' is memory that workers share, and an object of class ringload.Workers"):
        Loader(table, 4, workers=on_ray(2), ram_budget="400MB", cache="ram")


# -- in interpreters of their own -------------------------------------------------------------------------------------

PREPARED = f"""
import os, signal, sys, time
OF_RAY = {OF_RAY}
os.environ |= OF_RAY
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "24"
import ringload, ringload.ray
from tests.helpers import Truth, check, content, order_of
from tests.test_ray_workers import Slow, contents, pids
"""


def test_a_local_ray_is_started_and_ended(tmp_path: Path) -> None:
    done = run(
        PREPARED
        + """
import ray
from ringload.ray import Workers
one = ringload.Loader(Truth(60), 8, workers=Workers(2), seed=5, ram_budget="400MB")
other = ringload.Loader(Truth(60), 8, workers=Workers(1), seed=5, ram_budget="400MB")
right = contents(Truth(60), 0)
assert [content([batch])[0] for _ in range(2) for batch in one] == right
one.close()
assert ray.is_initialized(), "the other loader uses it"
assert [content([batch])[0] for _ in range(2) for batch in other] == right
other.close()
assert not ray.is_initialized()
try:
    ringload.Loader(Truth(60), 8, workers=Workers(1, address="127.0.0.1:1"))
except ringload.ConfigError as error:
    assert "no Ray cluster answers there" in str(error), error
print("right")
""",
        timeout=110,
    )
    assert done.stdout == "right\n", done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_of_a_trainer_that_is_killed(tmp_path: Path) -> None:
    done = run(
        PREPARED
        + """
with ringload.Loader(Slow(4000), 8, workers=ringload.ray.Workers(2), ram_budget="400MB") as loader:
    for number, batch in enumerate(loader):
        check(batch)
        if number == 10:
            import ray
            print(ray.get_runtime_context().gcs_address, flush=True)
            print(*pids(loader), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
""",
        timeout=110,
    )
    address, of_actors = done.stdout.splitlines()
    deadline_s = time.monotonic() + 20.0  # Ray's: the actors go with their raylet, which goes with the trainer
    pids_of_actors = {int(pid) for pid in of_actors.split()}
    while (alive := running(pids_of_actors, address)) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not alive


def test_actors_of_all_nodes_end_with_a_trainer_that_is_killed(cluster: Cluster) -> None:
    n_cpus = cluster.ray.cluster_resources()["CPU"]
    done = run(
        PREPARED
        + f"""
workers = ringload.ray.Workers(3, address={cluster.address!r}, per_node=1)
with ringload.Loader(Slow(4000), 8, workers=workers, ram_budget="400MB") as loader:
    for batch in loader:
        check(batch)
        if len(pids(loader)) == 3:
            print(*pids(loader), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
""",
        timeout=110,
    )
    pids_of_actors = {int(pid) for pid in done.stdout.split()}
    assert len(pids_of_actors) == 3, done.stderr
    deadline_s = time.monotonic() + 20.0
    while (alive := any(map(is_running, pids_of_actors))) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not alive
    while (free := cluster.ray.available_resources().get("CPU")) != n_cpus and time.monotonic() < deadline_s:
        time.sleep(0.1)  # also what was reserved for them
    assert free == n_cpus


def running(pids: set[int], address: str) -> list[psutil.Process]:
    """Those of `pids`, and all that name `address` in their command line, that run (a zombie has ended)."""
    of_cluster = (p for p in psutil.process_iter(["cmdline"]) if p.pid in pids or address in " ".join(p.info["cmdline"] or []))
    return [process for process in of_cluster if is_running(process.pid)]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


HEAD_DIES = """
from ray.cluster_utils import Cluster
import ray
light = dict(object_store_memory=100 << 20)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0 if ELSEWHERE else 2, include_dashboard=False, **light))
if ELSEWHERE:
    cluster.add_node(num_cpus=2, **light)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
right = contents(Truth(1600), 0, epochs=1)
workers = ringload.ray.Workers(2, fallback=FALLBACK)
with ringload.Loader(Slow(1600), 8, workers=workers, seed=5, ram_budget="400MB", epochs=1) as loader:
    got = []
    try:
        for number, batch in enumerate(loader):
            got.append(content([batch])[0])
            if number == 5:
                of_actors = pids(loader)
                cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
                if ELSEWHERE:
                    os.kill(of_actors[0], signal.SIGKILL)
    except ringload.WorkerDiedError as error:
        print(type(error).__name__, error)
    print(got == right[:len(got)], len(got) == len(right), [death.cause for death in loader._engine.counters.deaths])
"""


@pytest.mark.parametrize("fallback", [None, "local"])
def test_a_head_that_dies(fallback: str | None, injected: Injected) -> None:
    done = run(PREPARED + HEAD_DIES.replace("FALLBACK", repr(fallback)).replace("ELSEWHERE", "False"), timeout=110)
    assert done.returncode == 0, done.stderr
    if fallback is None:
        assert "ClusterLostError the Ray cluster is lost" in done.stdout, done.stdout
    else:
        assert "True True" in done.stdout, done.stdout
        assert "local workers go on" in done.stdout
    injected("kill -9 of a Ray cluster's head", 1)


def test_living_actors_go_on_after_a_death_while_the_head_is_away(injected: Injected) -> None:
    script = HEAD_DIES.replace("FALLBACK", "None").replace("ELSEWHERE", "True").replace("Slow(1600)", "Slow(800)")
    patient = PREPARED.replace('"24"', '"90"')  # Ray takes seconds to tell a death without its head
    done = run(patient + script.replace("Truth(1600)", "Truth(800)"), timeout=110)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^True True \['its process on node [^']*'\]$", done.stdout, re.MULTILINE), done.stdout
    injected("kill -9 of a Ray cluster's head", 1)
