"""The content of a row is read again from its file or from its message."""

from __future__ import annotations

from pathlib import Path

import pytest
from kafka.admin import ConfigResource, KafkaAdminClient
from kafka.codec import has_lz4, has_snappy

from embedstream.search.answer import Neighbour
from embedstream.search.contents import read_file_content, read_kafka_content
from embedstream_core.errors import SetupError
from streams import Topic, image, json_message


@pytest.mark.parametrize("name", ["cat.png", "möwe 1 %41.png", "a#b?c.png", "猫+.png"])
def test_a_files_content_is_found_by_its_reference(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(name.encode())
    assert read_file_content(path.as_uri()) == name.encode()


def test_other_references_have_no_content(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    assert read_file_content((tmp_path / "absent.png").as_uri()) is None
    assert read_file_content(tmp_path.as_uri()) is None
    assert read_file_content(f"https://example.com{tmp_path}/cat.png") is None
    assert read_file_content(f"s3:/{tmp_path}/cat.png") is None
    assert read_file_content((tmp_path / ("a" * 300)).as_uri()) is None
    assert read_file_content("file://[cat.png") is None


@pytest.mark.kafka
def test_the_content_of_a_message_is_read(topic: Topic) -> None:
    topic.send([image("cat", b"first"), image("cat", b"second"), image("cat", None)])
    topic.send([json_message("cat", data="dGhpcmQ="), json_message("cat", uri="file:///cat.png")])
    (partition,) = [one for one, end in topic.end_offsets().items() if end]

    contents = [
        read_kafka_content(
            Neighbour(1.0, "cat", None, topic.name, partition, offset),
            bootstrap_servers=topic.bootstrap_servers,
        )
        for offset in range(5)
    ]

    assert contents == [b"first", b"second", None, b"third", None]


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("value", "media_type", "expected"),
    [
        (b'{"text": "a \\u00e4"}', "text/plain", "a ä".encode()),
        (b'{"text": "a"}', None, b"a"),
        (b"plain", "text/plain", b"plain"),
        (b'"quoted"', "text/plain", b'"quoted"'),
        (b'"quoted"', "image/png", None),
        (b"RIFF", "audio/wav", b"RIFF"),
    ],
)
def test_texts_and_sounds_of_messages_are_read(
    topic: Topic, value: bytes, media_type: str | None, expected: bytes | None
) -> None:
    topic.send([image("one", value)])
    (partition,) = [one for one, end in topic.end_offsets().items() if end]
    row = Neighbour(1.0, "one", None, topic.name, partition, 0, media_type)
    assert read_kafka_content(row, bootstrap_servers=topic.bootstrap_servers) == expected


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["lz4", "snappy"])
def test_a_message_of_a_codec_that_is_missing_is_an_error(topic: Topic, codec: str) -> None:
    """The broker compresses with its own library; kafka-python needs another package for each."""
    if codecs()[codec]:
        pytest.skip(f"{codec} is installed")
    admin = KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)
    resource = ConfigResource("TOPIC", topic.name, configs={"compression.type": codec})
    admin.alter_configs([resource])
    admin.close()
    topic.send([image("cat", b"first")])
    (partition,) = [one for one, end in topic.end_offsets().items() if end]

    with pytest.raises(SetupError, match=rf"'{topic.name}' cannot be read .*; install lz4"):
        read_kafka_content(
            Neighbour(1.0, "cat", None, topic.name, partition, 0),
            bootstrap_servers=topic.bootstrap_servers,
        )


def codecs() -> dict[str, bool]:
    """Which of Kafka's codecs kafka-python can use here."""
    return {"lz4": has_lz4(), "snappy": has_snappy()}


def test_a_missing_broker_for_images_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import kafka
    from kafka.errors import KafkaTimeoutError

    def unanswered(**_: object) -> None:
        raise KafkaTimeoutError("no answer")

    monkeypatch.setattr(kafka, "KafkaConsumer", unanswered)
    with pytest.raises(SetupError, match=r"from Kafka at 127\.0\.0\.1:1: .*no answer.*; check"):
        read_kafka_content(
            Neighbour(1.0, "cat", None, "images", 0, 0), bootstrap_servers="127.0.0.1:1"
        )
