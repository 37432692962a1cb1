"""Folders of images, one for each class, as a source: a table of the images that `folder_walk` finds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ringload.checks import flag, in_our_words, listed, warn
from ringload.errors import ConfigError
from ringload.sources.classes import given_classes
from ringload.sources.columns import require_pandas
from ringload.sources.folder_walk import Walk
from ringload.sources.image_table import ImageFrame
from ringload.sources.paths import root_of

if TYPE_CHECKING:
    from ringload.sources.labels import LabelMode


@in_our_words(passes_on_to=ImageFrame, but=("df", "path", "label"))
def ImageFolder(  # noqa: N802  (named as in torchvision: what it makes is a source)
    root: str | os.PathLike[str],
    *,
    size: tuple[int, int],
    classes: Any = None,
    label_mode: LabelMode = "int",
    follow_links: bool = True,
    **options: Any,
) -> ImageFrame:
    """Images in one folder for each class: an ImageFrame of root/CLASS/**/*.jpg, in sorted order.

    Hidden files and folders are skipped. So are files without a suffix of images, which a warning counts. Classes are sorted as
    strings: "10" comes before "9"; for another order give `classes`.

    Arguments:
        root: the folder; `~` is the user's home directory.
        classes: which folders are used, as in `ImageFrame`: a list in the order of their numbers, or a dict of class -> number;
            None: all, sorted.
        follow_links: whether links to folders and files are followed. The walk ends also where links make a cycle: a link to
            the root, to a folder above it or to a folder of another class is skipped with a warning, and a file is one sample
            of a class, however many links lead to it. A file in two classes by links is a sample of each, with a warning.
            False: all links below the root are skipped.
        size, label_mode, options: as in `ImageFrame`.

    Raises:
        ConfigError: it is no folder of folders, a folder cannot be read, or a class has no image.
    """
    require_pandas("a folder of images")
    import pandas as pd

    folder = root_of(root)
    root = os.fsdecode(root)
    if not os.path.isdir(folder):
        hint = " If it is a table of images, use ringload.ImageFrame(path, ...)" if os.path.isfile(folder) else ""
        raise ConfigError(f"{root} is not a folder.{hint}")
    walk = Walk(folder, flag("follow_links", follow_links))
    there = walk.class_folders()
    if not there:
        links = "" if follow_links else " (links are not followed)"
        raise ConfigError(f"{root} has no folders{links}: make one for each class")
    names = there if classes is None else list(given_classes(classes).names)
    if absent := sorted(set(names) - set(there), key=str):
        raise ConfigError(f"{root} has no folder for the classes {listed(absent)}; it has {listed(there)}")
    found = walk.images(sorted(names))
    paths = [path for name in sorted(names) for path in found[name]]
    labels = [name for name in sorted(names) for _ in found[name]]
    if len(there) == 1 and len(inner := sorted({path.split("/")[1] for path in paths if path.count("/") > 1})) > 1:
        warn(
            f"{root} has one folder, {there[0]!r}, and so one class; its images are in folders inside of it, {listed(inner)}. "
            f"If those are the classes, use ringload.ImageFolder({os.path.join(root, there[0])!r})"
        )
    # dtype object: a column of strings cannot hold names that are not UTF-8
    table = pd.DataFrame({"path": pd.Series(paths, dtype=object), "label": pd.Series(labels, dtype=object)})
    return ImageFrame(table, label="label", size=size, root=folder, classes=names, label_mode=label_mode, **options)
