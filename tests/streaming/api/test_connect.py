"""The batch API over Spark Connect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import over_connect
from contents import CLIPS, MINILM, SPEECH, TEXTS
from doors import core_vectors, folder
from embedstream import EncoderConfig

__all__ = ["folder"]

pytestmark = [pytest.mark.spark, pytest.mark.long]

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def results(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The client's results. It runs in its own process, which has one kind of session."""
    paths = [str(ROOT / part) for part in ("tests", "core", "streaming")]
    odd_names = tmp_path_factory.mktemp("odd") / "[1]"
    odd_names.mkdir()
    (odd_names / "_DSC0001.JPG").write_bytes(next(folder.iterdir()).read_bytes())
    ran = subprocess.run(
        [sys.executable, over_connect.__file__, str(folder), str(odd_names)],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("client"),
        env={
            **os.environ,
            "PYSPARK_PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(paths),
        },
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("door", ["featurize", "column", "sql", "spark_ml"])
def test_the_vectors_are_the_same(results: dict[str, Any], folder: Path, door: str) -> None:
    found = {Path(row["path"].removeprefix("file:")): row[door] for row in results["rows"]}

    assert found.keys() == {*folder.iterdir()}
    assert found.pop(folder / "broken.jpg") is None
    expected = core_vectors([path.read_bytes() for path in found])
    np.testing.assert_allclose(np.array([*found.values()]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("door", ["featurize", "column", "sql", "spark_ml"])
@pytest.mark.parametrize(
    ("part", "contents", "encoder"),
    [
        ("texts", {name: text.encode() for name, text in TEXTS.items()}, MINILM),
        ("clips", CLIPS, SPEECH),
    ],
)
def test_the_vectors_of_other_modalities_are_the_same(
    results: dict[str, Any],
    part: str,
    contents: dict[str, bytes],
    encoder: EncoderConfig,
    door: str,
) -> None:
    found = {row["name"]: row[door] for row in results[part]}

    assert found.keys() == contents.keys()
    expected = core_vectors([*contents.values()], encoder)
    ours = [found[name] for name in contents]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


def test_labels_and_errors(results: dict[str, Any]) -> None:
    codes = {row["code"]: row["label"] for row in results["rows"]}

    assert codes.keys() == {None, "image_unsupported"}
    assert codes["image_unsupported"] is None
    assert codes[None] is not None


def test_files_are_listed_once_by_a_worker_or_by_spark(
    results: dict[str, Any], folder: Path
) -> None:
    (path,) = results["listed"]["by a worker"]
    assert path.endswith("/[1]/_DSC0001.JPG")
    assert sorted(results["listed"]["by spark"]) == sorted(
        f"file:{one}" for one in folder.iterdir()
    )


def test_a_function_that_needs_the_driver_raises(results: dict[str, Any]) -> None:
    assert "finetune needs a session on the driver itself" in results["refused"]
