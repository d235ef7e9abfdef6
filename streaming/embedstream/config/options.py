"""Check the options that users give for Spark and Kafka.

An option that has its own key, or that embedstream needs unchanged, is refused with the key or the
reason. No option is dropped or replaced.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import SecretStr

from embedstream.config.secrets import reveal

__all__ = [
    "DELTA_CATALOG",
    "DELTA_EXTENSION",
    "check_kafka_options",
    "check_spark_options",
    "find_option",
]

DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"

Values = Mapping[str, str | SecretStr]

_KAFKA_KEYS: Mapping[str, str] = {
    "kafka.bootstrap.servers": "kafka.bootstrap_servers",
    "subscribe": "kafka.subscribe",
    "subscribePattern": "kafka.subscribe_pattern",
    "assign": "kafka.assign",
    "startingOffsets": "kafka.starting_offsets",
    "startingTimestamp": "kafka.starting_timestamp",
    "startingOffsetsByTimestamp": "kafka.starting_timestamp or kafka.starting_offsets",
    "startingOffsetsByTimestampStrategy": "kafka.starting_timestamp",
    "maxOffsetsPerTrigger": "kafka.max_offsets_per_trigger",
    "minPartitions": "kafka.min_partitions",
    "failOnDataLoss": "kafka.on_data_loss",
    "kafka.isolation.level": "kafka.isolation",
}

_NO_END = "a stream has no end; `embedstream run --available-now` stops when the topics are read"
_AS_BYTES = "keys and values are read as bytes"
_OFFSETS_ELSEWHERE = "the checkpoint keeps the offsets, and kafka.starting_offsets the beginning"
_KAFKA_FIXED: Mapping[str, str] = {
    "includeHeaders": "the headers are always read",
    "endingOffsets": _NO_END,
    "endingTimestamp": _NO_END,
    "endingOffsetsByTimestamp": _NO_END,
    "kafka.key.deserializer": _AS_BYTES,
    "kafka.value.deserializer": _AS_BYTES,
    "kafka.auto.offset.reset": _OFFSETS_ELSEWHERE,
    "kafka.enable.auto.commit": _OFFSETS_ELSEWHERE,
    "kafka.interceptor.classes": "Spark accepts none, since they could change messages",
}

_KAFKA_NUMBERS = (
    "minOffsetsPerTrigger",
    "maxRecordsPerPartition",
    "kafkaConsumer.pollTimeoutMs",
    "fetchOffset.numRetries",
    "fetchOffset.retryIntervalMs",
)
# The form that JavaUtils.timeStringAs reads.
_DURATION = re.compile(r"\d+(us|ms|s|m|min|h|d)?", re.IGNORECASE)
# The other options of Spark 4.2's source; see KafkaSourceProvider and KafkaMicroBatchStream.
_KAFKA_FREE = (*_KAFKA_NUMBERS, "maxTriggerDelay", "groupIdPrefix")

_SPARK_KEYS: Mapping[str, str] = {
    "spark.master": "spark.master",
    "spark.app.name": "spark.app_name",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "pipeline.arrow_batch_rows",
    "spark.sql.execution.arrow.maxBytesPerBatch": "pipeline.arrow_batch_bytes",
    "spark.sql.streaming.checkpointLocation": "checkpoint",
}

_PYTHON = "the environment variable PYSPARK_PYTHON names the workers' Python"
_CONNECT = "the stream does not run over Spark Connect"
_SPARK_FIXED: Mapping[str, str] = {
    "spark.pyspark.python": _PYTHON,
    "spark.pyspark.driver.python": _PYTHON,
    "spark.remote": _CONNECT,
}

# The only harmless value, and the effect of any other.
_SPARK_NEEDED: Mapping[str, tuple[str, str]] = {
    "spark.api.mode": ("classic", _CONNECT),
    "spark.python.worker.reuse": ("true", "every task would load the model again"),
    "spark.python.use.daemon": ("true", "every task would load the model again"),
    "spark.python.daemon.module": (
        "embedstream.worker.daemon",
        "every worker would repeat its imports",
    ),
    "spark.sql.session.timeZone": (
        "UTC",
        "the hour that a clock change repeats would be wrong in the rows; convert times when you "
        "read them",
    ),
}
_CATALOG = "spark.sql.catalog.spark_catalog"


def find_option(options: Values, name: str) -> str | None:
    """Return the value of a data source's option; Spark ignores the case of these names."""
    known = _find_spelling(name, options)
    return None if known is None else reveal(options)[known]


def check_kafka_options(options: Values, *, max_offsets_per_trigger: int | None) -> None:
    """Check the options of Spark's Kafka source.

    Raises:
        ValueError: an option is refused, or Spark does not have it; the message names it.
    """
    _refuse_duplicates(options)
    for name, value in reveal(options).items():
        _refuse_own(name, _KAFKA_KEYS, _KAFKA_FIXED, section="kafka")
        if _find_spelling(name, _KAFKA_NUMBERS) and not value.isdecimal():
            raise ValueError(f"the value of '{name}' must be a whole number")
        if name.lower() == "maxtriggerdelay" and not _DURATION.fullmatch(value.strip()):
            raise ValueError(f"the value of '{name}' must be a time with a unit, as 15m or 90s")
        if not _find_spelling(name, _KAFKA_FREE) and not name.lower().startswith("kafka."):
            known = {one.lower(): one for one in (*_KAFKA_FREE, *_KAFKA_KEYS, *_KAFKA_FIXED)}
            found = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
            nearest = known[found[0]] if found else f"kafka.{name}"
            raise ValueError(
                f"Spark's Kafka source has no option '{name}'; did you mean '{nearest}'?"
            )
    least, most = find_option(options, "minOffsetsPerTrigger"), max_offsets_per_trigger
    if least is not None and most is not None and int(least) > most:
        raise ValueError(
            f"minOffsetsPerTrigger is {least}, more than kafka.max_offsets_per_trigger, {most}"
        )


def check_spark_options(options: Values, *, jars: Literal["fetch", "provided"]) -> None:
    """Check the settings of Spark.

    Raises:
        ValueError: a setting is refused, or is not one of Spark's; the message names it.
    """
    _refuse_duplicates(options)
    needed = dict(_SPARK_NEEDED)
    if jars == "fetch":
        needed[_CATALOG] = (
            DELTA_CATALOG,
            "the table cannot be created while spark.jars is `fetch`",
        )
    for name, value in reveal(options).items():
        if not name.startswith("spark."):
            raise ValueError(f"'{name}' is not a setting of Spark: all begin with 'spark.'")
        _refuse_own(name, _SPARK_KEYS, _SPARK_FIXED, section="spark")
        if known := _find_spelling(name, needed):
            wanted, reason = needed[known]
            if (name, value) != (known, wanted):
                raise ValueError(f"'{name}' must be {wanted}, so leave it out: otherwise {reason}")


def _refuse_own(
    name: str, keys: Mapping[str, str], fixed: Mapping[str, str], *, section: str
) -> None:
    if known := _find_spelling(name, keys):
        raise ValueError(f"'{name}' has its own key: set {keys[known]}, not {section}.options")
    if known := _find_spelling(name, fixed):
        raise ValueError(f"'{name}' cannot be set: {fixed[known]}")


def _refuse_duplicates(options: Values) -> None:
    first: dict[str, str] = {}
    for name in options:
        if (other := first.setdefault(name.lower(), name)) != name:
            raise ValueError(f"'{other}' and '{name}' are the same option: give it once")


def _find_spelling(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that differs from a name at most in case."""
    return next((one for one in known if one.lower() == name.lower()), None)
