"""What went wrong in a producer, raised as torch's DataLoader does: by an exception of its class, its traceback in the text."""

from __future__ import annotations

from ringload.adapters.torch_classes import class_called
from ringload.errors import SampleError
from ringload.ring.ring import Bad


class ProducerKilled(SampleError, RuntimeError):
    """A sample that kills its producer again and again, or takes too long: a SampleError, and a RuntimeError as with torch."""


class _Said(str):
    """The text of a KeyError, which shows the repr of what it has."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def raised(bad: Bad) -> Exception:
    """The exception for a bad row."""
    if not bad.where:
        text = f"DataLoader worker is killed by signal or ended: sample {bad.index} {bad.reason}"
        return ProducerKilled(text, index=bad.index, reason=bad.reason)
    producer, module, name = bad.where.split(" ", 2)
    text = f"Caught {name} in DataLoader worker process {producer}.\nOriginal {bad.traceback or bad.reason}"
    kind = class_called(module, name)
    if kind is None or not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
        return RuntimeError(text)  # a StopIteration would end the iteration, and nobody would know
    try:
        error = kind(_Said(text) if kind is KeyError else text)
    except Exception:  # a class that wants other arguments
        return RuntimeError(text)
    return error if isinstance(error, Exception) else RuntimeError(text)
