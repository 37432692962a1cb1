"""What is wrong with a sample: a status, by the error that its loading raised and by what was read of it.

    ok              it loads, as it does in training
    missing         there is no such file
    unreadable      it cannot be opened or read, is empty, or is no regular file
    not an image    its content begins as no format that is supported
    too large       it has more pixels than `max_pixels`, or needs more memory than the budget has: a decompression bomb, say
    truncated       its end is missing
    damaged         the decoder, or the transform, refuses it for another reason
    crashed         it ends the process that decodes it, again and again

Statuses are numbers in memory and in the journal, and these words in reports. "ok" is exact: the image was loaded by the code
that loads it in training. The other words sort the bad ones, by the decoder's own text where there is nothing better.
"""

from __future__ import annotations

import errno
import re

from ringload.images.header import is_cut_short

STATUSES = ("ok", "missing", "unreadable", "not an image", "too large", "truncated", "damaged", "crashed")
OK, MISSING, UNREADABLE, NOT_AN_IMAGE, TOO_LARGE, TRUNCATED, DAMAGED, CRASHED = range(len(STATUSES))

IS_MISSING = (errno.ENOENT, errno.ENOTDIR)
LARGE = re.compile(r"more than max_pixels=|for one image: raise ram_budget|cannot be an image of at most")
CUT_SHORT = re.compile(
    r"truncat|cut short|unexpected end|premature|bytes? not processed|end of (?:file|data|stream)", re.IGNORECASE
)


def status_of(error: Exception, content: memoryview | None, name: str) -> int:
    """The status of a sample that could not be loaded.

    Arguments:
        content: what was read of it; None if nothing was.
        name: its format, "" if it is none.
    """
    if LARGE.search(str(error)):
        return TOO_LARGE
    if content is None:
        is_missing = isinstance(error, OSError) and error.errno in IS_MISSING
        return MISSING if is_missing else UNREADABLE
    if not name:
        return NOT_AN_IMAGE
    return TRUNCATED if CUT_SHORT.search(str(error)) or is_cut_short(content) else DAMAGED
