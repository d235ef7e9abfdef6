"""The status of a running stream, from what its parts tell."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest

from embedstream.config.sections import StreamConfig
from embedstream.kafka.topics import TopicState
from embedstream.monitor.exposition import build_registry
from embedstream.monitor.live import LiveStream, Probes
from embedstream.monitor.status import IndexStatus, ModelStatus, PublishStatus
from embedstream.recovery.claim import HeldClaim
from embedstream.recovery.claim_file import Claim, ClaimFile
from embedstream.stream.reports import MicroBatchReport
from embedstream.worker.counts import RowKind
from memory_folder import MemoryFolder


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(clock: Clock) -> LiveStream:
    config = StreamConfig.model_validate(
        {
            "kafka": {"bootstrap_servers": "localhost:1", "subscribe": "images"},
            "table": {"path": "table"},
            "checkpoint": "checkpoint",
        }
    )
    return LiveStream(config, clock=clock)


def topics(*ends: int, earliest: int = 0) -> dict[str, TopicState]:
    numbers = range(len(ends))
    return {"images": TopicState("id", dict.fromkeys(numbers, earliest), dict(enumerate(ends)))}


def report(clock: Clock, *, read: Mapping[int, int], **fields: Any) -> MicroBatchReport:
    """A micro-batch of two seconds that has just been committed: three embeddings, two failures."""
    return MicroBatchReport(
        **{
            "batch_id": 7,
            "messages": 5,
            "tombstones": 1,
            "lag": None,
            "embeddings": 3,
            "failures": Counter(image_corrupt=2),
            "duration_s": 2.0,
            "committed_at": clock.now,
            "rows_by_kind": {
                RowKind("images", "model", None): 3,
                RowKind("images", None, "image_corrupt"): 2,
                RowKind("images", None, "deleted"): 1,
            },
            "stage_seconds": {"fetch": 0.5, "forward": 1.5},
            "appended": {clock.now - 3: 4, clock.now - 8: 1},
            "cache_hits": 1,
            "read": {("images", number): offset for number, offset in read.items()},
            "deleted": 1,
            **fields,
        }
    )


def sample(live: LiveStream, metric: str, /, **labels: str) -> float | None:
    registry = build_registry(live, read_counts=live.read_counts)
    return registry.get_sample_value(metric, labels)


def test_before_the_first_micro_batch_little_is_known(live: LiveStream) -> None:
    status = live.read_status()
    assert (status.state, status.lag, status.lag_s, status.micro_batch) == (
        "starting", None, None, None
    )  # fmt: skip
    assert sample(live, "embedstream_lag_seconds") is None
    assert sample(live, "embedstream_micro_batches_total") == 0
    assert sample(live, "embedstream_state", state="starting") == 1


def test_the_lag_is_known_before_the_first_micro_batch(live: LiveStream, clock: Clock) -> None:
    """A stream that starts with a backlog and commits nothing is seen to lag."""
    live.set_read({("images", 0): 40, ("images", 1): 10})
    live.set_offsets(topics(100, 10))
    assert live.read_status().lag == 60
    clock.now += 30
    live.set_offsets(topics(110, 10))
    assert live.read_status().lag == 70


def test_offsets_move_on_without_micro_batches(live: LiveStream, clock: Clock) -> None:
    live.set_read({("images", 0): 0})
    live.set_offsets(topics(5))
    live.add_batch(report(clock, read={0: 5}))
    assert (live.read_status().lag, live.read_status().lag_s) == (0, 0)
    clock.now += 300
    live.set_offsets(topics(5))
    status = live.read_status()
    assert (status.lag, status.lag_s, status.rows_per_s) == (0, 0, 0)
    clock.now += 10
    live.set_offsets(topics(8))
    clock.now += 60
    status = live.read_status()
    assert status.lag == 3
    assert status.lag_s == pytest.approx(65, abs=5)


def test_a_micro_batch_without_messages_reads_on(live: LiveStream) -> None:
    """The end of a Kafka transaction, and all of one that was aborted, are offsets alone."""
    live.set_read({("images", 0): 0})
    live.set_offsets(topics(6))
    live.set_read({("images", 0): 6})
    status = live.read_status()
    assert (status.lag, status.lag_s, status.history[-1].lag) == (0, 0, 0)


def test_a_reason_is_shown_without_secrets(live: LiveStream) -> None:
    live.note_state("failed", "cannot write to https://user:secret@host/table")
    assert live.read_status().reason == "cannot write to https://[redacted]@host/table"


def test_an_older_reading_of_kafka_makes_no_negative_lag(live: LiveStream, clock: Clock) -> None:
    live.set_offsets(topics(5))
    live.add_batch(report(clock, read={0: 9}))
    (partition,) = live.read_status().partitions
    assert (partition.read, partition.end, partition.lag) == (9, 9, 0)


def test_a_partition_that_is_added_is_read_from_its_start(live: LiveStream) -> None:
    live.set_read({("images", 0): 5})
    live.set_offsets(topics(5))
    live.set_offsets(topics(5, 20))
    assert [one.lag for one in live.read_status().partitions] == [0, 20]


def test_the_margin_is_what_retention_may_still_delete(live: LiveStream, clock: Clock) -> None:
    live.add_batch(report(clock, read={0: 50}))
    live.set_offsets(topics(100, earliest=42))
    assert live.read_status().margin == 8
    margin = "embedstream_retention_margin_messages"
    assert sample(live, margin, topic="images", partition="0") == 8
    live.set_offsets(topics(100, earliest=60))
    assert live.read_status().margin == 0


def test_a_report_is_counted_by_kind(live: LiveStream, clock: Clock) -> None:
    live.add_batch(report(clock, read={0: 5}))
    live.add_batch(report(clock, read={0: 10}, batch_id=8))
    status = live.read_status()
    assert (status.micro_batch, status.embeddings, status.deleted, status.cache_hits) == (
        8,
        6,
        2,
        2,
    )
    assert status.failures == {"image_corrupt": 4}
    rows = "embedstream_rows_total"
    embedding = {"outcome": "embedding", "code": "", "model_id": "model"}
    failure = {"outcome": "failure", "code": "image_corrupt", "model_id": ""}
    deletion = {"outcome": "deletion", "code": "deleted", "model_id": ""}
    found = [sample(live, rows, topic="images", **one) for one in (embedding, failure, deletion)]
    assert found == [6, 4, 2]
    assert sample(live, "embedstream_stage_seconds_total", stage="forward") == 3
    assert sample(live, "embedstream_append_to_commit_seconds_bucket", le="5.0") == 8
    assert sample(live, "embedstream_append_to_commit_seconds_sum") == pytest.approx(40)
    assert sample(live, "embedstream_last_commit_timestamp_seconds") == clock.now


def test_any_number_of_topics_and_models_makes_few_series(live: LiveStream, clock: Clock) -> None:
    kinds = {RowKind(f"t{number}", f"m{number}", None): 1 for number in range(1000)}
    live.add_batch(report(clock, read={}, rows_by_kind=kinds))
    live.set_read({("images", number): 0 for number in range(3000)})
    live.set_offsets(topics(*[1] * 3000))
    registry = build_registry(live, read_counts=live.read_counts)
    samples = [one for family in registry.collect() for one in family.samples]
    rows = [one for one in samples if one.name == "embedstream_rows_total"]
    assert len(rows) == 51
    assert sum(one.value for one in rows) == 1000
    lags = [one for one in samples if one.name == "embedstream_lag_messages"]
    assert len(lags) == 501
    assert sum(one.value for one in lags) == 3000


def test_what_is_shown_of_models_and_index_is_asked_each_time(live: LiveStream) -> None:
    """After a swap the models are the new ones."""
    models = [ModelStatus(model_id="old", name="resnet50", loads=2)]
    index = IndexStatus(address="data/index")
    publish = PublishStatus(address="topic 'outcomes'")
    live.follow(
        Probes(
            read_models=lambda: tuple(models),
            read_index=lambda: index,
            read_publish=lambda: publish,
            count_loads=lambda: 5,
        )
    )
    assert [one.model_id for one in live.read_status().models] == ["old"]
    assert sample(live, "embedstream_index_version") == -1
    assert sample(live, "embedstream_published_version") == -1
    assert sample(live, "embedstream_model_loads_total") == 5
    models[:] = [ModelStatus(model_id="new", name="resnet50", dimension=8, precision="float32")]
    index = index.model_copy(update={"version": 12, "trouble": "it ended"})
    publish = publish.model_copy(update={"version": 13, "trouble": "no broker"})
    assert [one.model_id for one in live.read_status().models] == ["new"]
    labels = {"model_id": "new", "name": "resnet50", "dimension": "8", "precision": "float32"}
    assert sample(live, "embedstream_model_info", **labels) == 1
    assert sample(live, "embedstream_index_version") == 12
    assert sample(live, "embedstream_index_trouble") == 1
    assert sample(live, "embedstream_published_version") == 13
    assert sample(live, "embedstream_publish_trouble") == 1


def test_before_a_micro_batch_the_last_commit_is_the_tables(live: LiveStream, clock: Clock) -> None:
    live.note_table_version(4, clock.now - 500)
    assert sample(live, "embedstream_last_commit_timestamp_seconds") == clock.now - 500
    assert sample(live, "embedstream_table_version") == 4
    live.add_batch(report(clock, read={0: 5}))
    assert sample(live, "embedstream_last_commit_timestamp_seconds") == clock.now


def test_an_index_is_not_ahead_of_its_table(live: LiveStream, clock: Clock) -> None:
    """The table's version is read every few seconds, the index tells its own at once."""
    index = IndexStatus(address="data/index", version=6)
    live.note_table_version(4, clock.now)
    live.follow(Probes(read_index=lambda: index))
    assert live.read_status().table.version == 6
    live.note_table_version(9, clock.now)
    assert live.read_status().table.version == 9


def test_it_is_ready_while_the_query_runs_and_the_claim_is_held(
    live: LiveStream, clock: Clock
) -> None:
    files = [ClaimFile(MemoryFolder(location="table"), clock)]
    claim = Claim.of_processes([1], table="table", checkpoint="checkpoint")
    with HeldClaim(files, claim, monotonic=clock) as held:
        stop = threading.Event()
        live.follow(Probes(find_loss=lambda: held.loss, is_stopping=stop.is_set))
        assert not live.is_ready
        live.beat()
        assert (live.is_ready, live.read_status().state) == (True, "running")
        other = asdict(replace(held.claim, id="other"))
        files[0].folder.replace("claim.json", json.dumps(other))
        held.renew()
        assert not live.is_ready
        assert "taken over" in live.read_status().reason
        stop.set()
        assert live.read_status().state == "stopping"
    live.note_state("failed", "the disk is full")
    assert live.read_status().reason == "the disk is full"


def test_lag_is_no_reason_not_to_be_ready(live: LiveStream) -> None:
    live.set_read({("images", 0): 0})
    live.set_offsets(topics(10**9))
    live.beat()
    assert live.is_ready


def test_it_is_alive_while_the_main_thread_makes_its_rounds(live: LiveStream, clock: Clock) -> None:
    clock.now += 10_000
    # A start takes as long as it takes.
    assert live.is_alive
    live.beat()
    clock.now += 300
    # It may wait so long for a micro-batch.
    assert live.is_alive
    clock.now += 61
    assert not live.is_alive
    live.beat()
    assert live.is_alive
    live.follow(Probes(is_listening=lambda: False))
    assert not live.is_alive


def test_it_is_watched_for_a_while_after_somebody_asked(live: LiveStream, clock: Clock) -> None:
    assert not live.is_watched
    live.read_status()
    clock.now += 60
    assert live.is_watched
    clock.now += 60
    assert not live.is_watched


def test_many_threads_read_while_reports_come(live: LiveStream, clock: Clock) -> None:
    failed: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                live.read_status()
                sample(live, "embedstream_micro_batches_total")
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(200):
        clock.now += 20
        kinds = {RowKind(f"topic{number}", "model", None): 1}
        live.set_offsets(topics(*[number] * (1 + number % 7)))
        live.add_batch(report(clock, read={number % 9: number}, rows_by_kind=kinds))
    done.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert live.read_status().embeddings == 600
