"""A running stream takes other models, or keeps its own and says why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

import seeded_encoders
from drivers import wait_until
from embedstream.cli.actions.swap import ask_driver
from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.recovery.claim import claim_stream
from embedstream.recovery.swap_files import SwapFiles
from embedstream.stream.job import build_featurizer, list_ids
from embedstream.stream.preflight import Finding, check_start
from embedstream.stream.queries import run_queries
from embedstream.stream.service import Service
from embedstream.stream.swap import SwapDesk
from embedstream.table.address import TableAddress
from embedstream.table.delta import create_table, read_models
from embedstream_core.errors import SetupError
from logged import collect_events
from oracle import check_outcomes, read_rows
from small import send_pictures
from streams import Topic, prepared

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]
Encode = Callable[..., StreamConfig]


@pytest.fixture(scope="module", autouse=True)
def workers_import(spark: SparkSession) -> None:
    spark.sparkContext.addPyFile(seeded_encoders.__file__)


@pytest.fixture
def encode(configure: Configure) -> Encode:
    """A configuration with encoders of these names."""

    def make(*names: str, **sections: dict[str, object]) -> StreamConfig:
        encoder = {"weights": "own", "precision": "float32"}
        given = [{**encoder, "name": f"seeded_encoders:{name}"} for name in names]
        config = configure(trigger={"interval_s": 0.1}, **sections)
        return config.with_encoders(tuple(map(EncoderConfig.model_validate, given)))

    return make


@contextmanager
def running(
    spark: SparkSession,
    config: StreamConfig,
    reread: Callable[[], StreamConfig] | None = None,
    reload: threading.Event | None = None,
) -> Iterator[list[str]]:
    """The stream as `embedstream run` runs it after its checks; what it says of swaps."""
    models = prepared(config)
    create_table(spark, config.table, model_ids=list_ids(models))
    stop = threading.Event()
    with (
        claim_stream(spark, config) as claim,
        ThreadPoolExecutor(1) as pool,
        collect_events("swap") as lines,
    ):
        desk = SwapDesk(
            spark,
            Service(config, models, build_featurizer(spark, config, models)),
            claim=claim,
            given=config,
            reread=reread or (lambda: config),
            reload=reload or threading.Event(),
            until="stopped",
        )

        def run() -> None:
            with desk:
                run_queries(spark, config, desk, stop, claim)

        ended = pool.submit(run)
        try:
            yield lines
        finally:
            stop.set()
            ended.result()


def rows_of(config: StreamConfig, count: int) -> Counter[str]:
    """The rows by model, once there are so many."""
    table = Path(config.table.path)
    wait_until(lambda: len(read_rows(table)) >= count, timeout_s=120)
    return Counter(row["model_id"] for row in read_rows(table).values())


def ids(config: StreamConfig) -> list[str]:
    return list_ids(prepared(config))


def test_a_stream_takes_other_models_and_refuses_what_it_cannot(
    spark: SparkSession, topic: Topic, encode: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = encode("first"), encode("second")
    send_pictures(topic, 8)
    with running(spark, old) as lines:
        assert rows_of(old, 8) == {ids(old)[0]: 8}

        # Refused, and the old one goes on.
        assert not ask_driver(spark, encode("absent"))
        assert "has no attribute 'absent'" in lines[-1]
        assert not ask_driver(spark, encode("second", decode={"max_scans": 5}))
        assert "and the running stream has another decode.max_scans; give" in lines[-1]
        send_pictures(topic, 4)
        assert rows_of(old, 12) == {ids(old)[0]: 12}

        assert ask_driver(spark, new)
        assert "the new models were ready after" in lines[-1]
        send_pictures(topic, 4)
        assert rows_of(old, 16) == {ids(old)[0]: 12, ids(new)[0]: 4}
        assert read_models(spark, TableAddress(old.table.path)) == (ids(new)[0],)
        wait_until(lambda: "the first micro-batch of the new models" in lines[-1], timeout_s=10)

        assert ask_driver(spark, new)
        assert "nothing to do" in lines[-1]

    swap = SwapFiles.of(spark, old).read_swap()
    assert swap is not None
    assert swap.phase == "done"
    answers = capsys.readouterr().out.splitlines()
    assert sum("asked the driver: host" in line for line in answers) == 4
    assert any(line.startswith("ok   precision") for line in answers)
    check_outcomes(Path(old.table.path), topic.positions())


@pytest.mark.long
def test_one_swap_at_a_time_and_a_signal_takes_the_changed_file(
    spark: SparkSession, topic: Topic, encode: Encode
) -> None:
    old, slow, both = encode("first"), encode("slow"), encode("slow", "second")
    reload = threading.Event()
    send_pictures(topic, 4)
    with running(spark, old, lambda: both, reload) as lines, ThreadPoolExecutor(1) as pool:
        rows_of(old, 4)
        asked = pool.submit(ask_driver, spark, slow)
        files = SwapFiles.of(spark, old)
        wait_until(lambda: files.read_swap() is not None, timeout_s=30)
        with pytest.raises(SetupError, match="another swap runs, it is preparing; try again"):
            ask_driver(spark, both)
        # The signal waits for its turn.
        reload.set()
        assert asked.result()
        wait_until(lambda: sum("were ready" in line for line in lines) == 2, timeout_s=120)
        send_pictures(topic, 4)
        table = Path(old.table.path)
        first, second = ids(both)
        wait_until(lambda: len(spark_rows(spark, table)) == 12, timeout_s=120)

    assert Counter(spark_rows(spark, table)) == {ids(old)[0]: 4, first: 4, second: 4}


def spark_rows(spark: SparkSession, table: Path) -> list[str]:
    rows = spark.read.format("delta").load(str(table)).select("model_id").collect()
    return [row.model_id for row in rows]


@pytest.mark.long
def test_models_that_fail_with_the_first_micro_batch_are_given_up(
    spark: SparkSession, topic: Topic, encode: Encode
) -> None:
    old = encode("first")
    with running(spark, old) as lines:
        assert ask_driver(spark, encode("failing"))
        send_pictures(topic, 16)
        assert rows_of(old, 16) == {ids(old)[0]: 16}
        assert "the new models failed, and the old ones go on: " in lines[-1]
        assert "out of registers" in lines[-1]
        assert list(read_models(spark, TableAddress(old.table.path))) == ids(old)
    check_outcomes(Path(old.table.path), topic.positions())


def test_without_a_driver_a_swap_says_so(spark: SparkSession, encode: Encode) -> None:
    with pytest.raises(
        SetupError, match=r"no driver runs with the checkpoint .* `embedstream run`"
    ):
        ask_driver(spark, encode("first"))


def test_two_encoders_that_give_the_same_vectors_are_refused(
    spark: SparkSession, topic: Topic, encode: Encode
) -> None:
    config = encode("first", "second")
    first = config.all_encoders[0]
    same = config.with_encoders((first, first.model_copy(update={"batch_size": 4})))
    findings: list[Finding] = []

    assert check_start(spark, config, findings.append) is not None
    assert check_start(spark, same, findings.append) is None

    names = [finding.subject for finding in findings[: len(findings) // 2]]
    assert [name for name in names if name[-1].isdigit()] == [
        "encoder 0",
        "device 0",
        "encoder 1",
        "device 1",
        "precision 0",
        "precision 1",
    ]
    (failed,) = (finding for finding in findings if not finding.passed)
    assert failed.subject == "precision 1"
    assert f"encoder 0 is '{ids(config)[0]}' too" in failed.detail
