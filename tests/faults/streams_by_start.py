"""A start as `embedstream run --available-now` makes it, within the test's Spark session."""

from __future__ import annotations

from pyspark.sql import SparkSession

from embedstream.check import Preflight
from embedstream.claim import claimed
from embedstream.config import Config
from embedstream.data_loss import LostRange
from embedstream.job import make_table
from embedstream.resume import settle
from streams import drain

__all__ = ["start"]


def start(
    spark: SparkSession, config: Config, *, adopt: bool = False, accept_loss: bool = False
) -> list[LostRange]:
    """Check, claim, settle and drain; what was lost. Fails where a check does."""
    preflight = Preflight(spark, config, adopt=adopt, accept_loss=accept_loss)
    assert [one for one in preflight.findings() if not one.passed] == []
    model, resumption = preflight.checked()
    make_table(spark, config, model)
    with claimed(spark, config):
        found = settle(spark, config, resumption, adopt=adopt, accept_loss=accept_loss)
        drain(spark, found.config)
    return list(found.lost)
