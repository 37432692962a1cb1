"""A map-style dataset, `dataset[i] -> (payload, index)`, for torch, Grain, Keras and the hand-written generator."""

from __future__ import annotations

import numpy as np

from bench.decoders import DECODERS, recipe
from bench.work import Photos, Work


class MapStyle:
    """Gives sample `i` of any work, decoded by `decoder` if it is a file."""

    def __init__(self, work: Work, decoder: str) -> None:
        self._paths = work.paths if isinstance(work, Photos) else None
        self._size = work.size if isinstance(work, Photos) else 0
        self._work = None if isinstance(work, Photos) else work
        self._decoder, self._is_recipe = decoder, isinstance(work, Photos) and work.is_recipe
        self._n_samples = work.n_samples

    def __len__(self) -> int:
        return self._n_samples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self._paths is not None and self._is_recipe:
            return recipe(self._decoder, self._paths[index], self._size), index
        if self._paths is not None:
            return DECODERS[self._decoder](self._paths[index], self._size), index
        assert self._work is not None
        return self._work[index], index
