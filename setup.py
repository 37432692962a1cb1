"""What setup.cfg cannot say: the extension. Where it cannot be built it is left out, as `ringload --version` tells.

It needs the headers of libjpeg-turbo: `apt-get install libjpeg62-turbo-dev`; on Ubuntu the package is libjpeg-turbo8-dev, on
Fedora libjpeg-turbo-devel.
"""

from setuptools import Extension, setup

JPEG = Extension(
    "ringload.images._jpeg",
    ["ringload/images/_jpeg.c"],
    libraries=["jpeg"],
    extra_compile_args=["-O3", "-ffp-contract=off"],
    optional=True,
)

setup(ext_modules=[JPEG])
