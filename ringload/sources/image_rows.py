"""Rows of a stream that have an encoded image: the decoder of `ImageFrame`, with its limits on memory.

A content that needs more memory than a worker has for itself waits for its turn before it is read, as in `contents.read_and`.
The turn ends when the row is written, or given up: `EncodedRow.release`.

In a window an image is kept decoded, cropped and mirrored, at its final size; the transform is called when it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ringload.fields import Field, Worker, as_fields
from ringload.images.augment import Augmenter
from ringload.images.decoder import ImageDecoder, worst_scratch_bytes

IMAGE = "image"


def _nothing() -> None:
    pass


@dataclass
class EncodedRow:
    """A row: `name` for messages, the bytes of its image, and the values of the other fields."""

    name: str
    content: Any
    values: dict[str, Any] = field(default_factory=dict)
    release: Callable[[], None] = _nothing


def room_for(decoder: ImageDecoder, n_bytes: int) -> Callable[[], None]:
    """Have memory for a content of `n_bytes` and its image, until what is returned is called.

    Raises:
        ValueError: the budget never has that much, or the content is too large for an image.
    """
    decoder.check_content(n_bytes)
    if n_bytes <= decoder.shared_bytes:
        return _nothing
    stack = ExitStack()
    stack.enter_context(decoder.room_for(n_bytes))
    return stack.close


class ImageRows:
    """Rows that are an `EncodedRow`. See `stream_rows.StreamRows`.

    `ahead_bytes`: of contents that are read ahead. `reads_by`: the decoder that decodes, in whose room a content is read; with
    `in_windows` it makes the same choices, and leaves transform and float32 to `Augmenter.finish`.
    """

    refuses_large = property(lambda self: self.decoder.guaranteed_pixels is None)

    def __init__(self, decoder: ImageDecoder, values: Mapping[str, Field], ahead_bytes: int, in_windows: bool) -> None:
        self.decoder, self.ahead_bytes = decoder, ahead_bytes
        one: Augmenter = decoder.augmenter
        before = decoder.copy_with(one.undecorated(one.geometry, one.flip))
        self.reads_by = before if in_windows else decoder
        self.fields = as_fields({IMAGE: decoder.field, **values})
        self.kept_fields = {**self.fields, IMAGE: before.field}
        self.random, self.global_random = one.draws, one.transform is not None

    @property
    def scratch_bytes(self) -> int:
        """The most memory that loading one image takes, including bytes that are read ahead."""
        return worst_scratch_bytes(self.decoder.max_pixels) + self.ahead_bytes

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        max_bytes = None if worker.max_bytes is None else worker.max_bytes - self.ahead_bytes
        worker = replace(worker, scratch_bytes=worker.scratch_bytes - self.ahead_bytes, max_bytes=max_bytes)
        self.reads_by.start(worker)

    def write(self, row: EncodedRow, rng: Any, out: Any) -> None:
        """Decode and augment an image.

        Raises:
            OSError, ValueError: it cannot be decoded; the text names it.
        """
        self._write(row, rng, out)

    def keep(self, row: EncodedRow, rng: Any, out: Any) -> None:
        """Decode an image, with its random crop and mirroring."""
        self._write(row, rng, out)

    def give(self, kept: Mapping[str, Any], rng: Any, out: Any) -> None:
        """Transform an image that was kept."""
        self.decoder.augmenter.finish(np.array(kept[IMAGE]), rng, out[IMAGE])  # a new one: the transform may keep it
        for name in kept.keys() - {IMAGE}:
            out[name] = kept[name]

    def _write(self, row: EncodedRow, rng: Any, out: Any) -> None:
        try:
            self.reads_by.load(row.content, rng, out[IMAGE])
        except (OSError, ValueError) as error:
            kind = OSError if isinstance(error, OSError) else ValueError
            raise kind(f"{row.name}: {error}") from error
        except Exception as error:  # a decoder's, or a transform's
            raise RuntimeError(f"{row.name}: {type(error).__name__}: {error}") from error
        finally:
            row.content = None
            row.release()
        for name, value in row.values.items():
            out[name] = value
