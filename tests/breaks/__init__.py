"""Breaks: small changes of ringload's code, each of which undoes what protects against one kind of fault, and the tests that
have to fail then. A fault that is injected proves something only where its absence of harm is somebody's merit.

`python -m tests.breaks [--only PATTERN]` tries them, one at a time, each on a copy (see `__main__`). The tables are beside
this file, one a theme; `tests/test_breaks.py` keeps them true: each text is found once, each row of RELIABILITY.md and each
file of fault tests has a break.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """In `file` of ringload/, `old`, which is there exactly once, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Break:
    """What is undone, in words; how; and what is to show it.

    rows: regular expressions for the rows of RELIABILITY.md's table whose protection this is.
    tests: each of them, or one of its parametrizations, has to fail, and say what `says`, a regular expression, finds.
    limit_s: of one test. One that takes longer hangs, and fails by "Timeout".
    has_alarms: its test sets alarms of its own, so that pytest as a whole is ended when it hangs.
    """

    name: str
    rows: tuple[str, ...]
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    says: str
    limit_s: float = 30.0
    has_alarms: bool = False


def broken(source: str, edit: Edit) -> str:
    """The text of a module after an edit.

    Raises:
        ValueError: what is to be replaced is not there once.
    """
    if (n := source.count(edit.old)) != 1:
        raise ValueError(f"{edit.file} has this {n} times, not once:\n{edit.old}")
    return source.replace(edit.old, edit.new)
