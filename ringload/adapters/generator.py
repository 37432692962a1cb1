"""The generator that people write by hand, on the ring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.data.frame import ImageFrame
from ringload.loader import Loader
from ringload.ring.lease import Batch

if TYPE_CHECKING:
    import pandas as pd


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
    **image_options: Any,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yield `(X, Y)` for one epoch: X `(B, H, W, 3) float32` in [-1, 1]; Y as the label column gives it.

    X and Y are views of the ring, valid for as long as they, or views of them, are kept; keep copies of many.

    Arguments:
        df, path, label, root, image_options: as `ImageFrame` has them. A dict as label makes Y a dict; None makes it None.
        target_size: (height, width) in pixels.
        the others: as `Loader` has them.

    Raises:
        ConfigError: at once, for what cannot be used. Else as `Loader`.
    """
    options = {"dtype": "float32", "scale": (-1.0, 1.0), **image_options}
    source = ImageFrame(df, path, label, size=target_size, root=root, **options)
    loader = Loader(source, batch_size, workers=workers, ram_budget=ram_budget, shuffle=shuffle, seed=seed, last=last, epochs=1)
    return _pairs(loader, label)


def _pairs(loader: Loader, label: Any) -> Iterator[tuple[np.ndarray, Any]]:
    with loader:
        for batch in loader:
            yield batch["image"], _target(batch, label)


def _target(batch: Batch, label: Any) -> Any:
    if label is None:
        return None
    return {name: batch[name] for name in label} if isinstance(label, dict) else batch["label"]
