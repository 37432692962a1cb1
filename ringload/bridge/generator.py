"""`generator_from_df`: replaces a hand-written generator over a DataFrame, on the ring."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import in_our_words, one_of
from ringload.loader import Loader
from ringload.ring.lease import Batch
from ringload.sources.image_table import ImageFrame

if TYPE_CHECKING:
    import pandas as pd

OF_ARRAYS = "X or Y of a batch, or a view of one, is kept: keep copies (X.copy())"


@in_our_words(passes_on_to=ImageFrame, but=("size",))
def generator_from_df(
    df: pd.DataFrame | str,
    batch_size: int,
    target_size: tuple[int, int],
    label: Any = "multi",
    path: Any = "path",
    *,
    root: str | None = None,
    shuffle: bool = True,
    seed: int = 0,
    last: Literal["drop", "keep"] = "drop",
    workers: int | Literal["auto"] = "auto",
    ram_budget: int | float | str = "auto",
    epochs: int | None = None,
    shard: tuple[int, int] | Literal["auto"] | None = None,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int | str | None = None,
    cache_size: tuple[int, int] | None = None,
    **image_options: Any,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield `(X, Y)` for ever, epoch after epoch, each epoch in a new order. Keras' `fit` takes such a generator:
    `model.fit(generator_from_df(df, 64, (224, 224)), steps_per_epoch=len(df) // 64, epochs=90)`.

    X is `(B, H, W, 3) float32` in [-1, 1]; Y holds the values of the label column, `(B,) int64` for classes. Both are views of
    the ring and stay valid for as long as you keep them or views of them. To keep many batches, keep copies.

    Arguments:
        df, path, label, root, image_options: see `ImageFrame`. If label is a dict, Y is a dict; if it is None, Y is None.
        target_size: (height, width) in pixels.
        epochs: the generator ends after so many epochs: 1 for one pass over the table. None: it never ends.
        all others: see `Loader`.

    Raises:
        ConfigError: an argument or the table cannot be used; raised by this call. While iterating: see `Loader`.
    """
    one_of("last", last, ("drop", "keep"))  # Y has no field `valid`, so a padded row would look like a sample
    options = {"dtype": "float32", "scale": (-1.0, 1.0), **image_options}
    source = ImageFrame(df, path, label, size=target_size, root=root, **options)
    loader = Loader(
        source,
        batch_size,
        workers=workers,
        ram_budget=ram_budget,
        shuffle=shuffle,
        seed=seed,
        last=last,
        shard=shard,
        epochs=epochs,
        cache=cache,
        cache_bytes=cache_bytes,
        cache_size=cache_size,
    )
    return _pairs(loader, label, epochs)


def _pairs(loader: Loader, label: Any, epochs: int | None) -> Iterator[tuple[np.ndarray, Any]]:
    with loader:
        for _ in repeat(None) if epochs is None else range(epochs):
            for batch in loader.iterate(OF_ARRAYS):
                yield batch["image"], _target(batch, label)


def _target(batch: Batch, label: Any) -> Any:
    if label is None:
        return None
    return {name: batch[name] for name in label} if isinstance(label, dict) else batch["label"]
