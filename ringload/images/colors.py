"""Decoded pixels in the wanted colours: as they are, by OpenCV where nothing is rounded, or else by Pillow."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from ringload.images.formats import MODES, Wanted
from ringload.images.resample import image_of

ONLY_TO = {"LAB": "RGB", "La": "LA", "RGBa": "RGBA"}  # modes that Pillow converts to one other mode only
EXACT = {  # (mode, wanted mode) -> OpenCV's code of a conversion that copies values, as Pillow's does
    ("L", "RGB"): cv2.COLOR_GRAY2RGB,
    ("L", "RGBA"): cv2.COLOR_GRAY2RGBA,
    ("RGB", "RGBA"): cv2.COLOR_RGB2RGBA,
    ("RGBA", "RGB"): cv2.COLOR_RGBA2RGB,
}


def plain_converted(pixels: np.ndarray, file_mode: str, wanted: Wanted) -> np.ndarray:
    """Convert `pixels (h, w, C) uint8`, which are in Pillow's mode `file_mode`, as `converted` would: `(h, w, C)`."""
    mode = MODES[wanted.color]
    if wanted.background is None or file_mode in ("L", "RGB"):
        if file_mode == mode:
            return pixels
        if (file_mode, mode) in EXACT:
            copied: np.ndarray = cv2.cvtColor(pixels, EXACT[file_mode, mode])
            return copied
    return converted([image_of(pixels, file_mode)], wanted)


def converted(images: list[Image.Image], wanted: Wanted) -> np.ndarray:
    """Convert the one image of a list to the wanted colours, on the background if there is one: `(h, w, C)`. The image is taken
    out of the list, so that its memory is freed as soon as it is converted.

    Raises:
        ValueError: the range of its pixels is not known.
    """
    image = images.pop()
    if image.mode in ONLY_TO:
        image = image.convert(ONLY_TO[image.mode])
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"the range of pixels of Pillow's mode {image.mode} is not known")
    if wanted.background is not None and image.has_transparency_data:
        shown = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", shown.size, wanted.background)
        image.paste(shown, mask=shown)
        del shown
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = MODES[wanted.color]
    if image.mode != mode:
        image = image.convert(mode)
    return np.asarray(image).reshape(image.height, image.width, -1)
