"""A start as `embedstream run --available-now` makes it, within the test's Spark session."""

from __future__ import annotations

from pyspark.sql import SparkSession

from embedstream.config.sections import StreamConfig
from embedstream.recovery.claim import claim_stream
from embedstream.recovery.lost_messages import LostRange
from embedstream.recovery.resume import prepare_resumption
from embedstream.stream.job import list_ids
from embedstream.stream.preflight import Consent, check_start
from embedstream.table.delta import create_table
from streams import drain

__all__ = ["start"]


def start(
    spark: SparkSession, config: StreamConfig, *, adopt: bool = False, accept_loss: bool = False
) -> list[LostRange]:
    """Check, claim, settle and drain; what was lost. Fails where a check does."""
    consent = Consent(adopt=adopt, loss=accept_loss)
    checked = check_start(spark, config, print, consent)
    assert checked is not None
    create_table(spark, config.table, model_ids=list_ids(checked.models))
    with claim_stream(spark, config):
        found = prepare_resumption(spark, config, checked.writers, consent)
        drain(spark, found.config)
    return list(found.lost)
