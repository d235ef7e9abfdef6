"""A GPU that fails or hangs, and weights that are none: never a row, never code that runs."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
from PIL import Image
from pyspark import SparkFiles
from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.search.queries import embed_queries
from embedstream_core.models.encoders.catalog import find_encoder
from oracle import check_outcomes
from small import write_config
from streams import Topic, drain, image, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

ENCODERS = Path(__file__).parents[1] / "support" / "failing_encoders.py"


def pictures(count: int) -> list[bytes]:
    """Plain ones, each of a colour of its own."""
    return [_plain((index * 9, 255 - index * 7, 100 + index)) for index in range(count)]


def _plain(colour: tuple[int, int, int]) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(data, "PNG")
    return data.getvalue()


@pytest.mark.long
@pytest.mark.parametrize("fault", ["sticky_error", "hang"])
def test_a_hanging_worker_is_killed_and_its_task_repeated(
    spark: SparkSession, topic: Topic, configure: Configure, fault: str
) -> None:
    spark.sparkContext.addPyFile(str(ENCODERS))
    contents = pictures(24)
    topic.send(image(str(index), content) for index, content in enumerate(contents))
    encoder = {"name": f"failing_encoders:{fault}", "weights": "random", "timeout_s": 2}
    config = configure(encoder={**encoder, "precision": "float32", "batch_size": 4})

    drain(spark, config)

    found = check_outcomes(Path(config.table.path), topic.positions()).values()
    assert [row["error"] for row in found if row["error"]] == []
    rows = {int(row["image_id"]): row for row in found}
    _, expected = embed_queries(contents, model_ids=[rows[0]["model_id"]])
    for index, vector in enumerate(expected):
        np.testing.assert_allclose(rows[index]["embedding"], vector, rtol=0, atol=0.02)
    failed = int(Path(SparkFiles.getRootDirectory(), f"{fault}.pid").read_text())
    _wait_until_gone(failed)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid):
        assert time.monotonic() < deadline, "the worker that failed is still there"
        time.sleep(0.05)


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.long
def test_the_command_refuses_a_pickle_as_a_model_and_runs_nothing_of_it(
    topic: Topic, tmp_path: Path
) -> None:
    weights, marker = tmp_path / "mine.pth", tmp_path / "marker"
    weights.write_bytes(pickle.dumps({"fc.weight": Exploit(marker)}))
    config = write_config(topic, tmp_path)
    command = [sys.executable, "-m", "embedstream", "run", str(config), "--available-now"]

    process = subprocess.run(
        [*command, "--set", f"encoder.weights={weights}"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert process.returncode == 2, process.stdout
    assert f"the weights file '{weights}' holds more than tensors" in process.stdout
    assert not marker.exists()
    assert not (tmp_path / "table").exists()
    assert not (tmp_path / "checkpoint").exists()
    # It is a real one: what does not look would have run it.
    pickle.loads(weights.read_bytes())
    assert marker.exists()


def test_weights_that_are_changed_cut_short_or_code_are_refused(
    spark: SparkSession, topic: Topic, configure: Configure, tmp_path: Path
) -> None:
    weights = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(find_encoder("resnet18").build().state_dict(), weights)
    whole = weights.read_bytes()
    sha256 = hashlib.sha256(whole).hexdigest()
    config = configure(encoder={"name": "resnet18", "weights": str(weights), "sha256": sha256})
    unpinned = configure(encoder={"name": "resnet18", "weights": str(weights)})
    marker = tmp_path / "marker"

    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"not {sha256}; it was changed" in refusal(spark, config, "encoder")
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"not {sha256}; it was changed" in refusal(spark, config, "encoder")
    assert "is broken" in refusal(spark, unpinned, "encoder")
    weights.write_bytes(pickle.dumps({"fc.weight": Exploit(marker)}))
    assert "is broken" in refusal(spark, unpinned, "encoder")
    assert not marker.exists()
