"""Find a Java that Spark and the broker run on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from embedstream_core.errors import SetupError

__all__ = ["OLDEST_JAVA", "find_java"]

OLDEST_JAVA = 17
_WAY_OUT = f"install a Java runtime {OLDEST_JAVA} or newer and set JAVA_HOME to it"
_CHECK_TIMEOUT_S = 30


def find_java() -> Path:
    """The `java` of JAVA_HOME, else the first on PATH: the one that Spark takes too.

    Raises SetupError when there is none, or when it is older than 17.
    """
    java = _candidate()
    version = _version(java)
    if version < OLDEST_JAVA:
        raise SetupError(f"Java {OLDEST_JAVA} or newer is needed, {java} is {version}; {_WAY_OUT}")
    return java


def _candidate() -> Path:
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        if not os.access(java, os.X_OK):
            raise SetupError(f"JAVA_HOME is {home}, which holds no bin/java; {_WAY_OUT}")
        return java
    found = shutil.which("java")
    if found is None:
        raise SetupError(f"no Java: JAVA_HOME is not set and PATH has no java; {_WAY_OUT}")
    return Path(found)


def _version(java: Path) -> int:
    """The feature release: 8 for `1.8.0_402`, 17 for `17.0.15`."""
    said = _version_text(java)
    match = re.search(r'version "(?:1\.)?(\d+)', said)
    if match is None:
        raise SetupError(f"{java} does not tell its version but says {said!r}; {_WAY_OUT}")
    return int(match[1])


def _version_text(java: Path) -> str:
    try:
        result = subprocess.run(  # noqa: S603
            [java, "-version"],
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{java} does not run: {error}; {_WAY_OUT}") from error
    return result.stderr.strip() or result.stdout.strip()
