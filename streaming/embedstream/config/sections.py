"""The configuration of a stream, as frozen models; inner code receives only its section."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from embedstream.config.embedding import (
    DataFrameConfig,
    DecodeConfig,
    EncoderConfig,
    PipelineConfig,
    PreprocessingConfig,
    ReferencesConfig,
    Transport,
)
from embedstream.config.errors import LocationError
from embedstream.config.field_types import LocalFolder, Location, Section, TableName, Time
from embedstream.config.locations import get_scheme, make_readable_without_spark
from embedstream.config.messages import MessageConfig
from embedstream.config.monitoring import GuardsConfig, LogConfig, MonitorConfig
from embedstream.config.options import check_kafka_options, check_spark_options
from embedstream.config.publishing import PublishConfig, check_topic_name
from embedstream.config.secrets import Options, Properties, SecretReference
from embedstream.config.table_layout import check_cluster_columns, check_properties

__all__ = [
    "BulkFilesConfig",
    "DataFrameConfig",
    "DecodeConfig",
    "EncoderConfig",
    "GuardsConfig",
    "IndexConfig",
    "KafkaConfig",
    "LogConfig",
    "MessageConfig",
    "MonitorConfig",
    "PipelineConfig",
    "PreprocessingConfig",
    "PublishConfig",
    "ReferencesConfig",
    "Section",
    "SparkConfig",
    "StreamConfig",
    "TableConfig",
    "Transport",
    "TriggerConfig",
]


class KafkaConfig(Section):
    """Where the messages come from."""

    bootstrap_servers: str
    """The brokers, as host:port, separated by commas."""
    subscribe: str | None = None
    """Topics to read, separated by commas."""
    subscribe_pattern: str | None = None
    """A Java regular expression of the topics to read."""
    assign: dict[str, list[int]] | None = None
    """Partitions to read, for each topic: `{images: [0, 1]}`."""
    starting_offsets: Literal["earliest", "latest"] | dict[str, dict[int, int]] = "earliest"
    """Where the first start begins: `earliest`, `latest`, or an offset for each partition,
    `{images: {0: 100}}` (-2 earliest, -1 latest). Later starts resume from the checkpoint."""
    starting_timestamp: Time | None = None
    """The time at which the first start begins, in UTC unless it names a zone: `2026-01-31T12:00`;
    instead of starting_offsets."""
    max_offsets_per_trigger: PositiveInt | None = None
    """The most messages in one micro-batch; by default 1,024 for each core, and 65,536 for each GPU
    if there are any."""
    min_partitions: PositiveInt | None = None
    """The fewest tasks of a micro-batch; by default, as many as run at once."""
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    """Whether messages of open or aborted transactions are read."""
    on_data_loss: Literal["fail", "continue"] = "fail"
    """What to do when messages were deleted before they were read."""
    commit_group: str | None = Field(None, pattern=r"^\S(.*\S)?$", max_length=255)
    """A consumer group to which the offsets of each committed micro-batch are written too, so that
    tools that watch Kafka's groups see the lag. The stream never reads it: the checkpoint and the
    table's commits say what was read."""
    options: Options = Field(default_factory=dict)
    """Further options of Spark's Kafka source, `kafka.*` ones for its client. An option that has a
    key here, or that the stream needs unchanged, is refused."""

    @model_validator(mode="after")
    def _check(self) -> KafkaConfig:
        check_kafka_options(self.options, max_offsets_per_trigger=self.max_offsets_per_trigger)
        chosen = [self.subscribe, self.subscribe_pattern, self.assign]
        if sum(choice is not None for choice in chosen) != 1:
            raise ValueError("give exactly one of subscribe, subscribe_pattern and assign")
        if self.starting_timestamp and "starting_offsets" in self.model_fields_set:
            raise ValueError("give starting_offsets or starting_timestamp, not both")
        subscribed = () if self.subscribe is None else self.subscribe.split(",")
        for topic in (*subscribed, *(self.assign or ())):
            check_topic_name(topic.strip())
        return self


class TableConfig(Section):
    """The Delta table of outcomes."""

    path: Location = ""
    """A folder, or a location such as `s3a://bucket/table`."""
    name: TableName | None = None
    """The table's name in a catalog of Spark, `catalog.schema.table` or `schema.table`, instead of
    `path`: the catalog says where the table is, and where a new one goes. With both, the table at
    `path` is registered under the name. See [Catalogs](catalogs.md)."""
    properties: Properties = Field(default_factory=dict)
    """Table properties, set when the table is created."""
    partition_by: Literal["date"] | None = None
    """`date` adds a column `date`, the day of the message's timestamp in UTC, and partitions the
    table by it. Set when the table is created, and checked at each start."""
    cluster_by: tuple[str, ...] = ()
    """Up to four columns by which Delta clusters the table (liquid clustering): `[image_id]`. Set
    when the table is created, and checked at each start; without it a table keeps its own
    clustering."""
    compact_every: int = Field(50, ge=0)
    """Small files are compacted each time this many micro-batches have run, while the stream
    continues; 0 leaves compaction to you, or to the catalog that maintains the table."""

    @model_validator(mode="after")
    def _check_layout(self) -> TableConfig:
        check_properties(self.properties)
        check_cluster_columns(self.cluster_by, self.properties)
        if self.partition_by is not None and self.cluster_by:
            raise ValueError("give partition_by or cluster_by, not both: Delta allows only one")
        return self

    @field_validator("path", mode="wrap")
    @classmethod
    def _take_null(cls, value: object, validate: ValidatorFunctionWrapHandler) -> str:
        # An override has no other way to leave out the path of the file.
        return "" if value is None else str(validate(value))

    @model_validator(mode="after")
    def _check(self) -> TableConfig:
        if not self.path and self.name is None:
            raise ValueError("give path, a folder, or name, the table's name in a catalog of Spark")
        return self


class TriggerConfig(Section):
    """When a micro-batch starts."""

    interval_s: float = Field(1.0, ge=0)
    """Seconds between the starts of micro-batches; with 0 the next one starts at once."""
    stop_timeout_s: PositiveFloat = 300.0
    """Seconds that a stop waits for the micro-batch in flight."""


class SparkConfig(Section):
    """The Spark application."""

    app_name: str = "embedstream"
    """The application's name."""
    master: str | None = None
    """Such as `local[*,4]` or `spark://host:7077`. Leave it unset under spark-submit, which has its
    own; elsewhere the default is `local[*,4]`."""
    jars: Literal["fetch", "provided"] = "fetch"
    """`fetch` downloads the pinned jars, once; use `provided` if the cluster has them."""
    jar_sets: tuple[Literal["spark", "s3"], ...] | None = None
    """The jar sets to fetch; by default `spark`, and `s3`, the S3A file system, if the table, the
    checkpoint or the files are in `s3a://`."""
    log_file: LocalFolder | None = None
    """A file for Spark's own log; by default standard error."""
    options: Options = Field(default_factory=dict)
    """Further `spark.*` settings. A setting that has a key here, or that the stream needs
    unchanged, is refused; jars, extensions and patterns of secrets are added to embedstream's
    own."""

    @model_validator(mode="after")
    def _check(self) -> SparkConfig:
        check_spark_options(self.options, jars=self.jars)
        return self

    def check_location(self, key: str, location: str) -> None:
        """Check that Spark has a file system for a location.

        Raises:
            LocationError: none of the fetched jars has it.
        """
        scheme = get_scheme(location)
        is_configured = f"spark.hadoop.fs.{scheme}.impl" in self.options
        if scheme in ("s3", "s3n") and self.jars == "fetch" and not is_configured:
            raise LocationError(
                f"{key} '{location}': Spark's file system for S3 is s3a, so write s3a://; if the "
                f"cluster has one for {scheme}, set spark.jars to `provided`"
            )


class IndexConfig(Section):
    """A vector index that follows the table; `embedstream index` or the stream itself writes it."""

    kind: str = "lancedb"
    """`lancedb`: files in a folder or a bucket; `pgvector`: PostgreSQL with that extension."""
    path: Location | None = None
    """The folder or bucket of `lancedb`; by default `_embedstream/index` in the table's folder."""
    url: SecretReference | None = None
    """The address of PostgreSQL, `postgresql://user@host/database`; give one with a password as
    `env:NAME` or `file:PATH`."""
    db_schema: str = "embedstream"
    """PostgreSQL's schema, which holds nothing but this index; created if there is none."""
    attributes: tuple[str, ...] = ()
    """Attributes of messages that become columns of the index, for `search --where`."""
    ann_rows: PositiveInt = 50_000
    """From this many rows on, a collection has an approximate index; below, search is exact."""
    follow: bool = False
    """Whether the stream's driver runs the index in a process of its own while it runs."""
    poll_s: PositiveFloat = 0.2
    """Seconds between two looks at the table's log when the index is followed continuously."""

    @model_validator(mode="after")
    def _check(self) -> IndexConfig:
        if self.kind == "pgvector" and self.url is None:
            raise ValueError("kind pgvector needs url, such as postgresql://user@host/database")
        if re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.db_schema) is None:
            raise ValueError(
                f"db_schema '{self.db_schema}' has to be a name of small letters, digits and _"
            )
        return self


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
