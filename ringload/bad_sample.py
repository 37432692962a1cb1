"""A bad sample, as a worker reports it: one record, packed and unpacked here."""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_WHERE, MAX_REASON, MAX_TRACEBACK, MAX_NAME = 800, 500, 2000, 200  # characters: they fit into one report
LEFT_OUT, BETWEEN = "(...)\n", " ... "  # in the place of omitted text


@dataclass
class Bad:
    """A sample that could not be loaded.

    `where`: its path, or the source's description. `reason`: one line. `traceback`: of the user's own function, else "".
    `replaced_by`: the sample that was loaded in its place, or -1. `error_class`: (module, qualified name) of the exception,
    each of at most MAX_NAME characters; () if there was no exception, as the sample has killed its worker. `worker_id`: of the
    worker that reported it.
    """

    index: int
    where: str
    reason: str
    traceback: str
    replaced_by: int = -1
    error_class: tuple[str, ...] = ()
    worker_id: int = 0

    def pack(self, max_bytes: int) -> str:
        """All but the index and the worker as JSON of at most `max_bytes`. Texts that are too long are cut; of the traceback
        the end is kept."""
        texts = [self.traceback, self.reason, self.where]
        while True:
            text = json.dumps([*texts, self.replaced_by, self.error_class], ensure_ascii=False)
            if len(text.encode("utf-8", "replace")) <= max_bytes:
                return text
            longest = max(range(3), key=lambda which: len(texts[which]))
            n = 3 * len(texts[longest]) // 4
            texts[longest] = end_of(texts[longest], n) if longest == 0 else texts[longest][:n]

    @classmethod
    def unpack(cls, text: str, index: int, worker_id: int) -> Bad:
        """The inverse of `pack`."""
        traceback, reason, where, replaced_by, error_class = json.loads(text)
        return cls(index, where, reason, traceback, replaced_by, tuple(error_class), worker_id)


def end_of(text: str, n: int) -> str:
    """The text, or only its last lines: at most `n` characters, including the mark for omitted text."""
    if len(text) <= n:
        return text
    lines = text[len(text) - n + len(LEFT_OUT) :].partition("\n")[2]
    return LEFT_OUT + lines if lines else text[len(text) - n :]


def bounded(text: str, n: int) -> str:
    """The text, or its beginning and end: at most `n` characters, including the mark for omitted text."""
    if len(text) <= n:
        return text
    kept = n - len(BETWEEN)
    return text[: kept // 2] + BETWEEN + text[len(text) - (kept - kept // 2) :]
