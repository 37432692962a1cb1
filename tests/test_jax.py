"""JAX, for real, in interpreters of their own, with four devices of the host."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Times
from tests.helpers import run

pytestmark = pytest.mark.timeout(300)  # of a machine that does much else: importing TensorFlow took 30 s there

BEGIN = """
import json, os, sys, time
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
import numpy as np
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ringload, ringload.jax
from tests.helpers import Truth, TruthRows, order_of, truths
def loader(n=64, batch_size=8, **options):
    return ringload.Loader(Truth(n), batch_size, **{"workers": 0, "ram_budget": "200MB", **options})
def one_pass(batches, at_step=lambda number: None):
    seen = []
    for number, b in enumerate(batches):
        labels, draws = np.array(b["label"]), np.array(b["draw"])  # copies, so that a batch in its place is no truth
        at_step(number)
        np.testing.assert_array_equal(np.asarray(b["image"]), truths(labels, draws))
        np.testing.assert_array_equal(np.asarray(b["label"]), labels)
        seen += labels.tolist()
    return seen
def message(wanted, call):
    try: call()
    except Exception as error: assert wanted in str(error), f"{type(error).__name__}: {error}"
    else: raise AssertionError(f"no error, and not {wanted!r}")
def until_full(made, n):
    while made.poll().n_full < n: time.sleep(0.001)
def is_in_ring(made, array):
    first = made._engine._state.leases._first
    return [first <= shard.data.unsafe_buffer_pointer() < first + made._plan.ring_bytes for shard in array.addressable_shards]
"""
MESH = """
mesh = Mesh(jax.devices(), "data")
rows, copies = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
"""


def child(code: str, *arguments: object) -> None:
    done = run(BEGIN + MESH + code + "print('done')\n", *arguments, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_passes_devices_and_types() -> None:
    child("""
import warnings
warnings.simplefilter("error")
with loader() as made:
    for epoch, device in enumerate((None, jax.devices()[2], rows, copies, {"image": rows, "label": copies, "draw": copies})):
        batches = ringload.jax.Batches(made, device)
        assert len(batches) == 8
        assert one_pass(batches) == order_of(made, epoch)
        for b in batches: break
        made.set_epoch(epoch + 1)
        expected = device["image"] if isinstance(device, dict) else device
        assert isinstance(b["image"], jax.Array) and b["image"].committed
        on = expected.device_set if hasattr(expected, "device_set") else {expected or jax.devices()[0]}
        assert b["image"].devices() == on
        if device is not rows and not isinstance(device, dict):
            assert all(is_in_ring(made, b["image"])), device
        elif device is rows:  # every second part begins at a multiple of 64 bytes
            assert b["image"].sharding == rows and is_in_ring(made, b["image"]) == [True, False, True, False]
    del b
    x, y = next(iter(ringload.jax.Batches(made, rows, "image", ["label", "draw"])))
    assert x.shape == (8, 8, 6, 3) and set(y) == {"label", "draw"}
    made.set_epoch(3)

    with jax.default_device(jax.devices()[1]):
        batches = ringload.jax.Batches(made, None, "image")
    assert {x.device for (x,) in batches} == {jax.devices()[1]}
    with jax.default_device("cpu"):
        assert {x.device for (x,) in ringload.jax.Batches(made, None, "image")} == {jax.devices()[0]}
    made.set_epoch(3)

    # as on an accelerator: what is full already is sent before the batch before it is given
    with loader(workers=1) as filled:
        ahead = ringload.jax.Batches(filled, rows)
        ahead._is_cpu = False
        batches = iter(ahead)
        until_full(filled, 2)
        first = next(batches)
        assert filled.position == 2
        assert one_pass([first]) + one_pass(batches) == order_of(filled, 0)
        del first
        assert one_pass(ahead) == order_of(filled, 1)
        for b in ahead: break
        assert one_pass(ahead) == order_of(filled, 3)

    # in a jitted step, with donation
    step = jax.jit(lambda total, b: total + b["label"].sum(), donate_argnums=1)
    total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that it could not use what was donated
        for b in ringload.jax.Batches(made): total = step(total, b)
    assert int(total) == sum(range(64))

    message("device is a jax.Device", lambda: ringload.jax.Batches(made, "cpu"))
    message("no field 'pixels'", lambda: ringload.jax.Batches(made, None, "pixels"))
    made.close()
    message("the loader is closed", lambda: one_pass(ringload.jax.Batches(made)))

# the state is where the trainer is, also when a batch is on its way already; from it the rest comes, each sample once
for is_cpu in (True, False):
    with loader(workers=1) as made:
        batches = ringload.jax.Batches(made, rows)
        batches._is_cpu = is_cpu
        stream, states = iter(batches), [batches.state_dict()]
        for number in range(1, 9):
            until_full(made, 2)
            b = next(stream)
            assert made.position == (number if is_cpu or number == 8 else number + 1) % 8, (number, made.position)
            states.append(json.loads(json.dumps(batches.state_dict())))
        del b, stream
        for number, state in enumerate(states):
            epoch, position = divmod(number, 8)
            assert (state["epoch"], state["position"]) == (epoch, position)
            for b in batches: break
            del b
            batches.load_state_dict(state)
            assert batches.state_dict() == state
            assert one_pass(batches) == order_of(made, epoch)[8 * position:]
            assert batches.state_dict() == state | {"epoch": epoch + 1, "position": 0}

# a last batch that is shorter, and one with rows that hold none
with loader(61, last="keep") as made:
    assert one_pass(ringload.jax.Batches(made)) == order_of(made, 0)
    message("evenly divide", lambda: one_pass(ringload.jax.Batches(made, rows)))
with loader(61, last="pad") as made:
    x, y, weight = list(ringload.jax.Batches(made, rows, "image", "label"))[-1]
    assert weight.dtype == np.float32 and weight.sum() == 5

# a bad sample costs its batch, and no other; nor does a value that JAX cannot hold
class Bad(Truth):
    def load(self, index, rng, out):
        if index == 9: raise OSError("no such thing as nine")
        super().load(index, rng, out)
        if index in (13, 21): out["draw"] = 1 << 40
def firsts(batches, made):
    found, stream = [], iter(batches)
    while True:
        until_full(made, 4)  # so that it is sent ahead, where that is done
        try: found.append(int(next(stream)["label"][0]))
        except StopIteration: return found
        except ringload.RingloadError as error: found.append(type(error).__name__)
for is_cpu in (True, False):
    with ringload.Loader(Bad(28), 4, workers=1, shuffle=False, ram_budget="200MB") as made:
        batches = ringload.jax.Batches(made)
        batches._is_cpu = is_cpu
        for epoch in range(2):
            assert firsts(batches, made) == [0, 4, "SampleError", "ConfigError", 16, "ConfigError", 24], is_cpu
            assert made.epoch == epoch + 1

# 64 bits: what fits 32 is made so, what does not is refused, unless JAX is told to have 64
whole = np.arange(8, dtype="int64")
unsigned, word = whole.astype("uint64"), whole.astype("S3")
source = ringload.Arrays(small=whole, large=whole << 33, unsigned=unsigned, real=whole / 3, word=word)
with ringload.Loader(source, 8, workers=0, shuffle=False) as made:
    message("JAX has no dtype |S3, the dtype of field 'word'", lambda: ringload.jax.Batches(made))
    message("field 'large' is int64 and holds 60129542144", lambda: list(ringload.jax.Batches(made, None, "large")))
    ((b,),) = ringload.jax.Batches(made, None, ["small", "unsigned", "real"])
    assert {name: str(array.dtype) for name, array in b.items()} == {"small": "int32", "unsigned": "uint32", "real": "float32"}
    assert b["small"].tolist() == b["unsigned"].tolist() == whole.tolist()
    jax.config.update("jax_enable_x64", True)
    ((b,),) = ringload.jax.Batches(made, None, ["small", "large", "real"])
    assert b["large"].dtype == "int64" and b["large"].tolist() == (whole << 33).tolist() and b["real"].dtype == "float64"
    assert all(all(is_in_ring(made, array)) for array in b.values())
""")


PROCESSES = """
rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
"""

EACH = """
total = jax.jit(lambda labels: labels.sum())
def own_rows(array):
    parts = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in parts])

assert len(jax.devices()) == 8 and len(jax.local_devices()) == 4
with loader(shard=(rank, 2)) as made:
    for b in ringload.jax.Batches(made): break
    assert b["image"].devices() == {jax.local_devices()[0]} and b["image"].is_fully_addressable
    made.set_epoch(0)
    assert one_pass(ringload.jax.Batches(made)) == order_of(made, 0)
    for epoch, is_cpu in ((1, True), (2, False)):
        batches = ringload.jax.Batches(made, {"image": rows, "label": rows, "draw": jax.local_devices()[1]})
        batches._is_cpu = is_cpu
        seen, everywhere = [], 0
        for b in batches:
            assert b["image"].shape == (16, 8, 6, 3) and b["image"].sharding == rows
            labels = own_rows(b["label"])
            np.testing.assert_array_equal(own_rows(b["image"]), truths(labels, b["draw"]))
            seen += labels.tolist()
            everywhere += int(total(b["label"]))
        assert seen == order_of(made, epoch) and everywhere == sum(range(64))
    other = jax.devices()[0 if rank else 4]
    message("belongs to another process", lambda: ringload.jax.Batches(made, other))
    message("belongs to another process", lambda: ringload.jax.Batches(made, jax.sharding.SingleDeviceSharding(other)))
    message("the same rows in several processes", lambda: one_pass(ringload.jax.Batches(made, copies)))
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    message("divides axis 1", lambda: list(ringload.jax.Batches(made, columns, "image")))
with loader() as made:  # the same in each process
    for b, due in zip(ringload.jax.Batches(made, copies), np.reshape(order_of(made, 0), (8, 8)), strict=True):
        assert b["label"].shape == (8,) and int(total(b["label"])) == due.sum()
jax.distributed.shutdown()
print("done")
"""


def test_several_processes_each_feed_the_devices_of_their_own() -> None:
    with socket.socket() as reserved, ThreadPoolExecutor(2) as threads:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC does: nobody else is given the port
        reserved.bind(("", 0))
        port = reserved.getsockname()[1]
        code = BEGIN + PROCESSES + MESH + EACH
        for ran in [threads.submit(run, code, rank, port, timeout=280) for rank in range(2)]:
            done = ran.result()
            assert done.returncode == 0, done.stderr
            assert done.stdout.endswith("done\n")  # gloo says that it is connected


def test_no_step_sees_another_batch(times: Times) -> None:
    code = """
import ringload.ring.plan as memory
n_steps = int(sys.argv[1])
memory.MIN_SLOTS = 2
for n_slots in (3, 4, 8, 2):
    memory.AUTO_SLOTS = n_slots
    options = {"workers": 0, "stall_timeout": 0.3} if n_slots == 2 else {"workers": 2}
    with ringload.Loader(TruthRows(n_steps), 4, **options) as made:
        assert made.plan().n_slots == n_slots
        if n_slots == 2:  # JAX holds the last batch and the one before, until it is called next or Python's collector runs
            assert one_pass(ringload.jax.Batches(made)) == order_of(made, 0)
            break
        for epoch, (device, is_cpu) in enumerate(((None, True), (rows, True), (copies, True), (None, False))):
            if (n_slots, is_cpu) == (3, False): continue  # it holds one more, as nothing is copied here
            batches = ringload.jax.Batches(made, device)
            batches._is_cpu = is_cpu
            assert one_pass(batches, lambda number: time.sleep(0.001) if number % 2 else None) == order_of(made, epoch)

# The same is found to be wrong if leases end too soon.
from ringload.loader import _Pass
lend = _Pass.__next__
def release_at_once(self):
    batch = lend(self)
    end, batch._end = batch._end, None
    batch._release()(end)
    return batch
_Pass.__next__ = release_at_once
memory.AUTO_SLOTS = 3
def until_all_are_full(number):
    while made.poll().n_full < 3: time.sleep(0.001)
with ringload.Loader(TruthRows(300), 3, workers=2) as made:
    def ordered(): np.testing.assert_array_equal(one_pass(ringload.jax.Batches(made), until_all_are_full), order_of(made, 0))
    message("Arrays are not equal", ordered)  # within a step, or, where the next batch is there before it, in the order
"""
    child(code, times(500, 5000))
