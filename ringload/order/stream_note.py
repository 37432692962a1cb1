"""The field of a slot in which the order and the source of a stream tell each other where a part goes on, as JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from ringload.errors import ConfigError

NOTE = ".note"
MAX_MARK_BYTES = 4000  # as JSON, with the state of a reader
NOTE_BYTES = MAX_MARK_BYTES + 200  # of a slot, rounded up to whole bytes a row
LENGTH = struct.Struct("<I")  # bytes of JSON behind it

Mark = dict[str, Any]


def write_note(told: Mapping[str, Any], note: np.ndarray, max_bytes: int = NOTE_BYTES - LENGTH.size) -> None:
    """Write into a slot's `note (B, n) uint8`.

    Raises:
        ConfigError: JSON cannot hold it, or it is too long.
    """
    try:
        data = json.dumps(told).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"state() of a stream's reader returns what JSON cannot hold: {error}") from error
    if len(data) > max_bytes:
        raise ConfigError(
            f"state() of a stream's reader takes {len(data):,} bytes as JSON, and there is room for {max_bytes:,}: return "
            "less, such as a name and a number"
        )
    note.reshape(-1)[: LENGTH.size + len(data)] = np.frombuffer(LENGTH.pack(len(data)) + data, np.uint8)


def read_note(note: np.ndarray) -> dict[str, Any]:
    """What `write_note` has written."""
    data = note.reshape(-1)
    (n_bytes,) = LENGTH.unpack(data[: LENGTH.size].tobytes())
    told: dict[str, Any] = json.loads(data[LENGTH.size : LENGTH.size + n_bytes].tobytes())
    return told
