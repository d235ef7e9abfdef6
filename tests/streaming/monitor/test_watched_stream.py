"""A driver is scraped from its start to its end, and what it says is what the table holds."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import requests
from deltalake import DeltaTable
from prometheus_client.parser import text_string_to_metric_families

from drivers import running
from embedstream.monitor.status import STAGES, Status
from oracle import read_rows
from pictures import real_pictures
from small import shrink, write_config
from streams import Topic, image

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

PROMTOOL = Path(__file__).parents[3] / ".tools/programs/usr/bin/promtool"
GOOD, BAD = 30, 2

Sample = tuple[str, tuple[tuple[str, str], ...]]


def scrape(url: str) -> dict[Sample, float]:
    text = requests.get(f"{url}/metrics", timeout=10).text
    return {
        (one.name.removeprefix("embedstream_"), tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def total(samples: dict[Sample, float], name: str) -> float:
    return sum(value for (one, _), value in samples.items() if one == name)


def read_url(driver: subprocess.Popen[str]) -> str:
    """The address that the driver prints before Spark is started."""
    assert driver.stdout is not None
    for line in driver.stdout:
        if found := re.search(r"monitor: (http://\S+)", line):
            return found[1]
    raise AssertionError("the driver has ended")


def test_metrics_of_a_stream_are_what_its_table_holds(topic: Topic, tmp_path: Path) -> None:
    pictures = [shrink(one) for one in list(real_pictures().values())[:5]]
    contents = [*(pictures[number % 5] for number in range(GOOD)), *[b"no picture"] * BAD]
    topic.send(image(str(number), content) for number, content in enumerate(contents))
    config = write_config(topic, tmp_path)
    with running(config, "--listen=127.0.0.1:0") as driver:
        url = read_url(driver)
        assert requests.get(f"{url}/livez", timeout=10).status_code == 200
        early = requests.get(f"{url}/readyz", timeout=10)
        assert (early.status_code, early.text) == (503, "starting\n")
        before = scrape(url)
        seen = watch_until_read(url)
        last = scrape(url)
        status = Status.model_validate_json(requests.get(f"{url}/api/status", timeout=10).content)
        assert requests.get(f"{url}/readyz", timeout=10).text == "ready\n"
        check_format(requests.get(f"{url}/metrics", timeout=10).text)
        os.kill(driver.pid, signal.SIGTERM)
        assert driver.wait(60) == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/livez", timeout=10)

    assert total(before, "micro_batches_total") == 0
    # In between, some messages were committed and others waited.
    assert any(total(one, "rows_total") > 0 and total(one, "lag_messages") > 0 for one in seen)
    for earlier, later in pairwise(seen):
        for (name, labels), value in earlier.items():
            if name.endswith(("_total", "_count", "_bucket", "_sum")):
                assert value <= later[name, labels]
    check_counts(last, tmp_path / "table", topic)
    check_status(status, topic)


def watch_until_read(url: str) -> list[dict[Sample, float]]:
    """Scrape until all messages are rows."""
    seen, deadline = [], time.monotonic() + 120
    while True:
        seen.append(scrape(url))
        lag = [value for (name, _), value in seen[-1].items() if name == "lag_messages"]
        if total(seen[-1], "rows_total") == GOOD + BAD and lag and sum(lag) == 0:
            return seen
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_counts(samples: dict[Sample, float], table: Path, topic: Topic) -> None:
    expected: Counter[Sample] = Counter()
    for row in read_rows(table).values():
        labels = {
            "topic": topic.name,
            "outcome": "failure" if row["error"] else "embedding",
            "code": row["error"]["code"] if row["error"] else "",
            "model_id": row["model_id"] or "",
        }
        expected["rows_total", tuple(sorted(labels.items()))] += 1
    assert {key: value for key, value in samples.items() if key[0] == "rows_total"} == expected
    assert samples["append_to_commit_seconds_count", ()] == GOOD + BAD
    assert samples["micro_batch_duration_seconds_count", ()] == samples["micro_batches_total", ()]
    assert samples["micro_batches_total", ()] >= 4
    assert samples["lag_seconds", ()] == 0
    assert samples["last_commit_timestamp_seconds", ()] == pytest.approx(time.time(), abs=120)
    assert total(samples, "model_info") == 1
    assert samples["model_loads_total", ()] >= 1
    assert samples["ready", ()] == 1
    for stage in STAGES:
        assert samples["stage_seconds_total", (("stage", stage),)] >= 0
    assert samples["stage_seconds_total", (("stage", "forward"),)] > 0
    version = samples["table_version", ()]
    assert 0 <= DeltaTable(str(table)).version() - version <= 4


def check_status(status: Status, topic: Topic) -> None:
    assert status.state == "running"
    assert (status.embeddings, sum(status.failures.values())) == (GOOD, BAD)
    assert sum(one.embeddings for one in status.history) == GOOD
    assert status.rows_per_s > 0
    assert status.append_to_commit is not None
    (model,) = status.models
    assert model.loads is not None
    assert model.loads >= 1
    ends = topic.end_offsets()
    assert {one.partition: (one.read, one.end) for one in status.partitions} == {
        number: (end, end) for number, end in ends.items()
    }


def check_format(text: str) -> None:
    """As Prometheus's own tool sees it."""
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith("embedstream")]
    assert complaints == [], done.stderr
