"""One topic of images, texts, audio and bad messages of all kinds, and several encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from embedstream.bulk.replay import Replay
from embedstream.bulk.selection import Selection
from embedstream.config.sections import StreamConfig
from embedstream.stream.preflight import Consent, check_start
from embedstream_core.errors import Code
from mixed_messages import Kind, build_large_kinds
from mixed_streams import Mix, import_encoders
from oracle import check_messages
from streams import Topic
from streams_by_start import start

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]


@pytest.mark.long
def test_restarts_and_a_replay_of_failures(
    spark: SparkSession, topic: Topic, configure: Configure, mix: Mix
) -> None:
    """Equal contents are embedded once by each model; every message has its rows all the same."""
    import_encoders(spark)
    later = mix.folder / f"{topic.name}.txt"
    missing = Kind(b'{"uri": "file://%b"}' % bytes(later), None, None, Code.REFERENCE_NOT_FOUND)
    mix = replace(mix, kinds={**mix.kinds, "later": missing})
    sections = {"kafka": {"max_offsets_per_trigger": 50}, "pipeline": {"dedupe": "on"}}
    config = mix.apply(configure(**sections))
    table = Path(config.table.path)
    topic.send(mix.messages(0, len(mix.kinds)))
    start(spark, config)
    check_messages(table, topic.positions(), mix.expect)

    large = {name: kind for name, kind in build_large_kinds().items() if kind.code}
    topic.send(replace(mix, kinds=large).messages(len(mix.kinds), len(large)))
    topic.send(mix.messages(len(mix.kinds) + len(large), 10))
    start(spark, config)
    later.write_bytes(b"it came later")
    replay_failures(spark, config)
    came = Kind(b"it came later", "text", "text/plain")
    mix = replace(mix, kinds={**mix.kinds, **large, "later": came})
    check_messages(table, topic.positions(), mix.expect)


def replay_failures(spark: SparkSession, config: StreamConfig) -> None:
    checked = check_start(spark, config, print, Consent(), purpose="replay")
    assert checked is not None
    replay = Replay(
        spark,
        config,
        checked.models,
        checked.topics,
        kind="replay",
        selection=Selection(failures=True),
    )
    for chunk in replay.plan().chunks:
        replay.run(chunk)
    replay.finish()
