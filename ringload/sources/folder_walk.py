"""The walk through folders of images, one a class.

A folder with links is a graph and no tree: a link to a folder above makes a ring. First each class is walked without its links:
these folders are its own. Then its links are followed, in sorted order.
Guarantees:
1. The walk ends: for one class no folder (st_dev, st_ino) is walked twice.
2. A link to the root, to a folder above it, or to one of another class's own is passed over, and a warning names it.
3. A file (st_dev, st_ino) is one sample of a class, whatever the number of its links and hard links there. Its name is one
   without a link, if there is one; else the first in sorted order.
4. A file that is in two classes, by links or hard links, is a sample of each, and a warning names it.
5. A link that leads nowhere is named by a warning; if it is called as images are, it is a sample, and a bad one.
6. Files that are not called as images are, and not hidden, are counted, and a warning tells how many of which suffix there are.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ringload.checks import listed, warn
from ringload.errors import ConfigError
from ringload.images.formats import SUFFIXES

MAX_NAMED, MAX_SUFFIX = 5, 20  # suffixes of files that are passed over, and characters of one

Key = tuple[int, int]  # st_dev, st_ino


@dataclass
class _Class:
    """What was found of one class: paths from the root on, and the files' numbers as their folders tell them."""

    paths: list[str] = field(default_factory=list)
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    by_link: bytearray = field(default_factory=bytearray)  # whether a link leads there
    broken: list[str] = field(default_factory=list)  # links that lead nowhere, and are called as images are
    links: list[str] = field(default_factory=list)  # to be followed
    walked: set[Key] = field(default_factory=set)

    def add(self, path: str, inode: int, by_link: bool) -> None:
        self.paths.append(path)
        self.inodes.append(inode)
        self.by_link.append(by_link)


class Walk:
    """Finds the images of a folder of classes."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links
        self._above = {_key(os.stat(path)) for path in _with_parents(os.path.realpath(root))}
        self._owner: dict[Key, str] = {}  # a folder without links -> its class
        self._passed: list[str] = []  # links, by guarantee 2
        self._nowhere: list[str] = []
        self._no_images: Counter[str] = Counter()  # files by their suffix

    def class_folders(self) -> list[str]:
        """The names of the classes, sorted. A link to what is no class's own, or to another class, is none."""
        with _entries(self._root) as entries:
            shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
        plain = [entry.name for entry in shown if entry.is_dir(follow_symlinks=False)]
        owners = {_key(os.stat(os.path.join(self._root, name))): name for name in plain}
        linked = []
        for entry in shown:
            if not self._follow_links or not entry.is_symlink():
                continue
            status = self._status(entry.name)
            if status is None or not stat.S_ISDIR(status.st_mode):
                continue
            key = _key(status)
            if (other := owners.get(key)) in linked:
                raise ConfigError(f"in {self._root}, {other} and {entry.name} are links to one folder: a folder is one class")
            if key in self._above or other is not None:
                self._passed.append(entry.name)
                continue
            owners[key] = entry.name
            linked.append(entry.name)
        self._owner = owners
        return sorted(plain + linked)

    def images(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The images of each class, as paths from the root on, sorted.

        Raises:
            ConfigError: a class has none, or a folder cannot be read.
        """
        classes = {name: _Class() for name in names}
        for name, one in classes.items():
            self._walk(name, one, name, os.path.islink(os.path.join(self._root, name)), is_own=True)
        for name, one in classes.items():
            while self._follow_links and one.links:
                links, one.links = sorted(one.links), []
                for link in links:
                    self._follow(link, one, name)
        several = _in_two_classes(list(classes.values()), self._root)
        for name, one in classes.items():
            _keep_once(one, self._root)
            if not one.paths and not one.broken:
                raise ConfigError(f"{os.path.join(self._root, name)} holds no image ({', '.join(SUFFIXES)})")
        self._tell(several)
        return {name: sorted(one.paths + one.broken) for name, one in classes.items()}

    def _walk(self, start: str, one: _Class, name: str, by_link: bool, is_own: bool) -> None:
        """Note the images and the links of a folder, and of the folders in it, for class `name`."""
        left = [start]
        while left:
            path = left.pop()
            with _entries(os.path.join(self._root, path)) as entries:
                key = _key(os.stat(os.path.join(self._root, path)))
                if is_own:
                    self._owner.setdefault(key, name)
                elif key in one.walked:
                    continue
                elif key in self._above or self._owner.get(key, name) != name:
                    self._passed.append(path)
                    continue
                one.walked.add(key)
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    inner = f"{path}/{entry.name}"
                    if entry.is_symlink():
                        one.links.append(inner)
                    elif entry.is_dir(follow_symlinks=False):
                        left.append(inner)
                    elif _is_image(entry.name):
                        one.add(inner, entry.inode(), by_link)
                    else:
                        self._no_images[_suffix(entry.name)] += 1

    def _follow(self, link: str, one: _Class, name: str) -> None:
        status = self._status(link)
        if status is None:
            if _is_image(link):
                one.broken.append(link)
        elif stat.S_ISDIR(status.st_mode):
            self._walk(link, one, name, by_link=True, is_own=False)
        elif _is_image(link):
            one.add(link, status.st_ino, by_link=True)
        else:
            self._no_images[_suffix(link)] += 1

    def _status(self, link: str) -> os.stat_result | None:
        """Of what a link leads to; None if that is nowhere."""
        try:
            return os.stat(os.path.join(self._root, link))
        except OSError:
            self._nowhere.append(link)
            return None

    def _tell(self, several: list[tuple[str, str]]) -> None:
        if self._passed:
            warn(
                f"in {self._root}, links to folders above or to those of another class are passed over: "
                f"{listed(self._passed)}. follow_links=False passes over all links"
            )
        if self._nowhere:
            warn(
                f"in {self._root}, links lead nowhere: {listed(self._nowhere)}. Those that are called as images are bad samples"
            )
        if several:
            shown = listed([f"{first} = {second}" for first, second in several])
            warn(
                f"in {self._root}, {len(several):,} files are in two classes, by links: {shown}. Each is a sample of both. "
                "follow_links=False leaves links out"
            )
        if n_files := self._no_images.total():
            named = self._no_images.most_common(MAX_NAMED)
            words = [f"{n:,} of {suffix}" for suffix, n in named]
            if n_others := n_files - sum(n for _, n in named):
                words.append(f"and {n_others:,} others")
            warn(
                f"{n_files:,} files in {self._root} are passed over, since their names do not end as those of images do: "
                f"{', '.join(words)}"
            )


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()[:MAX_SUFFIX] or "no suffix"


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def _with_parents(path: str) -> list[str]:
    paths = [path]
    while paths[-1] != os.path.dirname(paths[-1]):
        paths.append(os.path.dirname(paths[-1]))
    return paths


def _entries(folder: str) -> Any:
    try:
        return os.scandir(folder)
    except OSError as error:
        raise ConfigError(f"cannot read the folder {folder}: {error.strerror}") from error


def _twice(inodes: np.ndarray, paths: Sequence[str], by_link: Sequence[int], root: str) -> list[list[int]]:
    """Which of some files are the same: groups of two or more, names without a link first.

    Only those that have a number in common are looked at. Some file systems give a number to several files: of two names
    without a link, the file says that it has them (st_nlink).
    """
    order = np.argsort(inodes, kind="stable")
    same = np.zeros(len(order) + 1, bool)
    same[1:-1] = np.diff(inodes[order]) == 0
    groups: dict[Key, list[int]] = {}
    n_names: dict[Key, int] = {}
    for i in order[same[1:] | same[:-1]].tolist():
        status = os.stat(os.path.join(root, paths[i]))
        groups.setdefault(_key(status), []).append(i)
        n_names[_key(status)] = status.st_nlink
    return [
        sorted(group, key=lambda i: (by_link[i], paths[i]))
        for key, group in groups.items()
        if len(group) > 1 and (n_names[key] > 1 or any(by_link[i] for i in group))
    ]


def _keep_once(one: _Class, root: str) -> None:
    """Drop all but one name of each file of a class, by guarantee 3."""
    groups = _twice(np.array(one.inodes, np.uint64), one.paths, one.by_link, root)
    dropped = {i for group in groups for i in group[1:]}
    if dropped:
        one.paths = [path for i, path in enumerate(one.paths) if i not in dropped]


def _in_two_classes(classes: list[_Class], root: str) -> list[tuple[str, str]]:
    """A path in each of two classes, of each file that is in several."""
    inodes = np.concatenate([np.array(one.inodes, np.uint64) for one in classes])
    paths = [path for one in classes for path in one.paths]
    by_link = b"".join(one.by_link for one in classes)
    ends = np.cumsum([len(one.paths) for one in classes])
    found = []
    for group in _twice(inodes, paths, by_link, root):
        of = np.searchsorted(ends, group, side="right").tolist()
        other = next((i for i, k in zip(group, of, strict=True) if k != of[0]), None)
        if other is not None:
            found.append((paths[group[0]], paths[other]))
    return sorted(found)
