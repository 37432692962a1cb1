"""PyTorch: a loader's batches as tensors.

On the CPU tensors alias the slot: nothing is copied, and the slot is used again when the last tensor that looks into it is
gone (see `ring.lease`). On a CUDA device they are copies, made out of page-locked memory one batch ahead (see
`bridge.device_prefetch` and `cuda`); there the slot is used again when the copy's event has completed.
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

    It begins, goes on, and ends as `Loader` does: `break` ends the epoch, errors of bad samples come in place of their batch
    and the iteration may go on, and there is one iteration at a time. Ask it, not the loader, for the state: on a device
    the loader is one batch ahead of the trainer. It has no `set_epoch`, as trainers that find one call it before each epoch,
    and undo what `load_state_dict` has set; its loader has one.

    What a batch is can be told to type checkers: `batches: Batches[dict[str, torch.Tensor]] = Batches(loader)`.

    Arguments:
        loader: with `copy=True` nothing is aliased, and copies to a device are made out of ordinary memory.
        device: None or "cpu" for tensors that alias the ring; else where they are copied to: on CUDA one batch ahead and
            without waiting, elsewhere when they are asked for.
        fields: None for a dict of all the loader's fields, with `valid` where it has that; a mapping of keys to fields for
            a dict of these; names for a tuple; one name for a tensor. "index" `(B,) int64` is which sample each row is.
        pin: whether the ring is registered with CUDA as page-locked memory, 64 MB a batch until it is whole. Where CUDA
            refuses, a RuntimeWarning says why, and copies are made out of ordinary memory.

    Attributes: `loader`, `device`; `pinned_bytes`, how much of the ring is page-locked.

    Raises:
        ConfigError: there is no such field or device, or torch has no such dtype. It has bfloat16 and most of the float8 of
            ml_dtypes; it has no strings, times, long doubles, or numbers of another byte order. While iterating: as `Loader`.
    """

    @in_our_words()
    def __init__(self, loader: Loader, device: Any = None, fields: Fields | None = None, *, pin: bool = True) -> None:
        refuse_no_loader(loader)
        self.loader = loader
        self.device = _device(device)
        self._names, self._shape = _shape(loader, fields)
        self._looks = [_look(loader, name) for name in self._names]
        self._pin = pin
        self._lane: CudaTransfer | None = None
        self._ahead: DevicePrefetcher | None = None  # the present iteration, if it copies ahead
        if self.device.type == "cuda":
            self._lane = cuda_transfer_of(loader)
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
        """One pass over what is left of this epoch; over the next one, if this one was left before its end."""
        self._end_ahead()
        if self._lane is None:
            return map(self._shape, map(self._on_device, self.loader.iterate(OF_TENSORS)))
        self._ahead = DevicePrefetcher(self.loader, self._copy, self._lane.in_transit)
        return map(self._shape, self._ahead)  # which goes on after an error

    @property
    def batch_size(self) -> int:
        """Samples a batch."""
        return self.loader.batch_size

    @property
    def pinned_bytes(self) -> int:
        """How much of the ring is page-locked."""
        return 0 if self._lane is None else self._lane.pinned_bytes

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: what it has received, not what was copied ahead. JSON can hold it."""
        return state_of(self.loader, self._ahead)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the batches were that gave `state`; raises as `Loader.load_state_dict` does."""
        self.loader.load_state_dict(state)
        self._end_ahead()

    def _end_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None

    def _tensors(self, batch: Batch) -> list[torch.Tensor]:
        """What aliases the slot; `index` is a copy."""
        named = zip(self._names, self._looks, strict=True)
        return [look(batch.index if name == "index" else batch[name]) for name, look in named]

    def _on_device(self, batch: Batch) -> list[torch.Tensor]:
        tensors = self._tensors(batch)
        return tensors if self.device.type == "cpu" else [tensor.to(self.device) for tensor in tensors]

    def _copy(self, batch: Batch) -> Copy:
        assert self._lane is not None, "copies go by a lane"
        self._pin_more()
        return self._lane.copy(self._tensors(batch), self.device)

    def _pin_more(self) -> None:
        if self._pin and self._lane is not None:
            self._lane.pin(self.loader.memory, self.loader.plan().slot_bytes, self.device)


def _device(device: Any) -> torch.device:
    """The device, with its number if it is a CUDA device."""
    try:
        made = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device={short(device)} is no device of torch's: {error}") from error
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
    """The fields that are asked for, and what makes their tensors what the trainer gets."""
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
    """What makes tensors of a field's arrays, if the field is there and torch has its dtype."""
    if name == "index" or (name == "valid" and loader.has_valid):
        return _plain
    if name not in loader.fields:
        there = [*loader.fields, *(["valid"] if loader.has_valid else []), "index"]
        raise ConfigError(no_field(name, there))
    dtype = loader.fields[name].dtype
    if (look := looks_into(dtype)) is None:
        raise ConfigError(
            f"field {name!r} is {dtype}, for which torch has no dtype: leave it out by fields=..., and read it from the "
            "loader's own batches; or have the source give it as numbers of the machine's byte order"
        )
    return look
