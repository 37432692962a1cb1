"""CUDA: the ring as page-locked memory, and copies from it on a separate stream.

The device reads page-locked memory by DMA, at the full speed of the bus and without the CPU. From ordinary memory, the driver
first copies into its own page-locked buffer, which costs CPU time of the trainer. Locking memory is slow, so it pays only for
memory that is kept for long, as the ring is.

Ownership: each loader has one `CudaTransfer`. It owns the registration of the loader's memory, and holds the source tensors of
copies until the events of the copies have completed. When the loader is closed or collected, copies are waited for, then the
memory is unregistered, then released. The trainer's stream waits for the event of a copy. The copied tensors were allocated on
the copy stream; `record_stream` makes the caching allocator keep them until the trainer's stream has used them.

The ring grows for a while after the start. Each batch registers some more of the reserved slots, always whole slots: the driver
refuses to copy from an array that spans two registrations. A slot that is not registered yet is copied as ordinary memory,
which is slower, and correct.

A trainer that does not read results may issue steps far ahead of the device. Memory of its own stream is used again in stream
order; memory of the copy stream only once the work that uses it is done. So a copy begins only after the work of the step
MAX_STEPS_AHEAD before has completed; else the device's memory would fill with batches.
"""

from __future__ import annotations

import os
import weakref
from collections import deque

import numpy as np
import torch

from ringload.bridge.device_prefetch import PendingTransfers
from ringload.checks import warn
from ringload.loader import Loader

PIECE_BYTES = 64 << 20  # of the ring are registered at a time, at least one slot
MAX_STEPS_AHEAD = 4  # so many steps may be issued ahead of the device; each keeps a batch in its memory
PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device of this process

_transfers: weakref.WeakKeyDictionary[Loader, CudaTransfer] = weakref.WeakKeyDictionary()


class CudaCopy:
    """A copy of some tensors to a device: see `device_prefetch.Copy`. `receive` adds an event of the trainer's stream to
    `steps`: when the event has completed, so has all work on earlier batches."""

    def __init__(self, sources: list[torch.Tensor], stream: torch.cuda.Stream, steps: deque[torch.cuda.Event]) -> None:
        self._sources: list[torch.Tensor] | None = sources
        self._stream, self._steps = stream, steps
        self._event = torch.cuda.Event(blocking=True)  # synchronize() sleeps instead of spinning
        self._recorded = False  # an event that was not recorded claims to have completed
        self._tensors: list[torch.Tensor] = []

    def begin(self) -> None:
        assert self._sources is not None, "a copy is begun once"
        try:
            with torch.cuda.stream(self._stream):
                for source in self._sources:
                    self._tensors.append(source.to(self._stream.device, non_blocking=True))
                self._event.record(self._stream)
            self._recorded = True
        except BaseException:
            self._stream.synchronize()  # some of the copies may have begun
            self._sources = None
            raise

    def done(self) -> bool:
        if self._recorded and self._event.query():
            self._sources = None
        return self._sources is None

    def wait(self) -> None:
        if self._recorded:
            self._event.synchronize()
            self._sources = None
        elif self._sources is not None:
            self._stream.synchronize()  # another thread or a signal handler waits while the copy begins

    def receive(self) -> list[torch.Tensor]:
        stream = torch.cuda.current_stream(self._stream.device)
        step = torch.cuda.Event(blocking=True)
        step.record(stream)
        self._steps.append(step)
        stream.wait_event(self._event)
        for tensor in self._tensors:
            tensor.record_stream(stream)
        return self._tensors


class CudaTransfer:
    """The page-locked memory and the copies of one loader. Made by `cuda_transfer_of`."""

    def __init__(self) -> None:
        self.in_transit = PendingTransfers()
        self.pinned_bytes = 0
        self._memory: np.ndarray | None = None  # keeps the registered memory mapped
        self._addresses: list[int] = []  # where each registration begins
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._steps: deque[torch.cuda.Event] = deque()
        self._refused = False
        self._pid = os.getpid()

    def copy(self, sources: list[torch.Tensor], device: torch.device) -> CudaCopy:
        """A copy of some tensors, not yet begun. Waits while the trainer is more than MAX_STEPS_AHEAD steps ahead of the
        device."""
        while len(self._steps) > MAX_STEPS_AHEAD:
            self._steps.popleft().synchronize()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return CudaCopy(sources, self._streams[device], self._steps)

    def pin(self, memory: np.ndarray, slot_bytes: int, device: torch.device) -> None:
        """Register the next piece of the loader's `memory`. If CUDA refuses, warn once, and do not try again."""
        if self._refused or self.pinned_bytes == len(memory):
            return
        n_bytes = next_piece(len(memory) - self.pinned_bytes, slot_bytes, PIECE_BYTES)
        address = memory.ctypes.data + self.pinned_bytes
        self._memory = memory
        with torch.cuda.device(device):
            cudart = torch.cuda.cudart()
            code = cudart.cudaHostRegister(address, n_bytes, PORTABLE)
        if int(code) == 0:
            self._addresses.append(address)
            self.pinned_bytes += n_bytes
            return
        self._refused = True
        _forget_error(device)
        warn(
            f"CUDA does not page-lock {n_bytes:,} bytes of the ring: {cudart.cudaGetErrorString(code)} ({int(code)}); "
            f"{self.pinned_bytes:,} bytes are page-locked, the others are copied more slowly. Raise RLIMIT_MEMLOCK "
            "(ulimit -l) or the container's memory limit, if one is low; or make Batches with pin=False",
            RuntimeWarning,
        )

    def end(self) -> None:
        """Wait for copies, then unregister and release the memory. Idempotent."""
        if os.getpid() != self._pid:
            return  # a fork has no registrations and no copies
        try:
            self.in_transit.wait()
            while self._addresses:
                code = torch.cuda.cudart().cudaHostUnregister(self._addresses.pop())
                torch.cuda.check_error(int(code))
        except RuntimeError as error:  # e.g. after a device-side assert every call of CUDA fails; the loader must still close
            warn(f"CUDA does not unregister the ring: {error}", RuntimeWarning)
        self.pinned_bytes, self._refused = 0, True
        self._memory = None


def next_piece(n_bytes: int, slot_bytes: int, most_bytes: int) -> int:
    """How many of `n_bytes`, which end with a whole slot, to register now: about `most_bytes`, so that whole slots remain."""
    slots_left = min(-(-max(0, n_bytes - most_bytes) // slot_bytes), (n_bytes - 1) // slot_bytes)
    return n_bytes - slots_left * slot_bytes


def cuda_transfer_of(loader: Loader) -> CudaTransfer:
    """The `CudaTransfer` of a loader. All its `Batches` share one, as memory can be registered only once."""
    transfer = _transfers.get(loader)
    if transfer is None:
        transfer = _transfers[loader] = CudaTransfer()
        loader.at_close(transfer.end)
    return transfer


def _forget_error(device: torch.device) -> None:
    """CUDA keeps the error of a failed call, and torch raises it at the next kernel: launch one here, and ignore its error."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        pass  # the kept error
