"""The project as a list of inputs from users knows it: everything such a list calls, and no more.

A list of cases lives outside the project and is run against it with `--doors` and this file.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Told(Exception):
    """What the project says on purpose of a wrong set-up: a sentence, without a traceback."""


@contextlib.contextmanager
def told() -> Iterator[None]:
    from embedstream_core.errors import EmbedstreamError

    try:
        yield
    except EmbedstreamError as error:
        raise Told(" ".join(str(error).split())) from error


def preload() -> None:
    """Imports what takes long once, before the cases' processes part; nothing is computed."""
    for name in (
        "torch",
        "torchvision",
        "embedstream_core.pipeline.pipeline",
        "embedstream_core.models.prepare",
    ):
        importlib.import_module(name)


@dataclass(frozen=True)
class Outcome:
    """What became of one image: a vector, or the code and the message of its failure."""

    code: str | None = None
    message: str = ""
    vector: Any = None
    width: int | None = None
    height: int | None = None

    @property
    def colours(self) -> Any:
        """Of the encoder `thumbnail`: the picture as 8 by 8 colours, in levels of 0 to 255."""
        return self.vector[:192].reshape(3, 8, 8).transpose(1, 2, 0) * 255

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.code else "an embedding"


def embed(
    images: Sequence[bytes | str],
    encoder: Any = None,
    *,
    fetch: Callable[[str], bytes] | None = None,
    **limits: int,
) -> list[Outcome]:
    """The outcomes of one run of the whole pipeline over a batch of bytes, or references.

    Without an encoder it is `thumbnail`: vectors that are 8 by 8 mean colours, and a 1.
    """
    import torch

    from embedstream_core.engine.engine import Engine
    from embedstream_core.models.loaded import LoadedModel
    from embedstream_core.pipeline.pipeline import Pipeline
    from embedstream_core.records import Embedding, Item
    from embedstream_core.settings import PipelineLimits

    network, prepared = (encoder.network, encoder.preprocessing) if encoder else _thumbnail()
    loaded = LoadedModel(network, (prepared,))
    engine = Engine.start(loaded, device=torch.device("cpu"), precision="float32", cpu_threads=2)
    items = [
        Item(f"item {index}", content=image)
        if isinstance(image, bytes)
        else Item(f"item {index}", uri=image)
        for index, image in enumerate(images)
    ]
    pipeline = Pipeline([engine], fetch=fetch or _no_references, limits=PipelineLimits(**limits))
    return [
        Outcome(None, "", one.vector, one.media.width, one.media.height)
        if isinstance(one, Embedding)
        else Outcome(str(one.code), one.message)
        for batch in pipeline.run([items])
        for (one,) in batch
    ]


def _no_references(uri: str) -> bytes:
    raise AssertionError(f"control: no reference was to be fetched, and '{uri}' was")


def _thumbnail() -> tuple[Any, Any]:
    import torch

    class Thumbnail(torch.nn.Module):
        def forward(self, pictures: Any) -> Any:
            small = torch.nn.functional.avg_pool2d(pictures, pictures.shape[-1] // 8).flatten(1)
            return torch.cat([small, torch.ones(len(pictures), 1)], 1)

    return Thumbnail(), preprocessing()


def preprocessing(
    resize_px: int = 256,
    crop_px: int = 224,
    interpolation: Any = "bilinear",
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0),
    std: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Any:
    """How an encoder wants its pictures; it has these five attributes."""
    from embedstream_core.media.image.preprocessing import ImagePreprocessing

    return ImagePreprocessing(resize_px, crop_px, interpolation, mean, std)


def decode(content: bytes, prepared: Any) -> Any:
    """The pixels that an encoder with that preprocessing is given, uint8 of (side, side, 3)."""
    from embedstream_core.media.image.decode import open_image
    from embedstream_core.media.image.fast_jpeg import render_quickly
    from embedstream_core.settings import DecodeSettings

    (pixels,) = render_quickly(content, open_image(content, DecodeSettings()), prepared)
    return pixels


def header(content: bytes) -> tuple[int, int]:
    """Width and height, as `read_images` gives them."""
    from embedstream_core.media.image.decode import open_image
    from embedstream_core.settings import DecodeSettings

    opened = open_image(content, DecodeSettings())
    return opened.width, opened.height


@dataclass(frozen=True)
class Parsed:
    """What a message was read as: an item, or the code and the message of its failure."""

    code: str | None = None
    message: str = ""
    image_id: str = ""
    uri: str | None = None
    content: bytes | None = None


def parse(
    value: bytes,
    key: bytes | None = None,
    headers: Sequence[tuple[str, bytes | None]] = (),
    message_format: Any = "auto",
) -> Parsed:
    """Read a Kafka message at images-0-7."""
    from embedstream_core.errors import ItemError
    from embedstream_core.messages.parse import Message, MessageReader
    from embedstream_core.records import Item

    message = Message(value=value, position="images-0-7", key=key, headers=headers)
    try:
        item = MessageReader(format=message_format).read(message, accepts=("image",))
    except ItemError as error:
        return Parsed(str(error.code), error.message)
    assert isinstance(item, Item)
    return Parsed(None, "", item.image_id, item.uri, item.content)


@contextlib.contextmanager
def fetcher(**policy: Any) -> Iterator[Callable[[str], bytes]]:
    """What fetches references within a policy, for `embed`. Raises Told for a wrong policy."""
    from embedstream_core.fetch.fetcher import open_fetcher
    from embedstream_core.settings import FetchPolicy

    # Without an account, all objects of a store would fail.
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing-too")
    with told():
        opened = open_fetcher(FetchPolicy(**policy))
    with opened:
        yield opened.fetch


def fetch(uri: str, **policy: Any) -> Outcome | bytes:
    """The bytes that a reference leads to within a policy, or the failure."""
    from embedstream_core.errors import ItemError

    with fetcher(**policy) as fetch_one:
        try:
            return fetch_one(uri)
        except ItemError as error:
            return Outcome(str(error.code), error.message)


@dataclass(frozen=True)
class Loaded:
    """An encoder as a worker has it: prepared, checked, and loaded from what is sent to it."""

    model_id: str
    dimension: int
    preprocessing: Any
    network: Any


def load_encoder(name: str, weights: object = "random", *, prepared: Any = None) -> Loaded:
    """An encoder by its name and weights, as in the sections of a configuration. Raises Told."""
    from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model

    with told():
        model = prepare_model(ModelSpec(name, str(weights), preprocessing=prepared))
        network = load_prepared(model).network
    card = model.card
    return Loaded(card.model_id, card.dimension, card.image, network)


OWN_MODULE = """
import torch, torchvision
from torch import nn
from embedstream_core.media.image.preprocessing import ImagePreprocessing
PREPROCESSING = ImagePreprocessing(
    256, 224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)
"""
"""How a module of a user begins whose function gives an encoder: `module:function`."""

CONFIG = """
kafka: {bootstrap_servers: "127.0.0.1:9", subscribe: images}
table: {path: table}
checkpoint: checkpoint
"""


def read_config(
    *overrides: str, text: str = CONFIG, environment: Mapping[str, str] | None = None
) -> Any:
    """A configuration, as `embedstream run` reads it. Raises Told."""
    from embedstream.config.load import load_config

    Path("config.yaml").write_text(text)
    with told():
        return load_config(Path("config.yaml"), overrides, environment=environment or {})


class Session:
    """As much of a session as the options depend on: two tasks run at once."""

    class conf:  # noqa: N801
        @staticmethod
        def get(name: str, default: str | None = None) -> str | None:
            return default

    class sparkContext:  # noqa: N801
        defaultParallelism = 2  # noqa: N815


def kafka_options(config: Any) -> dict[str, str]:
    """What Spark's Kafka source is told in the end."""
    from embedstream.kafka.source import build_source_options

    with told():
        return build_source_options(Session, config.kafka)  # type: ignore[arg-type]


def spark_settings(config: Any) -> dict[str, str]:
    """What Spark is started with in the end; the project's own jars are /own/delta.jar here.

    There is no public door to it but a session, which would start Spark.
    """
    from embedstream.spark import launch

    with told():
        settings = launch.build_settings(config.spark, config.pipeline)
        if config.spark.jars == "provided":
            return settings
        return launch.add_jars(settings, [Path("/own/delta.jar")])


def command(*arguments: object, **environment: str) -> tuple[int, str]:
    """Run `embedstream`: its exit code, and all it printed in one line."""
    program = Path(sys.executable).parent / "embedstream"
    done = subprocess.run(
        [program, *map(str, arguments)],
        env={**os.environ, "COLUMNS": "200", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, " ".join(done.stdout.split())
