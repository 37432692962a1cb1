"""Images that end their worker, in a module that imports little, as each new worker imports it."""

from __future__ import annotations

import os
import signal
from typing import Any

from ringload import ImageFrame


class Crashes(ImageFrame):
    """Some samples end their worker, by one way or another."""

    def load(self, index: int, rng: Any, out: Any) -> None:
        super().load(index, rng, out)
        if index in (3, 70):
            os.kill(os.getpid(), signal.SIGSEGV)
        if index == 71:
            os._exit(7)
