"""CUDA: the ring as page-locked memory, and copies out of it on a stream of their own.

The device reads page-locked memory by itself, at the bus's full speed and while the trainer goes on; out of ordinary memory
the driver first copies into a page-locked buffer of its own, with the trainer's CPU. Locking is slow, and so pays only for
memory that is kept: the ring is.

Who owns what: a `CudaTransfer` is its loader's own. It owns the registration of the loader's memory, and keeps what copies read
until their events have completed. When the loader is closed or collected, copies are waited for, then the memory is
unregistered, then let go of. The trainer's stream waits for a copy's event; the caching allocator is told that the tensors,
which are the side stream's, are used on the trainer's (`record_stream`).

The ring grows for a while after the start. What is reserved is registered when batches are asked for, some slots at a time,
and whole ones: the driver refuses to copy from an array that two registrations share. Slots that are not registered yet
are copied as ordinary memory: slower, and as right.

A trainer that never looks at a result may issue steps far ahead of the device. On one stream, memory is used again in the
order of the work; what a side stream has allocated is not, until the work is done. So a copy is not begun before the work of
a few steps ago has completed; else the device's memory would fill with batches.
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

PIECE_BYTES = 64 << 20  # of the ring that are registered at a time, or one slot
MAX_STEPS_AHEAD = 4  # of the device, that the trainer may be: each keeps a batch in the device's memory
PORTABLE = 1  # cudaHostRegisterPortable: page-locked for every device of this process

_lanes: weakref.WeakKeyDictionary[Loader, CudaTransfer] = weakref.WeakKeyDictionary()


class CudaCopy:
    """A copy of some tensors to a device: see `device_prefetch.Copy`. To `steps` it adds an event of the trainer's stream: when
    that has completed, so has all work on what was received before."""

    def __init__(self, sources: list[torch.Tensor], stream: torch.cuda.Stream, steps: deque[torch.cuda.Event]) -> None:
        self._sources: list[torch.Tensor] | None = sources
        self._stream, self._steps = stream, steps
        self._event = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        self._recorded = False  # before, an event says that it has completed
        self._tensors: list[torch.Tensor] = []

    def begin(self) -> None:
        assert self._sources is not None, "it is begun once"
        try:
            with torch.cuda.stream(self._stream):
                for source in self._sources:
                    self._tensors.append(source.to(self._stream.device, non_blocking=True))
                self._event.record(self._stream)
            self._recorded = True
        except BaseException:
            self._stream.synchronize()  # some may have begun
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
            self._stream.synchronize()  # called while it begins, from another thread or a signal handler

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
    """What CUDA has of a loader. Made by `cuda_transfer_of`."""

    def __init__(self) -> None:
        self.in_transit = PendingTransfers()
        self.pinned_bytes = 0
        self._memory: np.ndarray | None = None  # keeps mapped what is registered
        self._addresses: list[int] = []  # where each registration begins
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._steps: deque[torch.cuda.Event] = deque()
        self._refused = False
        self._pid = os.getpid()

    def copy(self, sources: list[torch.Tensor], device: torch.device) -> CudaCopy:
        """A copy of some tensors, to be begun. Waits while the trainer has issued work on more batches than MAX_STEPS_AHEAD."""
        while len(self._steps) > MAX_STEPS_AHEAD:
            self._steps.popleft().synchronize()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return CudaCopy(sources, self._streams[device], self._steps)

    def pin(self, memory: np.ndarray, slot_bytes: int, device: torch.device) -> None:
        """Register the next piece of `memory`, a loader's. If it is refused, warn once, and never try again."""
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
            f"{self.pinned_bytes:,} are page-locked, the others are copied more slowly. Is RLIMIT_MEMLOCK (ulimit -l) or the "
            "container's limit on memory too low? pin=False does without",
            RuntimeWarning,
        )

    def end(self) -> None:
        """Once copies are done, unregister everything and let go of the memory. Again is nothing."""
        if os.getpid() != self._pid:
            return  # a fork: it has none of this
        try:
            self.in_transit.wait()
            while self._addresses:
                code = torch.cuda.cudart().cudaHostUnregister(self._addresses.pop())
                torch.cuda.check_error(int(code))
        except RuntimeError as error:  # as after a device-side assert: nothing works any more, and the loader has to close
            warn(f"CUDA does not unregister the ring: {error}", RuntimeWarning)
        self.pinned_bytes, self._refused = 0, True
        self._memory = None


def next_piece(n_bytes: int, slot_bytes: int, most_bytes: int) -> int:
    """How much of `n_bytes`, which end in whole slots, to register now: about `most_bytes`, such that whole slots are left."""
    slots_left = min(-(-max(0, n_bytes - most_bytes) // slot_bytes), (n_bytes - 1) // slot_bytes)
    return n_bytes - slots_left * slot_bytes


def cuda_transfer_of(loader: Loader) -> CudaTransfer:
    """The lane of a loader: one for all who copy out of it, as memory is registered once."""
    lane = _lanes.get(loader)
    if lane is None:
        lane = _lanes[loader] = CudaTransfer()
        loader.at_close(lane.end)
    return lane


def _forget_error(device: torch.device) -> None:
    """CUDA keeps the error of a call that failed, and torch raises it at the next kernel: have that happen here."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        pass  # that was it
