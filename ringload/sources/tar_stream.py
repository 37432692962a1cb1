"""Images in tar shards, compressed or not, as a stream: each shard is read from its beginning to its end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ringload.checks import in_our_words, integer, listed, short
from ringload.errors import ConfigError
from ringload.images.decoder import decoder_of
from ringload.sources.image_rows import ImageRows
from ringload.sources.labels import LabelMode
from ringload.sources.shard_names import Shards, shards_of
from ringload.sources.stored_files import AHEAD_BYTES
from ringload.sources.stream import Stream
from ringload.sources.stream_labels import labels_of
from ringload.sources.tar_columns import INTEGERS, column_named
from ringload.sources.tar_reader import TarParts
from ringload.sources.tar_shards import IMAGES, URL
from ringload.storage.forward import OPEN_BYTES, compression_named
from ringload.storage.registry import LOCAL
from ringload.storage.tar import TarError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")  # of the shards of a folder
N_PARTS = 16  # at most, if `parts` is not given


@in_our_words(passes_on_to=decoder_of)
def TarStream(  # noqa: N802  (named as TarShards: what it makes is a source)
    pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: tuple[int, int],
    label: str | Mapping[str, str] | None = None,
    classes: Any = None,
    label_mode: LabelMode | Mapping[str, LabelMode] = "auto",
    weight: str | None = None,
    image: str | None = None,
    parts: int | None = None,
    steps: int | None = None,
    order: Literal["turns", "arrival"] = "turns",
    shuffle: int = 0,
    **options: Any,
) -> Stream:
    """Images in tar shards by WebDataset's convention, read from the beginning of a shard to its end: a `Stream`.

    It takes what `TarShards` refuses: .tar.gz, .tgz and .tar.zst (before Python 3.14 by the package backports.zstd); and .tar.
    The samples have a sequential order only, or that of windows (`shuffle=`): `Loader(order=..., shuffle=...)` is refused, and
    there is no `split`. For plain tar archives `TarShards` has any order. The pixels are the same.

    Part p of n has the shards p, p + n, ..., and one worker reads it. A worker's death and a state lose and repeat no sample: a
    shard is read again up to the sample where its part goes on. The members of a sample follow one another. Samples without an
    image are left out, with a warning. What is wrong with a sample makes it a bad sample, which names shard and member; a shard
    that is damaged or cut short is one bad sample, which names the shard, and what follows in that shard is lost.

    Arguments:
        pattern: as in `TarShards`.
        label: "cls" (also cls2, class, count, index, inx, id), an integer as it is; "txt" (text, transcript) or
            "json.category", with `classes` or `label_mode`; or a dict of field names to these. None: no label.
        classes: as in `ImageFrame`. As no sample is read before, classes that occur are not known without it.
        label_mode: "int", "float", "binary"; and "categorical" and "multi_hot", with `classes`.
        weight: a column of sample weights.
        image: the suffix of the images, such as "jpg" or "left.png", if samples have several. None: any of images.
        parts: how many parts there are on each rank; more workers have nothing to do. Each part needs a shard. A part ends with
            a shorter batch. None: 16, or as many as there are shards.
        steps, order, shuffle: as in `Stream`.
        size, options: as in `ImageFrame`: color, dtype, scale, resize, crop_area, crop_ratio, interpolation, flip, exif,
            transform, max_pixels, background, value_range, truncated.

    Raises:
        ConfigError: no shard is found, a compression cannot be read, a label needs all samples, or an option is not valid.
    """
    if image is not None and (not isinstance(image, str) or not image.strip(".")):
        raise ConfigError(f"image is the suffix of the images, such as 'jpg' or 'left.png', not {short(image)}")
    shards = shards_of(pattern, SUFFIXES)
    open_bytes = _checked(shards)
    asked = label.values() if isinstance(label, Mapping) else [label]
    wanted = [name for name in (*asked, weight) if name is not None]
    if odd := [name for name in wanted if not isinstance(name, str)]:
        raise ConfigError(f"a label of a TarStream is the name of one column, such as 'cls', not {short(odd[0])}")
    names = list(dict.fromkeys(wanted))
    if URL in names:
        raise ConfigError(f"a TarStream has no column {URL!r}: the shards of a TarShards are classes")
    columns = [column_named(name) for name in names]
    integers = [one.name for one in columns if not one.path and one.name.rpartition(".")[2].lower() in INTEGERS]
    labels = labels_of(label, classes, label_mode, weight, integers)
    n_parts = min(N_PARTS, len(shards.keys)) if parts is None else integer("parts", parts, 1)
    if n_parts > len(shards.keys):
        raise ConfigError(f"parts={n_parts:,}, and there are {len(shards.keys):,} shards: each part needs one")
    ahead_bytes = 0 if shards.scheme == LOCAL else AHEAD_BYTES
    in_windows = integer("shuffle", shuffle, 0) > 0 if not isinstance(shuffle, bool) else False  # else refused by Stream
    rows = ImageRows(decoder_of(size, **options), {one.name: one.field for one in labels}, ahead_bytes, in_windows)
    factory = TarParts(shards, IMAGES if image is None else (image.lstrip(".").lower(),), columns, labels, rows.reads_by)
    how: dict[str, Any] = {"parts": n_parts, "steps": steps, "order": order, "shuffle": shuffle}
    return Stream.of_rows(factory, rows, part_bytes=open_bytes, **how)


def _checked(shards: Shards) -> int:
    """The memory that an open shard takes at most."""
    if shards.scheme == LOCAL and (absent := [key for key in shards.keys if not os.path.isfile(key)]):
        raise ConfigError(f"{len(absent):,} of {len(shards.keys):,} shards are not there: {listed(absent)}")
    most = 0
    for key in shards.keys:
        try:
            most = max(most, OPEN_BYTES[compression_named(key)])
        except TarError as error:
            raise ConfigError(f"shard {key}: {error}") from error
    return most
