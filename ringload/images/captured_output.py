"""Captures what decoders print while they decode a sample: it is reported with the sample, and not written to stderr.

    Pillow      warns by `warnings`, as do pillow-heif and pydicom
    libtiff     in Pillow: calls a handler, which writes to stderr unless another is set
    tifffile    logs by `logging`, as does Pillow's plugin for TIFF
    OpenCV      logs to stderr, also the messages of its own libtiff

Redirecting descriptor 2 would not do, as all threads share it: the output of other threads would have to be separated, and the
last output of a process that dies (glibc's "free(): invalid pointer", faulthandler's traceback) would be lost. So this module
sets a handler for each of the four. All threads share these handlers, too: output of a thread that does not decode goes where
it would have gone without them.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Any

import cv2
from PIL import _imaging

from ringload.images.hook import Hook

MAX_PRINTED = 300  # characters of a reason
MAX_LINE = 1000
SILENT = 0  # OpenCV's level
DECODERS = re.compile(r".*[/\\](PIL|pillow_heif|pydicom)[/\\][\w/\\]+\.py")
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p)  # module, format, va_list


class Printed:
    """What was printed while a sample was decoded, in one line."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, line: str) -> None:
        """Keep a line."""
        self._lines.append(" ".join(line.split()))

    def __str__(self) -> str:
        text = "; ".join(dict.fromkeys(line for line in self._lines if line))
        return text if len(text) <= MAX_PRINTED else f"{text[:MAX_PRINTED]} ..."


class _Thread(threading.local):
    printed: Printed | None = None  # of the sample that this thread decodes


_thread = _Thread()


@contextmanager
def noted(printed: Printed, is_tiff: bool) -> Iterator[None]:
    """While this is entered, what decoders print in this thread is noted. `is_tiff`: libtiff will be used."""
    before, _thread.printed = _thread.printed, printed
    try:
        with ExitStack() as hooks:
            for hook in (warnings_hook, libtiff_hook, *logger_hooks) if is_tiff else (warnings_hook,):
                hooks.enter_context(hook())
            yield
    finally:
        _thread.printed = before


class _Warnings:
    """Notes warnings of decoders. `warnings.catch_warnings` would not do: it makes Python forget which it has shown, so that a
    warning of the user's that is to be shown once would be shown for every sample."""

    _always = ("always", None, Warning, re.compile(r"(PIL|pillow_heif|pydicom)\."), 0)
    _filters: list[Any] = warnings.filters  # type: ignore[assignment]
    _shown: Callable[..., None] = staticmethod(warnings.showwarning)  # shows all other warnings

    def set(self) -> None:
        if warnings.showwarning != self._show:  # the end of a `warnings.catch_warnings` may have restored another
            self._shown = warnings.showwarning
        self._filters = warnings.filters  # type: ignore[assignment]
        self._filters.insert(0, self._always)
        warnings.showwarning = self._show

    def undo(self) -> None:
        if warnings.showwarning == self._show:
            warnings.showwarning = self._shown
        with suppress(ValueError):  # somebody has changed the filters meanwhile
            self._filters.remove(self._always)

    def _show(self, message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        if _thread.printed is not None and DECODERS.fullmatch(filename):
            _thread.printed.note(str(message))
        else:
            self._shown(message, category, filename, lineno, file, line)


class _Logger:
    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def set(self) -> None:
        self._logger.addFilter(_is_for_others)

    def undo(self) -> None:
        self._logger.removeFilter(_is_for_others)


def _is_for_others(record: logging.LogRecord) -> bool:
    if _thread.printed is None or record.levelno < logging.WARNING:
        return True
    _thread.printed.note(record.getMessage())
    return False


class _Libtiff:
    """The error handler of the libtiff that Pillow is linked to, if its symbols are visible. On all 64-bit Linux (System V and
    ARM ABIs) a handler gets its va_list as a pointer, which it can pass on."""

    def __init__(self) -> None:
        self._before: list[int | None] = []  # the handler that was set
        self._handler = HANDLER(self._handle)  # never freed: another thread may be about to call it
        self._address = ctypes.cast(self._handler, ctypes.c_void_p)

    @cached_property
    def _set_handler(self) -> Callable[[Any], int | None]:
        try:
            setter = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        except (AttributeError, OSError):  # Pillow without libtiff, or with hidden symbols
            return lambda address: None
        setter.argtypes, setter.restype = (ctypes.c_void_p,), ctypes.c_void_p
        return setter

    @cached_property
    def _vsnprintf(self) -> Callable[..., int]:
        function = ctypes.CDLL(None).vsnprintf
        function.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p)
        return function

    def set(self) -> None:
        self._before.extend(map(self._set_handler, (self._address,)))  # one step, which no signal interrupts

    def undo(self) -> None:
        if self._before:
            now = self._set_handler(self._before[0])
            if now != self._address.value:  # somebody has set another handler meanwhile
                self._set_handler(now)
            self._before.clear()

    def _handle(self, module: bytes | None, form: int, values: int) -> None:
        if _thread.printed is None:
            if self._before and self._before[0]:
                HANDLER(self._before[0])(module, form, values)
            return
        line = ctypes.create_string_buffer(MAX_LINE)
        self._vsnprintf(line, MAX_LINE, form, values)
        _thread.printed.note(f"{(module or b'').decode(errors='replace')}: {line.value.decode(errors='replace')}")


class _SilentOpenCV:
    """OpenCV has one log level for all threads."""

    _levels: Any = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging  # OpenCV 4, and 5
    _before: Any = None

    def set(self) -> None:
        self._before = self._levels.getLogLevel()
        self._levels.setLogLevel(SILENT)

    def undo(self) -> None:
        if self._before is not None and self._levels.getLogLevel() == SILENT:
            self._levels.setLogLevel(self._before)


silent_opencv = Hook(_SilentOpenCV())
warnings_hook, libtiff_hook = Hook(_Warnings()), Hook(_Libtiff())
logger_hooks = tuple(Hook(_Logger(name)) for name in ("PIL.TiffImagePlugin", "tifffile"))
