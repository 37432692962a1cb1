"""`ringload.jax.Batches` on a CUDA device, for real. Skipped where there is none; test_jax goes the same way without one, to
devices of the host that are taken for accelerators."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import run

pytestmark = [
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU here (/dev/nvidiactl)"),
    pytest.mark.timeout(300),
]

BEGIN = """
import json, os, sys, time, warnings
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
import numpy as np
import jax
if jax.default_backend() != "gpu":
    print("skip: there is an NVIDIA GPU, but JAX", jax.__version__, "has only", jax.devices())
    sys.exit()
import jax.numpy as jnp
import ringload, ringload.jax
import ringload.ring.plan as memory
from ringload import jax as adapter
from ringload.order.randomness import Randomness
from tests.helpers import TruthRows, order_of, truths
warnings.simplefilter("error")

def loader(n=64, batch_size=8, slots=8, **options):
    memory.MIN_SLOTS = memory.AUTO_SLOTS = slots
    made = ringload.Loader(TruthRows(n), batch_size, **{"workers": 2, **options})
    assert made.plan().n_slots == slots
    return made
def is_right(made, epoch, number, b):
    '''Whether a batch is what it should be, by arithmetic.'''
    indices = made.order.rows(epoch, number).index
    draws = [int(Randomness(made.state_dict()["seed"]).of(epoch, int(index)).integers(1 << 30)) for index in indices]
    label, draw, image = (np.asarray(b[name]) for name in ("label", "draw", "image"))
    return label.tolist() == indices.tolist() and draw.tolist() == draws and np.array_equal(image, truths(indices, draws))
"""


def cuda_says(code: str) -> None:
    """Run a script that ends by printing "done", and says nothing else, at its interpreter's end neither."""
    done = run(BEGIN + code, timeout=280)
    if done.stdout.startswith("skip: "):
        pytest.skip(done.stdout.strip())
    assert (done.stderr, done.stdout, done.returncode) == ("", "done\n", 0)


def test_no_step_sees_another_batch() -> None:
    """The device is kept busy, and looked at late. That a lease ends too soon is noticed."""
    cuda_says("""
matrix = jnp.ones((2048, 2048), jnp.bfloat16)
busy = jax.jit(lambda image, matrix: (image, jax.lax.fori_loop(0, 30, lambda _, m: m @ matrix / 2048, matrix)))
def n_wrong(made, batches, epoch):
    found = 0
    for number, b in enumerate(batches):
        image, _ = busy(b["image"], matrix)
        found += not is_right(made, epoch, number, b | {"image": image})
    assert number == len(made) - 1
    return found
for slots in (3, 4, 8):
    with loader(1200, 4, slots) as made:
        batches = ringload.jax.Batches(made)
        for epoch in range(2):
            assert n_wrong(made, batches, epoch) == 0, (slots, epoch)

lend, begin = ringload.loader._Pass.__next__, adapter._Sent.begin
def release_at_once(self):
    batch = lend(self)
    end, batch._end = batch._end, None
    batch._release()(end)
    return batch
def begin_late(self):
    time.sleep(0.005)
    begin(self)
ringload.loader._Pass.__next__, adapter._Sent.begin = release_at_once, begin_late
with loader(300, 3, 3) as made:
    assert n_wrong(made, ringload.jax.Batches(made), 0) > 0
print("done")
""")


def test_devices_states_and_ends() -> None:
    cuda_says("""
(device, *_) = jax.local_devices()
with loader() as made:
    batches = ringload.jax.Batches(made)
    states, found = [batches.state_dict()], []
    for number, b in enumerate(batches):
        assert {array.devices() == {device} for array in b.values()} == {True}
        assert is_right(made, 0, number, b)
        states.append(json.loads(json.dumps(batches.state_dict())))
    assert [(state["epoch"], state["position"]) for state in states] == [divmod(number, 8) for number in range(9)]
    for state in states:
        for b in batches: break
        batches.load_state_dict(state)
        found.append([int(label) for b in batches for label in b["label"]])
    whole = order_of(made, 0)
    assert found == [whole[8 * number:] for number in range(8)] + [order_of(made, 1)]

    step = jax.jit(lambda total, b: total + b["label"].sum(), donate_argnums=1)
    total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that it could not use what was donated
        for b in batches: total = step(total, b)
    assert int(total) == sum(range(64))
    mesh = jax.sharding.Mesh(jax.local_devices()[:1], "data")
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    host = jax.local_devices(backend="cpu")[0]
    for where in (rows, host, {"image": device, "label": host, "draw": rows}):
        made.set_epoch(5)
        assert all(is_right(made, 5, number, b) for number, b in enumerate(ringload.jax.Batches(made, where)))

for _ in range(20):  # closed, or collected, with copies under way
    with loader() as made:
        stream = iter(ringload.jax.Batches(made))
        kept = next(stream)
    assert is_right(made, 0, 0, kept)
made = loader()
stream = iter(ringload.jax.Batches(made))
next(stream)
del made, stream

made = loader()  # and one that the interpreter's end has to close
next(iter(ringload.jax.Batches(made)))
print("done")
""")
