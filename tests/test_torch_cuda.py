"""`ringload.torch.Batches` on a CUDA device, for real. Skipped where there is none; the way there is tested without one in
test_torch_batches, but for the calls into CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import run
from tests.test_torch_batches import BEGIN, STRESS, TORCH

pytestmark = pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU here (/dev/nvidiactl)")

CUDA = """
if not torch.cuda.is_available():
    print("skip: there is an NVIDIA GPU, but torch", torch.__version__, "finds no CUDA")
    sys.exit()
from ringload.torch import cuda

DEVICE = torch.device("cuda", torch.cuda.current_device())
SLEEP = 20_000_000  # clock cycles: about 10 ms

def pinned_of(made):
    batch = next(iter(made))
    return [torch.from_numpy(array).is_pinned() for array in batch.values()]
"""


def cuda_says(code: str) -> None:
    """Run a script that ends by printing "done", and says nothing else, at its interpreter's end neither."""
    done = run(BEGIN + TORCH + CUDA + code, timeout=110)
    if done.stdout.startswith("skip: "):
        pytest.skip(done.stdout.strip())
    assert (done.stderr, done.stdout, done.returncode) == ("", "done\n", 0)


def test_no_step_sees_another_batch_and_no_slot_is_used_before_the_event() -> None:
    """Copies are made late: their stream is kept busy. An event that is not waited for is noticed."""
    cuda_says(
        STRESS
        + """
class Late(Batches):
    '''Keeps the stream of copies busy before every third copy.'''
    n = 0
    def _copy(self, batch):
        copy = super()._copy(batch)
        self.n += 1
        if self.n % 3 == 0:
            with torch.cuda.stream(self._transfer._streams[self.device]):
                torch.cuda._sleep(SLEEP)
        return copy

for pin in (True, False):
    for slots in (2, 3, 4, 8):
        with loader(40, 4, slots=slots) as made:
            batches = Late(made, "cuda", pin=pin)
            assert steps(batches, 500) == 0, (slots, pin)
            assert batches.n in (500, 501)
            assert (batches.pinned_bytes == len(made.memory)) is pin

done, begin = cuda.CudaCopy.done, cuda.CudaCopy.begin
def forgetful(self):
    begin(self)
    self._sources = None
cuda.CudaCopy.begin = forgetful  # the lease ends when the copy has begun
n_wrong = 0
for slots in (2, 3, 4):
    with loader(40, 4, slots=slots) as made:
        n_wrong += steps(Late(made, "cuda"), 60)
assert n_wrong > 0
print("done")
"""
    )


def test_the_ring_is_page_locked_while_the_loader_is_open() -> None:
    cuda_says("""
with loader(slots=8) as made:
    assert pinned_of(made) == [False] * 3
    batches = Batches(made, "cuda")
    assert 0 < batches.pinned_bytes == len(made.memory)  # a small ring is registered at once
    assert pinned_of(made) == [True] * 3
    again = Batches(made, DEVICE, "image")  # shares the registration
    assert again.pinned_bytes == batches.pinned_bytes and next(iter(again)).device == DEVICE
    kept = torch.from_numpy(next(iter(made))["image"])
    truth_there = kept.clone()
    assert kept.is_pinned()
assert not kept.is_pinned() and batches.pinned_bytes == 0
assert torch.equal(kept, truth_there)  # it is mapped for as long as it is kept
del kept

with loader(slots=8) as made:
    for batch in Batches(made, "cuda", {"x": "image", "i": "index"}):
        assert batch["x"].device == batch["i"].device == DEVICE
    stream = iter(Batches(made, "cuda"))
    next(stream)
    with torch.cuda.stream(cuda.cuda_transfer_of(made)._streams[DEVICE]):
        torch.cuda._sleep(SLEEP)
    next(stream)  # and is closed with copies under way

made = loader()  # collected with copies under way
stream = iter(Batches(made, "cuda"))
next(stream)
del made, stream
gc.collect()

made = loader()  # and one that the interpreter's end has to close
next(iter(Batches(made, "cuda")))
print("done")
""")


def test_a_ring_that_grows_is_registered_in_pieces_of_whole_slots() -> None:
    cuda_says("""
x = (np.arange(64)[:, None] + np.arange(1 << 20) % 7).astype(np.uint8)
for piece_bytes in (1, 20 << 20, 64 << 20):
    cuda.PIECE_BYTES = piece_bytes
    with loader(source=ringload.Arrays(x=x), batch_size=8, ram_budget="500MB") as made:
        batches, n = Batches(made, "cuda", ("x", "index")), 0
        begins = cuda.cuda_transfer_of(made)._addresses
        while batches.pinned_bytes < made._engine._state.layout.n_bytes or n < 100:
            for images, index in batches:
                n += 1
                assert torch.equal(images.cpu(), torch.from_numpy(x[index.cpu().numpy()])), (piece_bytes, n)
        first = made.memory.ctypes.data + made._engine._state.layout.slots_start
        assert begins[0] == made.memory.ctypes.data
        assert all((begin - first) % made._engine._state.layout.slot_bytes == 0 for begin in begins[1:])
        assert len(begins) == 1 + made.plan().n_slots if piece_bytes == 1 else 1 < len(begins) < made.plan().n_slots
print("done")
""")


def test_where_cuda_refuses_to_lock_it_warns_and_copies_all_the_same() -> None:
    cuda_says("""
with loader(40, 4, slots=4) as made:
    memory = made.memory
    assert int(torch.cuda.cudart().cudaHostRegister(memory.ctypes.data, len(memory), 0)) == 0  # by somebody else
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        batches, checker = Batches(made, "cuda"), Checker(made)
        for batch in batches:
            assert checker.wrong(batch) == 0
    assert len(warned) == 1, [str(one.message) for one in warned]
    said = str(warned[0].message)
    assert "does not page-lock" in said and "ulimit -l" in said and "pin=False" in said, said
    assert batches.pinned_bytes == 0
    assert (torch.ones(2, device="cuda") + 1).tolist() == [2, 2]  # the error is nobody else's
    assert int(torch.cuda.cudart().cudaHostUnregister(memory.ctypes.data)) == 0
    del memory
with loader(40, 4, slots=4) as made:
    batches, checker = Batches(made, "cuda", pin=False), Checker(made)
    assert all(checker.wrong(batch) == 0 for batch in batches) and batches.pinned_bytes == 0
    assert pinned_of(made) == [False] * 3
    assert "there are" in refused(ConfigError, lambda: Batches(made, f"cuda:{torch.cuda.device_count()}"))
print("done")
""")


def test_states_count_what_was_received() -> None:
    cuda_says("""
with loader(slots=8) as made, loader(workers=0) as twin:
    expected = [label.tolist() for label in Batches(twin, fields="label")]
    batches = Batches(made, "cuda", "label")
    for n in range(12):
        made.set_epoch(0)
        stream = iter(batches)
        found = [next(stream).tolist() for _ in range(n)]
        state = batches.state_dict()
        assert state["position"] == n
        batches.load_state_dict(state)
        assert found + [label.tolist() for label in batches] == expected
print("done")
""")


def test_a_trainer_that_is_far_ahead_of_the_device_does_not_fill_it_with_batches() -> None:
    cuda_says("""
x = np.zeros((64, 1 << 20), np.uint8)
with loader(source=ringload.Arrays(x=x), batch_size=8, ram_budget="900MB") as made:
    batches = Batches(made, "cuda", "x")
    batch_bytes, total = 8 << 20, torch.zeros((), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    stream = itertools.chain.from_iterable(iter(batches) for _ in itertools.count())
    for images in itertools.islice(stream, 80):
        torch.cuda._sleep(SLEEP // 4)
        total += images[0, 0]
    assert torch.cuda.max_memory_allocated() < 12 * batch_bytes
    torch.cuda.synchronize()
print("done")
""")
