"""The jars that Spark and the embedded broker run on: exact versions, checked by sha256.

`jars.toml` in this folder is the whole list: nothing is resolved at run time. To renew a set, run
`mvn dependency:list -DincludeScope=runtime` on a POM with the set's first coordinates, leave out
what the `jars` folder of that PySpark holds, and take the sha256 of each file. If only the version
of one group changes, `scripts/set_jar_version.py` does it. `make test` then runs the sets of the
locked PySpark for real, and `make test-spark41` those of Spark 4.1.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from embedstream.config.locations import make_local
from embedstream_core.errors import SetupError

__all__ = ["Jar", "download_jar", "fetch_jars", "find_jars_folder", "read_jar_set"]

_log = logging.getLogger(__name__)

_LOCK_FILE = Path(__file__).with_name("jars.toml")
_DOWNLOADS_AT_ONCE = 8
_DOWNLOAD_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Jar:
    """One file of a Maven repository: `coordinate` is group:artifact:version."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name that Maven gives the file."""
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"


def read_jar_set(name: str) -> tuple[Jar, ...]:
    """Return the jars of one set: `broker`, or `spark` or `s3` for the installed PySpark.

    `spark-4.1` and the like are the sets of a version, whatever is installed.

    Raises:
        SetupError: there is no such set, or none for the installed PySpark.
    """
    sets = tomllib.loads(_LOCK_FILE.read_text(encoding="utf-8"))
    if name not in sets:
        name = f"{name}-{_choose_version(name, sets)}"
    return tuple(Jar(coordinate, sha256) for coordinate, sha256 in sets[name].items())


def find_jars_folder() -> Path:
    """Return `$EMBEDSTREAM_JARS` if that is set, else `~/.cache/embedstream/jars`."""
    folder = os.environ.get("EMBEDSTREAM_JARS")
    return Path(make_local(folder)) if folder else Path.home() / ".cache" / "embedstream" / "jars"


def fetch_jars(names: Iterable[str], folder: Path) -> list[Path]:
    """Put every jar of the named sets in `folder` and return their paths, in the list's order.

    Downloads only missing jars. Every returned file has its listed sha256, and no file appears
    half-written, so several processes may fetch into one folder at once.

    Raises:
        SetupError: a jar cannot be downloaded or written, or has another checksum.
    """
    jars = list(dict.fromkeys(jar for name in names for jar in read_jar_set(name)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            return list(pool.map(partial(_fetch, folder=folder), jars))
    except OSError as error:
        raise SetupError(
            f"cannot write to {folder}: {error.strerror or error}; free some space, or set "
            "EMBEDSTREAM_JARS to a folder that can be written"
        ) from error


def _choose_version(name: str, sets: Iterable[str]) -> str:
    """Return the minor version of the installed PySpark, of which `name` must have a set."""
    versions = [each.removeprefix(f"{name}-") for each in sets if each.startswith(f"{name}-")]
    if not versions:
        known = sorted({each.partition("-")[0] for each in sets})
        raise SetupError(f"unknown jar set {name!r}; known: {', '.join(known)}")
    # A cluster may have PySpark on its path without the metadata of a package.
    from pyspark import __version__ as installed

    minor = ".".join(installed.split(".")[:2])
    if minor not in versions:
        raise SetupError(
            f"PySpark {installed} is installed, and the jars of embedstream are for Spark "
            f"{' and '.join(versions)}; install a PySpark of these, or set `spark.jars: provided` "
            "and give Spark the jars for its version"
        )
    return minor


def _fetch(jar: Jar, *, folder: Path) -> Path:
    path = folder / jar.file_name
    if path.exists():
        _check(path, jar)
        return path
    with TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
        found = download_jar(jar.coordinate, Path(scratch))
        _check(found, jar)
        found.replace(path)
    return path


def download_jar(coordinate: str, folder: Path) -> Path:
    """Download one jar from the Maven repositories and return its path; checks no sha256 of ours.

    Raises:
        SetupError: no repository has it, or none can be reached.
    """
    import requests
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    _log.info("downloading %s to %s", coordinate, folder)
    group, artifact, version = coordinate.split(":")
    maven = MavenContext(
        repo_cache=folder,
        remote_repos=GlobalSettings.load().repositories or None,
        timeout=_DOWNLOAD_TIMEOUT_S,
    )
    try:
        return maven.project(group, artifact).at_version(version).artifact().resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise SetupError(
            f"cannot download {coordinate}: {error}; check the network and run again, name a Maven "
            f"mirror under [repositories] in jgo's settings file, or copy {artifact}-{version}.jar "
            "into the jars folder by hand"
        ) from error


def _check(path: Path, jar: Jar) -> None:
    # Hashing all 23 MB of the spark set takes 20 ms: cheaper than a stamp that could be stale.
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        raise SetupError(
            f"{path} must have sha256 {jar.sha256} but has {found}; delete the file and run "
            "again, and do not trust its source if this happens twice"
        )
