"""Images: from a file's bytes to pixels, and from pixels to a row of a batch. Needs OpenCV, Pillow and simplejpeg."""

from ringload.errors import missing
from ringload.images.opencv import unusable

_PART = "a source of images"

try:
    from cv2 import imdecode  # noqa: F401  (where files of the package are missing, `import cv2` alone may succeed)
except ImportError as error:
    raise unusable(_PART, error) from error
try:
    import PIL.Image  # noqa: F401
except ImportError as error:
    raise missing(_PART, "pillow", error) from error
try:
    import simplejpeg  # noqa: F401
except ImportError as error:
    raise missing(_PART, "simplejpeg", error) from error
