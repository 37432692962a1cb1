"""PyTorch: `ringload.torch.Batches(loader, device)` gives a loader's batches as tensors; `ringload.torch.DataLoader` replaces
`torch.utils.data.DataLoader`; `ringload.torch.prepare(accelerator, loader)` gives either to Hugging Face's Accelerate. See
`ringload.torch.batches`, `ringload.torch.dataloader.loader` and `ringload.torch.accelerate`."""

from __future__ import annotations

from typing import Any

try:
    import msgspec  # noqa: F401
    import torch  # noqa: F401
    import typing_extensions  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ringload.torch needs PyTorch, msgspec and typing_extensions ({error}): pip install torch msgspec typing_extensions"
    ) from error

from ringload.loader import Loader
from ringload.torch.batches import Batches
from ringload.torch.dataloader.loader import DataLoader

__all__ = ["Batches", "DataLoader", "prepare", "skip_first_batches"]


def prepare(accelerator: Any, loader: Loader | Batches[Any] | DataLoader[Any]) -> Any:
    """Give a loader to Accelerate, in place of `accelerator.prepare(loader)`: the result is a loader for this accelerator.

        accelerator = accelerate.Accelerator(gradient_accumulation_steps=4)
        loader = ringload.torch.prepare(accelerator, ringload.Loader(source, 64, shard="auto"))
        model, optimizer = accelerator.prepare(model, optimizer)

    `accelerator.prepare` returns a `Loader` or `Batches` as it is, so Accelerate does not know which batch is the last one. Of
    a `ringload.torch.DataLoader` it makes a loader of torch's own class, with a warning.

    A `Loader` or `Batches` loads the share of this rank, as `shard` says. Tensors are on `accelerator.device`. So
    `accumulate`, `skip_first_batches`, `save_state` and `load_state` work; a state may be loaded with any number of ranks.
    After `load_state`, the next `for` goes on within the epoch; `skip_first_batches` counts from the beginning of the epoch,
    and can be used instead. All ranks have the same number of batches, so `even_batches` does nothing. `gather_for_metrics`
    leaves out the sample that comes twice with last="keep" on two ranks; in other cases use last="pad", gather the field
    `valid`, too, and leave out the rows where it is False. An error of a bad sample ends the pass.

    Of a `ringload.torch.DataLoader`, Accelerate shards the sampler, as it does for torch's. Its `skip_first_batches` makes a
    loader of torch's own class of it, for that pass; `ringload.torch.skip_first_batches` keeps it.

    Raises:
        ConfigError: the loader has another shard than the accelerator; the accelerator has split_batches or dispatch_batches;
            `loader` is none of ringload's, or a DataLoader of an IterableDataset. ImportError: Accelerate is not installed.
    """
    return _of_accelerate("prepare").prepare(accelerator, loader)


def skip_first_batches(prepared: Any, n_batches: int) -> Any:
    """As `accelerate.skip_first_batches`, for what `prepare` has returned: a loader of one pass without its first batches. A
    `ringload.torch.DataLoader` stays one.

    Raises:
        ImportError: Accelerate is not installed.
    """
    return _of_accelerate("skip_first_batches").skip_first_batches(prepared, n_batches)


def _of_accelerate(name: str) -> Any:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ringload.torch.{name} needs Accelerate ({error}): pip install accelerate") from error
    from ringload.torch import accelerate as of_ringload

    return of_ringload
