"""The jars that Spark and the embedded broker run on: exact versions, checked by sha256.

`jars.toml` beside this file is the whole list: nothing is resolved at run time. To renew a set,
run `mvn dependency:list -DincludeScope=runtime` on a POM with the set's first coordinates, leave
out what PySpark's own `jars` folder holds, and take the sha256 of each file. `tests/streaming`
then runs the sets for real.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["Jar", "default_jars_folder", "fetch_jars", "jar_set"]

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


def jar_set(name: str) -> tuple[Jar, ...]:
    """The jars of one set: `spark`, `s3` or `broker`.

    Raises SetupError for another name.
    """
    sets = _jar_sets()
    if name not in sets:
        raise SetupError(f"unknown jar set {name!r}; known: {', '.join(sorted(sets))}")
    return sets[name]


def default_jars_folder() -> Path:
    """`$EMBEDSTREAM_JARS` where that is set, else `~/.cache/embedstream/jars`."""
    folder = os.environ.get("EMBEDSTREAM_JARS")
    return Path(folder) if folder else Path.home() / ".cache" / "embedstream" / "jars"


def fetch_jars(
    names: Iterable[str],
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Put every jar of the named sets in `folder` and return their paths, in the list's order.

    Downloads only what is missing. Every returned file has its listed sha256, and no file ever
    shows up half-written, so several processes may fetch into one folder at once. `on_progress`
    gets the number of jars that are ready and the number of all.

    Raises SetupError for a jar that cannot be downloaded, cannot be written, or has another
    checksum.
    """
    jars = list(dict.fromkeys(jar for name in names for jar in jar_set(name)))
    _make_folder(folder)
    paths: list[Path] = []
    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        for path in pool.map(partial(_ready_jar, folder=folder), jars):
            paths.append(path)
            if on_progress:
                on_progress(len(paths), len(jars))
    return paths


@cache
def _jar_sets() -> dict[str, tuple[Jar, ...]]:
    listed = tomllib.loads(_LOCK_FILE.read_text(encoding="utf-8"))
    return {
        name: tuple(Jar(coordinate, sha256) for coordinate, sha256 in jars.items())
        for name, jars in listed.items()
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _ready_jar(jar: Jar, *, folder: Path) -> Path:
    path = folder / jar.file_name
    if path.exists():
        _check(path, jar)
        return path
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            downloaded = _download(jar, Path(scratch))
            _check(downloaded, jar)
            downloaded.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    return path


def _download(jar: Jar, scratch: Path) -> Path:
    import requests
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    group, artifact, version = jar.coordinate.split(":")
    maven = MavenContext(
        repo_cache=scratch,
        remote_repos=GlobalSettings.load().repositories or None,
        timeout=_DOWNLOAD_TIMEOUT_S,
    )
    try:
        path: Path = maven.project(group, artifact).at_version(version).artifact().resolve()
    except (requests.RequestException, RuntimeError) as error:
        raise SetupError(
            f"cannot download {jar.coordinate}: {error}; check the network and run again, name a "
            f"Maven mirror under [repositories] in jgo's settings file, or copy {jar.file_name} "
            "into the jars folder by hand"
        ) from error
    return path


def _check(path: Path, jar: Jar) -> None:
    # Hashing all 23 MB of the spark set takes 20 ms: cheaper than a stamp that could be stale.
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        raise SetupError(
            f"{path} must have sha256 {jar.sha256} but has {found}; delete the file and run "
            "again, and distrust its source if this repeats"
        )


def _cannot_write(path: Path, error: OSError) -> SetupError:
    return SetupError(
        f"cannot write {path}: {error.strerror or error}; free some space, or set "
        "EMBEDSTREAM_JARS to a folder that can be written"
    )
