"""Orders that the user's own code lists: index arrays, torch's samplers, generator functions; and an order for each epoch.

What is listed is read as a whole when its epoch begins, in the trainer: 8 bytes a sample, for two epochs. The global random
generators of Python, NumPy and torch are seeded by (seed, epoch) meanwhile, and restored: so a sampler that draws from them
lists the same again after resuming. A state has a checksum of what was listed, and is refused where another list is read.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ringload.checks import named, short
from ringload.errors import ConfigError
from ringload.protocols import Binding, Order, PositionOrder, Rows

N_KEPT = 3  # epochs


@dataclass(frozen=True, eq=False)
class Explicit:
    """What an iterable lists: index arrays, each of which is a batch of up to `batch_size` samples; or single indices, which
    are cut into batches.

    `listed` is iterated once an epoch: a list, an object with `__iter__` such as torch's samplers, whose `set_epoch(epoch)` is
    called before if they have it; or a function of the epoch that returns an iterable. Give `order=` of a loader the sampler or
    function itself, as `Loader` makes an `Explicit` of it.

    Example: `Loader(source, 64, order=ringload.Explicit([np.arange(64), np.arange(64, 100)]))`.

    Raises:
        ConfigError: when an epoch is read: the iterable raises, ends before its `len()`, is empty, or lists something else than
            indices of the source.
    """

    listed: Iterable[Any] | Callable[[int], Iterable[Any]]

    def bind(self, to: Binding) -> PositionOrder | Order:
        """The order of a loader's source, by position or by batch, as the first item says."""
        if not callable(self.listed) and not hasattr(self.listed, "__iter__"):
            what = short(self.listed)
            raise ConfigError(f"Explicit takes an iterable, or a function of the epoch that returns one, not {what}")
        epochs = _Epochs(self.listed, to)
        return _Batches(epochs) if epochs.of(to.epoch).ends is not None else _Samples(epochs)


@dataclass(frozen=True)
class _Epoch:
    """What was listed in an epoch: `index (n,) int64`, and where each batch ends; None: single indices were listed."""

    index: np.ndarray
    ends: np.ndarray | None


class _Epochs:
    """Reads epochs, and keeps the last ones."""

    def __init__(self, listed: Any, to: Binding) -> None:
        self.listed, self.to = listed, to
        self._kept: dict[int, _Epoch] = {}

    def of(self, epoch: int) -> _Epoch:
        """What an epoch lists."""
        found = self._kept.get(epoch)
        if found is None:
            found = self._read(epoch)
            self._kept = {**dict(list(self._kept.items())[1 - N_KEPT :]), epoch: found}
        return found

    def _read(self, epoch: int) -> _Epoch:
        items: list[Any] = []
        if self._kept and isinstance(self.listed, Iterator):
            raise ConfigError(f"{self._where(epoch)} is an iterator, which can be read once: give a function that makes one")
        try:
            with seeded(self.to.seed, epoch):
                if callable(set_epoch := getattr(self.listed, "set_epoch", None)):
                    set_epoch(epoch)
                items.extend(self.listed if isinstance(self.listed, Iterable) else self.listed(epoch))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{self._where(epoch)} raised after {len(items):,} items: {type(error).__name__}: {error}"
            ) from error
        expected = _length(self.listed)
        if expected is not None and len(items) < expected:
            raise ConfigError(f"{self._where(epoch)} ends after {len(items):,} items, and its len() is {expected:,}")
        if not items:
            raise ConfigError(f"{self._where(epoch)} lists nothing")
        return self._epoch(epoch, items)

    def _epoch(self, epoch: int, items: list[Any]) -> _Epoch:
        if all(isinstance(item, int | np.integer) and not isinstance(item, bool) for item in items):
            return _Epoch(self._checked(epoch, np.array(items, np.int64)), None)
        try:
            arrays = [np.asarray(item) for item in items]
        except Exception as error:
            raise ConfigError(f"{self._where(epoch)} lists something that is no array of indices: {error}") from error
        if all(array.ndim == 0 and array.dtype.kind in "iu" for array in arrays):  # tensors of one number
            return _Epoch(self._checked(epoch, np.array([int(array) for array in arrays])), None)
        for number, array in enumerate(arrays):
            if array.ndim != 1 or array.dtype.kind not in "iu" or not 1 <= len(array) <= self.to.batch_size:
                raise ConfigError(
                    f"{self._where(epoch)}: item {number:,} is {short(items[number])}: a batch is an array of 1 to "
                    f"batch_size={self.to.batch_size:,} indices"
                )
        return _Epoch(self._checked(epoch, np.concatenate(arrays).astype(np.int64)), np.cumsum([len(one) for one in arrays]))

    def _checked(self, epoch: int, index: np.ndarray) -> np.ndarray:
        if index.min() < 0 or index.max() >= self.to.n_samples:
            at = int(np.flatnonzero((index < 0) | (index >= self.to.n_samples))[0])
            raise ConfigError(
                f"{self._where(epoch)} lists the index {index[at]:,}, as number {at:,}: the source has "
                f"{self.to.n_samples:,} samples"
            )
        return index

    def _where(self, epoch: int) -> str:
        return f"order=: {named(self.listed)}, in epoch {epoch},"

    def state_at(self, epoch: int, position: int) -> dict[str, Any]:
        """What a loader's state says of an epoch."""
        read = self.of(epoch)
        ends = b"" if read.ends is None else read.ends.tobytes()
        return {
            "kind": "explicit",
            "n_samples": self.to.n_samples,
            "listed": zlib.crc32(ends, zlib.crc32(read.index.tobytes())),
        }


class _Samples:
    """Single indices. A sample may be listed twice, so each draws by its position."""

    shuffle = is_listed = True

    def __init__(self, epochs: _Epochs) -> None:
        self._epochs, self.state_at = epochs, epochs.state_at

    def n_positions(self, epoch: int) -> int:
        read = self._epochs.of(epoch)
        if read.ends is not None:
            raise ConfigError(f"order=: epoch {epoch} lists batches, and the first epoch listed single indices")
        return len(read.index)

    def at(self, epoch: int, positions: np.ndarray) -> Rows:
        return Rows(self._epochs.of(epoch).index[positions], positions)


class _Batches:
    """Index arrays."""

    shuffle = is_listed = True

    def __init__(self, epochs: _Epochs) -> None:
        self._epochs, self.state_at = epochs, epochs.state_at

    def n_batches(self, epoch: int) -> int:
        ends = self._epochs.of(epoch).ends
        if ends is None:
            raise ConfigError(f"order=: epoch {epoch} lists single indices, and the first epoch listed batches")
        return len(ends)

    def rows(self, epoch: int, number: int) -> Rows:
        read = self._epochs.of(epoch)
        assert read.ends is not None
        start, stop = (int(read.ends[number - 1]) if number else 0), int(read.ends[number])
        return Rows(read.index[start:stop], np.arange(start, stop))


def _length(listed: Any) -> int | None:
    try:
        return len(listed)
    except TypeError:  # it has none, or it is not known
        return None


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[None]:
    """Seed the global generators, and restore them. Of torch, where it is imported."""
    torch: Any = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch is not None else None
    word = int(np.random.SeedSequence([seed & 0xFFFFFFFF, seed >> 32, epoch]).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    if torch is not None:
        torch.default_generator.manual_seed(word)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch is not None:
            torch.set_rng_state(before[2])
