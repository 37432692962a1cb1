"""Several sources as one, in shares: `ringload.mix`.

The samples of a mix are those of its sources, one source after another. Which comes when is said by its
`default_order` (order/mixed.py), which a loader uses that is given no other. A sample is loaded as its source does; fields that
this source lacks get their fill values, and the field `source` gets the number of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ringload.checks import fixed_once_made, in_our_words, listed, short
from ringload.errors import ConfigError
from ringload.fields import Worker, in_brief
from ringload.order.mixed import Mix, Stop, Weights
from ringload.sources import mixed_fields, parts, splits
from ringload.sources.bind import BoundSource, bind
from ringload.sources.fingerprints import Fingerprint, fingerprint_of
from ringload.sources.mixed_fields import SOURCE, column_of_all, common_fields, load_into, load_rows, refuse_unmixable, strata
from ringload.sources.splits import NOT_GIVEN, Augment, How, chosen_rows

PIECE_BYTES = 1 << 20  # rows that are loaded at once, where they do not lie together in the batch


@in_our_words()
def mix(
    sources: Mapping[str, Any],
    weights: Weights | None = None,
    stop: Stop = "first",
    *,
    missing: Mapping[str, Any] | None = None,
) -> Mixed:
    """One source of several, whose samples come in shares.

        source = ringload.mix({"photos": photos, "scans": scans}, weights={"photos": 0.7, "scans": 0.3})
        with ringload.Loader(source, 64) as loader: ...

    The number of samples of a source among the first P positions of an epoch is within one of P times its share (for 5 sources
    or more whose shares are no multiples of 1/4096: within 1.3, as far as was tried). Each source goes through its samples in
    random order again and again: each sample once, before any comes twice. The next epoch goes on in each source where this one
    ends. A sample may come twice in an epoch, so its augmentation depends on its position. `Loader(shuffle=False)` keeps the
    order of each source.

    `batch["source"]` `() int64` is the number of each sample's source in `sources`; `source.names[number]` its name.

    Arguments:
        sources: name -> source. Functions are given as `ringload.FunctionSource`.
        weights: name -> its weight, in proportion, 0 or more; None: by the sizes, so that all samples come equally often. Or a
            schedule: a function of the number of samples that have come before, of all ranks and all epochs, which returns
            such a dict. It has to return the same whenever it is called, on each rank. It is called at multiples of 8,192
            samples, some of them ahead, and is in force for these; counts are then within two of the sum of the shares.
        stop: where an epoch ends: "first": when the first source would begin again; "longest": when each source has been gone
            through; "never": the first epoch has no end (give Keras steps_per_epoch), and one after a `break` begins anew.
        missing: field -> fill value, a number or an array of the field's shape, for fields that some sources lack.

    Raises:
        ConfigError: the fields do not agree, or an argument is not valid.
    """
    return Mixed(sources, weights, stop, missing)


class Mixed:
    """What `ringload.mix` returns.

    Attributes: `sources`, name -> source; `names`, in the order of their numbers; `fields`; `rows`, of each sample, its row in
    its source. `subset`, `split` and `folds` make mixes of parts of the sources, with the same weights.
    """

    def __init__(self, sources: Any, weights: Any, stop: Stop, missing: Any) -> None:
        if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) for name in sources):
            raise ConfigError(f"mix: sources are a dict, name -> source, not {short(sources)}")
        self.sources, self.names = dict(sources), list(sources)
        self._bounds = [_bound(name, source) for name, source in sources.items()]
        self._missing = {} if missing is None else missing
        self.fields, self._fills = common_fields(self.sources, self._missing)
        self._starts = np.concatenate([[0], np.cumsum([len(source) for source in sources.values()])])
        self._stop, self._weights = stop, dict(weights) if isinstance(weights, Mapping) else weights
        self.default_order = Mix(self.names, np.diff(self._starts).tolist(), self._weights, stop)
        self._fixed = ("sources", "names", "fields", "default_order")

    if not TYPE_CHECKING:
        __setattr__ = fixed_once_made

    def __repr__(self) -> str:
        return in_brief(self, f"mix of {', '.join(self.names)}")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_bounds"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _bounds=[bind(source) for source in state["sources"].values()])

    # -- loading ------------------------------------------------------------------------------------------------------

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source of each sample, its number there): two `(n,) int64`."""
        which = np.searchsorted(self._starts, indices, side="right") - 1
        return which, indices - self._starts[which]

    def load(self, index: int, rng: Any, out: Any) -> Any:
        """Load a sample as its source does."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        bound, within = self._bounds[which], index - int(self._starts[which])
        for name, fill in self._fills[which].items():
            out[name][...] = fill
        out[SOURCE][...] = which
        if bound.load is not None:
            return bound.load(within, rng if bound.random else None, out.only(bound.names))
        load_rows(bound, np.array([within]), [rng], {name: out[name][None] for name in bound.names})
        return None

    @property
    def load_rows(self) -> Callable[..., None] | None:
        """Loads several samples at once, if all sources do."""
        return self._load_rows if all(bound.load_rows is not None for bound in self._bounds) else None

    def _load_rows(self, indices: np.ndarray, rngs: Any, out: dict[str, np.ndarray]) -> None:
        which, within = self._places(indices)
        out[SOURCE][...] = which
        for number in np.unique(which).tolist():
            bound, places = self._bounds[number], np.flatnonzero(which == number)
            for name, fill in self._fills[number].items():
                out[name][places] = fill
            n = max(1, PIECE_BYTES // sum(self.fields[name].row_bytes for name in bound.names))
            for start in range(0, len(places), n):
                load_into(bound, places[start : start + n], within, rngs, out)

    @property
    def prefetch(self) -> Callable[[np.ndarray], None] | None:
        """Begins to read, for those sources that do so."""
        return self._prefetch if any(bound.prefetch is not None for bound in self._bounds) else None

    def _prefetch(self, indices: np.ndarray) -> None:
        for ask, within in self._methods("prefetch", indices):
            ask(within)

    def is_ready(self, indices: np.ndarray) -> bool:
        """Whether samples can be loaded without waiting, as far as sources tell."""
        return all(ask(within) for ask, within in self._methods("is_ready", indices))

    def forget(self, indices: np.ndarray) -> None:
        """Let go of what was read ahead, and not used."""
        for tell, within in self._methods("forget", indices):
            tell(within)

    def _methods(self, name: str, indices: np.ndarray) -> Iterator[tuple[Callable[[np.ndarray], Any], np.ndarray]]:
        which, within = self._places(indices)
        for number, bound in enumerate(self._bounds):
            if (method := getattr(bound, name)) is not None and (which == number).any():
                yield method, within[which == number]

    def start(self, worker: Worker) -> None:
        """Prepare to load in a worker. What the other sources have read ahead is not for a source to use."""
        for bound in self._bounds:
            others = self.ahead_bytes - bound.ahead_bytes
            most = None if worker.max_bytes is None else worker.max_bytes - others
            bound.start(replace(worker, scratch_bytes=worker.scratch_bytes - others, max_bytes=most))

    def describe(self, index: int) -> str:
        """The name of the source, and what it says."""
        (which,), (within,) = self._places(np.array([index]))
        return f"{self.names[which]}: {self._bounds[which].describe(int(within)) or f'sample {within}'}"

    @property
    def ahead_bytes(self) -> int:
        """What all sources keep between samples."""
        return sum(bound.ahead_bytes for bound in self._bounds)

    @property
    def scratch_bytes(self) -> int:
        """What the largest sample of any source takes, and what all sources keep."""
        return self.ahead_bytes + max(bound.scratch_bytes - bound.ahead_bytes for bound in self._bounds)

    @property
    def refuses_large(self) -> bool:
        """Whether all sources do that have large samples: for one that does not, memory is set aside for all."""
        large = [bound.refuses_large for bound in self._bounds if bound.scratch_bytes]
        return bool(large) and all(large)

    threads = property(lambda self: min(bound.threads for bound in self._bounds))
    random = property(lambda self: any(bound.random for bound in self._bounds))
    global_random = property(lambda self: any(bound.global_random for bound in self._bounds))
    calls_user_code = property(lambda self: any(bound.calls_user_code for bound in self._bounds))
    is_own = property(lambda self: all(bound.is_own for bound in self._bounds))
    with_caches = mixed_fields.with_caches

    # -- what is known of its samples ---------------------------------------------------------------------------------

    @property
    def rows(self) -> np.ndarray:
        """Of each sample, its row in the table or the arrays of its source: `(N,) int64`."""
        return self.rows_of(np.arange(len(self)))[1]

    def rows_of(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the source, row there) of samples: two `(n,) int64`."""
        which, within = self._places(indices)
        rows = np.empty_like(within)
        for number, bound in enumerate(self._bounds):
            rows[which == number] = bound.rows_of(within[which == number])
        return which, rows

    def column(self, name: str) -> np.ndarray:
        """The values `(N,)` of a column that all sources have, one source after another; or of the field `source`.

        Raises:
            ConfigError: a source has no such column.
        """
        if name == SOURCE:
            return np.repeat(np.arange(len(self.names)), np.diff(self._starts))
        return column_of_all(self.sources, name)

    def fingerprint(self) -> Fingerprint:
        """This source in a loader's state: those of all sources, and their sizes."""
        return {"kind": "mix", "sources": [[name, len(one), fingerprint_of(one)] for name, one in self.sources.items()]}

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def augmentation(self) -> dict[str, Any]:
        """Name of a source -> its augmentation, of those that say."""
        return {name: getattr(source, "augmentation", {}) for name, source in self.sources.items()}

    def subset(self, indices: Sequence[int] | np.ndarray) -> Mixed:
        """A mix of parts of the sources, with the same weights: of each source, the samples that are in `indices`, in that
        order; or those where a mask of bools is True.

        Raises:
            ConfigError: `indices` are empty or not valid, or leave nothing of a source.
        """
        which, within = self._places(chosen_rows(indices, len(self)))
        if empty := [name for number, name in enumerate(self.names) if not (which == number).any()]:
            raise ConfigError(f"mix: the part has no samples of the sources {listed(empty)}: give each source some")
        return self._with(
            {name: parts.as_part(one).subset(within[which == k]) for k, (name, one) in enumerate(self.sources.items())}
        )

    def plain(self, transform: Any = NOT_GIVEN) -> Mixed:
        """A mix of the sources without augmentation where possible. `transform`: see `ImageFrame.without_augmentation`."""
        images = [name for name, one in self.sources.items() if getattr(one, "augmentation", {})]
        given = {name: transform if name in images or not images else NOT_GIVEN for name in self.names}
        return self._with({name: parts.as_part(one).plain(given[name]) for name, one in self.sources.items()})

    def _with(self, sources: dict[str, Any]) -> Mixed:
        return Mixed(sources, self._weights, self._stop, self._missing)

    @in_our_words()
    def split(
        self,
        fraction: float | Sequence[float],
        seed: int = 0,
        by: Any = None,
        how: How = "stratify",
        *,
        augment: Augment = "first",
        eval_transform: Any = NOT_GIVEN,
    ) -> tuple[Mixed, ...]:
        """Two mixes or more, of parts of the sources: see `ringload.Part.split`. But with how="group", each has its share of
        each source."""
        options: dict[str, Any] = {"augment": augment, "eval_transform": eval_transform}
        made: tuple[Mixed, ...] = splits.split(self, fraction, seed, _strata(self, by, how), how, **options)
        return made

    @in_our_words()
    def folds(
        self,
        k: int,
        seed: int = 0,
        by: Any = None,
        how: How = "stratify",
        *,
        augment: Augment = "first",
        eval_transform: Any = NOT_GIVEN,
    ) -> list[tuple[Mixed, Mixed]]:
        """`k` pairs (train, validation) of mixes: see `ringload.Part.folds`."""
        return splits.folds(self, k, seed, _strata(self, by, how), how, augment=augment, eval_transform=eval_transform)


def _strata(mixed: Mixed, by: Any, how: How) -> Any:
    """What to stratify or group by, `(N,)`: source and value."""
    values = splits.values_of(mixed, by, how)
    return values if how == "group" else strata(mixed.column(SOURCE), values)


def _bound(name: str, source: Any) -> BoundSource:
    """A source of a mix, bound."""
    what = f"mix: source {name!r}"
    bound = parts.checked(source, what)
    if isinstance(source, Mixed):
        raise ConfigError(
            f"{what} is a mix itself, whose weights would be lost: give its sources to this one, with their weights"
        )
    refuse_unmixable(bound, what)
    return bound
