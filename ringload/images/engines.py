"""Which libraries decode and resample in this installation, in words."""

from __future__ import annotations

from importlib.metadata import version

from ringload.images import jpeg, resample

NOT_BUILT = (
    "_jpeg.c is not built, which takes two thirds of the time for random crops: install the headers of libjpeg-turbo "
    "(apt-get install libjpeg62-turbo-dev), then ringload again"
)


def engines() -> list[str]:
    """One line for JPEG, and one for resampling."""
    simple = f"simplejpeg {version('simplejpeg')}"
    fast, resampler = jpeg.native, resample.library()
    return [
        f"JPEG: {simple}. {NOT_BUILT}" if fast is None else f"JPEG: {fast.LIBRARY} by _jpeg.c; what that refuses: {simple}",
        f"resampling: {resampler} {version(resampler)}",
    ]
