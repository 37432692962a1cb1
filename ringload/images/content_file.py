"""The content of a file as an open file for Pillow. Unlike `io.BytesIO`, it does not copy the content."""

from __future__ import annotations

import os


class ContentFile:
    """The methods of a file, open for reading, that Pillow's plugins call."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def read(self, n_bytes: int = -1) -> bytes:
        part = self._data[self._at : self._at + n_bytes if n_bytes >= 0 else None]
        self._at += len(part)
        return part.tobytes()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (self._at if whence == os.SEEK_CUR else len(self._data) if whence == os.SEEK_END else 0)
        if at < 0:
            raise ValueError(f"seek to {at}, before the beginning of the file")
        self._at = at
        return at

    def tell(self) -> int:
        return self._at

    def getvalue(self) -> memoryview:
        """The whole content, for libtiff."""
        return self._data
