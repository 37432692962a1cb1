"""What setup.cfg cannot say: the extensions. Where one cannot be built it is left out, as `ringload --version` tells.

_png.c and _resample.c need only a compiler. _jpeg.c needs the headers of libjpeg-turbo, too:
`apt-get install libjpeg62-turbo-dev`; on Ubuntu the package is libjpeg-turbo8-dev, on Fedora libjpeg-turbo-devel.
"""

from setuptools import Extension, setup

LIBRARIES = {"_jpeg": ["jpeg"], "_png": [], "_resample": []}

setup(
    ext_modules=[
        Extension(
            f"ringload.images.{name}",
            [f"ringload/images/{name}.c"],
            libraries=libraries,
            depends=["ringload/images/scale.h"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            optional=True,
        )
        for name, libraries in LIBRARIES.items()
    ]
)
