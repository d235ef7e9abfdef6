"""Images that end, hang or exhaust the worker that decodes them: each fails, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from oracle import check_outcomes
from small import POISON, poisoned, tiny_picture, write_config
from streams import Topic, image

pytestmark = [pytest.mark.kafka, pytest.mark.spark]


CODES = {
    "crash": "decoder_crashed",
    "kill": "decoder_crashed",
    "hang": "decoder_timeout",
    "eat": "decoder_out_of_memory",
}


def test_a_poisonous_message_fails_alone_and_the_stream_continues(
    topic: Topic, tmp_path: Path
) -> None:
    messages = [image(f"good-{index}", tiny_picture()) for index in range(12)]
    for index, comment in enumerate(CODES):
        messages.insert(1 + 3 * index, image(comment, poisoned(comment)))
    topic.send(messages)
    command = [sys.executable, "-m", "embedstream", "run", str(write_config(topic, tmp_path))]
    settings = ["decode.timeout_s=8", "kafka.max_offsets_per_trigger=100"]
    paths = os.pathsep.join([str(POISON), os.getenv("PYTHONPATH", "")])

    process = subprocess.run(
        [*command, "--available-now", *(part for each in settings for part in ("--set", each))],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert process.returncode == 0, process.stdout + process.stderr
    rows = check_outcomes(tmp_path / "table", topic.positions())
    failed = {row["image_id"]: row["error"]["code"] for row in rows.values() if row["error"]}
    assert failed == CODES
    assert sum(row["embedding"] is not None for row in rows.values()) == 12
