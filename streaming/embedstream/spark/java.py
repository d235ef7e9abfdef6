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
    """Return the `java` of JAVA_HOME, else the first on PATH: Spark chooses the same one.

    Raises:
        SetupError: there is none, or it is older than 17.
    """
    if home := os.environ.get("JAVA_HOME"):
        java = Path(home) / "bin" / "java"
        if not os.access(java, os.X_OK):
            raise SetupError(f"JAVA_HOME is {home}, which has no bin/java; {_WAY_OUT}")
    elif found := shutil.which("java"):
        java = Path(found)
    else:
        raise SetupError(f"no Java: JAVA_HOME is not set and PATH has no java; {_WAY_OUT}")
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
    output = result.stderr.strip() or result.stdout.strip()
    # Java 8 calls itself 1.8.
    match = re.search(r'version "(?:1\.)?(\d+)', output)
    if match is None:
        raise SetupError(f"{java} does not print its version but {output!r}; {_WAY_OUT}")
    if int(match[1]) < OLDEST_JAVA:
        raise SetupError(f"Java {OLDEST_JAVA} or newer is needed, {java} is {match[1]}; {_WAY_OUT}")
    return java
