"""Ray Data: a pipeline's blocks as a source of samples by index.

    pipeline --materialize()--> blocks in Ray's object store, of known numbers of rows
    row --edges--> (block, row there) --ray.get, in a worker--> columns of the block, copied and kept --> cell

So a loader of Ray Data has the contract of one of arrays: the same bytes for any number of workers, after deaths, and from a
state. A stream of Ray's has no order of its own, and would have to be executed again for each epoch and each state.

Who reads: a worker process connects to Ray by itself, as a fork cannot share its parent's connection. A Ray actor has a
connection, and uses it. Measured (2 cores, 30 November 2026): 0.1 to 0.2 s to connect, and 4 MB; importing ray and its tensors
takes 2 s and 70 MB, once for each worker; 1 to 3 ms to get a block of 8 MB.

Who owns what: the blocks belong to the program that has executed the dataset, and may be lost once it has ended. A worker
pins one block at a time, and keeps copies of the columns of some, which are in `ram_budget`. So workers never fill Ray's store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import ray.cloudpickle
import ray.data
from ray.data.block import BlockAccessor

from ringload.checks import in_our_words, listed, named, no_field, short
from ringload.errors import ConfigError
from ringload.sources.arrays import Arrays
from ringload.sources.arrow_columns import NotAFieldError, flat
from ringload.sources.group_cache import GroupedRows
from ringload.system import forks


@in_our_words()
def from_dataset(dataset: Any, fields: Sequence[str] | None = None) -> Arrays:
    """A source of the rows of a Ray Data pipeline: an `Arrays` with a field for each column, of its name, shape and dtype.

        dataset = ray.data.read_parquet("s3://bucket/table").map_batches(heavy)
        source = ringload.ray.from_dataset(dataset, ["image", "label"])
        for batch in ringload.Loader(source, 256, ram_budget="8GB"): ...        # image (256, 224, 224, 3) uint8, ...

    The pipeline is executed once, here (`dataset.materialize()`); its blocks stay in Ray's object store, which spills to disk,
    until the program that has called this ends. Random augmentation belongs behind it, in training. Columns are numbers, bools,
    and tensors, images or lists of one shape, without missing values.

    Each worker reads the blocks that it needs. In the order of a loader that is given no `order=`, blocks stay together:
    blocks are permuted, then the samples of up to 16 blocks (of 64 MiB together) are mixed. Smaller blocks mix better:
    `dataset.repartition(n)`.

    A state can be loaded by another program, if the dataset has the same rows in the same blocks there. For that, set
    `ray.data.DataContext.get_current().execution_options.preserve_order = True`. Otherwise the state is refused.

    Arguments:
        dataset: a `ray.data.Dataset`. Ray is initialized, by its address, not by Ray Client.
        fields: the columns that become fields; None: all.

    Raises:
        ConfigError: it is no dataset, or is empty; or a column is of strings, objects, or rows of different shapes. While
        iterating, SampleError: a block cannot be read, or has other shapes or dtypes than the first one.
    """
    if not isinstance(dataset, ray.data.Dataset):
        raise ConfigError(f"from_dataset takes a ray.data.Dataset, not {named(dataset)}")
    executed = dataset.materialize()
    entries = [entry for bundle in executed.iter_internal_ref_bundles() for entry in bundle.blocks if entry.metadata.num_rows]
    if not entries:
        raise ConfigError("the dataset has no rows")
    blocks = Blocks([entry.ref for entry in entries], ray.get_runtime_context().gcs_address)
    edges = np.cumsum([0, *(entry.metadata.num_rows for entry in entries)])
    names = blocks.table(0).column_names
    if isinstance(fields, str) or (fields is not None and not len(fields)):
        raise ConfigError(f"fields is a list of names of columns, not {short(fields) if fields else 'an empty one'}")
    if unknown := [name for name in fields or () if name not in names]:
        raise ConfigError(no_field(unknown[0], names, "column"))
    return Arrays(**{name: _column(blocks, name, edges) for name in (names if fields is None else fields)})


def _column(blocks: Blocks, name: str, edges: np.ndarray) -> BlockColumn:
    """A column, by its first block."""
    try:
        first = np.concatenate(blocks.cells(0, name))
    except NotAFieldError as error:
        others = [other for other in blocks.table(0).column_names if other != name]
        raise ConfigError(
            f"column {name!r} {error}: a field is a number or a tensor of one shape. Convert it in the pipeline "
            f"(dataset.map_batches), or leave it out: fields={listed(others)}"
        ) from None
    return BlockColumn(blocks, name, edges, first.shape[1:], first.dtype)


class Blocks:
    """The blocks of a dataset, read by the process that needs them. `address` is that of the cluster."""

    def __init__(self, refs: list[Any], address: str) -> None:
        # Ray keeps for ever what is pickled outside of its calls. So the references are pickled once, not with each loader
        self._references, self._address = ray.cloudpickle.dumps(refs), address
        self.__setstate__(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return {"_references": self._references, "_address": self._address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._refs: list[Any] | None = None
        self._number, self._table = -1, None  # the last block, pinned: the next column is of the same block
        self._is_fork = False
        forks.keep(self)

    def drop(self) -> None:
        """In a fork: the connection is the parent's."""
        self._is_fork = ray.is_initialized()

    def table(self, number: int) -> Any:
        """A block as a Table of pyarrow, which looks into Ray's object store.

        Raises:
            OSError: Ray cannot be reached, or the block is lost.
        """
        if self._is_fork:
            raise OSError("a fork of the trainer cannot use its connection to Ray: leave out start_method='fork'")
        if number != self._number:
            self._number, self._table = -1, None  # not two are pinned at once
            try:
                if self._refs is None:
                    self._refs = self._connected()
                # a pipeline's functions may have made a DataFrame of a block
                self._table = BlockAccessor.for_block(ray.get(self._refs[number])).to_arrow()
            except (ray.exceptions.RayError, ConnectionError) as error:
                raise OSError(
                    f"block {number} of the dataset cannot be read from Ray at {self._address} ({type(error).__name__}: "
                    f"{error}). Its blocks may be lost once the program that has called from_dataset() has ended, or the "
                    "cluster has"
                ) from error
            self._number = number
        return self._table

    def cells(self, number: int, name: str) -> list[np.ndarray]:
        """A column of a block: parts `(n, *shape)`, one after another, which look into Ray's object store.

        Raises:
            OSError: as `table`. NotAFieldError: its rows are no numbers of one shape.
        """
        parts, row = [], 0
        for chunk in self.table(number).column(name).chunks:
            if len(chunk):
                values, shape = flat(chunk, row)
                shape = getattr(chunk.type, "shape", shape)  # of a tensor, which is stored flat
                parts.append(values.to_numpy(zero_copy_only=False).reshape(-1, *shape))
                row += len(chunk)
        return parts

    def _connected(self) -> list[Any]:
        """The references, in a process that is connected to Ray."""
        if not ray.is_initialized():
            ray.init(self._address, log_to_driver=False, configure_logging=False, logging_level="ERROR")
        refs: list[Any] = ray.cloudpickle.loads(self._references)
        return refs


class BlockColumn:
    """A column as an array `(N, ...)` that is read by blocks: see `sources.disk_arrays.DiskArray`."""

    def __init__(self, blocks: Blocks, name: str, edges: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._blocks, self._name, self.dtype = blocks, name, dtype
        self.shape = (int(edges[-1]), *shape)
        self.groups = GroupedRows(edges, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))

    @property
    def scratch_bytes(self) -> int:
        """The copies of blocks that are kept, and the one that is made. The block itself is in Ray's memory."""
        return self.groups.group_bytes + self.groups.kept_bytes

    def read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """See `DiskArray`."""
        self.groups.read(indices, out, self._group)

    def _group(self, group: int, first: int, stop: int) -> np.ndarray:
        """A copy of the column of a block, so that the block is not pinned."""
        try:
            made = np.concatenate(self._blocks.cells(group, self._name))
        except NotAFieldError as error:
            raise ValueError(f"column {self._name!r} of block {group} {error}") from None
        if (made.shape, made.dtype) != ((stop - first, *self.shape[1:]), self.dtype):
            raise ValueError(
                f"column {self._name!r} of block {group} is {made.shape} {made.dtype}, not "
                f"{(stop - first, *self.shape[1:])} {self.dtype}, as in the first block"
            )
        return made
