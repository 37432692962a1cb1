"""The positions of batches in an order: (epoch, number)."""

from __future__ import annotations

from ringload.protocols import Order


def following(order: Order, epoch: int, number: int) -> tuple[int, int]:
    """The position after batch `number` of `epoch`."""
    return (epoch, number + 1) if number + 1 < order.n_batches(epoch) else (epoch + 1, 0)
