"""Rows of a batch from several chunks of an order."""

from __future__ import annotations

import numpy as np

from ringload.protocols import Rows


def part_of(rows: Rows, which: slice) -> Rows:
    """Some of the rows."""
    key = None if rows.key is None else rows.key[which]
    return Rows(rows.index[which], key, {name: values[which] for name, values in rows.fields.items()})


def joined(parts: list[Rows]) -> Rows:
    """All rows, one part after another."""
    keys = [part.key for part in parts if part.key is not None]
    fields = {name: np.concatenate([part.fields[name] for part in parts]) for name in parts[0].fields}
    return Rows(np.concatenate([part.index for part in parts]), np.concatenate(keys) if keys else None, fields)
