"""What setup.cfg cannot say: the extensions. Where one cannot be built it is left out, as `ringload --version` tells.

_png.c needs only a compiler. _jpeg.c needs the headers of libjpeg-turbo, too: `apt-get install libjpeg62-turbo-dev`; on Ubuntu
the package is libjpeg-turbo8-dev, on Fedora libjpeg-turbo-devel.
"""

from setuptools import Extension, setup

JPEG = Extension(
    "ringload.images._jpeg",
    ["ringload/images/_jpeg.c"],
    libraries=["jpeg"],
    extra_compile_args=["-O3", "-ffp-contract=off"],
    optional=True,
)
PNG = Extension("ringload.images._png", ["ringload/images/_png.c"], extra_compile_args=["-O3"], optional=True)

setup(ext_modules=[JPEG, PNG])
