"""Ask OSV for known vulnerabilities of every pinned Python package and jar.

Exits with 1 where there are any. Where OSV cannot be reached it says so, and exits with 0: a test
without a network is not to fail for that.
"""

from __future__ import annotations

import json
import os
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

URL = "https://api.osv.dev/v1/querybatch"
TIMEOUT_S = 20

# By id, with the reason: why it does not concern us, or what is awaited.
IGNORED: dict[str, str] = {}

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print what is found."""
    packages = [*_python_packages(), *_jars()]
    try:
        found = _vulnerabilities(packages)
    except (OSError, ValueError) as error:
        print(f"dependencies are NOT audited: {URL} cannot be reached ({error})")
        return
    for (_, name, version), ids in found.items():
        print(f"{name} {version}: {', '.join(ids)}; see https://osv.dev/vulnerability/{ids[0]}")
    print(f"{len(packages)} dependencies audited, {len(found)} with known vulnerabilities")
    if found:
        sys.exit("take a fixed version, or name the id and a reason in scripts/audit.py")


Package = tuple[str, str, str]


def _python_packages() -> list[Package]:
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    return [
        ("PyPI", package["name"], package["version"].partition("+")[0])
        for package in lock["package"]
        if "registry" in package["source"]
    ]


def _jars() -> list[Package]:
    sets = tomllib.loads((ROOT / "streaming/embedstream/spark/jars.toml").read_text())
    coordinates = sorted({coordinate for jars in sets.values() for coordinate in jars})
    return [("Maven", *_name_and_version(coordinate)) for coordinate in coordinates]


def _name_and_version(coordinate: str) -> tuple[str, str]:
    group, artifact, version = coordinate.split(":")[:3]
    return f"{group}:{artifact}", version


def _vulnerabilities(packages: list[Package]) -> dict[Package, list[str]]:
    answers = _ask(
        {
            "queries": [
                {"package": {"ecosystem": ecosystem, "name": name}, "version": version}
                for ecosystem, name, version in packages
            ]
        }
    )["results"]
    found = {
        package: [each["id"] for each in answer.get("vulns", []) if each["id"] not in IGNORED]
        for package, answer in zip(packages, answers, strict=True)
    }
    return {package: ids for package, ids in found.items() if ids}


def _ask(question: dict[str, Any]) -> Any:
    url = os.environ.get("OSV_URL", URL)
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(question).encode(), headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
        return json.load(response)


if __name__ == "__main__":
    main()
