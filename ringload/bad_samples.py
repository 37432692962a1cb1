"""The bad samples of a loader: counted, listed, and raised if the user has asked for that."""

from __future__ import annotations

from collections.abc import Sequence

from ringload.bad_sample import Bad
from ringload.errors import SampleError, TooManyBadSamplesError
from ringload.protocols import Observer

MAX_NAMED = 1000  # the most bad samples that `named` lists; all are counted


class BadSamples:
    """Judges bad samples by `on_error` ("raise", "skip" or "replace") and `max_bad`."""

    def __init__(self, on_error: str, max_bad: int, observers: Sequence[Observer]) -> None:
        self._on_error, self._max_bad, self._observers = on_error, max_bad, observers
        self.n = 0
        self.named: list[Bad] = []

    def judge(self, bad: list[tuple[int, Bad]]) -> None:
        """Count the bad samples of a batch, (task, bad), by rows.

        Raises:
            SampleError, TooManyBadSamplesError: as `on_error` and `max_bad` say.
        """
        for one in _by_rows(bad):
            self.n += 1
            if len(self.named) < MAX_NAMED:
                self.named.append(one)
            is_raised = self._is_raised(one)
            outcome = "raised" if is_raised else "replaced" if one.replaced_by >= 0 else "skipped"
            for observer in self._observers:
                observer.on_bad(one, outcome)
            self._refuse(one)
            if self.n > self._max_bad:
                text = f"{self.n} samples were bad, more than max_bad={self._max_bad}; the last: {_text(one)}"
                raise _error(TooManyBadSamplesError, text, one)

    def refuse(self, bad: list[tuple[int, Bad]]) -> None:
        """Check a batch that is looked at and not received: nothing is counted.

        Raises:
            SampleError: as `on_error` says.
        """
        for one in _by_rows(bad):
            self._refuse(one)

    def _is_raised(self, bad: Bad) -> bool:
        return self._on_error == "raise" or (self._on_error == "replace" and bad.replaced_by < 0)

    def _refuse(self, bad: Bad) -> None:
        if self._is_raised(bad):
            extra = "" if self._on_error == "raise" else "; none of the samples tried in its place could be loaded"
            raise _error(SampleError, f"{_text(bad)}{extra}", bad)


def _by_rows(bad: list[tuple[int, Bad]]) -> list[Bad]:
    """The bad samples of a batch in the order of rows, not of reports."""
    return [one for _, one in sorted(bad, key=lambda pair: pair[0])]


def _text(bad: Bad) -> str:
    where = f" ({bad.where})" if bad.where else ""
    text = f"\n{bad.traceback}" if bad.traceback else ""
    return f"sample {bad.index}{where}: {bad.reason}{text}"


def _error(kind: type[SampleError], message: str, bad: Bad) -> SampleError:
    return kind(message, index=bad.index, where=bad.where, reason=bad.reason, traceback=bad.traceback)
