"""The shards that a pattern names.

data/train-000.tar              a file; or a folder, of which all *.tar are taken, in sorted order (`TarStream`: *.tar.gz, too)
data/train-{000..099}.tar       a range of numbers of one width; {a,b} is one of several. Braces may nest
data/*.tar                      a glob, in sorted order; `**` is any number of folders
s3://bucket/{000..099}.tar      a URL whose storage is registered. A storage cannot list, so these have no globs
[..., ...]                      several of these, in their order
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from ringload.checks import listed, short
from ringload.errors import ConfigError
from ringload.storage.registry import LOCAL, is_registered, not_registered, scheme_of

RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_SHARDS = 1_000_000
GLOB = re.compile(r"[*?\[]")


class Shards(NamedTuple):
    """The keys of shards, in their order, and the scheme of their storage."""

    keys: list[str]
    scheme: str


def shards_of(pattern: Any, suffixes: Sequence[str] = (".tar",)) -> Shards:
    """The shards that a pattern, or a list of patterns, names.

    Raises:
        ConfigError: it names none, or names one twice; or its scheme is not registered.
    """
    patterns = [pattern] if isinstance(pattern, str | os.PathLike) else pattern
    if not isinstance(patterns, Sequence) or not all(isinstance(one, str | os.PathLike) for one in patterns) or not patterns:
        raise ConfigError(
            f"pattern is the path of a tar file, a pattern such as '{{000..099}}.tar', or a list, not {short(pattern)}"
        )
    keys: list[str] = []
    schemes = set()
    for text in map(os.fspath, patterns):
        schemes.add(scheme_of(os.fsencode(text)))
        for key in _keys_of(text, suffixes):
            keys.append(key)
            if len(keys) > MAX_SHARDS:
                raise ConfigError(f"pattern {short(text)} names more than {MAX_SHARDS:,} shards")
    if not keys:
        raise ConfigError(f"no shard matches {short(pattern)}")
    if len(schemes) > 1:
        raise ConfigError(f"all shards have one scheme, not {sorted(schemes)}")
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        twice = sorted({key for key in keys if key in seen or seen.add(key)})  # type: ignore[func-returns-value]
        raise ConfigError(f"pattern names shards twice: {listed(twice)}")
    return Shards(keys, schemes.pop())


def _keys_of(text: str, suffixes: Sequence[str]) -> Iterator[str]:
    """The keys of one pattern."""
    if text.startswith("pipe:"):
        raise ConfigError(f"{short(text)}: commands are not run: download the shard, or register a storage for its scheme")
    scheme = scheme_of(os.fsencode(text))
    if scheme != LOCAL:
        if not is_registered(scheme):
            raise ConfigError(f"pattern {short(text)}: {not_registered(scheme)}")
        if GLOB.search(text.partition("?")[0]):
            raise ConfigError(f"pattern {short(text)}: a storage cannot list its shards: give a range, such as {{000..099}}")
        yield from _expanded(text)
        return
    path = os.path.abspath(os.path.expanduser(text.removeprefix("file://")))
    if os.path.isdir(path):
        if not (found := sorted(one for end in suffixes for one in glob.glob(os.path.join(glob.escape(path), f"*{end}")))):
            raise ConfigError(f"the folder {path} has no *{suffixes[0]}")
        yield from found
    elif os.path.exists(path):  # whatever is in its name
        yield path
    else:
        for one in _expanded(path):
            if not GLOB.search(one) or os.path.exists(one):
                yield one
            elif found := sorted(glob.glob(one, recursive=True)):
                yield from found
            else:
                raise ConfigError(f"no file matches {short(one)}")


def _expanded(text: str) -> Iterator[str]:
    """What the braces of a pattern stand for, the last ones changing first."""
    begin = text.find("{")
    if begin < 0:
        yield text
        return
    stop, commas = _closing(text, begin)
    ends = [begin, *commas, stop]
    if commas:
        choices: Iterator[str] = (one for a, b in pairwise(ends) for one in _expanded(text[a + 1 : b]))
    elif match := RANGE.fullmatch(text, begin + 1, stop):
        choices = _numbers(match[1], match[2])
    else:
        raise ConfigError(
            f"pattern {short(text)}: braces hold a range, {{000..099}}, or several texts, {{train,val}}, not "
            f"{short(text[begin + 1 : stop])}"
        )
    for choice in choices:
        for rest in _expanded(text[stop + 1 :]):
            yield text[:begin] + choice + rest


def _closing(text: str, begin: int) -> tuple[int, list[int]]:
    """Where the brace that opens at `begin` closes, and where its own commas are."""
    depth, commas = 0, list[int]()
    for place in range(begin, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place, commas
        if depth == 1 and text[place] == ",":
            commas.append(place)
    raise ConfigError(f"pattern {short(text)}: a brace is not closed")


def _numbers(first: str, last: str) -> Iterator[str]:
    """The numbers of a range, up or down, padded with zeros if one of its ends is."""
    width = max(len(first), len(last)) if any(len(end) > 1 and end[0] == "0" for end in (first, last)) else 0
    if abs(int(last) - int(first)) >= MAX_SHARDS:
        raise ConfigError(f"the range {{{first}..{last}}} names more than {MAX_SHARDS:,} shards")
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
