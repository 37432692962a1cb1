"""A keyed permutation of 0..N-1, computed entry by entry.

No array of size N is made, and each entry takes the same time. It is a Feistel network over pairs (left, right) in Z_a x Z_b,
a * b >= N (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). A value outside 0..N-1 goes through the network
again, until it is inside.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

N_ROUNDS = 12


def round_keys(seed: int, epoch: int) -> np.ndarray:
    """The keys of an epoch's permutation: `(N_ROUNDS,) uint64`."""
    words = [word for number in (seed, epoch) for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence(words).generate_state(N_ROUNDS, np.uint64)


def permute(positions: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """The images of `positions` (each in 0..n-1) under the permutation of 0..n-1 that `keys` choose: `(m,) int64`."""
    n_left = np.uint64(math.isqrt(n - 1) + 1)
    n_right = np.uint64(-(-n // int(n_left)))
    images = np.asarray(positions, np.uint64)
    outside: Any = slice(None)
    walked = images
    while True:
        left, right = walked // n_right, walked % n_right
        for number in range(0, N_ROUNDS, 2):
            left = (left + _mix(right, keys[number])) % n_left
            right = (right + _mix(left, keys[number + 1])) % n_right
        walked = left * n_right + right
        if isinstance(outside, slice):
            images = walked.copy()
            outside = np.arange(len(images))
        else:
            images[outside] = walked
        beyond = walked >= n
        if not beyond.any():
            return images.astype(np.int64)
        outside, walked = outside[beyond], walked[beyond]


def _mix(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """A hash of each value: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014). Below 2**62, so that sums fit."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(2))
