"""Pillow's plugins: the one that opens each format, without Pillow's search for one, and without its limit of pixels."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from functools import cache
from typing import Any

from PIL import Image, features

from ringload.images.content_file import ContentFile
from ringload.images.hook import Attribute, Hook

no_limit = Hook(Attribute(Image, "MAX_IMAGE_PIXELS", None))  # the decoder has its own limit
OPTIONAL = ("WebP", "AVIF", "JPEG 2000")  # Pillow can be built without these

PLUGINS = {  # format -> Pillow's module, and its function that opens a file
    "JPEG": ("JpegImagePlugin", "jpeg_factory"),
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "WebP": ("WebPImagePlugin", "WebPImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "PNM": ("PpmImagePlugin", "PpmImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "JPEG 2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
}


def open_by_plugin(name: str, data: memoryview) -> Any:
    """Open `data`, of the format `name`, as a file of Pillow's, whose pixels are not read yet.

    Raises:
        ValueError: the installed Pillow cannot decode the format.
        Exception: the header is not valid.
    """
    module, function = PLUGINS[name]
    try:
        plugin: Any = importlib.import_module(f"PIL.{module}")
    except ImportError:
        raise ValueError("the installed Pillow is too old for it: pip install -U pillow") from None
    if name in OPTIONAL and not _is_supported(name, plugin):
        raise ValueError("the installed Pillow was built without its decoder")
    with no_limit(), _one_thread(plugin)() if name == "AVIF" else nullcontext():
        return getattr(plugin, function)(ContentFile(data))


def _is_supported(name: str, plugin: Any) -> bool:
    return features.check("jpg_2000") is True if name == "JPEG 2000" else bool(plugin.SUPPORTED)


@cache
def _one_thread(plugin: Any) -> Hook:
    """By default AVIF's decoder has as many threads as there are CPUs, in each worker: have it use one."""
    return Hook(Attribute(plugin, "DEFAULT_MAX_THREADS", 1))
