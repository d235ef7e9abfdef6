"""Vectors that mean nothing fill no table, and monstrous messages end no stream."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

import odd_encoder
from drivers import running
from embedstream.config.sections import StreamConfig
from embedstream.stream.job import start_stream
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.prepare import ModelSpec, prepare_model
from oracle import check_outcomes, read_rows
from pictures import encoded, exif_orientation
from small import send_pictures, tiny_picture, write_config
from streams import Topic, drain, image, refusal

pytestmark = [pytest.mark.kafka, pytest.mark.spark]

Configure = Callable[..., StreamConfig]

BIG = "x" * 900_000
MANY = {f"attribute-{number}": str(number) for number in range(10_000)}


def plain(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def efficientnet() -> tuple[PreparedModel, dict[str, torch.Tensor]]:
    model = prepare_model(ModelSpec("efficientnet_lite0"))
    return model, safetensors.torch.load(model.tensors)


def spoilt(tensors: dict[str, torch.Tensor], damage: str) -> bytes:
    """What an export has made of the weights of the last layer before the embedding."""
    scale, shift = tensors["_bn1.weight"], tensors["_bn1.bias"]
    match damage:
        case "dead":
            scale.zero_()
            shift.fill_(0.5)
        case "zero":
            scale.zero_()
            shift.zero_()
        case "nan":
            shift[7] = float("nan")
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("dead", "the same vector for different images"),
        ("zero", "the same vector for different images"),
        ("nan", "numbers that are not finite"),
    ],
)
def test_weights_that_give_all_images_one_vector_are_refused_at_the_start(
    spark: SparkSession, configure: Configure, tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(spoilt(efficientnet()[1], damage))
    config = configure(encoder={"name": "efficientnet_lite0", "weights": str(path)})

    message = refusal(spark, config, "encoder")

    assert f"gives {reason}: its weights are damaged" in message
    assert not Path(config.table.path).exists()


@pytest.mark.long
def test_an_encoder_that_is_broken_on_the_workers_makes_no_row(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    """As on a device that computes wrongly: where it was prepared, the model was right."""
    config = configure()
    model, tensors = efficientnet()
    broken = spoilt(tensors, "dead")
    card = replace(model.card, tensors_sha256=hashlib.sha256(broken).hexdigest())
    send_pictures(topic, 4)

    stream = start_stream(spark, config, [PreparedModel(card, broken)], until="drained")
    with pytest.raises(StreamingQueryException) as ended:
        stream.query.awaitTermination()

    assert "SystemicError: the encoder gives the same vector" in vars(ended.value)["_stackTrace"]
    assert read_rows(Path(config.table.path)) == {}
    drain(spark, config)
    check_outcomes(Path(config.table.path), topic.positions())


@pytest.mark.long
def test_a_vector_without_a_direction_is_a_failure_and_its_neighbours_are_embedded(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    spark.sparkContext.addPyFile(odd_encoder.__file__)
    config = configure(encoder={"name": "odd_encoder:encoder", "weights": "random"})
    colours = ["maroon", "black", "teal", "white"]
    # Twice: the second time the encoder has seen both.
    topic.send(image(f"{colour}-{time}", plain(colour)) for time in (1, 2) for colour in colours)

    drain(spark, config)

    rows = check_outcomes(Path(config.table.path), topic.positions())
    failed = {row["image_id"]: row["error"] for row in rows.values() if row["error"]}
    assert failed.keys() == {"black-1", "black-2", "white-1", "white-2"}
    assert {error["code"] for error in failed.values()} == {"embedding_invalid"}
    assert failed["black-1"]["message"] == "the embedding's norm is 0.0"
    assert failed["white-1"]["message"] == "the embedding's norm is nan"


def reference(**fields: object) -> bytes:
    data = base64.b64encode(tiny_picture()).decode()
    return json.dumps({"data": data, **fields}).encode()


def test_monstrous_and_malformed_messages_have_their_rows(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    topic.send(
        [
            image("big-header", tiny_picture(), note=BIG),
            image("many-headers", tiny_picture(), **MANY),
            image("big-field", reference(note=BIG)),
            image("many-fields", reference(**MANY)),
            image("big-nested-field", reference(note={"nested": [BIG]})),
            image("big-bad-header", b"no image", note=BIG),
            image("not-json", b'{"uri": '),
            image("not-utf8", b'{"uri": "\xff\xfe"}'),
            image("not-base64", b'{"data": "%%%"}'),
            image("wrong-type", b'{"uri": 7}'),
            image("neither", b'{"colour": "red"}'),
            image("both", reference(uri="file:///picture.jpg")),
            image("half-a-pair", reference(note="\ud800")),
            image("plain", tiny_picture()),
        ]
    )
    config = configure(pipeline={"read_ahead_bytes": 2**20})

    drain(spark, config)

    rows = check_outcomes(Path(config.table.path), topic.positions()).values()
    attributes = {row["image_id"]: dict(row["attributes"]) for row in rows if not row["error"]}
    assert attributes == {
        "big-header": {"note": BIG},
        "many-headers": MANY,
        "big-field": {"note": BIG},
        "many-fields": MANY,
        "big-nested-field": {"note": json.dumps({"nested": [BIG]})},
        "half-a-pair": {"note": "?"},
        "plain": {},
    }
    assert Counter(row["error"]["code"] for row in rows if row["error"]) == {
        "message_malformed": 4,
        "message_incomplete": 2,
        "image_unsupported": 1,
    }


def sampled_4_4_1(content: bytes) -> bytes:
    """A JPEG in 4:2:0 as one in 4:4:1: a square has as many blocks of each."""
    jpeg = bytearray(content)
    jpeg[content.index(b"\xff\xc0") + 11] = 0x14
    return bytes(jpeg)


def flipped_bit(content: bytes) -> bytes:
    png = bytearray(content)
    png[content.index(b"IDAT") + 100] ^= 1
    return bytes(png)


def test_messages_that_once_ended_a_task_end_none(
    spark: SparkSession, topic: Topic, configure: Configure
) -> None:
    noise = Image.effect_noise((256, 256), 80).convert("RGB")
    six = struct.pack("<II", 6, 1)
    topic.send(
        [
            image("4:4:1", sampled_4_4_1(encoded(noise, "JPEG", subsampling="4:2:0"))),
            image("rational", encoded(noise, "JPEG", exif=exif_orientation(5, six))),
            image("brackets", b'{"uri": "file://[2024]/a.png"}'),
            image("flipped", flipped_bit(encoded(noise))),
            image("plain", encoded(noise)),
        ]
    )
    config = configure()

    stream = drain(spark, config)

    rows = check_outcomes(Path(config.table.path), topic.positions()).values()
    codes = {row["image_id"]: row["error"] and row["error"]["code"] for row in rows}
    assert codes == {
        "4:4:1": None,
        "rational": None,
        "brackets": "reference_denied",
        "flipped": "image_corrupt",
        "plain": None,
    }
    # A task that fails ends its worker, and the next one loads the model again.
    assert stream.loads <= 2


@pytest.mark.long
def test_a_broken_producer_ends_the_stream_in_a_sentence(topic: Topic, tmp_path: Path) -> None:
    """The rows that trip the guard are kept, and a restart begins a new window."""
    guards = {"max_failure_ratio": 0.5, "window_rows": 20}
    path = write_config(topic, tmp_path, guards=guards)
    send_pictures(topic, 24)
    topic.send(image(f"bad-{number}", b"no image") for number in range(200))
    with running(path) as driver:
        output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 2, output
    (sentence,) = [line for line in output.splitlines() if line.startswith("embedstream: ")]
    assert re.fullmatch(
        r"embedstream: (\d+) of the last \d+ rows failed, more than guards.max_failure_ratio 0.5 "
        rf"allows \(\1 image_unsupported\); the newest is the message {topic.name}-\d-\d+: "
        rf".*; .* embed what failed with `embedstream replay {path} --failures` once it can be "
        r"embedded, or raise guards.max_failure_ratio",
        sentence,
    )
    failed = [row for row in read_rows(tmp_path / "table").values() if row["error"]]
    # A micro-batch has eight rows, and one more may end before the stream is interrupted.
    assert 10 < len(failed) <= 100

    with running(path, "--available-now", "--set", "guards.max_failure_ratio=1") as driver:
        output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output
    check_outcomes(tmp_path / "table", topic.positions())
