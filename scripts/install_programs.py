"""Install what the tests need beside Python and Java: a browser, and Prometheus' promtool.

Both come from Debian's packages. A program that is there already, on the PATH, is used as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = Path(".tools/programs")
# Only the file of the package is taken: installing it would start a Prometheus server.
PROMTOOL = PROGRAMS / "usr/bin/promtool"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    missing = []
    if not any(map(shutil.which, BROWSERS)) and not install_browser():
        missing.append("chromium")
    if not shutil.which("promtool") and not PROMTOOL.exists() and not unpack_promtool():
        missing.append("prometheus (for promtool)")
    if missing:
        sys.exit(f"the tests need {' and '.join(missing)}; install them, and run this again")


def install_browser() -> bool:
    """Install Debian's Chromium; return whether it is there afterwards."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    print("installing chromium, with its libraries (about 400 MB, once)")
    command = ["install", "--yes", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
    return run_apt(command) and shutil.which("chromium") is not None


def unpack_promtool() -> bool:
    """Unpack Debian's promtool, without its server, into a folder of the project."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return False
    print("unpacking promtool (about 70 MB, once)")
    with tempfile.TemporaryDirectory() as folder:
        # apt drops its rights before a download.
        Path(folder).chmod(0o777)
        if not run_apt(["download", "prometheus"], folder=folder):
            return False
        (package,) = Path(folder).glob("*.deb")
        PROGRAMS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--extract", package, PROGRAMS], check=True)
    return PROMTOOL.exists()


def run_apt(command: list[str], *, folder: str = ".") -> bool:
    """Run a command of apt-get, after an update of its lists if it fails; return its success."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}

    def run(*words: str) -> bool:
        done = subprocess.run(
            ["apt-get", "--quiet=2", *words],
            cwd=folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        return done.returncode == 0

    return run(*command) or (run("update") and run(*command))


if __name__ == "__main__":
    main()
