"""Files become messages, and every message reaches the broker or is reported with a reason."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from embedstream.kafka.dev_broker import MAX_MESSAGE_BYTES
from embedstream.kafka.produce import (
    MAX_QUEUED_BYTES,
    OutgoingMessage,
    build_message,
    build_messages,
    find_files,
    produce,
)
from embedstream_core.errors import SetupError
from streams import Topic, image

TOO_LARGE = "larger than the broker allows in one message (message.max.bytes)"


@dataclass(frozen=True, slots=True)
class Received:
    """What a consumer reads of a message."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    partition: int


def received(topic: Topic) -> list[Received]:
    """All that the topic holds, partition by partition."""
    from kafka import KafkaConsumer, TopicPartition

    ends = {TopicPartition(topic.name, one): end for one, end in topic.end_offsets().items()}
    found: list[Received] = []
    deadline = time.monotonic() + 30
    with closing(KafkaConsumer(bootstrap_servers=topic.bootstrap_servers)) as consumer:
        consumer.assign(list(ends))
        consumer.seek_to_beginning(*ends)
        while len(found) < sum(ends.values()) and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=500).values():
                found += [
                    Received(one.key, one.value, tuple(one.headers), one.partition)
                    for one in records
                ]
    return found


def send(topic: Topic, *messages: OutgoingMessage) -> list[tuple[str, str]]:
    return produce(messages, bootstrap_servers=topic.bootstrap_servers, topic=topic.name)


def files(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())
    return paths


def test_a_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    b, deep, upper, a = files(tmp_path, "b.png", "b/deep/c.JPG", "z/d.JpEg", "a.webp")
    files(tmp_path, "notes.md", "b/archive.zip", "no-suffix")
    assert find_files([tmp_path]) == [a, deep, b, upper]


@pytest.mark.parametrize(
    "suffix",
    [
        *["jpg", "jpeg", "jpe", "jfif", "JFIF", "png", "apng", "webp", "gif", "bmp", "PNG", "Jpg"],
        *["txt", "TXT", "jsonl", "wav", "flac", "ogg", "opus", "mp3", "Mp3"],
    ],
)
def test_every_known_suffix_is_found(tmp_path: Path, suffix: str) -> None:
    found = files(tmp_path, f"picture.{suffix}")
    assert find_files([tmp_path]) == found


def test_hidden_files_and_unusual_names_are_found(tmp_path: Path) -> None:
    found = files(tmp_path, ".hidden.png", ".thumbnails/a.png", "_DSC0001.JPG", "a [1] {b}.png")
    assert find_files([tmp_path]) == found


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "picture.heic")
    assert find_files([path]) == [path]


def test_paths_keep_their_order(tmp_path: Path) -> None:
    last, inner = files(tmp_path, "z.png", "folder/a.png")
    assert find_files([last, tmp_path / "folder", last]) == [last, inner, last]


def test_a_folder_with_an_image_suffix_is_not_an_image(tmp_path: Path) -> None:
    (inner,) = files(tmp_path, "album.jpg/a.png")
    assert find_files([tmp_path]) == [inner]


def test_a_broken_link_is_not_an_image(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "a.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert find_files([tmp_path]) == [path]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "a.png")
    absent = tmp_path / "absent"
    with pytest.raises(SetupError, match="does not exist; name files or folders") as error:
        find_files([path, absent])
    assert f"'{absent}'" in str(error.value)


def test_a_folder_without_a_file_is_an_error_that_lists_the_suffixes(tmp_path: Path) -> None:
    files(tmp_path, "notes.md")
    with pytest.raises(SetupError, match=r"no file .* \(\.apng, .*, \.jsonl, .*, \.webp\)"):
        find_files([tmp_path])


def test_a_message_of_bytes(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "möwe 1.png")
    assert build_message(path, form="bytes") == OutgoingMessage(
        key=str(path),
        value="möwe 1.png".encode(),
        headers=(("file_name", "möwe 1.png".encode()),),
    )


def test_a_message_of_a_reference(tmp_path: Path) -> None:
    (path,) = files(tmp_path, "möwe 1.png")
    message = build_message(path, form="reference")
    assert message.key == str(path)
    assert message.headers == ()
    assert json.loads(message.value or b"") == {
        "id": str(path),
        "uri": f"{tmp_path.as_uri()}/m%C3%B6we%201.png",
    }


def test_a_relative_path_is_the_id_but_not_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files(tmp_path, "pictures/cat.png")
    monkeypatch.chdir(tmp_path)
    message = build_message(Path("pictures/cat.png"), form="reference")
    assert json.loads(message.value or b"") == {
        "id": "pictures/cat.png",
        "uri": (tmp_path / "pictures" / "cat.png").as_uri(),
    }
    assert build_message(Path("pictures/cat.png"), form="bytes").key == "pictures/cat.png"


def test_a_file_that_cannot_be_read_is_reported_and_left_out(tmp_path: Path) -> None:
    first, last = files(tmp_path, "a.png", "c.png")
    skipped: dict[str, str] = {}

    messages = build_messages(
        [first, tmp_path / "b.png", tmp_path, last],
        form="bytes",
        on_unreadable=skipped.__setitem__,
    )

    assert [message.key for message in messages] == [str(first), str(last)]
    assert skipped == {
        str(tmp_path / "b.png"): "cannot be read: No such file or directory",
        str(tmp_path): "cannot be read: Is a directory",
    }


def read_messages(
    *paths: Path, form: Literal["bytes", "reference"] = "bytes"
) -> tuple[list[OutgoingMessage], dict[str, str]]:
    """The messages of files, and what was left out and why."""
    skipped: dict[str, str] = {}
    return list(build_messages(paths, form=form, on_unreadable=skipped.__setitem__)), skipped


def test_a_text_is_sent_as_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_bytes(b"\xef\xbb\xbf a\r\n\xff")
    (message,), _ = read_messages(path)
    assert (message.key, message.value) == (str(path), b"\xef\xbb\xbf a\r\n\xff")


@pytest.mark.parametrize("form", ["bytes", "reference"])
def test_each_line_is_a_message(tmp_path: Path, form: Literal["bytes", "reference"]) -> None:
    path = tmp_path / "lines.JSONL"
    lines = [
        '{"id": "möwe", "text": "a bird"}',
        "",
        '  {"text": "\\u00e4"}\r',
        '{"id": 7, "uri": "file:///a"}',
        '{"id": "", "text": "b"}',
        " \t",
        '{"id": null, "data": "YQ=="}',
    ]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")

    messages, skipped = read_messages(path, form=form)

    assert skipped == {}
    assert [(one.key, one.value, one.headers) for one in messages] == [
        ("möwe", '{"id": "möwe", "text": "a bird"}'.encode(), ()),
        (f"{path}:3", b'{"text": "\\u00e4"}', ()),
        ("7", b'{"id": 7, "uri": "file:///a"}', ()),
        (f"{path}:5", b'{"id": "", "text": "b"}', ()),
        (f"{path}:7", b'{"id": null, "data": "YQ=="}', ()),
    ]


def test_a_broken_line_is_reported_and_the_others_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text"\n["a"]\n{"text": "\xff"}\n{"text": "b"}')

    messages, skipped = read_messages(path)

    assert [one.key for one in messages] == [f"{path}:1", f"{path}:5"]
    assert skipped.keys() == {f"{path}:{number}" for number in (2, 3, 4)}
    assert skipped[f"{path}:2"].startswith("not JSON in UTF-8: ")
    assert skipped[f"{path}:3"] == "the line is JSON but not an object"
    assert skipped[f"{path}:4"].startswith("not JSON in UTF-8: ")


@pytest.mark.parametrize("length", [99, 100, 101, 250])
def test_a_line_above_the_limit_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr("embedstream.kafka.produce.MAX_MESSAGE_BYTES", 100)
    path = tmp_path / "lines.jsonl"
    line = f'{{"text": "{"a" * (length - 12)}"}}'
    path.write_text(f'{line}\n{{"text": "b"}}\n')

    messages, skipped = read_messages(path)

    assert len(line) == length
    kept = [f"{path}:2"] if length > 99 else [f"{path}:1", f"{path}:2"]
    assert [one.key for one in messages] == kept
    assert len(skipped) == 2 - len(kept)


def test_lines_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    line = json.dumps({"text": "a" * 10_000})
    path.write_text(f"{line}\n" * 3_000)
    tracemalloc.start()
    try:
        count = sum(1 for _ in build_messages([path], form="bytes", on_unreadable=print))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 3_000
    assert peak < 2**20


def test_a_path_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 300)
    with pytest.raises(SetupError, match="cannot be read: File name too long") as error:
        find_files([path])
    assert f"'{path}'" in str(error.value)


@pytest.mark.kafka
def test_messages_arrive_with_key_value_and_headers(topic: Topic, tmp_path: Path) -> None:
    (path,) = files(tmp_path, "möwe.png")
    sent = [
        build_message(path, form="bytes"),
        image("cat", b"\x00\xff", shop="42", place="Zürich"),
        image("plain", b""),
    ]

    assert send(topic, *sent) == []

    found = {one.key: (one.value, one.headers) for one in received(topic)}
    assert found == {
        str(path).encode(): (
            "möwe.png".encode(),
            (("file_name", "möwe.png".encode()),),
        ),
        b"cat": (b"\x00\xff", (("shop", b"42"), ("place", "Zürich".encode()))),
        b"plain": (b"", ()),
    }


@pytest.mark.kafka
def test_messages_of_one_key_keep_their_order(topic: Topic) -> None:
    assert send(topic, *(image("cat", str(number).encode()) for number in range(50))) == []
    found = received(topic)
    assert [one.value for one in found] == [str(number).encode() for number in range(50)]
    assert len({one.partition for one in found}) == 1


@pytest.mark.kafka
def test_a_tombstone_has_no_value(topic: Topic) -> None:
    assert send(topic, image("cat", None)) == []
    assert [(one.key, one.value) for one in received(topic)] == [(b"cat", None)]


@pytest.mark.kafka
def test_a_message_that_is_too_large_is_reported_and_the_others_arrive(topic: Topic) -> None:
    large = image("large", bytes(MAX_MESSAGE_BYTES))

    failed = send(topic, image("before", b"1"), large, image("after", b"2"))

    assert failed == [("large", TOO_LARGE)]
    assert {one.key for one in received(topic)} == {b"before", b"after"}


@pytest.mark.kafka
def test_messages_that_follow_a_refused_one_arrive(topic: Topic) -> None:
    # So many bytes that the refusals are there before the next message is sent.
    refused = [image("cat", bytes(MAX_MESSAGE_BYTES))] * (MAX_QUEUED_BYTES // MAX_MESSAGE_BYTES + 1)

    failed = send(topic, *refused, image("cat", b"1"), image("dog", b"2"))

    assert [reason for _, reason in failed] == [TOO_LARGE] * len(refused)
    assert {one.value for one in received(topic)} == {b"1", b"2"}


@pytest.mark.kafka
def test_messages_are_made_as_they_are_sent(topic: Topic) -> None:
    def breaking() -> Iterator[OutgoingMessage]:
        yield image("first", b"1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        produce(breaking(), bootstrap_servers=topic.bootstrap_servers, topic=topic.name)

    assert [one.key for one in received(topic)] == [b"first"]


@pytest.mark.kafka
def test_a_missing_topic_is_an_error_before_anything_is_sent(topic: Topic) -> None:
    sent: list[OutgoingMessage] = []
    messages = (sent.append(one) or one for one in [image("cat", b"1")])  # type: ignore[func-returns-value]
    with pytest.raises(SetupError, match=r"no topic 'absent' at 127\.0\.0\.1:\d+; create it first"):
        produce(messages, bootstrap_servers=topic.bootstrap_servers, topic="absent")
    assert sent == []


@pytest.mark.parametrize("servers", ["127.0.0.1:1", "127.0.0.1:99999", "no-port", "a..b:9092"])
def test_a_missing_broker_is_an_error_with_a_remedy(servers: str) -> None:
    with pytest.raises(SetupError, match=rf"nothing listens at {servers}; .*broker start"):
        produce([image("cat", b"1")], bootstrap_servers=servers, topic="images")


@pytest.mark.kafka
def test_an_unknown_setting_is_an_error(topic: Topic) -> None:
    with pytest.raises(SetupError, match="no_such_setting"):
        produce(
            [image("cat", b"1")],
            bootstrap_servers=topic.bootstrap_servers,
            topic=topic.name,
            client_settings={"no_such_setting": "1"},
        )


@pytest.mark.kafka
@pytest.mark.parametrize(
    "settings",
    [
        {"client_id": "tests"},
        {"request_timeout_ms": 20_000},
        {"max_request_size": 1000, "linger_ms": 1},
    ],
)
def test_settings_of_kafkas_client_are_used(topic: Topic, settings: dict[str, object]) -> None:
    failed = produce(
        [image("cat", b"1")],
        bootstrap_servers=topic.bootstrap_servers,
        topic=topic.name,
        client_settings=settings,
    )
    assert failed == []
    assert [one.key for one in received(topic)] == [b"cat"]
