"""JAX: a loader as an iterable of pytrees of `jax.Array`, on a device or over a sharding.

On CPUs, `jax.device_put` uses an array at an address that is a multiple of 64 bytes, as all arrays of a slot are, without
copying it, and holds it until the last `jax.Array` of it is gone. Then the slot is used again (see `ring.lease`).

On an accelerator, `jax.device_put` returns before the copy is complete. The batch is held here until it is
(`jax.block_until_ready`). If the next batch is already full, its copy is begun before this batch is given, so that it runs
during the trainer's step. (JAX holds the host's array during the copy, too. This module does not depend on that.)

    wait for the copies of k -> end the lease of k -> begin the copies of k+1 -> give k        see `bridge.device_prefetch`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.bridge.device_prefetch import Copy, DevicePrefetcher, PendingTransfers, state_of
from ringload.bridge.field_roles import Names, refuse_unless, roles_of
from ringload.checks import fixed_once_made, in_our_words, short
from ringload.errors import ConfigError, without_frames
from ringload.loader import Loader
from ringload.ring.lease import Batch

try:
    import jax
except ImportError as error:
    raise ImportError("ringload.jax needs JAX: pip install jax") from error


OF_ARRAYS = "A jax.Array of a batch is kept: keep copies (jax.numpy.copy(array)), or make the loader with copy=True"


class Batches:
    """The loader's batches on a device: `for batch in ringload.jax.Batches(loader): step(state, batch)`.

    Each `for` is the loader's next epoch. A batch is a dict of all fields, or `(x,)`, `(x, y)` or `(x, y, weight)`, of
    committed `jax.Array`s. On CPUs they are views of the ring, and valid as long as you keep them. You may donate them to a
    jitted function; that saves no memory.

    JAX supports the dtypes of ml_dtypes (bfloat16, float8, int4), but no strings and no times.

    Without `jax_enable_x64`, JAX has no 64-bit types. 64-bit integers are converted to 32 bits; a value that does not fit
    raises ConfigError, while JAX itself would wrap it. float64 is rounded to float32, and complex128 to complex64; values
    beyond their range become inf. Each conversion makes a copy. To avoid it, give labels as int32 in the source, or call
    `jax.config.update("jax_enable_x64", True)`.

    The error of a bad sample, or of a value that JAX cannot hold, is raised in place of its batch; the same iterator then goes
    on with the next batch.

    Call `state_dict` of this object, not of the loader: on an accelerator the loader may be one batch ahead of the trainer.

    3 slots are enough; on an accelerator two batches are held at a time.

    Arguments:
        device: a `jax.Device`, a `jax.sharding.Sharding`, or a pytree of them that is a prefix of the batch's pytree; None for
            JAX's present default device, of this process. `NamedSharding(mesh, PartitionSpec("data"))` divides the first axis
            among devices, so the batch size must be a multiple of their number: use last="drop" or "pad". If a mesh spans
            several processes, each process makes a loader with `shard=(rank, world)`, which feeds its own devices; a batch then
            consists of the rows of all processes.
        x, y, sample_weight: see `ringload.keras.dataset`; x=None: a dict of all fields.

    Raises:
        ConfigError: a field does not exist, JAX has no such dtype, or a device belongs to another process. While iterating: an
            integer does not fit 32 bits, or processes give different rows where the sharding needs the same rows.
    """

    @in_our_words()
    def __init__(
        self,
        loader: Loader,
        device: Any = None,
        x: Names | None = None,
        y: Names | None = None,
        sample_weight: str | None = None,
    ) -> None:
        self.loader = loader
        self._parts = roles_of(loader, x, y, sample_weight)
        refuse_unless(self._parts, "JAX", has)
        self._device = _default_device() if device is None else device
        self._in_transit = PendingTransfers()
        self._ahead: DevicePrefetcher | None = None  # the present iteration, if batches are copied ahead
        shardings = _shardings(self._device)
        self._is_own = all(one.is_fully_addressable for one in shardings)
        self._is_cpu = {part.platform for one in shardings for part in one.device_set} == {"cpu"}
        self._fixed = ("loader",)

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return f"<ringload.jax.Batches on {short(self._device)} of {self.loader!r}>"

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """One pass, as `iter(loader)`: over the rest of this epoch, or over the next one."""
        if self._ahead is not None:
            self._ahead.end()
        if self._is_cpu:
            return map(self._put, map(self._arranged, self.loader.iterate(OF_ARRAYS)))  # a map goes on after an error
        self._ahead = DevicePrefetcher(self.loader, self._copy, self._in_transit)
        return map(_given, self._ahead)

    def state_dict(self) -> dict[str, Any]:
        """The position of the trainer; a batch that was copied ahead does not count. Can be saved as JSON."""
        return state_of(self.loader, self._ahead)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a position that `state_dict` returned. See `Loader.load_state_dict`, also for what it raises."""
        self.loader.load_state_dict(state)
        if self._ahead is not None:
            self._ahead.end()

    def _arranged(self, batch: Batch) -> Any:
        return self._parts.of({name: narrowed(name, batch[name]) for name in self._parts.names})

    def _put(self, arrays: Any) -> Any:
        if self._is_own:
            return jax.device_put(arrays, self._device)
        made = jax.make_array_from_process_local_data(jax.tree.map(_as_sharding, self._device), arrays)
        for array, whole in zip(jax.tree.leaves(arrays), jax.tree.leaves(made), strict=True):
            self._check_whole(array, whole)
        return made

    def _check_whole(self, array: np.ndarray, whole: jax.Array) -> None:
        """Check the array that all processes made together: JAX itself accepts any share of it from each process."""
        if axes := [axis for axis in range(1, array.ndim) if whole.shape[axis] != array.shape[axis]]:
            raise ConfigError(
                f"{whole.sharding} divides axis {axes[0]} among processes, but each has whole samples: divide the first axis"
            )
        world = self.loader.order.world
        if world > 1 and not whole.is_fully_addressable and len(whole) == len(array):
            raise ConfigError(
                f"{whole.sharding} needs the same rows in several processes, but shard={self.loader.order.rank, world} gives "
                "each process other rows: divide the first axis among the processes, or make each Loader with shard=(0, 1)"
            )

    def _copy(self, batch: Batch) -> Copy:
        try:
            return _Transfer(self._arranged(batch), self._put)
        except ConfigError as error:
            return _FailedTransfer(without_frames(error))  # frames would keep the batch


class _Transfer:
    """The copy of a batch to an accelerator: see `device_prefetch.Copy`."""

    def __init__(self, arrays: Any, put: Callable[[Any], Any]) -> None:
        self._arrays, self._put = arrays, put
        self._sent: Any = None

    def begin(self) -> None:
        try:
            self._sent = self._put(self._arrays)
        except BaseException:
            self._arrays = None
            raise

    def done(self) -> bool:
        if self._arrays is not None and all(array.is_ready() for array in jax.tree.leaves(self._sent)):
            self._arrays = None
        return self._arrays is None

    def wait(self) -> None:
        if self._arrays is not None:
            jax.block_until_ready(self._sent)
            self._arrays = None

    def receive(self) -> Any:
        self.wait()  # now, because after a donation by the trainer it is unknown whether the copy is complete
        return self._sent


class _FailedTransfer:
    """Stands for a batch that JAX cannot hold: nothing is copied, and its error is raised when the batch is due."""

    def __init__(self, error: ConfigError) -> None:
        self._error = error

    def begin(self) -> None: ...

    def done(self) -> bool:
        return True

    def wait(self) -> None: ...

    def receive(self) -> ConfigError:
        return self._error


def _given(received: Any) -> Any:
    if isinstance(received, ConfigError):
        try:
            raise received
        finally:
            del received  # breaks the cycle of error, traceback and frame
    return received


def _default_device() -> jax.Device:
    chosen: Any = jax.config.jax_default_device
    if isinstance(chosen, str):  # the name of a platform
        return jax.local_devices(backend=chosen)[0]
    return chosen or jax.local_devices()[0]


def _as_sharding(device: Any) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(device) if isinstance(device, jax.Device) else device


def _shardings(device: Any) -> list[jax.sharding.Sharding]:
    """The leaves of a pytree of devices and shardings, as shardings."""
    found = []
    for one in jax.tree.leaves(device):
        if not isinstance(one, jax.Device | jax.sharding.Sharding):
            raise ConfigError(f"device is a jax.Device, a jax.sharding.Sharding, or a pytree of them, not {short(device)}")
        found.append(_as_sharding(one))
        if not found[-1].addressable_devices:
            raise ConfigError(f"{one} belongs to another process: choose from jax.local_devices()")
    return found


def has(dtype: np.dtype[Any]) -> bool:
    """Whether JAX supports a dtype: numbers of the machine's byte order, and those of ml_dtypes."""
    try:
        jax.eval_shape(lambda array: array, np.empty(0, dtype))
    except TypeError:
        return False
    return True


def narrowed(name: str, array: np.ndarray) -> np.ndarray:
    """The array, or a copy in the dtype to which JAX's settings limit it."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ConfigError(
                f"field {name!r} is {array.dtype} and holds {array.max()} or {array.min()}, which {dtype} cannot hold: without "
                'jax_enable_x64, JAX has no 64-bit types. Call jax.config.update("jax_enable_x64", True)'
            )
    return array.astype(dtype)
