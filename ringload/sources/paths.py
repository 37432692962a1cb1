"""The paths of a table: where relative paths start, and the messages for paths that cannot be read.

    /data/1.jpg     an absolute path
    ~/1.jpg         in the user's home directory; ~name/1.jpg in that of another user (~1.jpg is a plain name)
    a/1.jpg         starts at `root`, if it is given; else at the folder of the table's file; else at the working directory
    file:///1.jpg   the path /1.jpg
    s3://b/1.jpg    a key of the storage that is registered for s3. All paths of a table have one scheme. If `root` is a URL,
                    paths that are not URLs start there
    C:\\...         paths of Windows are refused

A table may have millions of paths. So only some, spread over the table, are checked when the table is given, and only a few
files are looked for: the first, and others spread over the table. Errors of the others come when they are loaded.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np

from ringload.checks import short, warn
from ringload.errors import ConfigError
from ringload.log import logged_if_slow
from ringload.sources.columns import URL, folder_of, row_name
from ringload.sources.string_column import Strings
from ringload.storage.registry import LOCAL, SCHEME, factory_of, is_registered, not_registered, scheme_of

if TYPE_CHECKING:
    import pandas as pd

N_CHECKED = 10_000  # paths, at least, if there are as many, that are checked when the table is given: 10 ms
N_LOOKED_FOR = 5  # the first files, which are looked for then,
N_SPREAD = 16  # and files spread over the table: 20 us each on a local disk
MOST_LOOKING_S = 5.0
OF_URLS = "/%?=&+,;:@!$'()*~[]"  # what stays in the names of files below a URL: not "#", which begins no part of a file's name
N_SPREAD_REMOTE = 4  # in place of both, where a storage asks a server: 0.1 s each
URL_BYTES = re.compile(URL.pattern.encode())
WINDOWS = re.compile(rb"[A-Za-z]:[\\/]|\\\\")  # C:\ and C:/, \\server
MIXED = "its scheme is not that of the first path, and all paths of a table must have one scheme"


@dataclass(frozen=True)
class Paths:
    """A column of paths as the table has them, with `root` and `home`, which end in a slash, and the scheme of all of them."""

    names: Strings
    root: bytes
    home: bytes
    scheme: str = LOCAL

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        """The storage's key for a path: the absolute path, or a URL."""
        return os.fsdecode(self._full(self.names[index]))

    def _full(self, name: bytes) -> bytes:
        if self.scheme != LOCAL:
            if SCHEME.match(name):
                return name
            name = name.lstrip(b"/")
            return self.root + (quote(name, safe=OF_URLS).encode() if self.scheme in ("http", "https") else name)
        if name.startswith(b"/"):
            return name
        if name.startswith(b"~"):
            user, slash, rest = name.partition(b"/")
            if slash and (home := self.home if user == b"~" else home_of(user)):
                return home + rest
        return _of_file_url(name) or self.root + name

    def scheme_of(self, index: int) -> str:
        """The scheme of a path; a name that is no URL has that of `root`."""
        name = self.names[index]
        return scheme_of(name if SCHEME.match(name) else self.root)

    def explained(self, error: OSError, index: int) -> OSError:
        """A storage's error for a path; for a local file, with a hint if its name is unusual."""
        if self.scheme != LOCAL:
            return error
        name = self.names[index]
        hint = MIXED if self.scheme_of(index) != LOCAL else _foreign(name)
        if not hint and b"\\" in name:
            hint = "it has backslashes: on Linux, folders are separated by /"
        return OSError(error.errno, f"{error.strerror} ({hint})" if hint else error.strerror, self.key(index))

    def take(self, rows: np.ndarray) -> Paths:
        """The paths of some rows."""
        return replace(self, names=self.names.take(rows))


def paths_of(column: pd.Series[Any], df: Any, root: str | os.PathLike[str] | None) -> Paths:
    """The paths of a column of the table `df`, or of its file.

    Raises:
        ConfigError: a value is no path, or neither a path of this machine nor a URL of a registered storage; or the paths
        in a table's file start at the working directory.
    """
    with logged_if_slow(f"the index of {len(column):,} paths"):
        names = Strings.of(column, f"column {short(column.name)}, row", lambda row: row_name(column, row))
    of_file = folder_of(df)
    if root is not None:
        whence, folder = f"root={short(root)}", root_of(root, is_url_too=True)
    elif of_file is not None:
        whence, folder = "the folder of the table, as no root= is given", of_file
    else:
        whence, folder = "the working directory, as no root= is given", os.getcwd()
    paths = Paths(names, os.path.join(os.fsencode(folder), b""), home_directory())
    paths = replace(paths, scheme=paths.scheme_of(0))
    for row in range(0, len(names), max(1, len(names) // N_CHECKED)):
        if wrong := _wrong(paths, row):
            text = os.fsdecode(names[row])
            raise ConfigError(f"column {short(column.name)} has {short(text)} in row {row_name(column, row)}: {wrong}")
    _look_for_some(paths, column.name, whence, root is None and of_file is not None)
    return paths


def root_of(root: str | os.PathLike[str], is_url_too: bool = False) -> str:
    """The absolute path of the folder `root`; or, if `is_url_too`, a URL whose scheme has a storage.

    Raises:
        ConfigError: `root` is no such folder or URL.
    """
    try:
        path = os.path.expanduser(os.fsencode(root))
    except TypeError as error:
        raise ConfigError(f"root is the path of a folder, not {short(root)}") from error
    scheme = scheme_of(path)
    if scheme == LOCAL:
        wrong = _foreign(path)
    elif not is_registered(scheme):
        wrong = not_registered(scheme)
    else:
        wrong = "" if is_url_too else "only folders of this machine can be searched: give ImageFrame a table of the URLs"
    if wrong:
        raise ConfigError(f"root={short(root)}: {wrong}")
    return os.fsdecode(os.path.abspath(_of_file_url(path) or path) if scheme == LOCAL else path)


def _wrong(paths: Paths, row: int) -> str:
    """The message for a path that the storage of its table cannot read; else ""."""
    scheme = paths.scheme_of(row)
    if not is_registered(scheme):
        return not_registered(scheme)
    if scheme != paths.scheme:
        return MIXED
    return _foreign(paths.names[row]) if scheme == LOCAL else ""


def _foreign(path: bytes) -> str:
    """The message for a path that is neither a URL of a storage nor a path of this machine; else ""."""
    if path.startswith(b"file:/") and not _of_file_url(path):
        return f"give the path itself, {short('/' + os.fsdecode(path).removeprefix('file:').lstrip('/'))}"
    if WINDOWS.match(path):
        return "a path of Windows, and this is Linux: give the paths as they are on this machine, with /"
    if URL_BYTES.match(path) and not SCHEME.match(path):
        scheme = path.partition(b":")[0].decode().lower()
        return "a URL that has lost a slash, as it is a Path: give a str" if is_registered(scheme) else not_registered(scheme)
    return ""


def _of_file_url(path: bytes) -> bytes:
    """The path of a URL file:///...; b"" if it is none."""
    return unquote_to_bytes(path.removeprefix(b"file://")) if path.startswith(b"file:///") else b""


def _look_for_some(paths: Paths, column: Any, whence: str, is_of_file: bool) -> None:
    """Warn if most of a few files do not exist: a wrong root is found now, and not when they are loaded. Some may be missing:
    they may be made later."""
    spread, others = _rows_to_look_for(paths)
    errors = _missing_ones(paths, spread)
    if 2 * len(errors) <= len(spread):
        return
    errors |= _missing_ones(paths, others)
    rows = sorted({*spread, *others})
    is_relative = not paths.names[0].startswith((b"/", b"~", b"file:")) and not SCHEME.match(paths.names[0])
    is_of_file = is_of_file and len(errors) == len(rows) and paths.scheme == LOCAL
    here = [os.path.join(os.getcwdb(), paths.names[row]) for row in rows] if is_of_file and is_relative else []
    if there := [path for path in here if os.path.exists(path)]:
        raise ConfigError(
            f"{short(paths.key(rows[0]))} does not exist, but {short(os.fsdecode(there[0]))} does: relative paths in the file "
            "of a table start at the folder of that file. To start at the working directory, give root='.'"
        )
    start = f"; relative paths start at {whence}" if is_relative else ""
    row = min(errors)
    reason = getattr(errors[row], "strerror", None) or f"{type(errors[row]).__name__}: {errors[row]}"
    if len(errors) < len(rows):
        which = f"{len(errors)} of {len(rows)} files that were looked for in column {short(column)} do not exist"
    else:
        n_first = min(N_LOOKED_FOR, len(rows))
        more = f", nor any of {len(rows) - n_first} others" if len(rows) > n_first else ""
        which = f"none of the first {n_first} files of column {short(column)} exists{more}"
    warn(f"{which}: {reason}: {short(paths.key(row))}{start}. Such samples will be bad samples")


def _rows_to_look_for(paths: Paths) -> tuple[list[int], list[int]]:
    """Rows spread over the table; and the first ones, which a message names."""
    n_spread = N_SPREAD if paths.scheme == LOCAL else N_SPREAD_REMOTE
    spread = np.unique(np.linspace(0, len(paths) - 1, n_spread).astype(np.int64)).tolist()
    return spread, [row for row in range(min(N_LOOKED_FOR, len(paths))) if paths.scheme == LOCAL and row not in spread]


def _missing_ones(paths: Paths, rows: list[int]) -> dict[int, Exception]:
    """The errors of those files that are not there, as far as the storage can tell without reading them."""
    if paths.scheme == LOCAL:
        return {row: error for row in rows if (error := _why_not_there(os.stat, paths, row)) is not None}
    factory = factory_of(paths.scheme)
    kind = factory.func if isinstance(factory, functools.partial) else factory
    if isinstance(kind, type) and not hasattr(kind, "stat"):
        return {}
    found: list[dict[int, Exception]] = []
    thread = threading.Thread(target=lambda: found.append(_missing_remote(factory, paths, rows)), daemon=True)
    thread.start()
    thread.join(MOST_LOOKING_S)  # a server that does not answer is no reason to wait: reading tells
    return found[0] if found else {}


def _missing_remote(factory: Callable[[], Any], paths: Paths, rows: list[int]) -> dict[int, Exception]:
    errors: dict[int, Exception] = {}
    with closing(factory()) as storage:
        look: Any = getattr(storage, "stat", None)
        for row in rows if look is not None else ():
            if (error := _why_not_there(look, paths, row)) is not None:
                errors[row] = error
                if not isinstance(error, FileNotFoundError):
                    return dict.fromkeys(rows, error)  # it would be that of the others, too, after as long a wait
    return errors


def _why_not_there(look: Callable[[str], Any], paths: Paths, row: int) -> Exception | None:
    try:
        look(paths.key(row))
    except OSError as error:
        return paths.explained(error, row)
    except Exception as error:  # whatever a user's storage raises: it is shown
        return error
    return None


def home_directory() -> bytes:
    """The user's home directory, with a slash at its end."""
    return os.path.join(os.path.expanduser(b"~"), b"")


@functools.lru_cache(maxsize=1024)
def home_of(user: bytes) -> bytes | None:
    """The home directory of `~name`, with a slash at its end; None if there is no such user."""
    home = os.path.expanduser(user)
    return None if home == user else os.path.join(home, b"")
