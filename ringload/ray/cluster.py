"""The Ray cluster: connected to, or started; where actors are placed; and whether it is still there.

    address=None    the cluster that this process is connected to, or that RAY_ADDRESS names; else a local Ray is started, which
                    is shut down when the last loader that uses it is closed

How a lost cluster is noticed. Ray ends a process whose cluster's head does not answer for 60 s
(RAY_gcs_rpc_server_reconnect_timeout_s): the trainer, too. So a thread asks the head's port each second, and after a third of
that time this process disconnects, which takes seconds (5 s were too few, 8 s enough). Until then batches go on: rows come
from the actors' nodes, not by way of the head.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.ray.actor import Actor

LEAST_STORE_BYTES = 128 << 20  # of a local Ray
RECONNECT_VARIABLE, RECONNECT_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0  # Ray's own, and its default
ASK_S = 1.0  # how long a port may take to answer
NAMED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # resources that Ray has options for

_lock = threading.Lock()
_n_users = [0]  # of the Ray that this module has started, or connected to


class Cluster:
    """The connection to a cluster. `address` is its head's."""

    def __init__(self, address: str | None, n_cpus: int, store_bytes: int) -> None:
        self._is_ours = self._is_open = self._is_user = False
        with _lock:
            if not ray.is_initialized():
                _connect(address or os.environ.get("RAY_ADDRESS"), n_cpus, store_bytes)
                self._is_ours = True
            self._is_ours |= _n_users[0] > 0
            _n_users[0] += self._is_ours
            self._is_open = self._is_user = True
        self.address = ray.get_runtime_context().gcs_address
        if address is not None and not _is_same(address, self.address):
            self.close()
            raise ConfigError(
                f"address={short(address)}: this process is connected to the Ray cluster at {self.address}; leave out address="
            )
        self._group: Any = None
        self._answered_s = time.monotonic()
        self._lost_s = float(os.environ.get(RECONNECT_VARIABLE, RECONNECT_S)) / 3

    def reserve(self, n: int, per_node: int | None, resources: Mapping[str, float]) -> None:
        """Choose how actors are spread: evenly, or `per_node` on each of n / per_node nodes. Does not wait."""
        self._n, self._per_node, self._resources = n, per_node, dict(resources)
        if per_node is not None:
            bundle = {name: amount * per_node for name, amount in resources.items() if amount}
            self._group = placement_group([bundle] * -(-n // per_node), strategy="STRICT_SPREAD")

    def start_actor(self, worker_id: int, number: int) -> Any:
        """Have an actor started, by and by. It ends with this process, however that ends, as Ray's owner of it."""
        options: dict[str, Any] = {option: self._resources.get(name, 0) for name, option in NAMED.items() if name != "memory"}
        if self._resources.get("memory"):
            options["memory"] = self._resources["memory"]
        options["resources"] = {name: amount for name, amount in self._resources.items() if name not in NAMED}
        strategy: Any = "SPREAD"
        if self._group is not None and self._per_node is not None:
            strategy = PlacementGroupSchedulingStrategy(self._group, number // self._per_node)
        remote = ray.remote(Actor).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy=strategy, enable_task_events=False, **options
        )
        return remote.remote(worker_id)

    def lacking(self, n_placed: int) -> str:
        """Why some actors are not placed yet, in words."""
        nodes = [node for node in ray.nodes() if node["Alive"]]
        each = ", ".join(f"{name}: {amount:g}" for name, amount in self._resources.items())
        if self._per_node is not None:
            roomy = [node for node in nodes if self._fits(node["Resources"])]
            wanted = -(-self._n // self._per_node)
            return (
                f"per_node={self._per_node} needs {wanted} nodes that have {{{each}}} for each of {self._per_node} actors, and "
                f"{len(roomy)} of the cluster's {len(nodes)} nodes have so much at all: lower n, or raise per_node"
            )
        total, free = ray.cluster_resources(), ray.available_resources()
        short_of = [
            f"{name}: {self._n * amount:g} for all, the cluster has {total.get(name, 0):g}, of which {free.get(name, 0):g} free"
            for name, amount in self._resources.items()
            if (self._n - n_placed) * amount > free.get(name, 0)
        ]
        return (
            f"each asks for {{{each}}}; {'; '.join(short_of) or 'the cluster has that, but not on one node'}. Lower n or "
            "resources=, or add nodes"
        )

    def _fits(self, resources: Mapping[str, float]) -> bool:
        assert self._per_node is not None
        return all(resources.get(name, 0) >= amount * self._per_node for name, amount in self._resources.items())

    def is_lost(self) -> bool:
        """Whether the head has not answered for too long."""
        return not self.answers() and time.monotonic() - self._answered_s > self._lost_s

    def answers(self) -> bool:
        """Whether the head answers now."""
        host, _, port = self.address.rpartition(":")
        if not answers(host, int(port)):
            return False
        self._answered_s = time.monotonic()
        return True

    def lost_text(self) -> str:
        return f"the Ray cluster is lost: its head at {self.address} has not answered for {self._lost_s:g} s"

    def close(self) -> None:
        """Disconnect, or shut Ray down, if this module has connected or started it and nobody else uses it. Idempotent."""
        if not self._is_open:
            return
        if self._group_is_there():
            remove_placement_group(self._group)
            self._group = None
        with _lock:
            self._leave()
            if self._is_ours and not _n_users[0]:
                ray.shutdown()
        self._is_open = False

    def _leave(self) -> None:
        """Be no user of Ray any more. Idempotent."""
        if self._is_user:
            self._is_user = False
            _n_users[0] -= self._is_ours

    def _group_is_there(self) -> bool:
        return getattr(self, "_group", None) is not None and ray.is_initialized()

    def abandon(self) -> None:
        """Disconnect from a lost cluster, before Ray ends this process for it."""
        self._group = None
        if self._is_open:
            self._is_open = False
            with _lock:
                self._leave()
        ray.shutdown()


def answers(host: str, port: int) -> bool:
    """Whether a port accepts a connection. A process that was killed has its port closed at once."""
    try:
        socket.create_connection((host, port), ASK_S).close()
    except OSError:
        return False
    return True


def _connect(address: str | None, n_cpus: int, store_bytes: int) -> None:
    if address is None or address == "local":
        ray.init(
            address="local",
            num_cpus=n_cpus,
            object_store_memory=LEAST_STORE_BYTES + store_bytes,
            include_dashboard=False,
            log_to_driver=True,
            logging_level="warning",
        )
        return
    if "://" in address:
        raise ConfigError(
            f"address={short(address)} is one of Ray's client, which has no object store in this process: start the trainer "
            "on a node of the cluster, and give its head's address, such as '10.0.0.1:6379'"
        )
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit():
            raise ConfigError(f"address is 'host:port' of a Ray cluster's head, or 'auto', not {short(address)}")
        if not answers(host, int(port)):
            raise ConfigError(
                f"address={short(address)}: no Ray cluster answers there: is its head up, and the port that of `ray start`?"
            )
    try:
        ray.init(address=address, log_to_driver=True, logging_level="warning")
    except Exception as error:  # of several kinds, by what is wrong
        text = " ".join(str(error).split())
        raise ConfigError(f"address={short(address)}: cannot join that Ray cluster: {type(error).__name__}: {text}") from error


def _is_same(address: str, other: str) -> bool:
    if address in ("auto", other):
        return True
    host, _, port = address.rpartition(":")
    other_host, _, other_port = other.rpartition(":")
    try:
        return port == other_port and socket.gethostbyname(host) in (
            socket.gethostbyname(other_host),
            *(["127.0.0.1"] if other_host == ray.util.get_node_ip_address() else []),
        )
    except OSError:
        return False
