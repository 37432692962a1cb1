"""Which storage reads a path: by the scheme of its URL.

    /data/1.jpg, file:///data/1.jpg     local files
    s3://bucket/1.jpg, gs://, az://     object stores, by obstore
    https://host/1.jpg, http://         web servers, by urllib3
    zip:///data/a.zip/1.jpg, lmdb://    members of .zip files, and values of LMDB databases (archives.py)
    sftp://host/1.jpg, ...              what fsspec knows
    mine://1.jpg                        the storage that was registered for "mine"; so may be each of those above

Only the trainer has the table: a source looks up the factory of its storage when it is made, and is sent to workers with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ringload.checks import short
from ringload.errors import ConfigError
from ringload.protocols import Storage
from ringload.storage import fsspec_files
from ringload.storage.archives import lmdb_storage, zip_storage
from ringload.storage.local import LocalStorage

Factory = Callable[[], Storage]

SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]+)://")
LOCAL = ""  # the scheme of local files


def _object_storage() -> Storage:
    from ringload.storage.object_store import ObjectStorage

    return ObjectStorage()


def _http_storage() -> Storage:
    from ringload.storage.http import HttpStorage

    return HttpStorage()


_factories: dict[str, Factory] = {
    LOCAL: LocalStorage,
    **dict.fromkeys(("s3", "gs", "az"), _object_storage),
    **dict.fromkeys(("http", "https"), _http_storage),
    "zip": zip_storage,
    "lmdb": lmdb_storage,
}


def register_storage(scheme: str, factory: Factory) -> None:
    """Have the URLs of a scheme read by your own storage. Call this before a source with such paths is made.

    A later call for the same scheme affects only sources that are made after it.

    Arguments:
        scheme: what URLs have before "://", such as "s3".
        factory: makes a `ringload.Storage`: a class, or any function without arguments. It is sent with the
            source by cloudpickle, and called in each process that reads.

    Raises:
        ConfigError: the scheme or the factory is not valid.
    """
    if not isinstance(scheme, str) or not SCHEME.fullmatch(f"{scheme}://".encode()) or scheme.lower() == "file":
        raise ConfigError(f"a scheme is what URLs have before '://', such as 's3', except 'file', not {short(scheme)}")
    if not callable(factory):
        raise ConfigError(f"factory is a class or function that makes a Storage, without arguments, not {short(factory)}")
    _factories[scheme.lower()] = factory


def scheme_of(path: bytes) -> str:
    """The scheme of a URL, in lower case; `LOCAL` for a path, and for file://."""
    match = SCHEME.match(path)
    scheme = match[1].decode().lower() if match else LOCAL
    return LOCAL if scheme == "file" else scheme


def is_registered(scheme: str) -> bool:
    """Whether there is a storage for a scheme."""
    return scheme in _factories or fsspec_files.knows(scheme)


def factory_of(scheme: str) -> Factory:
    """The factory of a registered scheme.

    Raises:
        ImportError: it needs a package that is not installed.
    """
    factory = _factories.get(scheme, fsspec_files.FsspecStorage)
    if factory is _object_storage:
        from ringload.storage.object_store import require_obstore

        require_obstore()  # and from now on forks are noticed
    elif factory is _http_storage:
        from ringload.storage.http import require_urllib3

        require_urllib3()
    return factory


def not_registered(scheme: str) -> str:
    """The message for a path whose scheme has no storage."""
    schemes = ", ".join(sorted(one for one in _factories if one != LOCAL)) or "none"
    return (
        f"no storage is registered for {scheme}:// (registered: {schemes}; and what fsspec knows, where it is installed). "
        f"Download the files; or register a storage, ringload.register_storage({scheme!r}, factory); or give the loader a "
        "function load(index, rng, out) that fetches them"
    )
