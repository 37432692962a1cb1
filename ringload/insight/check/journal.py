"""The journal of a check: what was found so far, so that a check that was killed goes on where it was.

    one line of JSON                what is checked, and how
    entries, one a batch            n_rows (u32), n_bytes (u32) and crc32 (u32) of what follows, little-endian;
                                    n_rows records (`source.RECORD`); JSON: {number of a sample: reason}

Samples come in the order of their numbers, so the number of records tells where the check goes on. An entry that was not
written to its end fails its checksum: it is cut off, and its samples are checked again. One process at a time has a journal.
The journal is no pickle; its records are numbers.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.insight.check.source import RECORD

VERSION = 1
ENTRY = struct.Struct("<III")
MAX_ENTRY_BYTES = 1 << 26
MAX_HEADER_BYTES = 1 << 20

Entry = tuple[np.ndarray, dict[int, str]]  # records, reasons by the number of the sample


class Journal:
    """Owns the open file of a journal.

    Arguments:
        path: the file; made if it is not there.
        about: what is checked, which JSON can hold. A journal of something else is refused.
        restart: begin anew, whatever is there.

    Raises:
        ConfigError: the file is no journal, of another check, or another process writes to it. OSError: it cannot be opened.
    """

    def __init__(self, path: Path, about: dict[str, Any], restart: bool = False) -> None:
        self.path = path
        header = (json.dumps({"ringload check": VERSION, **about}, sort_keys=True) + "\n").encode()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._file: BinaryIO = os.fdopen(fd, "r+b", buffering=0)
        try:
            self._own_it()
            if restart or os.fstat(fd).st_size == 0:
                self._file.truncate(0)
                self._write(header)
            else:
                self._compare(header)
            self._start = self._file.tell()
        except BaseException:
            self._file.close()
            raise

    def _own_it(self) -> None:
        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another check is writing {self.path}: wait for it, or give another --report") from None

    def _compare(self, header: bytes) -> None:
        line = self._file.readline(MAX_HEADER_BYTES)
        if line == header:
            return
        why = _difference(line, json.loads(header))
        if not line.endswith(b"\n") and header.startswith(line):  # killed while it wrote its first line
            self._file.seek(0)
            self._file.truncate(0)
            self._write(header)
            return
        raise ConfigError(f"{self.path} is not the journal of this check: {why}. Delete it, or give --restart to begin anew")

    def read(self) -> Iterator[Entry]:
        """The entries, of 0, 1, ... on. What follows the last whole one is cut off."""
        self._file.seek(self._start)
        n_rows = 0
        while True:
            at = self._file.tell()
            entry = self._next(n_rows)
            if entry is None:
                self._file.seek(at)
                self._file.truncate(at)
                return
            n_rows += len(entry[0])
            yield entry

    def _next(self, first: int) -> Entry | None:
        head = self._file.read(ENTRY.size)
        if len(head) < ENTRY.size:
            return None
        n_rows, n_bytes, crc = ENTRY.unpack(head)
        if n_bytes > MAX_ENTRY_BYTES or n_rows * RECORD.itemsize > n_bytes:
            return None
        body = self._file.read(n_bytes)
        if len(body) < n_bytes or zlib.crc32(body, first) != crc:  # `first`: an entry in another's place is refused, too
            return None
        records = np.frombuffer(body, RECORD, n_rows)
        reasons = json.loads(body[records.nbytes :])
        return records, {int(number): reason for number, reason in reasons.items()}

    def append(self, first: int, records: np.ndarray, reasons: dict[int, str]) -> None:
        """Write what was found of the samples from `first` on."""
        body = records.tobytes() + json.dumps(reasons).encode()
        self._write(ENTRY.pack(len(records), len(body), zlib.crc32(body, first)) + body)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Keep the journal. Idempotent."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal: its report is complete."""
        self.path.unlink(missing_ok=True)
        self.close()


def _difference(line: bytes, wanted: dict[str, Any]) -> str:
    try:
        there = json.loads(line)
        if not isinstance(there, dict) or "ringload check" not in there:
            raise ValueError
    except ValueError:
        return "it is no journal of ringload check"
    names = [name for name in sorted({*wanted, *there}) if wanted.get(name) != there.get(name)]
    name = names[0] if names else ""
    if name == "source":
        return "the table has changed, or it is another one"
    return f"{name} was {short(there.get(name))} and is {short(wanted.get(name))}"
