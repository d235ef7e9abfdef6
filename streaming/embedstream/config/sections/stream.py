"""The whole configurations: of a stream, and of `embedstream batch`."""

from __future__ import annotations

import posixpath
import re
from contextlib import suppress

from pydantic import model_validator

from embedstream.config.field_types import Location, Section
from embedstream.config.locations import find_local_path, make_readable_without_spark
from embedstream.config.sections.embedding import (
    DataFrameConfig,
    DecodeConfig,
    EncoderConfig,
    PipelineConfig,
    ReferencesConfig,
)
from embedstream.config.sections.index import IndexConfig
from embedstream.config.sections.kafka import KafkaConfig, TriggerConfig
from embedstream.config.sections.messages import MessageConfig
from embedstream.config.sections.monitoring import GuardsConfig, LogConfig, MonitorConfig
from embedstream.config.sections.publishing import PublishConfig
from embedstream.config.sections.spark import SparkConfig
from embedstream.config.sections.table import TableConfig

__all__ = ["BulkFilesConfig", "StreamConfig"]

# In a table's folder VACUUM leaves folders alone whose names begin with _ or a dot, except the last
# two of these; Delta itself deletes from the first.
_DELTA_FOLDERS = ("_delta_log", "_delta_index", "_change_data")


class BulkFilesConfig(DataFrameConfig):
    """The settings of `embedstream batch`: sections of a stream's configuration."""

    encoder: EncoderConfig = EncoderConfig()
    table: TableConfig
    index: IndexConfig = IndexConfig()
    log: LogConfig = LogConfig()
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def _check(self) -> BulkFilesConfig:
        self.spark.check_location("table.path", self.table.path)
        return self

    @property
    def all_encoders(self) -> tuple[EncoderConfig, ...]:
        """The only model, as `StreamConfig` has several."""
        return (self.encoder,)

    @property
    def locations(self) -> list[str]:
        """The locations that Spark writes to, as far as the configuration names them."""
        return [self.table.path] if self.table.path else []


class StreamConfig(Section):
    """The whole configuration of one stream."""

    kafka: KafkaConfig
    message: MessageConfig = MessageConfig()
    references: ReferencesConfig = ReferencesConfig()
    encoder: EncoderConfig = EncoderConfig()
    encoders: tuple[EncoderConfig, ...] | None = None
    """Several models instead of `encoder`, each a map with its keys: a message gets a row of each
    model that accepts what it carries."""
    decode: DecodeConfig = DecodeConfig()
    pipeline: PipelineConfig = PipelineConfig()
    table: TableConfig
    checkpoint: Location
    """The folder of the stream's checkpoint."""
    index: IndexConfig = IndexConfig()
    publish: PublishConfig = PublishConfig()
    trigger: TriggerConfig = TriggerConfig()
    guards: GuardsConfig = GuardsConfig()
    monitor: MonitorConfig = MonitorConfig()
    log: LogConfig = LogConfig()
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def _check(self) -> StreamConfig:
        self.spark.check_location("table.path", self.table.path)
        self.spark.check_location("checkpoint", self.checkpoint)
        self._check_checkpoint()
        self._check_published_topic()
        is_followed = self.index.follow or (self.publish.topic and self.publish.follow)
        if is_followed and self.table.path:
            make_readable_without_spark(self.table.path)
        if self.encoders is not None and "encoder" in self.model_fields_set:
            raise ValueError("give encoder or encoders, not both")
        if self.encoders == ():
            raise ValueError("encoders is empty; leave it out for the default encoder")
        for index, one in enumerate(self.all_encoders):
            if one in self.all_encoders[:index]:
                first = self.all_encoders.index(one)
                raise ValueError(
                    f"encoders.{index} has the settings of encoders.{first}; a message has one row "
                    "of each model, so leave one of them out"
                )
        return self

    def _check_checkpoint(self) -> None:
        """Refuse a checkpoint among the table's files, of which VACUUM deletes what Delta lacks."""
        if self.table.path is None:
            return
        # Hadoop resolves `..` too.
        table, checkpoint = (
            posixpath.normpath(str(find_local_path(one) or one))
            for one in (self.table.path, self.checkpoint)
        )
        if f"{checkpoint}/".startswith(f"{table}/"):
            first = checkpoint[len(table) + 1 :].partition("/")[0]
            if not first.startswith(("_", ".")) or first.startswith(_DELTA_FOLDERS):
                raise ValueError(
                    f"checkpoint '{self.checkpoint}' is in the table's folder, where VACUUM would "
                    f"delete its files: put it elsewhere, or into "
                    f"'{self.table.path.rstrip('/')}/_checkpoint'"
                )

    def _check_published_topic(self) -> None:
        """Refuse to publish to a topic that the stream reads, which would never end."""
        topic, kafka = self.publish.topic, self.kafka
        if topic is None or self.publish.bootstrap_servers not in (None, kafka.bootstrap_servers):
            return
        subscribed = {one.strip() for one in (kafka.subscribe or "").split(",")}
        is_matched = False
        # Java's syntax has forms that Python refuses.
        with suppress(re.error):
            is_matched = bool(re.fullmatch(kafka.subscribe_pattern or r"(?!)", topic))
        if topic in subscribed or topic in (kafka.assign or ()) or is_matched:
            raise ValueError(
                f"publish.topic '{topic}' is a topic that the stream reads: publish to another one"
            )

    @property
    def all_encoders(self) -> tuple[EncoderConfig, ...]:
        """The models of the stream: `encoders`, or else the only one, `encoder`."""
        return self.encoders or (self.encoder,)

    def with_encoders(self, encoders: tuple[EncoderConfig, ...]) -> StreamConfig:
        """Return the configuration with these encoders instead of its own."""
        return self.model_copy(update={"encoder": EncoderConfig(), "encoders": encoders})

    @property
    def locations(self) -> list[str]:
        """The locations that Spark writes to, as far as the configuration names them."""
        return [*([self.table.path] if self.table.path else []), self.checkpoint]
