"""`ringload.torch.Batches` with the real torch, in interpreters of its own: nothing is copied, lost, or overwritten."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import run

BEGIN = """
import gc, itertools, json, sys, threading, warnings
from pathlib import Path
import numpy as np
import ringload
import ringload.ring.plan
from ringload import ConfigError, Loader, RingloadError, SampleError
from ringload.order.position import following
from ringload.order.randomness import Randomness
from tests.helpers import Truth, truth

def loader(n=60, batch_size=5, source=None, slots=None, **options):
    if slots:
        ringload.ring.plan.MIN_SLOTS = ringload.ring.plan.AUTO_SLOTS = slots
    made = Loader(source or Truth(n), batch_size, **{"workers": 2, "ram_budget": "auto" if slots else "200MB", **options})
    assert not slots or made.plan().n_slots == slots
    return made

class Checker:
    '''Knows by arithmetic, not by the batch, what each row of each batch of Truth is.'''
    def __init__(self, made):
        self.order, self.randomness, self.place = made.order, Randomness(made.state_dict()["seed"]), (0, 0)
    def wrong(self, batch):
        '''How many rows of the next batch are not what they should be.'''
        epoch, number = self.place
        self.place = following(self.order, epoch, number)
        rows = zip(self.order.rows(epoch, number).index, *(batch[name].cpu().numpy() for name in ("image", "label", "draw")))
        return sum(not self.is_right(int(index), epoch, *row) for index, *row in rows)
    def is_right(self, index, epoch, image, label, draw):
        drawn = int(self.randomness.of(epoch, index).integers(1 << 30))
        return (label, draw) == (index, drawn) and np.array_equal(image, truth(index, drawn))

def lent(made):
    '''How many slots are lent.'''
    gc.collect()
    made.poll()
    return len(made._engine._state.ring.lent)

def until_filled(made):
    '''Until the workers have filled all slots that are not lent: they are as far ahead as they can be.'''
    while made.poll().n_full + len(made._engine._state.ring.lent) < made.plan().n_slots:
        threading.Event().wait(0.0002)

def refused(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("it was not refused")
"""

TORCH = """
import torch
import ringload.torch
from ringload.torch import Batches

torch.set_num_threads(1)
"""


def torch_says(code: str, *arguments: object, begin: str = BEGIN + TORCH) -> None:
    """Run a script that ends by printing "done", and says nothing else."""
    done = run(begin + code, *arguments, timeout=110)
    assert (done.stderr, done.stdout, done.returncode) == ("", "done\n", 0)


FACE = """
DTYPES = ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64",
          "complex64", "complex128"]
arrays = {f"a_{dtype}": (np.arange(40 * 3) % 97).reshape(40, 3).astype(dtype) for dtype in DTYPES}
names = np.arange(40).astype("S20")
pairs = np.zeros(40, [("a", "i4"), ("b", "f4")])
source = ringload.Arrays(**arrays, number=np.arange(40), name=names, pair=pairs, swapped=np.zeros(40, ">f4"))
with loader(source=source) as made:
    memory, layout = made.memory, made._engine._state.layout
    offsets = {name: offset for name, _, offset in layout.places}
    fields = [*arrays, "number"]
    seen = 0
    for batch in Batches(made, fields={name: name for name in [*fields, "index"]}):
        index = batch.pop("index").numpy()
        for name, tensor in batch.items():
            given = arrays.get(name, np.arange(40))[index]
            assert tensor.numpy().dtype == given.dtype and (tensor.numpy() == given).all(), name
            slot, offset = divmod(tensor.data_ptr() - memory.ctypes.data - layout.slots_start, layout.slot_bytes)
            assert 0 <= slot < made.plan().n_slots and offset == offsets[name], name  # in a slot, where the field lies
            assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
        at = batch["number"].data_ptr() - memory.ctypes.data
        memory[at] += 1  # and what is written there shows
        assert batch["number"][0] == index[0] + 1
        seen += len(index)
    assert seen == 40 == len(Batches(made, fields="number")) * 5
    for field, dtype in (("name", "|S20"), ("pair", "[('a', '<i4'), ('b', '<f4')]"), ("swapped", ">f4")):
        said = refused(ConfigError, lambda: Batches(made, fields=["number", field]))
        assert f"torch has no dtype {dtype}, the dtype of field '{field}': leave it out of fields=" in said, said
    assert "torch has no dtype |S20, the dtype of field 'name'" in refused(ConfigError, lambda: Batches(made))
    del memory, batch, tensor

with loader(23, last="pad", shuffle=False) as made:
    every = list(map(set, Batches(made)))
    assert every == [{"image", "label", "draw", "valid"}] * 5
    valid = torch.cat([valid.clone() for valid in Batches(made, fields="valid")])
    assert valid.dtype == torch.bool and valid.tolist() == [True] * 23 + [False] * 2
    pairs = [(type(pair), pair[0].tolist(), pair[1].tolist()) for pair in Batches(made, None, ("label", "index"))]
    assert pairs[0] == (tuple, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]) and pairs[4][2] == [20, 21, 22, -1, -1]
    renamed = next(iter(Batches(made, "cpu", {"pixel_values": "image", "labels": "label"})))
    assert list(renamed) == ["pixel_values", "labels"] and renamed["pixel_values"].shape == (5, 8, 6, 3)
    assert next(iter(Batches(made, "meta", "image"))).device.type == "meta"
    assert "no field 'pixels'; the fields are ['image', 'label', 'draw', 'valid', 'index']" in refused(
        ConfigError, lambda: Batches(made, fields="pixels"))
    assert "is not a device of torch" in refused(ConfigError, lambda: Batches(made, "gpu"))
    if not torch.cuda.is_available():
        assert "finds no CUDA device" in refused(ConfigError, lambda: Batches(made, "cuda:0"))
with loader() as made:
    assert "no field 'valid'" in refused(ConfigError, lambda: Batches(made, fields=["valid"]))
    assert set(next(iter(Batches(made)))) == {"image", "label", "draw"}
"""

PIECES = """
from ringload.torch.cuda import next_piece

for header, slot_bytes, n_slots, most_bytes in itertools.product((4096, 81920), (4096, 1 << 20), (1, 2, 9), (1, 5000, 1 << 30)):
    n_bytes = header + n_slots * slot_bytes
    pieces = []
    while n_bytes > sum(pieces):
        pieces.append(next_piece(n_bytes - sum(pieces), slot_bytes, most_bytes))
        assert (n_bytes - sum(pieces)) % slot_bytes == 0  # no slot is cut
        assert 0 < pieces[-1] < max(most_bytes, header) + slot_bytes
    assert sum(pieces) == n_bytes
"""

LEASES = """
with loader(slots=4) as made:
    batches = Batches(made)
    stream = iter(batches)
    one = next(stream)
    corner = one["image"].permute(0, 3, 1, 2)[2:, 1]  # a view of a view
    truth_there = corner.clone()
    del one
    assert lent(made) == 1
    for _ in range(8):
        next(stream)
    assert lent(made) == 1 and torch.equal(corner, truth_there)
    del corner
    assert lent(made) == 0
    kept = next(stream)["label"]
    model_input = kept.float()  # a copy holds nothing
    del kept
    assert lent(made) == 0
    del stream

class Bad(Truth):
    def load(self, index, rng, out):
        if index in (7, 31, 32):
            raise ValueError(f"{index} is bad")
        super().load(index, rng, out)

with loader(source=Bad(60), shuffle=False) as made:
    stream, numbers, bad = iter(Batches(made, fields="index")), [], []
    for _ in range(12):
        try:
            numbers += next(stream).tolist()
        except SampleError as error:
            bad.append(error.index)
    assert bad == [7, 31] and numbers == [*range(5), *range(10, 30), *range(35, 60)]
    assert next(stream, "over") == "over"

with loader() as made, loader(workers=0) as twin:
    batches, labels = Batches(made, fields="label"), Batches(twin, fields="label")
    for number, _ in enumerate(batches):
        if number == 3:
            break
    state = json.loads(json.dumps(batches.state_dict()))
    assert (state["epoch"], state["position"]) == (0, 4) and len(batches) == 12 and batches.batch_size == 5
    labels.load_state_dict(state)
    rest = [label.tolist() for label in labels]
    batches.load_state_dict(state)
    assert [label.tolist() for label in batches] == rest and len(rest) == 8
    for _ in batches:
        break  # ends epoch 1
    second = [label.tolist() for label in batches]
    assert batches.state_dict()["epoch"] == 3
    twin.set_epoch(2)
    assert [label.tolist() for label in labels] == second and len(second) == 12
    old = iter(batches)
    iter(batches)
    assert "this pass over the loader is over" in refused(RingloadError, lambda: next(old))
"""


def test_tensors_alias_the_slot_and_leases_errors_breaks_and_states_are_the_loaders() -> None:
    torch_says(FACE + PIECES + LEASES + 'print("done")')


STRESS = """
def steps(batches, n, every=2, synchronize=lambda: None):
    '''Train for `n` steps, of which one in `every` is slow. Returns how many rows were wrong at the end of the slow steps;
    if those before are not waited for, they are looked at then.'''
    checker, n_wrong, trained = Checker(batches.loader), 0, []
    stream = itertools.chain.from_iterable(iter(batches) for _ in itertools.count())
    for step, batch in enumerate(itertools.islice(stream, n)):
        trained.append(batch)
        if step % every == 0 or step % 7 == 0:
            until_filled(batches.loader)
        if step % every == 0 or step == n - 1 or every == 2:
            synchronize()
            n_wrong += sum(map(checker.wrong, trained))
            trained.clear()
        del batch
    return n_wrong

class ReleasesAtOnce(Batches):
    '''What a lease that ends too early does.'''
    def _tensors(self, batch):
        tensors = super()._tensors(batch)
        batch.release()
        return tensors
"""


# A transfer that copies as a device does: in the order of beginning, from addresses alone, and as late as it may. What is
# received
# is there once it is synchronized with, or at once if it is `prompt`.
THREADS = """
import ctypes
from collections import deque
from queue import SimpleQueue
from ringload.bridge.device_prefetch import PendingTransfers

def copy_all(jobs):
    while True:
        go, over, places = jobs.get()
        go.wait()
        for place in places:
            ctypes.memmove(*place)
        over.set()

class LateCopy:
    def __init__(self, sources, transfer):
        self.sources, self.transfer = sources, transfer
        self.go, self.over = threading.Event(), threading.Event()
        self.tensors = [torch.empty_like(source) for source in sources]
    def begin(self):
        self.transfer.n_begun += 1
        if self.transfer.n_begun in self.transfer.raises:
            error, self.sources = self.transfer.raises[self.transfer.n_begun], None
            raise error
        places = [(to.data_ptr(), source.data_ptr(), source.nbytes) for to, source in zip(self.tensors, self.sources)]
        self.transfer.jobs.put((self.go, self.over, places))  # which keeps nothing of this
        self.transfer.begun.append((self.go, self.over))
        if self.transfer.forgets:
            self.sources = None
    def done(self):
        if self.sources is None or self.over.is_set():
            self.sources = None
        return self.sources is None
    def wait(self):
        while not self.over.is_set():
            self.transfer.copy_next()
        self.sources = None
    def receive(self):
        self.transfer.received = self
        if self.transfer.prompt:
            self.transfer.synchronize()
        return self.tensors

class ThreadTransfer:
    pinned_bytes = 0
    def __init__(self, prompt=True, forgets=False, raises={}):
        self.in_transit, self.jobs, self.begun = PendingTransfers(), SimpleQueue(), deque()
        self.n_begun, self.prompt, self.forgets, self.raises, self.pinned = 0, prompt, forgets, raises, 0
        threading.Thread(target=copy_all, args=(self.jobs,), daemon=True).start()
    def synchronize(self):
        self.received.wait()  # and those before; not what was begun since
    def copy_next(self):
        go, over = self.begun.popleft()
        go.set()
        over.wait()
    def copy(self, sources, device): return LateCopy(sources, self)
    def pin(self, memory, slot_bytes, device): self.pinned = len(memory)

def batches_by_threads(made, kind=Batches, fields=None, **options):
    batches = kind(made, fields=fields)
    batches._transfer = ThreadTransfer(**options)
    return batches
"""


ALIASES = """
for slots in (2, 3, 4, 8):
    with loader(40, 4, slots=slots) as made:
        assert steps(Batches(made), 500) == 0, slots
    with loader(40, 4, slots=slots) as made:
        assert steps(ReleasesAtOnce(made), 40) > 0, slots
"""

COPIES = """
for slots in (2, 3, 4, 8):
    with loader(40, 4, slots=slots, stall_timeout=20) as made:
        batches = batches_by_threads(made, prompt=False)
        assert steps(batches, 500, 5, batches._transfer.synchronize) == 0, slots
        assert batches._transfer.n_begun in (500, 501)  # nothing was copied twice
        batches._transfer.in_transit.wait()
        assert len(batches._transfer.in_transit) == 0
        assert batches._transfer.pinned == len(made.memory) == made._engine._state.layout.n_bytes
    with loader(40, 4, slots=slots) as made:
        batches = batches_by_threads(made, prompt=False, forgets=True)  # says that a copy is done when it has just begun
        assert steps(batches, 40, 5, batches._transfer.synchronize) > 0, slots
"""


def test_no_step_sees_another_batch_and_no_slot_is_used_before_its_copy_is_done() -> None:
    """Over 500 steps each, with workers that are as far ahead as the ring lets them; and an early release is noticed.

    Copies go the way of a CUDA device, made by threads, as late as they may.
    """
    torch_says(STRESS + ALIASES + THREADS + COPIES + 'print("done")')


def test_what_is_copied_ahead_is_not_what_was_received(tmp_path: Path) -> None:
    torch_says(
        THREADS
        + """
def labels(batches): return [label.tolist() for label in batches]

def advance(made, stream, n):
    '''Take `n` batches, each when all that can be is there to be copied ahead.'''
    taken = []
    for _ in range(n):
        until_filled(made)
        taken.append(next(stream).tolist())
    return taken

with loader(slots=6) as made, loader(workers=0) as twin:
    epochs = [labels(Batches(twin, fields="label")) for _ in range(6)]
    batches = batches_by_threads(made, fields="label")
    for n in range(13):  # resuming after every number of batches
        made.set_epoch(0)
        stream = iter(batches)
        found = advance(made, stream, n)
        assert made.position == (n if n in (0, 12) else n + 1) % 12  # so it is tested
        state = batches.state_dict()
        assert (state["epoch"], state["position"]) == divmod(n, 12), (n, state)
        batches.load_state_dict(state)
        found += labels(batches) if n < 12 else []
        assert found == epochs[0], n
        assert batches.state_dict()["epoch"] == 1
    assert labels(batches) == epochs[1]
    advance(made, iter(batches), 1)  # and leave it
    assert labels(batches) == epochs[3]
    stream = iter(batches)
    advance(made, stream, 11)
    assert (made.epoch, made.position) == (5, 0) and batches.state_dict()["position"] == 11
    made.set_epoch(5)  # where it is by having copied ahead
    assert batches.state_dict() == made.state_dict()
    made.set_epoch(2)
    assert batches.state_dict() == made.state_dict()
    assert labels(batches) == epochs[2]
    stream = iter(batches)
    advance(made, stream, 1)
    assert made.position == 2
    made.set_epoch(5)
    assert "this pass over the loader is over" in refused(RingloadError, lambda: next(stream))
    assert batches.state_dict()["epoch"] == 5 and labels(batches) == epochs[5]
    old = iter(batches)
    advance(made, old, 1)
    iter(batches)
    assert "this pass over the loader is over" in refused(RingloadError, lambda: next(old))
    del stream, old
    batches._transfer.in_transit.wait()
    iter(batches)  # what was copied ahead is let go of
    assert lent(made) == 0

class Bad(Truth):
    def load(self, index, rng, out):
        if index in (7, 31, 32):
            raise ValueError(f"{index} is bad")
        super().load(index, rng, out)

# An error of a sample, of a copy, or an interruption: each comes in place of a batch, in order, and no batch is lost by the
# latter two, which come with the batch that is copied ahead, or with the one that is asked for.
for begun in (1, 2, 5):
    for error in (RuntimeError("out of memory"), KeyboardInterrupt()):
        with loader(source=Bad(60), shuffle=False, slots=4) as made:
            batches = batches_by_threads(made, fields="index", raises={begun: error})
            stream, numbers, bad, n_raised = iter(batches), [], [], 0
            for turn in range(14):
                until_filled(made)
                before = batches.state_dict()["position"], len(numbers)
                try:
                    numbers += next(stream).tolist()
                except SampleError as one:
                    bad.append(one.index)
                except StopIteration:
                    break
                except BaseException as raised:
                    assert raised is error
                    assert (batches.state_dict()["position"], len(numbers)) == before
                    n_raised += 1
                    n_received = len(numbers)  # before an error of what is copied ahead, what it is ahead of
            assert n_raised == 1 and n_received == {1: 0, 2: 5, 5: 20 if isinstance(error, RuntimeError) else 15}[begun]
            assert bad == [7, 31] and numbers == [*range(5), *range(10, 30), *range(35, 60)], (begun, error, numbers)

# The batch after next is not waited for.
class Gated(Truth):
    def __init__(self, gate): super().__init__(20); self.gate = gate
    def load(self, index, rng, out):
        while index >= 5 and not Path(self.gate).exists():
            threading.Event().wait(0.001)
        super().load(index, rng, out)

gate = Path(sys.argv[1]) / "gate"
with loader(source=Gated(str(gate)), shuffle=False, stall_timeout=30) as made:
    stream = iter(batches_by_threads(made, fields="index"))
    assert next(stream).tolist() == [0, 1, 2, 3, 4]
    gate.touch()
    assert [one.tolist() for one in stream] == [list(range(n, n + 5)) for n in (5, 10, 15)]
print("done")
""",
        tmp_path,
    )


def test_what_adapters_are_told_of_a_loader() -> None:
    """Its memory, as it grows; whether a batch is there; its end."""
    torch_says(
        """
calls = []
made = loader(source=ringload.Arrays(x=np.zeros((64, 1 << 20), np.uint8)), batch_size=8, ram_budget="400MB")
layout, before = made._engine._state.layout, made.memory
assert before.ctypes.data % 4096 == 0 and before.dtype == np.uint8
assert (len(before) - layout.slots_start) % layout.slot_bytes == 0 and len(before) < layout.n_bytes
stream = iter(made)
while len(made.memory) < layout.n_bytes:
    next(stream, None) or (stream := iter(made))
assert made.memory.ctypes.data == before.ctypes.data
made.at_close(lambda: calls.append("one"))
made.close()
made.close()
assert calls == ["one"]
made.at_close(lambda: calls.append("two"))
assert calls == ["one", "two"]
assert "closed" in refused(ringload.LoaderClosedError, lambda: made.memory)
del before
with loader(workers=0) as made:
    assert not made.ready and next(iter(made)) and not made.ready
with loader(slots=4) as made:
    while not made.ready:
        made.poll()
    next(iter(made))
made = loader()
made.at_close(lambda: calls.append("three"))
del made
gc.collect()
assert calls == ["one", "two", "three"]
assert "torch" not in sys.modules
sys.modules["torch"] = None
assert "needs PyTorch, msgspec and typing_extensions" in refused(ImportError, lambda: ringload.torch)
print("done")
""",
        begin=BEGIN,
    )
