"""Measures the time to encode and decode a value, in microseconds, compared with pickle and msgspec.

    python -m bench.serializer [--rounds 41] [--calls 100] [--only NAME]

Each of these encodes a sample into a buffer of the ring, and decodes it into newly allocated memory. The arrays of a sample are
in the buffer at multiples of 64 bytes.

    ringload   the encoding of the DataLoader's workers: see `ringload/torch/dataloader/values.py`
    pickle 5   pickle's protocol 5 with out-of-band buffers, and tensors as arrays. Decoding runs any code of the worker's bytes
    msgspec    MessagePack with one extension type, for arrays. Tuples become lists. It supports no classes, no ints of more
               than 64 bits, and no order of a tensor's axes

One round calls each of these `--calls` times, one after the other, so that a change of the machine's speed affects all of them.
A figure is the median over the rounds of the thread's CPU time. The arrays are small, because copying a large array takes each
of them the same time.
"""

from __future__ import annotations

import copyreg
import gc
import io
import pickle
import statistics
import struct
import time
from collections.abc import Callable
from typing import Any

import click
import msgspec
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ringload.torch.dataloader.values import Encoder, decode

BUFFER_BYTES = 1 << 20
ALIGNMENT_BYTES = 64
LENGTH = struct.Struct("<q")
WORDS = "A worker writes what a sample is into the ring, and the trainer reads it. "

SAMPLES: dict[str, Any] = {
    "text": {"ids": list(range(1000, 1128)), "mask": [1] * 128, "text": WORDS * 8, "label": 3},
    "tokens": {"ids": torch.arange(128), "mask": torch.ones(128, dtype=torch.bool), "text": WORDS * 8, "label": 3},
    "detection": (
        torch.zeros(3, 64, 64, dtype=torch.uint8),
        {"boxes": torch.rand(7, 4), "labels": torch.arange(7), "image_id": 12, "file": "photos/000012.jpg", "is_crowd": False},
    ),
    "strings": dict.fromkeys(("question", "answer", "context", "language", "source", "split", "id", "license"), WORDS),
    "nested": (
        [(1, "a", (0.5, None)), (2, "b", (1.5, None))],
        {"pair": (np.zeros(4), [np.ones(3), (b"x", True)])},
        (7, [8, (9,)]),
    ),
}

Write = Callable[[Any, np.ndarray], None]
Read = Callable[[np.ndarray], Any]


def ringloads() -> tuple[Write, Read]:
    encoder = Encoder(allow_pickle=False)
    return lambda value, buffer: encoder.encode(value, "sample", buffer), lambda buffer: decode(buffer, False)


def aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def pickles() -> tuple[Write, Read]:
    """The buffer begins with the sizes of the pickle and of each array, as int64, ended by -1."""
    tables = copyreg.dispatch_table | {torch.Tensor: lambda tensor: (torch.from_numpy, (tensor.numpy(),))}

    def write(value: Any, buffer: np.ndarray) -> None:
        buffers: list[pickle.PickleBuffer] = []
        file = io.BytesIO()
        pickler = pickle.Pickler(file, 5, buffer_callback=buffers.append)
        pickler.dispatch_table = tables
        pickler.dump(value)
        parts = [file.getbuffer(), *[buffer.raw() for buffer in buffers]]
        view = buffer.data
        struct.pack_into(f"<{len(parts) + 1}q", view, 0, *map(len, parts), -1)
        start = aligned(8 * len(parts) + 8)
        for part in parts:
            view[start : start + len(part)] = part
            start += aligned(len(part))

    def read(buffer: np.ndarray) -> Any:
        view, lengths = buffer.data, list[int]()
        while (length := LENGTH.unpack_from(view, 8 * len(lengths))[0]) >= 0:
            lengths.append(length)
        start, parts = aligned(8 * len(lengths) + 8), list[memoryview]()
        for length in lengths:
            parts.append(view[start : start + length])
            start += aligned(length)
        return pickle.loads(parts[0], buffers=map(bytearray, parts[1:]))

    return write, read


def msgspecs() -> tuple[Write, Read]:
    """The buffer begins with the size of the text, as int64. The data begin at the middle of the buffer."""
    data_start = BUFFER_BYTES // 2
    arrays: list[tuple[int, np.ndarray]] = []

    def hooked(value: Any) -> Any:
        array = value.numpy() if type(value) is torch.Tensor else value
        start = aligned(arrays[-1][0] + arrays[-1][1].nbytes) if arrays else data_start
        arrays.append((start, array))
        place = (type(value) is torch.Tensor, array.dtype.str, array.shape, start)
        return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(place))

    encoder = msgspec.msgpack.Encoder(enc_hook=hooked)

    def write(value: Any, buffer: np.ndarray) -> None:
        arrays.clear()
        text, view = encoder.encode(value), buffer.data
        view[:8] = len(text).to_bytes(8, "little")
        view[8 : 8 + len(text)] = text
        for start, array in arrays:
            view[start : start + array.nbytes] = array.data.cast("B")

    def read(buffer: np.ndarray) -> Any:
        view = buffer.data

        def made(code: int, payload: memoryview) -> Any:
            is_tensor, dtype, shape, start = msgspec.msgpack.decode(payload)
            array = np.ndarray(shape, dtype, view, start).copy()
            return torch.from_numpy(array) if is_tensor else array

        return msgspec.msgpack.decode(view[8 : 8 + int.from_bytes(view[:8], "little")], ext_hook=made)

    return write, read


WAYS: dict[str, tuple[Write, Read]] = {"ringload": ringloads(), "pickle 5": pickles(), "msgspec": msgspecs()}


def measure(ways: dict[str, tuple[Write, Read]], value: Any, rounds: int, calls: int) -> dict[str, tuple[float, float]]:
    """Median microseconds to encode and to decode a value, for each way."""
    buffers = {name: np.zeros(BUFFER_BYTES, np.uint8) for name in ways}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for _ in range(rounds):
        for name, (write, read) in ways.items():
            buffer = buffers[name]
            begin_s = time.thread_time()
            for _ in range(calls):
                write(value, buffer)
            middle_s = time.thread_time()
            for _ in range(calls):
                read(buffer)
            end_s = time.thread_time()
            seconds[name][0].append(middle_s - begin_s)
            seconds[name][1].append(end_s - middle_s)
    return {
        name: (statistics.median(writes) / calls * 1e6, statistics.median(reads) / calls * 1e6)
        for name, (writes, reads) in seconds.items()
    }


def show(ways: dict[str, tuple[Write, Read]], rounds: int, calls: int, only: str) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    gc.disable()
    first = next(iter(ways))
    table = Table("sample", "", "write us", "read us", "both us", f"over {first}", title="There and back")
    for sample, value in SAMPLES.items():
        if only not in sample:
            continue
        found = measure(ways, value, rounds, calls)
        ours = sum(found[first])
        for name, (write_us, read_us) in found.items():
            both_us = write_us + read_us
            figures = (f"{write_us:.1f}", f"{read_us:.1f}", f"{both_us:.1f}", f"{both_us / ours:.2f}")
            table.add_row(sample if name == first else "", name, *figures, end_section=name == [*found][-1])
    Console().print(table)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--rounds", default=41, show_default=True)
@click.option("--calls", default=100, show_default=True, help="of each way in a round")
@click.option("--only", default="", help="the samples with this in their names")
def main(rounds: int, calls: int, only: str) -> None:
    show(WAYS, rounds, calls, only)


if __name__ == "__main__":
    main()
