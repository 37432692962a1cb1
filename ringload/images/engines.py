"""Which libraries decode and resample in this installation, in words."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from ringload.images import jpeg, plain, resample

PACKAGES = (
    *("cykooz-resizer", "imagecodecs", "numpy", "opencv-python", "opencv-python-headless", "pillow", "pillow-heif", "pydicom"),
    *("ringload", "simplejpeg", "tifffile"),
)
NOT_BUILT = (
    "_jpeg.c is not built, which takes two thirds of the time for random crops: install the headers of libjpeg-turbo "
    "(apt-get install libjpeg62-turbo-dev), then ringload again"
)
PNG_NOT_BUILT = "_png.c is not built, which halves the time: it needs a C compiler when ringload is installed"
RESAMPLE_NOT_BUILT = "_resample.c is not built, which is faster: it needs a C compiler when ringload is installed"


def versions() -> list[str]:
    """The versions of all that pixels may depend on, as far as it is installed."""
    made = [f"_jpeg {getattr(jpeg.native, 'LIBRARY', None)}", f"_png {plain.native is not None}"]
    made.append(f"_resample {resample.native is not None}")
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            made.append(f"{package} {version(package)}")
    return made


def engines() -> list[str]:
    """One line for JPEG, one for PNG, and one for resampling."""
    simple = f"simplejpeg {version('simplejpeg')}"
    fast, resampler = jpeg.native, f"{resample.library()} {version(resample.library())}"
    inflater = f"isal {version('isal')}" if plain.inflates_by_isal() else "zlib"
    return [
        f"JPEG: {simple}. {NOT_BUILT}" if fast is None else f"JPEG: {fast.LIBRARY} by _jpeg.c; what that refuses: {simple}",
        f"PNG: pillow {version('pillow')}. {PNG_NOT_BUILT}" if plain.native is None else f"PNG: {inflater}, _png.c",
        f"resampling: {resampler}. {RESAMPLE_NOT_BUILT}"
        if resample.native is None
        else f"resampling: _resample.c; alpha: {resampler}",
    ]
