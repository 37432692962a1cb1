"""Install the peers into this interpreter's environment, one pip call each: `make bench-setup` runs it in .venv-bench.

Versions are those of bench/constraints.txt. A peer that cannot be installed or imported is left out; the reason is written to
peers.json in the folder of the environment, and shown in every table and file of results. This module uses only the standard
library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent
CONSTRAINTS = HERE / "constraints.txt"
LONGEST_S = 900  # time limit of one pip call

# package -> (arguments of pip, a statement that must then succeed, Debian packages that it needs)
PACKAGES: dict[str, tuple[list[str], str, list[str]]] = {
    "torch": (["torch"], "import torch", []),
    "tensorflow": (["tensorflow"], "import tensorflow", []),
    "grain": (["grain"], "import grain", []),
    "spdl": (["spdl-core", "spdl-io"], "from spdl.io.lib import _libspdl; dir(_libspdl)", ["ffmpeg"]),
    "nvidia-dali": (["nvidia-dali-cuda120"], "import nvidia.dali.fn", []),
    "webdataset": (["webdataset"], "import webdataset", []),
    # it names torchvision as a need and imports without; boto3's own needs are given, or pip tries hundreds of releases
    "litdata": (
        [
            "--no-deps",
            "litdata",
            "lightning-utilities",
            "obstore",
            "tifffile",
            *("boto3", "botocore", "s3transfer", "jmespath"),
        ],
        "import litdata",
        [],
    ),
    "torchvision": (["--no-deps", "torchvision"], "import torchvision", []),
}


def pip(arguments: list[str]) -> str:
    """Install, and return the reason of a failure, or ""."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"pip install {' '.join(arguments)} was not done after {LONGEST_S} s"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
    return "" if done.returncode == 0 else f"pip install: {' '.join(errors)[:300]}"


def imported(code: str) -> str:
    """Import a package in a new process, and return the reason of a failure, or ""."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONGEST_S)
    return "" if done.returncode == 0 else f"{code}: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}"


def install(name: str) -> dict[str, str]:
    """Install a peer, and return its version, or the reason why it is absent."""
    arguments, code, debian = PACKAGES[name]
    why = pip(arguments)
    if not why:
        why = imported(code)
    if why and debian:
        done = subprocess.run(["apt-get", "install", "--yes", "--quiet", *debian], capture_output=True, text=True)
        tried = f"; apt-get install {' '.join(debian)}: {'done' if done.returncode == 0 else done.stderr.strip()[-120:]}"
        why = "" if not imported(code) else why + tried
    if why:
        return {"absent": why}
    return {"version": metadata.version(next(one for one in arguments if not one.startswith("-")))}


def main() -> None:
    """Install all peers, and write the results to peers.json."""
    chosen = sys.argv[1:] or list(PACKAGES)
    path = Path(sys.prefix) / "peers.json"
    noted = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen:
        noted[name] = install(name)
        path.write_text(json.dumps(noted, indent=1) + "\n")
        print(f"{name}: {noted[name].get('version') or 'absent: ' + noted[name]['absent']}", flush=True)


if __name__ == "__main__":
    main()
