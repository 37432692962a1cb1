"""The randomness of a sample: Philox (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

It is keyed by (seed, epoch), with the sample's draw key in the counter. The draw key is the sample's index, or another number
that the order gives (the position, where a sample can come twice in an epoch). So the random numbers of a sample depend on
(seed, epoch, draw key) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

_LOADING, _SUBSTITUTES = 0, 1  # the purpose of random numbers: one word of Philox's counter


class Randomness:
    """Generators that depend on (seed, epoch, draw key) alone. One generator is rewound for each sample: making a new one
    takes four times as long."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def of(self, epoch: int, key: int, purpose: int = _LOADING) -> np.random.Generator:
        """The generator of a sample. It is one object, set anew by each call."""
        state = self._state
        state["state"]["key"][:] = self._seed, epoch
        state["state"]["counter"][:] = 0, 0, purpose, key
        state["buffer_pos"], state["has_uint32"], state["uinteger"] = 4, 0, 0
        self._bits.state = state
        return self._generator


def rewind(generator: np.random.Generator, key: int) -> None:
    """Set a generator of `Randomness` to that of another sample, of the same epoch."""
    state: Any = generator.bit_generator.state
    state["state"]["counter"][:] = 0, 0, _LOADING, key
    state["buffer_pos"], state["has_uint32"], state["uinteger"] = 4, 0, 0
    generator.bit_generator.state = state


class Generators(Sequence[np.random.Generator]):
    """The generators of several samples, each made on access."""

    def __init__(self, seed: int, epoch: int, keys: np.ndarray) -> None:
        self._seed, self._epoch, self._keys = seed, epoch, keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, item: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, item: slice) -> Generators: ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return Generators(self._seed, self._epoch, self._keys[item])
        return Randomness(self._seed).of(self._epoch, int(self._keys[item]))


def substitutes(seed: int, epoch: int, key: int, n_samples: int, n: int) -> np.ndarray:
    """`n` samples to try in place of a bad one: `(n,) int64`."""
    return Randomness(seed).of(epoch, key, _SUBSTITUTES).integers(0, n_samples, n)
