"""JAX: `for batch in ringload.jax.Batches(loader, sharding)`. See `ringload.adapters.jax`."""

from ringload.adapters.jax import Batches

__all__ = ["Batches"]
