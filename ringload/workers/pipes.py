"""Ends of pipes and sockets, which close themselves where an interruption leaves them to nobody, and are never closed twice."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Iterable

End = socket.socket | io.FileIO


def pipe() -> tuple[io.FileIO, io.FileIO]:
    """A pipe: its read end and its write end."""
    out, into = os.pipe2(os.O_CLOEXEC)
    return io.FileIO(out), io.FileIO(into, "w")


def close(ends: Iterable[End]) -> None:
    for end in ends:
        end.close()
