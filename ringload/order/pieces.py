"""Rows of a batch: cut from a chunk of an order, joined, and padded."""

from __future__ import annotations

import numpy as np

from ringload.protocols import PAD, Rows


def part_of(rows: Rows, which: slice) -> Rows:
    """Some of the rows."""
    key = None if rows.key is None else rows.key[which]
    return Rows(rows.index[which], key, {name: values[which] for name, values in rows.fields.items()})


def joined(parts: list[Rows]) -> Rows:
    """All rows, one part after another."""
    keys = [part.key for part in parts if part.key is not None]
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields}
    return Rows(np.concatenate([part.index for part in parts]), np.concatenate(keys) if keys else None, fields)


def padded(rows: Rows, n: int) -> Rows:
    """`n` rows, the last of which hold no samples."""
    missing = n - len(rows.index)
    key = None if rows.key is None else np.pad(rows.key, (0, missing))
    fields = {
        name: np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
        for name, values in ((name, np.asarray(given)) for name, given in rows.fields.items())
    }
    return Rows(np.pad(rows.index, (0, missing), constant_values=PAD), key, fields)
