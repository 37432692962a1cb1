"""Images in tar shards, as a source: a table of the samples that the shards' index finds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ringload.checks import in_our_words, listed, one_of, short, warn
from ringload.errors import ConfigError
from ringload.images.formats import SUFFIXES
from ringload.sources.columns import require_pandas
from ringload.sources.contents import ImageTable
from ringload.sources.image_table import ImageFrame
from ringload.sources.shard_names import Shards, shards_of
from ringload.sources.tar_build import index_of
from ringload.sources.tar_columns import Column, column_named
from ringload.sources.tar_contents import TarContents
from ringload.sources.tar_samples import ShardIndex

if TYPE_CHECKING:
    import pandas as pd

IMAGES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
URL = "__url__"  # WebDataset's name of the column of shards
Incomplete = Literal["refuse", "skip"]
LEFT_OUT = {
    "samples": "{:,} samples of tar shards have no image, and are left out; the first is {}",
    "links": "{:,} images of tar shards are links or no files, and are left out; the first is {}",
}


@in_our_words(passes_on_to=ImageFrame, but=("df", "path", "root", "read_options"))
def TarShards(  # noqa: N802  (named as ImageFolder: what it makes is a source)
    pattern: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    size: tuple[int, int],
    label: Any = None,
    weight: str | None = None,
    columns: Sequence[str] = (),
    image: str | None = None,
    incomplete: Incomplete = "refuse",
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ImageFrame:
    """Images in tar shards by WebDataset's convention: an ImageFrame of their members, which are read in place, in any order.

    The members of one sample have one key, their path up to the first dot of its last part: `01.jpg`, `01.cls`, `01.json`. The
    samples have the order of the shards, and in a shard that of their first members. An index of the headers is built once,
    and kept beside the shards; if that folder cannot be written, in `$XDG_CACHE_HOME/ringload` or `~/.cache/ringload`. A shard
    that has changed is read anew when a source is made. One that changes later makes bad samples, never bytes of other members.

    Arguments:
        pattern: a tar file; a folder of them; `train-{000..099}.tar`; a glob; a URL, if a storage that reads ranges is
            registered for its scheme; or a list of these. Compressed archives
            are refused: `TarStream` reads them, in their order.
        label: as in `ImageFrame`, of these columns: "cls" (also cls2, class, count, index, inx, id), an integer as text; "txt"
            (text, transcript); "json.category", "json.a.b", a value of a member in JSON; "__url__", the shard. None: no label.
        weight: a column of sample weights.
        columns: further columns of the table, for `split(by=...)` and for orders that name a column.
        image: the suffix of the images, such as "jpg" or "left.png", if samples have several. None: any of images.
        incomplete: what is done with images that lack a column: "refuse"; or "skip", they are left out, with a warning.
        cache_dir: the folder of the index.
        size, options: as in `ImageFrame`.

    Raises:
        ConfigError: no shard is found, one is damaged, cut short or compressed, a sample has two images or lacks a column, or
            a column or an option is not valid; the message names shard and member.
    """
    require_pandas("a table of tar shards")
    one_of("incomplete", incomplete, ("refuse", "skip"))
    wanted = _columns(label, weight, columns)
    if image is not None and (not isinstance(image, str) or not image.strip(".")):
        raise ConfigError(f"image is the suffix of the images, such as 'jpg' or 'left.png', not {short(image)}")
    images = IMAGES if image is None else (image.lstrip(".").lower(),)
    shards = shards_of(pattern)
    indexes = index_of(shards, images, wanted, cache_dir)
    if not sum(map(len, indexes)):
        raise ConfigError(f"{_shown(shards)} no image: no member with a suffix of {listed(list(images))}")
    contents = TarContents(shards, indexes)
    table = _table(shards, contents, indexes, wanted)
    _warn_of_left_out(shards, indexes)
    table, contents = _complete(table, contents, wanted, incomplete)
    return ImageFrame(ImageTable(table, contents), label=label, weight=weight, size=size, **options)


def _columns(label: Any, weight: Any, columns: Any) -> list[Column]:
    """The columns that some arguments name, each once."""
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise ConfigError(f"columns is a list of columns, not {short(columns)}")
    labels = list(label.values()) if isinstance(label, Mapping) else [label]
    names = [name for one in (*labels, weight, *columns) for name in (one if isinstance(one, list | tuple) else [one])]
    return [column_named(name) for name in dict.fromkeys(map(_hashable, names)) if name is not None and name != URL]


def _hashable(name: Any) -> Any:
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"a column of tar shards is a name such as 'cls' or 'json.category', not {short(name)}")
    return name


def _table(shards: Shards, contents: TarContents, indexes: Sequence[ShardIndex], columns: Sequence[Column]) -> pd.DataFrame:
    """A row for each image: its shard, and its columns. What its sample lacks is missing."""
    import pandas as pd

    table = pd.DataFrame({URL: pd.Categorical.from_codes(contents.shards, categories=pd.Index(shards.keys))})
    for column in columns:
        values = [value for index in indexes for value in json.loads(index.columns[column.name])]
        made = pd.Series(values, dtype=object)
        table[column.name] = made if made.isna().any() else made.infer_objects()
    return table


def _warn_of_left_out(shards: Shards, indexes: Sequence[ShardIndex]) -> None:
    for what, text in LEFT_OUT.items():
        found = [(key, *one.left_out[what]) for key, one in zip(shards.keys, indexes, strict=True) if what in one.left_out]
        if found:
            warn(text.format(sum(n for _, n, _ in found), f"{short(found[0][2])} of {found[0][0]}"))


def _complete(
    table: pd.DataFrame, contents: TarContents, columns: Sequence[Column], incomplete: Incomplete
) -> tuple[pd.DataFrame, TarContents]:
    """The rows that lack no column."""
    lacks = {one.name: table[one.name].isna().to_numpy() for one in columns}
    found = {name: missing for name, missing in lacks.items() if missing.any()}
    if not found:
        return table, contents
    name, missing = next(iter(found.items()))
    text = (
        f"{int(missing.sum()):,} of {len(table):,} images have no {name!r}; the first is {contents.key(int(missing.argmax()))}"
    )
    if incomplete == "refuse":
        raise ConfigError(f"{text}. Leave them out by incomplete='skip', or leave out the column")
    rows = np.flatnonzero(~np.logical_or.reduce(list(found.values())))
    if not len(rows):
        raise ConfigError(f"{text}: no image is left")
    warn(f"{text}: {len(table) - len(rows):,} are left out")
    left = table.iloc[rows].reset_index(drop=True)
    return left.infer_objects(), contents.take(rows)


def _shown(shards: Shards) -> str:
    return (
        f"shard {shards.keys[0]} has"
        if len(shards.keys) == 1
        else f"the {len(shards.keys):,} shards {listed(shards.keys[:2])} have"
    )
