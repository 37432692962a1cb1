"""Loads samples of varying lengths, so that `bench.orders` can say what padding costs: by torch's DataLoader, and by ringload.

All loaders give the same samples, of log-normal lengths, and have as many workers. A round is an epoch of each loader in turn;
the first round warms up. Every batch is added up, and the sum of an epoch is that of all samples, as padding is 0.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import ringload

N_TOKENS = 50_257  # of a vocabulary


def sample(index: int, length: int) -> np.ndarray:
    """The tokens of a sample: `(length,) int64`, each from 1 on."""
    return (np.arange(length) * 31 + index) % N_TOKENS + 1


class OfRingload:
    """The samples as a source of ringload's: rows of the longest length, zeros behind the sample."""

    random = False

    def __init__(self, lengths: np.ndarray, longest: int) -> None:
        self.lengths = lengths
        self.fields = {"tokens": ringload.Field((longest,), "int64")}

    def __len__(self) -> int:
        return len(self.lengths)

    def load(self, index: int, rng: Any, out: Any) -> None:
        length, row = self.lengths[index], out["tokens"]
        row[:length] = sample(index, length)
        row[length:] = 0


class OfTorch(torch.utils.data.Dataset[torch.Tensor]):
    """The same for torch."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(sample(index, self.lengths[index]))


def padded(samples: list[torch.Tensor]) -> torch.Tensor:
    """A collate_fn: pads to the longest of the batch."""
    return pad_sequence(samples, batch_first=True)


@dataclass
class Loaded:
    """What came of a loader: seconds of each round, and the elements of an epoch, padding counted."""

    seconds: list[float]
    n_elements: int = 0

    def rate(self, n_samples: int) -> float:
        """Samples a second, the median."""
        return n_samples / statistics.median(self.seconds)


def cut_to_longest(lengths: np.ndarray, loader: ringload.Loader) -> Iterator[np.ndarray]:
    """An epoch of batches, each without what is behind its longest sample."""
    for batch in loader:
        yield batch["tokens"][:, : lengths[batch.index].max()]


def measure(lengths: np.ndarray, longest: int, batch: int, budget: int, n_workers: int, n_rounds: int) -> dict[str, Loaded]:
    """Run the rounds. Returns what came of each loader, torch's first."""
    source = OfRingload(lengths, longest)
    options: dict[str, Any] = {"workers": n_workers, "last": "keep"}
    with ExitStack() as closing:
        made: dict[str, Callable[[], Iterator[Any]]] = {}
        theirs = torch.utils.data.DataLoader(
            OfTorch(lengths), batch, shuffle=True, num_workers=n_workers, collate_fn=padded, persistent_workers=True
        )
        made[f"torch DataLoader, {batch} random samples, padded to the longest"] = lambda: (one.numpy() for one in theirs)
        for name, order in (
            (f"Buckets of {batch}", ringload.Buckets(lengths)),
            (f"Buckets of up to {budget:,} elements", ringload.Buckets(lengths, max_elements=budget)),
        ):
            loader = closing.enter_context(ringload.Loader(source, batch, order=order, **options))
            made[name] = lambda loader=loader: cut_to_longest(lengths, loader)  # type: ignore[misc]
        packed = ringload.Packed(source, lengths, longest, "tokens")
        rows = closing.enter_context(ringload.Loader(packed, max(1, budget // longest), **options))
        made[f"Packed, {max(1, budget // longest)} rows of {longest:,}"] = lambda: (one["tokens"] for one in rows)
        total = sum(int(sample(index, length).sum()) for index, length in enumerate(lengths))
        results = {name: Loaded([]) for name in made}
        for number in range(1 + n_rounds):
            for name, epoch in made.items():
                begin_s, got, n_elements = time.perf_counter(), 0, 0
                for tokens in epoch():
                    got += int(tokens.sum())
                    n_elements += tokens.size
                took_s = time.perf_counter() - begin_s
                assert got == total, f"{name}: the tokens of an epoch are not those of all samples"
                results[name].n_elements = n_elements
                if number:
                    results[name].seconds.append(took_s)
    return results
