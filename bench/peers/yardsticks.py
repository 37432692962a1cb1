"""What the machine can do: the decoder, and plain copies, in as many processes with no transport at all (bench.roofline)."""

from __future__ import annotations

from bench.peers.ring import make_source
from bench.roofline import copy_roofline, decode_roofline
from bench.work import Photos, Rows, Work

RING_BYTES = 600_000_000  # of the private memory that is copied into: what 64 batches of 9.6 MB take


def rate(work: Work, workers: int, seconds: float) -> float:
    """Samples/s."""
    source = make_source(work)
    if isinstance(work, Photos):
        return decode_roofline(source, workers, seconds)
    assert isinstance(work, Rows)
    return copy_roofline(source, RING_BYTES, workers, seconds)
