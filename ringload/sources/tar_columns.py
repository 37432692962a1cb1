"""The columns of a table of tar shards: what small members say of their sample, by WebDataset's names.

    cls, cls2, class, count, index, inx, id     a member whose text is an integer
    txt, text, transcript                       a member of text, in UTF-8, without white space around it
    json.category, json.a.b, jsn.category       a value of a member in JSON: `category`, or `b` of the object `a`
    left.cls, meta.json.a                       the same of members with longer suffixes

Other members are not read, and none is unpickled.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from ringload.checks import short
from ringload.errors import ConfigError

INTEGERS = ("cls", "cls2", "class", "count", "index", "inx", "id")
TEXTS = ("txt", "text", "transcript")
JSONS = ("json", "jsn")
MAX_BYTES = 16 << 20  # of a member of text or JSON
MAX_INTEGER_BYTES = 64


class Column(NamedTuple):
    """A column: its name, the suffix of its members, and what leads to its value in JSON."""

    name: str
    suffix: bytes
    path: tuple[str, ...] = ()


def column_named(name: Any) -> Column:
    """A column by its name.

    Raises:
        ConfigError: members of that name cannot be read.
    """
    parts = name.split(".") if isinstance(name, str) else [""]
    of_json = [place for place, part in enumerate(parts[:-1]) if part.lower() in JSONS]
    if of_json and all(parts):
        place = of_json[0] + 1
        return Column(name, ".".join(parts[:place]).lower().encode(), tuple(parts[place:]))
    if parts[-1].lower() in INTEGERS + TEXTS and all(parts):
        return Column(name, name.lower().encode())
    hint = f": name one of its values, '{name}.category'" if parts[-1].lower() in JSONS else ""
    raise ConfigError(
        f"there is no column {short(name)} in tar shards{hint}. Columns are 'cls' (or {', '.join(INTEGERS[1:])}), 'txt' (or "
        f"{', '.join(TEXTS[1:])}), and values of JSON, 'json.category'"
    )


def values_of(columns: list[Column], content: bytes) -> list[Any]:
    """The values of columns of one suffix, by the content of its member; None for what its JSON does not have.

    Raises:
        ValueError: the content is not valid.
    """
    last = columns[0].suffix.rpartition(b".")[2].decode()
    if last in JSONS:
        try:
            whole = json.loads(content)
        except RecursionError as error:
            raise ValueError("its JSON is nested too deeply") from error
        return [_within(whole, column.path) for column in columns]
    if last in TEXTS:
        return [content.decode().strip() for _ in columns]
    if len(content) > MAX_INTEGER_BYTES or not content.strip().lstrip(b"+-").isdigit():
        raise ValueError(f"it is no integer, but {short(content)}")
    return [int(content) for _ in columns]


def _within(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
