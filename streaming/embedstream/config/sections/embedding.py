"""The sections that decide how the content of a message becomes a vector."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from embedstream.config.field_types import LocalFolder, PositiveSeconds, Section, Switch
from embedstream_core.media.image.preprocessing import CropMode, ImagePreprocessing, Interpolation
from embedstream_core.model_id import Precision
from embedstream_core.settings import (
    AUDIO_FORMATS,
    DEFAULT_SCHEMES,
    FORMATS,
    AudioFormat,
    Backend,
    ColorConversion,
    DecodeDevice,
    DecodeSettings,
    Device,
    EngineSettings,
    FetchPolicy,
    Fidelity,
    GpuSettings,
    ImageFormat,
    Isolation,
    Normalization,
    PipelineLimits,
    SchemeName,
)

__all__ = [
    "DataFrameConfig",
    "DecodeConfig",
    "EncoderConfig",
    "GpuConfig",
    "PipelineConfig",
    "PreprocessingConfig",
    "ReferencesConfig",
]


class ReferencesConfig(Section):
    """Which references may be fetched: none, until allowed here."""

    schemes: tuple[SchemeName, ...] = DEFAULT_SCHEMES
    """The schemes that may be used; plain http is off by default. `s3a://` and `s3n://` are read
    as `s3://`, and `abfs://` and `az://` as `abfss://`."""
    folders: tuple[LocalFolder, ...] = ()
    """Folders whose files `file://` may read; the path of a file allows that file alone."""
    hosts: tuple[str, ...] = ()
    """Hosts that `http://` and `https://` may reach: `images.example.com`, `*.example.com`,
    `localhost:8080`."""
    buckets: tuple[str, ...] = ()
    """Buckets that may be read, each in one store: `name` for `s3://` (extra `s3`), `gs://name`
    (extra `gs`), and containers of Azure as `abfss://container@account.dfs.core.windows.net` (extra
    `azure`)."""
    networks: tuple[str, ...] = ()
    """Private networks that allowed hosts may resolve to, such as `10.0.0.0/8`; otherwise only
    public addresses are connected to."""
    max_redirects: int = Field(FetchPolicy.max_redirects, ge=0, le=10)
    """Redirects to follow."""
    timeout_s: PositiveSeconds = FetchPolicy.timeout_s
    """Seconds for one whole fetch."""
    attempts: PositiveInt = FetchPolicy.attempts
    """Attempts for a fetch that may succeed later."""
    outage_after: PositiveInt | None = FetchPolicy.outage_after
    """After this many references of one task in a row fail for temporary reasons, it is an outage:
    the micro-batch is retried, in the end by a restart, and none of them becomes a failure. With
    null each one becomes a failure."""
    connections_per_host: PositiveInt = FetchPolicy.connections_per_host
    """The most connections of one task to one host."""
    s3_endpoint: str | None = None
    """The address of an S3-compatible store."""
    s3_region: str | None = None
    """The region of the buckets."""
    gs_endpoint: str | None = None
    """The address of a server with Google Cloud Storage's JSON interface."""
    azure_endpoint: str | None = None
    """The address of a server with the interface of Azure's Blob service, such as Azurite; the
    account becomes the first part of the path."""

    def build_policy(self, *, max_bytes: int) -> FetchPolicy:
        """Return what may be fetched, up to `max_bytes` each.

        Raises:
            SetupError: a host, a network or an address is malformed.
        """
        given = {**dict(self), "folders": tuple(map(Path, self.folders))}
        return FetchPolicy(**given, max_bytes=max_bytes)


class PreprocessingConfig(Section):
    """How an image is prepared for the model."""

    resize_px: PositiveInt
    """The length of the shorter side after scaling; `crop_mode` may choose another side."""
    crop_px: PositiveInt
    """The side of the square that is cut from the middle."""
    interpolation: Interpolation = "bilinear"
    """How pixels are scaled."""
    mean: tuple[float, float, float]
    """Subtracted from each channel, whose values are 0 to 1."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """The divisor of each channel after that."""
    crop_mode: CropMode = ImagePreprocessing.crop_mode
    """`center` scales the shorter side to `resize_px`; `squash` scales both sides to it and ignores
    the aspect ratio; `border` scales the longer side and fills the rest with `mean`."""

    @model_validator(mode="after")
    def _check(self) -> PreprocessingConfig:
        if self.crop_px > self.resize_px:
            raise ValueError(
                f"crop_px {self.crop_px} is larger than resize_px {self.resize_px}: the square is "
                "cut from the scaled image"
            )
        return self


class GpuConfig(Section):
    """How an NVIDIA GPU is kept busy; a CPU ignores it with a warning in the log."""

    pinned_memory: bool = GpuSettings.pinned_memory
    """On a GPU, collate model batches in page-locked memory, which is copied faster and while the
    GPU computes. Off, because it was never measured; `benchmarks/gpu.py` measures it."""
    in_flight: PositiveInt = GpuSettings.in_flight
    """On a GPU, forward passes that may be started before the first is finished; with 2 or more,
    memory is page-locked in any case. 1, because more were never measured."""
    cuda_graphs: bool = GpuSettings.cuda_graphs
    """On a GPU, full model batches of images replay a captured CUDA graph, and a last one that is
    over half full is padded; for `backend: torch`. Off, because it was never measured."""

    @property
    def settings(self) -> GpuSettings:
        """The switches, as the core takes them."""
        return GpuSettings(**dict(self))


class EncoderConfig(Section):
    """The model."""

    name: str = "resnet50"
    """A torchvision classification network, `timm/<model>` (extra `timm`), `efficientnet_lite0`
    (extra `efficientnet-lite`), `minilm` for texts (extra `text`), `speech-embedding` for audio
    (extra `audio`), a function of yours as `module:function`, or the kind of file that `weights`
    names: `onnx`, `keras` or `huggingface`, which is a folder with a model of any modality (extras
    of these names), or `mlflow` (extra `mlflow`); see encoders.md."""
    weights: str = "default"
    """`default`, the name of published weights, the path of a `.safetensors` file or of a state
    dict, or `random` (untrained, for tests); for a program, its path; for an encoder in MLflow,
    `models:/<name>@<alias>` or another URI of mlflow.md."""
    preprocessing: PreprocessingConfig | None = None
    """What a model of images was trained with; replaces the encoder's own: `{resize_px: 256,
    crop_px: 224, interpolation: bilinear, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224,
    0.225]}`. Interpolations are `bilinear`, `bicubic`, `lanczos` and `nearest`; crop modes are
    `center`, `squash` and `border`. Required for `onnx` and `keras`."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{8,64}$")
    """The hash that the weights file must have, or the beginning of it; for `random`, the hash in
    its `model_id`."""
    device: Device = EngineSettings.device
    """`auto` is the task's GPU if it has one."""
    precision: Literal["auto", Precision] = "auto"
    """`auto` times both where the model runs, once for all workers, and chooses bfloat16 if that is
    faster; in a table that has rows of the model, it keeps their precision."""
    backend: Backend = EngineSettings.backend
    """What computes: `torch`; `compile`, which is torch.compile with a slow start; `openvino` on
    CPUs (extra `openvino`). If it cannot be used, `torch` is, as for every model of texts or audio;
    programs such as `onnx` and `keras` run as they are, in float32."""
    normalize: Normalization = "none"
    """`l2` divides each vector by its length, for indexes that want unit vectors; the `model_id`
    says so."""
    timeout_s: PositiveSeconds = PipelineLimits.forward_timeout_s
    """Seconds for one forward pass; a worker that takes longer is killed."""
    batch_size: PositiveInt | None = EngineSettings.batch_size
    """Images, texts or windows of audio in a forward pass; by default 16, 64 and 8 on a CPU, 64,
    2,048 and 64 on a GPU, and fewer texts if they are long."""
    gpu: GpuConfig = GpuConfig()
    """What keeps an NVIDIA GPU busy."""

    @property
    def settings(self) -> EngineSettings:
        """How the model runs, as the core takes it."""
        return EngineSettings(self.device, self.backend, self.batch_size, self.gpu.settings)


class DecodeConfig(Section):
    """What is decoded, and how."""

    max_image_bytes: PositiveInt = DecodeSettings.max_bytes
    """Larger images are failures, before decoding."""
    max_image_pixels: int = Field(DecodeSettings.max_pixels, gt=0, le=DecodeSettings.max_pixels)
    """Larger images are failures, before decoding."""
    max_scans: PositiveInt = DecodeSettings.max_scans
    """Progressive JPEGs with more passes are failures, before decoding, and so are AVIFs and HEICs
    whose pictures have so many times the image's pixels."""
    formats: tuple[ImageFormat, ...] = Field(FORMATS, min_length=1)
    """The formats of images that are decoded. `AVIF`, `TIFF`, `HEIC` (extra `heif`) and `JP2`, for
    JPEG 2000, must be listed."""
    max_text_bytes: PositiveInt = DecodeSettings.max_text_bytes
    """Longer texts are failures, before decoding."""
    max_text_characters: PositiveInt = DecodeSettings.max_text_characters
    """Longer texts are failures, before tokenizing."""
    max_audio_bytes: PositiveInt = DecodeSettings.max_audio_bytes
    """Larger audio is a failure, before decoding."""
    max_audio_s: PositiveFloat = DecodeSettings.max_audio_s
    """Longer audio, in seconds, is a failure, before decoding."""
    max_audio_channels: PositiveInt = DecodeSettings.max_audio_channels
    """Audio with more channels is a failure, before decoding."""
    max_audio_rate_hz: PositiveInt = DecodeSettings.max_audio_rate_hz
    """Audio of a higher sample rate is a failure, before decoding."""
    audio_formats: tuple[AudioFormat, ...] = Field(AUDIO_FORMATS, min_length=1)
    """The formats of audio that are decoded."""
    timeout_s: PositiveSeconds = Isolation.timeout_s
    """Seconds for decoding one message's content. A worker that takes longer is killed; the retry
    of its task decodes each in its own process, so that only this message fails."""
    isolated_memory_bytes: PositiveInt = Isolation.memory_bytes
    """Memory for decoding one message's content in its own process."""
    fidelity: Fidelity = DecodeSettings.fidelity
    """`fast` scales large JPEGs within the decoder; vectors change slightly."""
    color: ColorConversion = DecodeSettings.color
    """`srgb` converts images by their ICC profiles, and one with a broken profile is a failure;
    `as_stored` leaves the values as they are, as most models were trained."""
    device: DecodeDevice = DecodeSettings.device
    """`cuda` decodes and scales common JPEGs in batches on the encoder's GPU, and the CPU decodes
    everything else; vectors change slightly."""

    @property
    def settings(self) -> DecodeSettings:
        """The limits that apply before anything is decoded, and how images are decoded."""
        given = self.model_dump(exclude={"timeout_s", "isolated_memory_bytes"})
        max_bytes, max_pixels = given.pop("max_image_bytes"), given.pop("max_image_pixels")
        return DecodeSettings(max_bytes=max_bytes, max_pixels=max_pixels, **given)


class PipelineConfig(Section):
    """How much work is in flight at once in one task."""

    fetch_threads: PositiveInt = PipelineLimits.fetch_threads
    """References fetched at once."""
    decode_threads: PositiveInt | None = PipelineLimits.decode_threads
    """Messages decoded at once; by default the task's cores."""
    read_ahead_rows: PositiveInt = PipelineLimits.rows
    """Messages read ahead of the model."""
    read_ahead_bytes: PositiveInt = PipelineLimits.bytes
    """Bytes of messages read ahead of the model."""
    decoding_pixels: PositiveInt = PipelineLimits.pixels
    """Pixels of the images, and samples of the audio, that are being decoded at once."""
    arrow_batch_rows: PositiveInt = 256
    """The most messages in one Arrow batch between Spark and Python."""
    arrow_batch_bytes: PositiveInt = 32 * 2**20
    """The most bytes in one Arrow batch between Spark and Python."""
    dedupe: Switch = "off"
    """`on` embeds messages of the same bytes once on each executor; every message still has its
    row."""
    dedupe_entries: PositiveInt = 100_000
    """The most embeddings that an executor keeps for `dedupe`, the newest ones; each takes four
    bytes per dimension on its disk."""


class DataFrameConfig(Section):
    """The limits of work on a DataFrame: sections of a stream's configuration."""

    references: ReferencesConfig = ReferencesConfig()
    decode: DecodeConfig = DecodeConfig()
    pipeline: PipelineConfig = PipelineConfig()
