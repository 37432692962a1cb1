"""The positions of batches in an order: (epoch, number)."""

from __future__ import annotations

from ringload.order.explicit import ENDLESS
from ringload.order.loader_order import LoaderOrder
from ringload.protocols import Order


def following(order: Order, epoch: int, number: int) -> tuple[int, int]:
    """The position after batch `number` of `epoch`."""
    return (epoch, number + 1) if number + 1 < order.n_batches(epoch) else (epoch + 1, 0)


def is_endless(order: LoaderOrder, epoch: int) -> bool:
    """Whether an epoch has no end, so that a framework has to be told where its own epochs end."""
    return order.n_positions(epoch) == ENDLESS
