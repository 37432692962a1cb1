"""Images in two steps, for a cache: what is decoded without a random choice, and what is made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from PIL import ImageFile

from ringload.checks import height_width
from ringload.errors import ConfigError
from ringload.fields import Row, Worker
from ringload.images.augment import Augmenter
from ringload.images.decoder import ImageDecoder
from ringload.images.engines import versions
from ringload.images.geometry import Box
from ringload.sources.contents import Contents, read_and
from ringload.sources.label_field import LabelFields


class ImageSteps:
    """The two steps of the images `contents`. `decoder` loads them in one step. See `cached.TwoSteps`.

    What is kept is the image at its final size, `(H, W, C)`; with resize="random_crop" the whole image at `size`, whatever its
    proportions: crops are drawn by the size of the image in the file, and scaled from what is kept.

    Raises:
        ConfigError: `size` is missing, or there is no use for it.
    """

    def __init__(
        self,
        name: str,
        table: Any,
        contents: Contents,
        decoder: ImageDecoder,
        labels: LabelFields,
        size: tuple[int, int] | None,
    ) -> None:
        final = decoder.augmenter.geometry
        self._crops = final.resize == "random_crop"
        if self._crops and size is None:
            raise ConfigError(
                'Cached: for resize="random_crop" give size=(height, width), at which whole images are kept: somewhat larger '
                f"than the crops, which are {final.height} x {final.width}"
            )
        if not self._crops and size is not None:
            raise ConfigError(f"Cached: size= is for resize='random_crop'; with {final.resize!r} images are kept at their size")
        height, width = (final.height, final.width) if size is None else height_width(size)
        geometry = replace(final, height=height, width=width, resize="stretch" if self._crops else final.resize)
        self._name, self._table, self._contents, self._labels = name, table, contents, labels
        self._final, self._decoder = decoder, decoder.copy_with(decoder.augmenter.undecorated(geometry))
        self.field = self._decoder.field

    def key(self) -> Any:
        """See `cached.TwoSteps`."""
        geometry = self._decoder.augmenter.geometry
        shape = [geometry.height, geometry.width, geometry.resize]
        pads = bool(ImageFile.LOAD_TRUNCATED_IMAGES)
        try:
            has_versions = any(self._contents.version(0))
        except OSError:  # a file that is missing: it is a bad sample
            has_versions = True
        first = "" if has_versions else self._contents.key(0)  # with them, files may be moved
        return [self._table, first, shape, self._decoder.decoding(), pads, versions()]

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker."""
        self._decoder.start(worker)

    def version(self, index: int) -> tuple[int, int]:
        """See `cached.TwoSteps`."""
        return self._contents.version(index)

    def load(self, index: int, out: np.ndarray) -> tuple[int, int]:
        """See `cached.TwoSteps`."""
        choices = self._decoder.augmenter.choices(None)
        read_and(self._contents, index, self._decoder, lambda content: self._decoder.decode(memoryview(content), choices, out))
        return choices.size

    def finish(self, index: int, kept: np.ndarray, size: tuple[int, int], rng: Any, out: Row) -> None:
        """See `cached.TwoSteps`."""
        augmenter: Augmenter = self._final.augmenter
        choices, row = augmenter.choices(rng), out[self._name]
        height, width = kept.shape[:2]
        box = Box(0, 0, height, width)
        if self._crops:
            box = choices.part(*size).scaled(height / size[0], width / size[1])
        if augmenter.transform is None:
            self._final.show(kept, box, choices, row, augmenter.levels)
        else:
            image = augmenter.empty()  # a new one: the transform may keep it
            self._final.show(kept, box, choices, image)
            augmenter.finish(image, rng, row)
        self._labels.write(index, out)
