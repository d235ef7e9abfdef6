"""What a worker logs is in the driver's log, once, with where it was logged; all of it is JSON."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from logged import read_json_lines
from oracle import check_outcomes
from small import tiny_picture, write_config
from streams import Topic, image

pytestmark = [pytest.mark.kafka, pytest.mark.long]

DEFECT = Path(__file__).parents[1] / "support" / "defect"


def picture(width: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, 40), "teal").save(file, "PNG")
    return file.getvalue()


def test_the_traceback_of_an_unexpected_error_reaches_the_drivers_log(
    topic: Topic, tmp_path: Path
) -> None:
    topic.send([image("good", tiny_picture()), image("bad", picture(41))])
    config = write_config(topic, tmp_path, log={"format": "json"})
    done = subprocess.run(
        [sys.executable, "-m", "embedstream", "run", str(config), "--available-now"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(DEFECT), os.getenv("PYTHONPATH", "")]),
            "SPARK_LOCAL_DIRS": str(tmp_path / "scratch"),
        },
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = check_outcomes(tmp_path / "table", topic.positions())
    ((bad, row),) = [(at, row) for at, row in rows.items() if row["error"]]
    assert row["error"]["code"] == "internal_error"
    lines = read_json_lines(done.stdout)
    (record,) = [one for one in lines if one["logger"] == "embedstream_core.boundary"]
    assert record["level"] == "error"
    assert record["exception"].endswith(
        "ZeroDivisionError: a bug, met at http://[redacted]@x.test/"
    )
    assert "sitecustomize.py" in record["exception"]
    fields = record["fields"]
    assert fields["position"] == f"{bad.topic}-{bad.partition}-{bad.offset}"
    assert fields["content_sha256"] == row["content_sha256"]
    assert fields.keys() >= {"host", "stage", "partition", "attempt"}

    events = [one["event"] for one in lines if one.get("event") not in (None, "finding")]
    assert events == ["claim_taken", "start", "micro_batch", "stop"]
    stop = next(one["fields"] for one in lines if one.get("event") == "stop")
    assert stop["failures"] == {"internal_error": 1}
    assert stop["embeddings"] == 1
