"""What the rows of a stream are, and how one becomes the fields of a sample.

factory -> row -- write --> the sample's row in the ring
factory -> row -- keep --> a place in a window -- give --> the sample's row in the ring
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ringload.checks import named
from ringload.fields import Field, Worker


class StreamRows(Protocol):
    """The kind of rows that a stream has.

    `fields` are those of a sample, `kept_fields` those of a place in a window. `write` and `keep` take a row as the factory
    gives it, `give` takes what `keep` has written, field -> `(*shape)`. `rng` is None if `random` is False. The other
    attributes are those of `ringload.Source`.
    """

    @property
    def fields(self) -> dict[str, Field]: ...

    @property
    def kept_fields(self) -> dict[str, Field]: ...

    @property
    def random(self) -> bool: ...

    @property
    def global_random(self) -> bool: ...

    @property
    def scratch_bytes(self) -> int: ...

    @property
    def ahead_bytes(self) -> int: ...

    @property
    def refuses_large(self) -> bool: ...

    def start(self, worker: Worker) -> None: ...

    def write(self, row: Any, rng: Any, out: Any) -> None: ...

    def keep(self, row: Any, rng: Any, out: Any) -> None: ...

    def give(self, kept: Mapping[str, Any], rng: Any, out: Any) -> None: ...


class PlainRows:
    """Rows that are dicts of field -> value. See `StreamRows`."""

    random = global_random = refuses_large = False
    scratch_bytes = ahead_bytes = 0

    def __init__(self, fields: dict[str, Field]) -> None:
        self.fields = self.kept_fields = fields

    def start(self, worker: Worker) -> None:
        """Nothing is to be prepared."""

    def write(self, row: Any, rng: Any, out: Any) -> None:
        """Write a row into `out`.

        Raises:
            TypeError, ValueError: it does not fit the fields.
        """
        if not isinstance(row, Mapping):
            raise TypeError(f"a row of a stream is a dict of field -> value, not {named(row)}")
        if lacking := [name for name in self.fields if name not in row]:
            raise ValueError(f"a row of a stream lacks the fields {lacking}")
        for name, value in row.items():
            out[name] = value

    keep = give = write
