"""The settings of the core, with their choices and defaults; imports neither torch nor Pillow.

The sections of a stream's configuration take both from here, so that each is written once. The
classes have no slots: a default is read as `FetchPolicy.timeout_s`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from embedstream_core.errors import SetupError

__all__ = [
    "AUDIO_FORMATS",
    "DEFAULT_SCHEMES",
    "FORMATS",
    "IMAGE_FORMATS",
    "AudioFormat",
    "Backend",
    "BucketRule",
    "ColorConversion",
    "DecodeDevice",
    "DecodeSettings",
    "Device",
    "EngineSettings",
    "FetchPolicy",
    "Fidelity",
    "GpuSettings",
    "HostRule",
    "ImageFormat",
    "Isolation",
    "KeyFormat",
    "MessageFormat",
    "ModalityName",
    "Normalization",
    "PipelineLimits",
    "SchemeName",
    "Store",
]

MessageFormat = Literal["auto", "bytes", "json"]
KeyFormat = Literal["auto", "utf8", "hex", "base64", "int64", "int32", "int16", "uuid"]
SchemeName = Literal["file", "http", "https", "s3", "s3a", "s3n", "gs", "abfss", "abfs", "az"]
Store = Literal["s3", "gs", "azure"]
ImageFormat = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF", "HEIC", "JP2"]
ColorConversion = Literal["as_stored", "srgb"]
Fidelity = Literal["exact", "fast"]
ModalityName = Literal["image", "text", "audio"]
Normalization = Literal["none", "l2"]
AudioFormat = Literal["WAV", "FLAC", "OGG", "MP3"]
Device = Literal["auto", "cpu", "cuda"]
DecodeDevice = Literal["cpu", "cuda"]
Backend = Literal["torch", "compile", "openvino"]

AUDIO_FORMATS: Final[tuple[AudioFormat, ...]] = get_args(AudioFormat)
IMAGE_FORMATS: Final[tuple[ImageFormat, ...]] = get_args(ImageFormat)
FORMATS: Final[tuple[ImageFormat, ...]] = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The formats of images that are decoded by default."""

DEFAULT_SCHEMES: Final[tuple[SchemeName, ...]] = tuple(
    scheme for scheme in get_args(SchemeName) if scheme != "http"
)
"""Plain http must be allowed by name."""

_HOST_RULE = re.compile(
    r"(?P<name>(\*\.)?[a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?", re.ASCII
)

# No store has other names; the address of an access point in S3 is one, too. A pattern or a scheme
# without slashes would be a bucket that no reference names.
_BUCKET_RULE = re.compile(
    r"((?P<store>s3|gs)://)?(?P<name>arn:[\w.:-]+|[\w.-]+)/?",
    re.ASCII,
)
_CONTAINER_RULE = re.compile(
    r"(abfss?|az)://(?P<name>[a-z0-9$-]+)@"
    r"(?P<account>[a-z0-9-]+)\.(dfs|blob)\.(?P<cloud>[a-z0-9.-]+)/?",
    re.ASCII,
)

_LEAST = {
    "max_redirects": 0,
    "max_bytes": 1,
    "attempts": 1,
    "backoff_s": 0,
    "outage_after": 1,
    "connections_per_host": 1,
}


@dataclass(frozen=True)
class DecodeSettings:
    """Limits that are checked before anything is decoded, and how faithfully images are.

    `max_bytes`, `max_pixels`, `max_scans` and `formats` are those of images. `max_scans` bounds the
    passes over a JPEG: encoders make about ten, and one of a few bytes costs as much as one over
    the whole image; the pictures in an AVIF or a HEIC count as such passes. `color` converts images
    by their ICC profiles. `device` is where common JPEGs are decoded in batches; the CPU decodes
    everything else. Lengths of audio are in seconds, sample rates in Hz.
    """

    max_bytes: int = 32 * 2**20
    # Above this Pillow warns, and at twice this it refuses: a higher limit could not be kept.
    max_pixels: int = 89_478_485
    max_scans: int = 100
    formats: tuple[str, ...] = FORMATS
    fidelity: Fidelity = "exact"
    color: ColorConversion = "as_stored"
    device: DecodeDevice = "cpu"
    max_text_bytes: int = 2**20
    max_text_characters: int = 100_000
    max_audio_bytes: int = 64 * 2**20
    max_audio_s: float = 600.0
    max_audio_channels: int = 8
    max_audio_rate_hz: int = 192_000
    audio_formats: tuple[str, ...] = AUDIO_FORMATS

    def get_max_bytes(self, modality: ModalityName) -> int:
        """Return the largest content of a modality, in bytes."""
        sizes = {
            "image": self.max_bytes,
            "text": self.max_text_bytes,
            "audio": self.max_audio_bytes,
        }
        return sizes[modality]


@dataclass(frozen=True)
class Isolation:
    """Limits of one image in a child process; `memory_bytes` is on top of the idle process's."""

    timeout_s: float = 30.0
    memory_bytes: int = 2 * 2**30


@dataclass(frozen=True)
class GpuSettings:
    """How an NVIDIA GPU is kept busy; a CPU ignores it. Off by default, for lack of measurements.

    pinned_memory: collate into page-locked memory, and copy it on a stream of its own.
    in_flight: forward passes that may be started before the first is finished; with more than one
    the memory is page-locked in any case, because other copies would wait for the computation.
    cuda_graphs: of images, full model batches replay a captured graph; smaller ones are padded.

    Raises:
        SetupError: a value is not valid.
    """

    pinned_memory: bool = False
    in_flight: int = 1
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise SetupError(f"in_flight is {self.in_flight}; it is at least 1")


@dataclass(frozen=True)
class EngineSettings:
    """How a model runs, as in the section `encoder` of a stream's configuration.

    `batch_size` is the number of images in a model batch; None leaves it to the device.
    """

    device: Device = "auto"
    backend: Backend = "torch"
    batch_size: int | None = None
    gpu: GpuSettings = GpuSettings()


@dataclass(frozen=True)
class PipelineLimits:
    """Bounds of the work in progress, so that memory is bounded for any input.

    `rows` and `bytes` bound the items that are read ahead of the model, and `bytes` also what they
    were decoded to; `pixels` bounds the pixels or audio samples that are being decoded. A single
    item over a bound passes alone. A model batch waits for at most `rows` entries that are not in
    it: repetitions, failures, other modalities. `decode_threads` is None for as many as torch
    computes with. The timeouts are the watchdog's, for decoding one item and one forward pass.
    """

    fetch_threads: int = 16
    decode_threads: int | None = None
    rows: int = 256
    bytes: int = 64 * 2**20
    pixels: int = 100_000_000
    decode_timeout_s: float = Isolation.timeout_s
    forward_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class HostRule:
    """One line of `FetchPolicy.hosts`; without a port it allows the scheme's own port."""

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Read a rule; raise SetupError for a text that is not a name, wildcard or address."""
        match = _HOST_RULE.fullmatch(text.lower())
        if match is None:
            raise SetupError(
                f"host {text!r} cannot be allowed: write a name, '*.example.com' or an address, "
                "without scheme or path, optionally with ':port'"
            )
        return cls(match["name"].strip("[]"), int(match["port"]) if match["port"] else None)

    def matches(self, host: str, port: int, default_port: int) -> bool:
        """Return whether this rule allows that port of that host, which is in lower case."""
        if port != (self.port or default_port):
            return False
        return host.endswith(self.name[1:]) if self.name[0] == "*" else host == self.name


@dataclass(frozen=True, slots=True)
class BucketRule:
    """One line of `FetchPolicy.buckets`: exactly one bucket or container, of exactly one store.

    host: of a container's storage account, as the Blob service has it.
    """

    store: Store
    name: str
    host: str = ""

    @classmethod
    def parse(cls, text: str) -> BucketRule:
        """Read a rule; a name alone is a bucket of S3. Raise SetupError for any other text."""
        if match := _CONTAINER_RULE.fullmatch(text):
            return cls("azure", match["name"], f"{match['account']}.blob.{match['cloud']}")
        if match := _BUCKET_RULE.fullmatch(text):
            return cls("gs" if match["store"] == "gs" else "s3", match["name"])
        raise SetupError(
            f"bucket {text!r} cannot be allowed: write 'name' or 's3://name' for S3, 'gs://name', "
            "or 'abfss://container@account.dfs.core.windows.net', without a key"
        )


@dataclass(frozen=True)
class FetchPolicy:
    """The references that may be fetched; all others are denied.

    A scheme is open when it is in `schemes` and its list is not empty: `folders` for file,
    `hosts` for http and https, those of the store in `buckets` for s3, gs, abfss and their like.

    folders: absolute paths; a file allows that one file.
    hosts: exact names, or `*.example.com` for every name below it; `name:port` for a port that is
    not the scheme's own.
    buckets: `name` of S3, `gs://name`, `abfss://container@account.dfs.core.windows.net`; the same
    name in another store or account stays closed.
    networks: addresses that are not public by IANA's registries (private, loopback, link-local,
    reserved, ...) are refused unless they are in one of these, such as `10.1.0.0/16`.
    max_bytes: of one image. timeout_s: for one image in all, with waiting, retries and reading.
    backoff_s: the pause before the second attempt; it doubles with each further one.
    outage_after: after so many TransientErrors in a row, there is an outage: the references are
    retried and none becomes a failure; None disables the check.

    Raises:
        SetupError: a value is not valid.
    """

    schemes: tuple[str, ...] = DEFAULT_SCHEMES
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    buckets: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    max_redirects: int = 0
    max_bytes: int = DecodeSettings.max_bytes
    timeout_s: float = 10.0
    attempts: int = 3
    backoff_s: float = 0.2
    outage_after: int | None = 20
    connections_per_host: int = 8
    s3_endpoint: str | None = None
    s3_region: str | None = None
    gs_endpoint: str | None = None
    azure_endpoint: str | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SetupError(f"{name} is {value}; it is at least {least}")
        if not self.timeout_s > 0:
            raise SetupError(f"timeout_s is {self.timeout_s}; it is more than 0")
        # They raise for a value that they cannot parse.
        _ = self.host_rules, self.bucket_rules, self.private_networks
        for folder in self.folders:
            if not folder.is_absolute():
                raise SetupError(f"folder '{folder}' cannot be allowed: give an absolute path")
        for name in ("s3_endpoint", "gs_endpoint", "azure_endpoint"):
            endpoint = urlsplit(getattr(self, name) or "https://default")
            if endpoint.hostname is None or "@" in endpoint.netloc:
                raise SetupError(
                    f"{name} needs a URL such as 'https://storage.example.com', without a password"
                )

    @property
    def host_rules(self) -> tuple[HostRule, ...]:
        """`hosts`, parsed."""
        return tuple(map(HostRule.parse, self.hosts))

    @property
    def bucket_rules(self) -> tuple[BucketRule, ...]:
        """`buckets`, parsed."""
        return tuple(map(BucketRule.parse, self.buckets))

    def find_buckets(self, store: Store) -> list[BucketRule]:
        """Return the rules of one store, each once."""
        return [rule for rule in dict.fromkeys(self.bucket_rules) if rule.store == store]

    @property
    def private_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`networks`, parsed."""
        try:
            return tuple(map(ip_network, self.networks))
        except ValueError as error:
            raise SetupError(f"networks: {error}; write them as '10.1.0.0/16'") from error
