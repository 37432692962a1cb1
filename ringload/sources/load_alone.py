"""Loading one sample of a source within another source, outside of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ringload.fields import Row, write_exactly
from ringload.sources.bind import BoundSource


def load_alone(bound: BoundSource, index: int, rng: Any, arrays: dict[str, np.ndarray]) -> None:
    """Load sample `index` into `arrays`, field -> `shape`, which hold another sample.

    Raises:
        Exception: what the source raises; TypeError or ValueError where it does not write as it should.
    """
    if bound.load is not None:
        views = Row(arrays)
        result = bound.load(index, rng, views)
        if result is not None:
            raise TypeError(f"load() returned a {type(result).__name__}; it has to write into `out` and return nothing")
        if bound.calls_user_code and (untouched := views.untouched()):
            raise ValueError(f"load() did not write the fields {sorted(untouched)}")
        return
    assert bound.load_rows is not None
    rows = {name: values[None] for name, values in arrays.items()}
    out = dict(rows)
    bound.load_rows(np.array([index]), [rng], out)
    for name, view in rows.items():
        if out.get(name) is not view:  # assigned, instead of written to
            write_exactly(view, out[name], name)
