"""Table, checkpoint and files in an object store, with S3's interface, in place of a local disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from drivers import SETTINGS, DrivenStream, Vectors, kill, wait_until
from embedstream_core.errors import Code
from object_storage import KEYS, REGION, open_object_storage
from oracle import Position, all_rows, check_outcomes
from pictures import real_pictures
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark, pytest.mark.long, pytest.mark.timeout(600)]

MESSAGES = 60


@dataclass(frozen=True, slots=True)
class Store:
    """Buckets in moto."""

    url: str
    client: Any

    def settings(self) -> list[str]:
        options = {
            "endpoint": self.url,
            "endpoint.region": REGION,
            "path.style.access": "true",
            "access.key": "env:AWS_ACCESS_KEY_ID",
            "secret.key": "env:AWS_SECRET_ACCESS_KEY",
        }
        return [f"spark.options.spark.hadoop.fs.s3a.{name}={options[name]}" for name in options]

    def make(self, bucket: str) -> str:
        self.client.create_bucket(Bucket=bucket)
        return bucket

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def download(self, bucket: str, folder: Path) -> Path:
        for key in self.keys(bucket):
            if not key.endswith("/"):
                path = folder / key
                path.parent.mkdir(parents=True, exist_ok=True)
                self.client.download_file(bucket, key, str(path))
        return folder


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with open_object_storage() as (url, client):
        yield Store(url, client)


def test_a_killed_stream_resumes(
    store: Store, spark: SparkSession, topic: Topic, tmp_path: Path, vectors: Vectors
) -> None:
    bucket = store.make("embeddings")
    stream = DrivenStream.of(spark, topic, tmp_path)
    stream.send(MESSAGES)
    settings = [
        f"table.path=s3a://{bucket}/table",
        f"checkpoint=s3a://{bucket}/checkpoint",
        *store.settings(),
    ]

    with stream.run(*settings, environment=KEYS) as driver:
        wait_until(lambda: len(store.keys(bucket, "checkpoint/commits/")) >= 2, driver=driver)
        with stream.run(*settings, environment=KEYS) as second:
            refusal, _ = second.communicate(timeout=120)
        kill(driver)
    with stream.run(*settings, until="drained", environment=KEYS) as again:
        output, _ = again.communicate(timeout=240)

    assert second.returncode == 2
    assert f"pid {driver.pid}" in refusal
    assert again.returncode == 0, output
    rows = check_outcomes(store.download(bucket, tmp_path / "copy") / "table", topic.positions())
    assert {row["content_sha256"] for row in rows.values()} == vectors.keys()
    assert all(row["error"] is None for row in rows.values())

    sets = [f"--set={setting}" for setting in [*SETTINGS, *settings]]
    replay = _run("replay", str(stream.config), f"--offsets={topic.name}:0:0-9", *sets)

    assert replay.returncode == 0, replay.stderr
    after = check_outcomes(store.download(bucket, tmp_path / "after") / "table", topic.positions())
    repeated = {each for each in rows if after[each]["processed_at"] > rows[each]["processed_at"]}
    assert repeated == {Position(topic.name, 0, offset) for offset in range(10)}


def test_files_of_a_bucket_become_a_table(store: Store, tmp_path: Path) -> None:
    bucket = store.make("pictures")
    names = ["one.jpg", "below/two pictures.jpg", "100%25.jpg", "ü #3?.jpg", "_[4]{b}.jpg"]
    for name, content in zip(names, real_pictures().values(), strict=False):
        store.client.put_object(Bucket=bucket, Key=f"raw/{name}", Body=content)
    store.client.put_object(Bucket=bucket, Key="raw/nothing.jpg", Body=b"")
    store.client.put_object(Bucket=bucket, Key="other.jpg", Body=b"no picture")

    first = _batch(store, bucket)
    second = _batch(store, bucket)

    assert "6 files embedded, 1 failures (1 image_empty)" in first.stdout, first.stderr
    assert "0 files to embed" in second.stdout, second.stderr
    table = store.download(bucket, tmp_path) / "table"
    rows = {row["uri"]: row for row in all_rows(table)}
    failures = {uri: row["error"]["code"] for uri, row in rows.items() if row["error"]}
    assert failures == {f"s3://{bucket}/raw/nothing.jpg": Code.IMAGE_EMPTY}
    assert rows.keys() - failures == {f"s3://{bucket}/raw/{name}" for name in names}
    query = tmp_path / "one.jpg"
    query.write_bytes(next(iter(real_pictures().values())))
    assert "one.jpg" in _search(store, query, f"s3a://{bucket}/table").splitlines()[1]


def _search(store: Store, query: Path, table: str) -> str:
    place = {"AWS_ENDPOINT_URL": store.url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": REGION}
    return _run("search", str(query), "--table", table, environment=place).stdout


def _batch(store: Store, bucket: str) -> subprocess.CompletedProcess[str]:
    settings = [*store.settings(), f"references.s3_endpoint={store.url}",
                f"references.s3_region={REGION}", "spark.master=local[2,4]"]  # fmt: skip
    return _run(
        "batch", "--from", f"s3a://{bucket}/raw", "--table", f"s3a://{bucket}/table",
        "--encoder", "efficientnet_lite0", *(f"--set={setting}" for setting in settings),
    )  # fmt: skip


def _run(
    *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embedstream", *arguments],
        capture_output=True, text=True, check=False,
        env={**os.environ, **KEYS, **(environment or {})},
    )  # fmt: skip
