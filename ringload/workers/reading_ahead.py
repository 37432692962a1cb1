"""A source's `prefetch` and `is_ready`, whose errors end nothing: the samples of that task are loaded without.

What is wrong with a sample is said when it is loaded. That reading ahead fails is said once for each text of an error, by a
warning; where warnings are errors (-W error), on stderr.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import numpy as np

from ringload.workers.fill import reason_of

MAX_SAID = 10  # errors with different texts: they may have the number of a sample


class ReadingAhead:
    """Asks the source of a worker."""

    def __init__(
        self, prefetch: Callable[[np.ndarray], object] | None, is_ready: Callable[[np.ndarray], object] | None
    ) -> None:
        self._prefetch, self._is_ready = prefetch, is_ready
        self._said: set[str] = set()

    def ask(self, indices: np.ndarray) -> None:
        """Have the source begin to read some samples."""
        assert self._prefetch is not None
        try:
            self._prefetch(indices.copy())  # the user's function may sort them, say
        except Exception as error:  # whatever a user's function raises
            self._say(error)

    def has_come(self, indices: np.ndarray) -> bool:
        """Whether samples can be loaded without waiting, or reading them ahead has failed."""
        assert self._is_ready is not None
        try:
            return bool(self._is_ready(indices))
        except Exception as error:  # also of a prefetch() that is a coroutine
            self._say(error)
            return True

    def _say(self, error: Exception) -> None:
        reason = reason_of(error)
        if reason in self._said or len(self._said) == MAX_SAID:
            return
        self._said.add(reason)
        more = " (further errors of this worker are not shown)" if len(self._said) == MAX_SAID else ""
        text = f"samples are loaded without being read ahead: prefetch() or is_ready() raised {reason}{more}"
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:
            sys.stderr.write(f"ringload: {text}\n")
