"""JAX: a loader as an iterable of pytrees of `jax.Array`, on a device or over a sharding.

On CPUs `jax.device_put` takes an array that lies at a multiple of 64 bytes, as all of a slot do, where it lies, and holds it
until the last `jax.Array` of it is gone; the slot is used again then (see `ring.lease`). So there is nothing to wait for.

On an accelerator it copies, later than it returns. Then the batch is held here until the copies are there
(`jax.block_until_ready`), and the next batch, if it is full already, is sent before this one is given, so that a copy runs
beside a step. (JAX holds the host's array during the copy, too, as it must for any array; that is not relied on.)

    wait for the copies of k -> end the lease of k -> send k+1 -> give k        see `bridge.device_prefetch`
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
    committed `jax.Array`s. On CPUs they look into the ring, for as long as they are alive; donating them to a jitted function
    is safe and saves nothing.

    JAX has the dtypes of ml_dtypes, too (bfloat16, float8, int4); it has no strings and no times.

    Without `jax_enable_x64`, JAX has no 64-bit types. Integers of 64 bits become those of 32, and a value that does not fit
    raises ConfigError, where JAX would wrap it; float64 is rounded to float32, and complex128 to complex64, what is beyond
    their range to inf. All are copies, so labels are best made int32 by the source, or
    `jax.config.update("jax_enable_x64", True)` is set.

    A bad sample, or a value that JAX cannot hold, raises in place of its batch; who goes on with the same iterator gets the
    batches after it.

    Ask it, not the loader, for the state: on an accelerator the loader may be one batch ahead of what was given.

    Slots: 3 are enough; on an accelerator two batches are held at a time.

    Arguments:
        device: a `jax.Device`, a `jax.sharding.Sharding`, or a pytree of them that is a prefix of a batch's; None for what is
            JAX's default device now, which is one of this process. `NamedSharding(mesh, PartitionSpec("data"))` divides
            batches among devices along the first axis, which their number must divide: use last="drop" or "pad". Where a
            mesh goes over several processes, each makes a loader with `shard=(rank, world)` and feeds the devices of its
            own: a batch has the rows of all of them.
        x, y, sample_weight: as `ringload.keras.dataset` has them; x=None: a dict of all fields.

    Raises:
        ConfigError: there is no such field, JAX has no such dtype, or a device is another process's; or, while iterating, an
            integer does not fit 32 bits, or processes would put different rows where the sharding wants the same.
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
        self._ahead: DevicePrefetcher | None = None  # the present iteration, if it sends ahead
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
        """One pass over what is left of this epoch, or over the next one, as the loader has it."""
        if self._ahead is not None:
            self._ahead.end()
        if self._is_cpu:
            return map(self._put, map(self._arranged, self.loader.iterate(OF_ARRAYS)))  # which go on after an error
        self._ahead = DevicePrefetcher(self.loader, self._copy, self._in_transit)
        return map(_given, self._ahead)

    def state_dict(self) -> dict[str, Any]:
        """Where the trainer is: what it was given, not what was sent ahead. JSON can hold it."""
        return state_of(self.loader, self._ahead)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the batches were that gave `state`; raises as `Loader.load_state_dict` does."""
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
        """Whether what all processes made together is what was meant: JAX takes any share of an array from each."""
        if axes := [axis for axis in range(1, array.ndim) if whole.shape[axis] != array.shape[axis]]:
            raise ConfigError(
                f"{whole.sharding} divides axis {axes[0]} among processes, of which each has whole samples: divide the first"
            )
        world = self.loader.order.world
        if world > 1 and not whole.is_fully_addressable and len(whole) == len(array):
            raise ConfigError(
                f"{whole.sharding} wants the same rows in several processes, and shard={self.loader.order.rank, world} gives "
                "each its own: divide the first axis among them, or give each process the same loader, with shard=(0, 1)"
            )

    def _copy(self, batch: Batch) -> Copy:
        try:
            return _Sent(self._arranged(batch), self._put)
        except ConfigError as error:
            return _Refused(without_frames(error))  # which hold the batch


class _Sent:
    """A batch on its way to an accelerator: see `device_prefetch.Copy`."""

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
        self.wait()  # not later: the trainer may donate them, and then nothing tells when they are there
        return self._sent


class _Refused:
    """In place of a batch that JAX cannot hold: nothing is sent, and its error is raised in its turn."""

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
            del received  # or it would hold this frame, which holds it
    return received


def _default_device() -> jax.Device:
    chosen: Any = jax.config.jax_default_device
    if isinstance(chosen, str):  # a platform
        return jax.local_devices(backend=chosen)[0]
    return chosen or jax.local_devices()[0]


def _as_sharding(device: Any) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(device) if isinstance(device, jax.Device) else device


def _shardings(device: Any) -> list[jax.sharding.Sharding]:
    """What a pytree of devices and shardings holds."""
    found = []
    for one in jax.tree.leaves(device):
        if not isinstance(one, jax.Device | jax.sharding.Sharding):
            raise ConfigError(f"device is a jax.Device, a jax.sharding.Sharding, or a pytree of them, not {short(device)}")
        found.append(_as_sharding(one))
        if not found[-1].addressable_devices:
            raise ConfigError(f"{one} belongs to another process: jax.local_devices() are those of this one")
    return found


def has(dtype: np.dtype[Any]) -> bool:
    """Whether JAX has a dtype: numbers of the machine's byte order, those of ml_dtypes too."""
    try:
        jax.eval_shape(lambda array: array, np.empty(0, dtype))
    except TypeError:
        return False
    return True


def narrowed(name: str, array: np.ndarray) -> np.ndarray:
    """The array, or a copy as JAX's setting has it."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    if array.dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ConfigError(
                f"field {name!r} is {array.dtype} and holds {array.max()} or {array.min()}, which {dtype} cannot: without "
                'jax_enable_x64 JAX has no more than 32 bits. Set jax.config.update("jax_enable_x64", True)'
            )
    return array.astype(dtype)
