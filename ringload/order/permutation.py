"""Keyed permutations of 0..N-1, and keyed random numbers, computed entry by entry.

No array of size N is made, and each entry takes the same time. A permutation is a Feistel network over pairs (left, right) in
Z_a x Z_b, a * b >= N (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). A value outside 0..N-1 goes through
the network again, until it is inside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

N_ROUNDS = 12
UNIFORM_BITS = 53  # of a float64 in [0, 1)


def round_keys(seed: int, epoch: int) -> np.ndarray:
    """The keys of an epoch's permutation: `(N_ROUNDS,) uint64`."""
    words = [word for number in (seed, epoch) for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence(words).generate_state(N_ROUNDS, np.uint64)


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """The images of `positions` (each in 0..n-1) under the permutation of 0..n-1 that `keys` choose: `(m,) int64`."""
    n_left = math.isqrt(n - 1) + 1
    n_right = -(-n // n_left)
    return _walk(positions, np.uint64(n), np.uint64(n_left), np.uint64(n_right), keys, np.uint64(0))


def permute_each(positions: np.ndarray, sizes: np.ndarray, which: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The same with a permutation for each entry: of 0..sizes[i]-1, the one with the number `which[i]`: `(m,) int64`."""
    n = np.asarray(sizes, np.uint64)
    n_left = np.floor(np.sqrt(n.astype(np.float64))).astype(np.uint64) + np.uint64(1)  # any product of n or more will do
    n_right = (n + n_left - np.uint64(1)) // n_left
    return _walk(positions, n, n_left, n_right, keys, _mix(np.asarray(which, np.uint64), keys[-1]))


def _walk(positions: np.ndarray, n: Any, n_left: Any, n_right: Any, keys: np.ndarray, tweak: Any) -> np.ndarray:
    """Through the network until all are inside. `n` and what follows are numbers, or have one for each position."""
    images = _through(np.asarray(positions, np.uint64), n_left, n_right, keys, tweak)
    outside = np.flatnonzero(images >= n)
    while len(outside):
        n_there, n_left_there, n_right_there, tweak_there = (_at(one, outside) for one in (n, n_left, n_right, tweak))
        images[outside] = walked = _through(images[outside], n_left_there, n_right_there, keys, tweak_there)
        outside = outside[walked >= n_there]
    return images.astype(np.int64)


def _at(values: Any, places: np.ndarray) -> Any:
    return values if np.ndim(values) == 0 else values[places]


def _through(values: np.ndarray, n_left: Any, n_right: Any, keys: np.ndarray, tweak: Any) -> np.ndarray:
    """Once through the network."""
    left = values // n_right
    right = values - left * n_right
    for number in range(0, N_ROUNDS, 2):
        left = _remainder(left + _mix(right ^ tweak, keys[number]), n_left)
        right = _remainder(right + _mix(left ^ tweak, keys[number + 1]), n_right)
    return np.asarray(left * n_right + right)


def _remainder(values: np.ndarray, n: Any) -> Any:
    """`values % n`, which NumPy computes four times slower: it has vectors for division by one number, and none for that."""
    return values - values // n * n


def uniform(positions: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A random number in [0, 1) for each position: `(m,) float64`."""
    mixed = _mix(_mix(np.asarray(positions, np.uint64), keys[0]), keys[1])
    return (mixed >> np.uint64(62 - UNIFORM_BITS)).astype(np.float64) / (1 << UNIFORM_BITS)


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A hash of each value: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014). Below 2**62, so that sums fit."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2))
