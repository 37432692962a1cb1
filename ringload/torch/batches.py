"""PyTorch: a loader's batches as tensors.

On the CPU, tensors alias the slot without a copy, and the slot is used again when the last tensor that aliases it is gone (see
`ring.lease`). On a CUDA device they are copies, made from page-locked memory one batch ahead (see `bridge.device_prefetch` and
`cuda`); the slot is used again when the event of the copy has completed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import torch
from typing_extensions import TypeVar

from ringload.bridge.device_prefetch import Copy, DevicePrefetcher, state_of
from ringload.bridge.field_roles import refuse_no_loader
from ringload.checks import fixed_once_made, in_our_words, no_field, short
from ringload.errors import ConfigError
from ringload.loader import Loader
from ringload.packing.tensors import looks_into
from ringload.ring.lease import Batch
from ringload.torch.cuda import CudaTransfer, cuda_transfer_of

OF_TENSORS = "A tensor of a batch, or a view of one, is kept: keep copies (tensor.clone()), or make the loader with copy=True"
Fields = str | Sequence[str] | Mapping[str, str]
T_co = TypeVar("T_co", covariant=True, default=Any)


class Batches(Generic[T_co]):
    """A loader's batches as tensors, one pass an epoch: `for batch in ringload.torch.Batches(loader, "cuda"): ...`.

    Iterating works as with `Loader`: `break` ends the epoch, the error of a bad sample is raised in place of its batch and the
    iteration may go on, and there is one iteration at a time. Call `state_dict` of this object, not of the loader: on a device
    the loader is one batch ahead of the trainer. `Batches` has no `set_epoch`, because frameworks that find one call it before
    each epoch, and so undo `load_state_dict`; use `loader.set_epoch`.

    For type checkers, declare what a batch is: `batches: Batches[dict[str, torch.Tensor]] = Batches(loader)`.

    Arguments:
        loader: with `copy=True` no tensor aliases the ring, and copies to a device are made from ordinary memory.
        device: None or "cpu" for tensors that alias the ring. Else tensors are copied to this device: to CUDA one batch ahead
            and without waiting, to other devices when a batch is asked for.
        fields: None for a dict of all the loader's fields, including `valid` if it has that; a mapping of keys to fields for a
            dict; several names for a tuple; one name for a tensor. "index" `(B,) int64` holds each row's sample index.
        pin: whether to register the ring with CUDA as page-locked memory, 64 MB a batch until all of it is. If CUDA refuses, a
            RuntimeWarning gives its reason, and copies are made from ordinary memory.

    Attributes: `loader`, `device`; `pinned_bytes`, how many bytes of the ring are page-locked.

    Raises:
        ConfigError: a field or the device does not exist, or torch has no such dtype. torch has bfloat16 and most float8 dtypes
            of ml_dtypes, but no strings, times, long doubles, or numbers of another byte order. While iterating: see `Loader`.
    """

    @in_our_words()
    def __init__(self, loader: Loader, device: Any = None, fields: Fields | None = None, *, pin: bool = True) -> None:
        refuse_no_loader(loader)
        self.loader = loader
        self.device = _device(device)
        self._names, self._shape = _shape(loader, fields)
        self._looks = [_look(loader, name) for name in self._names]
        self._pin = pin
        self._transfer: CudaTransfer | None = None
        self._ahead: DevicePrefetcher | None = None  # the present iteration, if batches are copied ahead
        if self.device.type == "cuda":
            self._transfer = cuda_transfer_of(loader)
            self._pin_more()
        self._fixed = ("loader", "device")

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return f"<ringload.torch.Batches on {self.device} of {self.loader!r}>"

    def __str__(self) -> str:
        return f"<ringload.torch.Batches on {self.device} of {self.loader}>"

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[T_co]:
        """One pass, as `iter(loader)`: over the rest of this epoch, or over the next one."""
        self._end_ahead()
        if self._transfer is None:
            return map(self._shape, map(self._on_device, self.loader.iterate(OF_TENSORS)))
        self._ahead = DevicePrefetcher(self.loader, self._copy, self._transfer.in_transit)
        return map(self._shape, self._ahead)  # a map goes on after an error

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return self.loader.batch_size

    @property
    def pinned_bytes(self) -> int:
        """How many bytes of the ring are page-locked."""
        return 0 if self._transfer is None else self._transfer.pinned_bytes

    def state_dict(self) -> dict[str, Any]:
        """The position of the trainer; a batch that was copied ahead does not count. Can be saved as JSON."""
        return state_of(self.loader, self._ahead)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a position that `state_dict` returned. See `Loader.load_state_dict`, also for what it raises."""
        self.loader.load_state_dict(state)
        self._end_ahead()

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None

    def _tensors(self, batch: Batch) -> list[torch.Tensor]:
        """Tensors that alias the slot; only `index` is a copy."""
        named = zip(self._names, self._looks, strict=True)
        return [look(batch.index if name == "index" else batch[name]) for name, look in named]

    def _on_device(self, batch: Batch) -> list[torch.Tensor]:
        tensors = self._tensors(batch)
        return tensors if self.device.type == "cpu" else [tensor.to(self.device) for tensor in tensors]

    def _copy(self, batch: Batch) -> Copy:
        assert self._transfer is not None, "only for a CUDA device"
        self._pin_more()
        return self._transfer.copy(self._tensors(batch), self.device)

    def _pin_more(self) -> None:
        if self._pin and self._transfer is not None:
            self._transfer.pin(self.loader.memory, self.loader.plan().slot_bytes, self.device)


def _device(device: Any) -> torch.device:
    """The device, with its number if it is a CUDA device."""
    try:
        made = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={short(device)} is not a device of torch: {error}") from error
    if made.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device={short(device)}: torch {torch.__version__} finds no CUDA device here (torch.cuda.is_available())"
            )
        if made.index is None:
            made = torch.device("cuda", torch.cuda.current_device())
        if made.index >= torch.cuda.device_count():
            raise ConfigError(f"device={short(device)}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return made


def _shape(loader: Loader, fields: Fields | None) -> tuple[list[str], Callable[[list[torch.Tensor]], Any]]:
    """The names of the chosen fields, and a function that arranges their tensors as a batch."""
    there = [*loader.fields, *(["valid"] if loader.has_valid else [])]
    if fields is None:
        fields = {name: name for name in there}
    if isinstance(fields, str):
        return [fields], lambda tensors: tensors[0]
    if isinstance(fields, Mapping):
        keys, names = list(fields), list(fields.values())
        return names, lambda tensors: dict(zip(keys, tensors, strict=True))
    return list(fields), tuple


_plain: Callable[[np.ndarray], torch.Tensor] = torch.from_numpy


def _look(loader: Loader, name: Any) -> Callable[[np.ndarray], torch.Tensor]:
    """A function that makes tensors of a field's arrays. Raises ConfigError for a field or dtype that torch cannot have."""
    if name == "index" or (name == "valid" and loader.has_valid):
        return _plain
    if name not in loader.fields:
        there = [*loader.fields, *(["valid"] if loader.has_valid else []), "index"]
        raise ConfigError(no_field(name, there))
    dtype = loader.fields[name].dtype
    if (look := looks_into(dtype)) is None:
        raise ConfigError(
            f"torch has no dtype {dtype}, the dtype of field {name!r}: leave it out of fields=, and read it from batches "
            "of the Loader; or let the source give numbers of the machine's byte order"
        )
    return look
