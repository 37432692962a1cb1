"""The limits of the machine: the decoder, and plain copies, in as many processes without transport (see bench.roofline)."""

from __future__ import annotations

from bench.peers.ring import make_source
from bench.roofline import copy_roofline, decode_roofline
from bench.work import Photos, Rows, Work

RING_BYTES = 600_000_000  # the size of the private destination of copies: 64 batches of 9.6 MB


def rate(work: Work, workers: int, seconds: float) -> float:
    """Samples/s."""
    source = make_source(work)
    if isinstance(work, Photos):
        return decode_roofline(source, workers, seconds)
    assert isinstance(work, Rows)
    return copy_roofline(source, RING_BYTES, workers, seconds)
