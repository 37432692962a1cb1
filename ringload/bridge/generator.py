"""The generator that people write by hand, on the ring."""

from __future__ import annotations

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
    **image_options: Any,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield `(X, Y)` without an end, epoch after epoch, each in an order of its own, as the generators that Keras' `fit` takes
    do: `model.fit(generator_from_df(df, 64, (224, 224)), steps_per_epoch=len(df) // 64, epochs=90)`.

    X is `(B, H, W, 3) float32` in [-1, 1]; Y is what the label column gives, `(B,) int64` for classes. Both are views of the
    ring, valid for as long as they, or views of them, are kept; keep copies of many.

    Arguments:
        df, path, label, root, image_options: as `ImageFrame` has them. A dict as label makes Y a dict; None makes it None.
        target_size: (height, width) in pixels.
        epochs: after how many the generator ends: 1 for one pass over the table. None: it never ends.
        the others: as `Loader` has them.

    Raises:
        ConfigError: at once, for what cannot be used. Else as `Loader`.
    """
    one_of("last", last, ("drop", "keep"))  # a row that is padded would be a sample without a word
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
