"""Stop before a long installation on a machine that cannot run it. Works on any Python 3."""

import shutil
import sys
from pathlib import Path

NEEDED_GB = 9  # the environment with torch and its CUDA libraries takes 7 GB, and is unpacked once

version = sys.version.split()[0]
if not (3, 11) <= sys.version_info[:2] < (3, 14):
    sys.exit(
        f"embedstream needs Python 3.11, 3.12 or 3.13, but {sys.executable} is {version}; "
        "name another with: make PYTHON=python3.11 ..."
    )

sys.path[:0] = ["core", "streaming"]

from embedstream.spark.java import find_java  # noqa: E402
from embedstream_core.errors import SetupError  # noqa: E402

try:
    find_java()
except SetupError as error:
    sys.exit(f"embedstream: {error}")

free_gb = shutil.disk_usage(".").free / 1e9
if not Path(".venv").exists() and free_gb < NEEDED_GB:
    sys.exit(
        f"embedstream needs {NEEDED_GB} GB of disk for its environment, but {Path.cwd()} has "
        f"{free_gb:.1f} GB free; make room, or clone to another disk"
    )
