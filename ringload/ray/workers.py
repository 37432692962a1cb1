"""Workers that are Ray actors, on any node of a cluster: what the engine calls."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from queue import Empty
from typing import Any, Literal

import numpy as np

import ringload.protocols
from ringload.checks import integer, one_of, short
from ringload.engine.describe import death_text
from ringload.errors import ClusterLostError, ConfigError, missing, without_frames
from ringload.protocols import Event, Job, Owner
from ringload.ring.layout import MAX_TASKS
from ringload.ring.plan import Room
from ringload.ring.slots import InFlightBatch, TaskResult
from ringload.system.cgroups import usable_cpus
from ringload.system.deaths import Death
from ringload.system.segment import Segment
from ringload.workers.current_work import CurrentWork
from ringload.workers.processes import ProcessWorkers
from ringload.workers.records import Task, WorkerReport
from ringload.workers.start import Start

try:
    from ringload.ray.cluster import Cluster
    from ringload.ray.dispatcher import N_CALLS, Dispatcher
    from ringload.ray.slot_writer import SlotWriter
except ImportError as error:
    if (error.name or "").partition(".")[0] != "ray":
        raise
    raise missing("ringload.ray", "ray", error) from error

STORE_BYTES = 256 << 20  # for rows on their way: few large tasks cost the trainer less than many small ones
ANY = 1 << 40  # bytes: the plan has looked at what local workers take
OF_ONE_LOADER = "these Workers belong to another loader, as a ringload.ray.Workers is for one: make one for each"


class Workers(ringload.protocols.Workers):
    """Workers that are Ray actors: `Loader(source, 64, workers=ringload.ray.Workers(16))`.

    Tasks are filled where the actors are, from storage that their nodes read. Filled rows come back through Ray's object store;
    this process copies them into the ring. Batches have the same bytes as with local workers.

    Guarantees: as `Loader`'s, where actors, nodes and Ray's own processes count as workers. A death costs the tasks in flight.
    Of a node that dies, all actors together count as one death for `restarts`. Actors that cannot be placed again are waited
    for while any other works. Actors are owned by this process: Ray ends them with it, within 2 s of a SIGKILL (seen once).

    Limits: the large arrays of the source are read-only; a `Stream` is refused; memory on other machines is Ray's to bound
    (`resources={"memory": ...}`). ringload, Python, and the modules that the source imports are the same on all nodes.

    Arguments:
        n: how many actors.
        address: "host:port" of the cluster's head, of which this machine is a node; "auto". None: the cluster that this process
            is connected to, or that RAY_ADDRESS names; else a local Ray is started, and shut down at the end.
        resources: what each actor takes of its node, such as {"CPU": 1, "GPU": 0.1, "memory": 2e9}; {"CPU": 1} by default.
        per_node: so many actors on each of n / per_node nodes. None: spread as evenly as there is room.
        fallback: "local": if the cluster is lost, go on with local workers. None: ClusterLostError.
        local: so many local worker processes beside the actors.
        timeout: seconds to wait for actors to be placed.

    Raises:
        ConfigError: an argument is not valid; and when a loader is made with them, or asked for a batch: the cluster does not
            answer, has no room, or has other versions.
    """

    needs_packed = True
    shares_memory = False
    task_s = 0.2  # a call of Ray costs this process about 2 ms of CPU

    def __init__(
        self,
        n: int,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        per_node: int | None = None,
        fallback: Literal["local"] | None = None,
        local: int = 0,
        timeout: float = 60.0,
    ) -> None:
        self._n = integer("n", n, 1)
        if address is not None and not isinstance(address, str):
            raise ConfigError(f"address is 'host:port' of a Ray cluster's head, 'auto' or None, not {short(address)}")
        self._address, self._resources = address, _resources(resources)
        self._per_node = None if per_node is None else integer("per_node", per_node, 1)
        if self._per_node is not None and not any(self._resources.values()):
            raise ConfigError("per_node needs actors that take a resource: resources={'CPU': 1}, for example")
        self._fallback = None if fallback is None else one_of("fallback", fallback, ("local",))
        self._n_local = integer("local", local, 0)
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not timeout > 0:
            raise ConfigError(f"timeout is a positive number of seconds, not {short(timeout)}")
        self._timeout_s = float(timeout)
        self.n_workers = self._n + self._n_local
        self.are_here = address is None or fallback is not None or self._n_local > 0
        self._pid = os.getpid()
        self._is_new, self._n_refused = True, 0  # loaders that came later, and will close these as if they were theirs
        self._opened: list[Callable[[], Any]] = []  # what closes what `open` has made so far
        self._dispatcher: Dispatcher | None = None  # None: the cluster is lost
        self._local: ProcessWorkers | None = None
        self._n_posted = [0, 0]  # tasks that actors, and local workers, have and have not reported

    def store_bytes(self, slot_bytes: int, index_bytes: int) -> int:
        """Rows on their way: as many as keep all actors busy, and the wire; and the source."""
        return self._flying_bytes(slot_bytes) + index_bytes

    def most_rows(self, n_rows: int, n_slots: int) -> int:
        """A whole batch, if there are enough of them for all calls that may be outstanding."""
        slot_bytes = self._job.layout.slot_bytes
        n_flying = min(n_slots, self._flying_bytes(slot_bytes) // slot_bytes)
        return min(n_rows, -(-n_rows * n_flying // (N_CALLS * self.n_workers)))

    def _flying_bytes(self, slot_bytes: int) -> int:
        return max(N_CALLS * 2 * slot_bytes, min(STORE_BYTES, N_CALLS * self._n * slot_bytes))

    def open(self, job: Job, memory: np.ndarray) -> None:
        if not self._is_new:
            self._n_refused += 1
            raise ConfigError(OF_ONE_LOADER)
        self._is_new = False
        self._job, self._memory, self._owners = job, memory, list(job.owners)
        self._opened += [owner.close for owner in self._owners]
        layout = job.layout
        self._flags = memory.data[layout.flags_start : layout.flags_start + layout.n_slots * MAX_TASKS]
        self._opened.append(self._release_memory)
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._opened.append(self._close_event)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        n_source = len(job.source) + sum(os.fstat(owner.fd).st_size for owner in self._owners[1:])
        flying_bytes = self._flying_bytes(layout.slot_bytes)
        cluster = Cluster(self._address, max(self._n, usable_cpus()), flying_bytes + n_source)
        self._opened.append(cluster.close)
        cluster.reserve(self._n, self._per_node, self._resources)
        numbers = range(self._n_local, self.n_workers)
        self._writer = SlotWriter(job, memory, self._flags)
        self._dispatcher = Dispatcher(cluster, numbers, job, self._writer, flying_bytes, self._timeout_s, self.wake)
        self._opened.append(self._end_dispatcher)
        self._dispatcher.start()
        if self._n_local:
            self._open_local(self._n_local)

    def _open_local(self, n_workers: int) -> None:
        """Local processes, which fill the same ring."""
        segment, *owners = self._owners
        assert isinstance(segment, Segment)
        local = ProcessWorkers(n_workers, "forkserver", segment, Room(ANY, self._job.layout.slot_bytes), owners)
        local.open(self._job._replace(owners=()), self._memory)
        self._local = local
        self._opened.append(local.close)

    # -- the engine's calls -------------------------------------------------------------------------------------------

    def start(self, start: Start, n_reserved: int) -> None:
        if self._dispatcher is not None and self._dispatcher.lost is not None:
            self._go_on_without(self._dispatcher.lost)
        if self._local is not None:
            self._local.start(replace(start, n_workers=self._local.n_workers), n_reserved)
            self._watch_local()
        if self._dispatcher is not None:
            self._dispatcher.inbox.put(("start", start))

    def _go_on_without(self, lost: ClusterLostError) -> None:
        """The cluster is lost: with local workers alone."""
        if self._fallback is None:
            raise without_frames(lost)
        self._end_dispatcher()
        if self._local is None:
            self._open_local(min(self._n, max(1, usable_cpus() - 1)))

    def _watch_local(self) -> None:
        assert self._local is not None
        self._poll.register(self._local.fd, select.POLLIN)

    def post(self, batches: Sequence[InFlightBatch]) -> int:
        for posted, batch in enumerate(batches):
            n_tasks = batch.undone.bit_count()
            if self._is_for_local():
                assert self._local is not None
                if not self._local.post([batch]):
                    return posted
                self._n_posted[1] += n_tasks
                continue
            assert self._dispatcher is not None
            self._write_flags(batch)
            self._dispatcher.inbox.put(("post", [batch]))
            self._n_posted[0] += n_tasks
        return len(batches)

    def _is_for_local(self) -> bool:
        """Whether the next batch is filled here: by those that have less to do."""
        if self._dispatcher is None or self._local is None:
            return self._local is not None
        actors, local = self._n_posted
        return local * self._n <= actors * self._local.n_workers

    def _write_flags(self, batch: InFlightBatch) -> None:
        first, done_flags = batch.slot * MAX_TASKS, batch.done_flags()
        self._flags[first : first + len(done_flags)] = done_flags
        batch.flags_now = self._flags[first : first + len(done_flags)]

    def collect(self) -> tuple[list[WorkerReport], list[TaskResult]]:
        reports: list[WorkerReport] = []
        done: list[TaskResult] = []
        if self._local is not None:
            reports, done = self._local.collect()
            self._n_posted[1] -= len(done)
        if self._dispatcher is not None:
            if self._dispatcher.failure is not None:
                raise without_frames(self._dispatcher.failure)
            for one in _all_of(self._writer.results):
                if isinstance(one, WorkerReport):
                    reports.append(one)
                else:
                    done.append(one)
                    self._n_posted[0] -= 1
        return reports, done

    def take_back(self) -> list[Task]:
        tasks = [] if self._local is None else self._local.take_back()
        self._n_posted[1] -= len(tasks)
        if self._dispatcher is not None:
            of_actors = self._dispatcher.ask("take_back") or []
            self._n_posted[0] -= len(of_actors)
            tasks += of_actors
        return tasks

    def wait(self, timeout_s: float) -> bool:
        if (there := self._dispatcher) is not None and (there.lost is not None or not there.deaths.empty()):
            return True  # a former wait has taken the notice, and its caller a batch
        found = self._poll.poll(timeout_s * 1000)
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass  # it was a local worker
        if self._local is not None:
            self._local.wait(0)
        return bool(found)

    def wake(self) -> None:
        try:
            os.eventfd_write(self._event, 1)
        except OSError:
            pass  # it is closed: nobody waits

    def events(self) -> Event:
        event = Event([]) if self._local is None else self._local.events()
        if self._dispatcher is not None:
            event.died += self._deaths(self._dispatcher)
            if (lost := self._dispatcher.lost) is not None:
                if self._fallback is None:
                    raise without_frames(lost)
                event.died.append(Death.of_server(f"{lost}; local workers go on"))
        return event

    def _deaths(self, dispatcher: Dispatcher) -> list[Death]:
        """Those since the last call. Where an actor that took a dead one's place has work already, it is not to blame."""
        deaths = []
        for death in _all_of(dispatcher.deaths):
            pid, _ = dispatcher.work.get(death.worker_id, (death.pid, None))
            deaths.append(death if pid == death.pid else Death.of_server(death_text(death)))
        return deaths

    def clear(self) -> Event:
        event = Event([])
        if self._local is not None:
            self._poll_without_local()
            event = self._local.clear()
        if self._dispatcher is not None:
            self._dispatcher.ask("clear")
            event.died += self._deaths(self._dispatcher)
        return event

    def _poll_without_local(self) -> None:
        assert self._local is not None
        try:
            self._poll.unregister(self._local.fd)
        except KeyError:
            pass  # an interruption came between

    def forget(self, batches: Iterable[InFlightBatch]) -> None:
        batches = list(batches)
        if self._local is not None:
            self._local.forget(batches)
        if self._dispatcher is not None:
            self._dispatcher.ask("forget")
            _all_of(self._writer.results)
        for batch in batches:
            self._write_flags(batch)
        self._n_posted = [0, 0]

    def renew(self, source: Any, setup: Callable[[], Any] | None, owners: Sequence[Owner]) -> None:
        segment, *before = self._owners
        self._job, self._owners = self._job._replace(source=source), [segment, *owners]
        self._opened[:0] = [owner.close for owner in owners]
        if self._local is not None:
            self._local.renew(source, setup, owners)
        if self._dispatcher is not None:
            self._dispatcher.ask("renew", self._job, list(owners))
        for owner in before:
            owner.close()

    def end(self, worker_id: int) -> None:
        if self._dispatcher is not None:
            self._dispatcher.inbox.put(("end", worker_id))

    def own_bytes(self) -> tuple[int, int] | None:
        return (0, 0) if self._local is None else self._local.own_bytes()

    def current_work(self) -> dict[int, tuple[int, CurrentWork]]:
        local = {} if self._local is None else self._local.current_work()
        return local | ({} if self._dispatcher is None else dict(self._dispatcher.work))

    def processes(self) -> dict[str, int]:
        return {} if self._local is None else self._local.processes()

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._n_refused:
            self._n_refused -= 1
            return
        if os.getpid() != self._pid:  # a fork of the trainer: all is the parent's
            self._dispatcher = None
            return
        while self._opened:  # the last first; what an interruption cuts short is done again
            self._opened[-1]()
            self._opened.pop()

    def _end_dispatcher(self) -> None:
        if self._dispatcher is not None:
            self._dispatcher.end()
            self._dispatcher = None

    def _close_event(self) -> None:
        event, self._event = self._event, -1
        if event >= 0:
            os.close(event)

    def _release_memory(self) -> None:
        self._flags.release()
        self._memory = np.empty(0, np.uint8)


def _all_of(queue: Any) -> list[Any]:
    """All that is in a queue, without waiting."""
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found


def _resources(resources: Any) -> dict[str, float]:
    """What each actor takes, checked."""
    if resources is None:
        return {"CPU": 1.0}
    if not isinstance(resources, Mapping) or not all(
        isinstance(name, str) and isinstance(amount, int | float) and not isinstance(amount, bool) and amount >= 0
        for name, amount in resources.items()
    ):
        raise ConfigError(f"resources is a dict of names and amounts, such as {{'CPU': 1}}, not {short(resources)}")
    return {"CPU": 1.0, **{name: float(amount) for name, amount in resources.items()}}
