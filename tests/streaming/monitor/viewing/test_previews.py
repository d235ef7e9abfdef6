"""What is shown of contents: sound ones, hostile ones, and ones that are not there any more."""

from __future__ import annotations

import io
import os
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from clips import encode_clip, make_clip
from embedstream.monitor.viewer import Preview, RowPosition
from embedstream.monitor.viewing.contents import Content, Contents
from embedstream.monitor.viewing.previews import Previews
from embedstream.monitor.viewing.rows import Rows
from embedstream_core.errors import SetupError
from fetch_places import open_site
from outcome_tables import write_table
from pictures import encoded, png_chunk, real_pictures
from small import POISON, poisoned
from streams import Topic, image, json_message
from viewed_tables import at, file_rows, made, stream_config, write_files

SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
HTML = b"<!DOCTYPE html><html><body onload=alert(1)>Not found</body></html>"

Open = Callable[..., Previews]


@pytest.fixture
def open_previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Decoders that the poison's comments end or hang."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(POISON), os.getenv("PYTHONPATH", "")]))
    opened = []

    def open_(table: str, **sections: Any) -> Previews:
        config = stream_config(tmp_path, table, **sections)
        opened.append(Previews(config, Rows(config, config_words="CONFIG")))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


def read_png(preview: Preview) -> Image.Image:
    assert (preview.kind, preview.media_type) == ("image", "image/png")
    return Image.open(io.BytesIO(preview.content))


def test_a_picture_is_made_anew_in_the_orientation_of_its_exif(
    tmp_path: Path, open_previews: Open
) -> None:
    # Red on the left of the stored picture, which is displayed turned by 90 degrees.
    stored = Image.new("RGB", (641, 321), "blue")
    stored.paste("red", (0, 0, 320, 321))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(stored, "JPEG", exif=exif, comment=b"<script>")
    photo = real_pictures()["coffee.png"]
    thin = encoded(Image.new("RGB", (2000, 1), "red"))
    table = write_files(
        tmp_path, [(turned, "image/jpeg"), (photo, "image/png"), (thin, "image/png")]
    )
    previews = open_previews(table)

    made_anew = read_png(previews.preview(at(0)))
    assert made_anew.size == (160, 320)
    assert made_anew.getpixel((80, 40)) == pytest.approx((254, 0, 0), abs=4)
    assert made_anew.getpixel((80, 280)) == pytest.approx((0, 0, 254), abs=4)
    assert made_anew.info == {}
    made_anew = read_png(previews.preview(at(1)))
    source = Image.open(io.BytesIO(photo))
    expected = source.resize(made_anew.size, Image.Resampling.BICUBIC)
    assert made_anew.size == (320, 213)
    assert np.abs(np.asarray(made_anew, float) - np.asarray(expected, float)).mean() < 1
    assert read_png(previews.preview(at(2))).size == (320, 1)


def test_pictures_of_formats_that_must_be_listed(tmp_path: Path, open_previews: Open) -> None:
    pillow_heif.register_heif_opener()
    kinds = {"AVIF": "avif", "TIFF": "tiff", "HEIF": "heic", "JPEG2000": "jp2"}
    red = Image.new("RGB", (80, 40), "red")
    table = write_files(
        tmp_path, [(encoded(red, name), f"image/{kind}") for name, kind in kinds.items()]
    )
    previews = open_previews(table, decode={"formats": ["JPEG", "AVIF", "TIFF", "HEIC", "JP2"]})
    for number in range(len(kinds)):
        shown = read_png(previews.preview(at(number)))
        assert shown.size == (320, 160)
        assert shown.getpixel((160, 80)) == pytest.approx((255, 0, 0), abs=4)
    others = open_previews(table)
    for number in range(len(kinds)):
        preview = others.preview(at(number))
        assert (preview.kind, "decode.formats" in preview.note) == ("none", True)


def test_a_sound_is_its_first_ten_seconds(tmp_path: Path, open_previews: Open) -> None:
    contents = [
        (encode_clip(make_clip(12.0, rate_hz=8000), "flac_16", rate_hz=8000), "audio/flac"),
        (encode_clip(make_clip(1.5), "mp3"), "audio/mpeg"),
    ]
    previews = open_previews(write_files(tmp_path, contents))

    for offset, (duration_s, kept_s) in enumerate([(12.0, 10.0), (1.5, 1.5)]):
        preview = previews.preview(at(offset))
        assert (preview.kind, preview.media_type) == ("audio", "audio/wav")
        assert preview.duration_s == pytest.approx(duration_s, abs=0.1)
        with wave.open(io.BytesIO(preview.content)) as sound:
            assert (sound.getnchannels(), sound.getsampwidth()) == (1, 2)
            assert sound.getnframes() / sound.getframerate() == pytest.approx(kept_s, abs=0.1)
            levels = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        assert 1000 < np.abs(levels).max() < 20_000


def test_a_text_is_its_beginning(tmp_path: Path, open_previews: Open) -> None:
    contents = ["short & <b>", "ä" * 501, "a\0b\u202ec\nd", "\U0001f600" * 500]
    previews = open_previews(
        write_files(tmp_path, [(one.encode(), "text/plain") for one in contents])
    )

    found = [previews.preview(at(offset)) for offset in range(4)]

    assert {(one.kind, one.media_type, one.content) for one in found} == {
        ("text", "text/plain", b"")
    }
    assert [one.text for one in found] == [
        "short & <b>",
        "ä" * 500 + "…",
        "a\ufffdb\ufffdc\nd",
        "\U0001f600" * 500,
    ]


@pytest.mark.parametrize("kind", [None, "image/png", "image/svg+xml", "audio/wav"])
@pytest.mark.parametrize("content", [SVG, HTML], ids=["svg", "html"])
def test_markup_is_shown_as_text_whatever_a_row_says(
    tmp_path: Path, open_previews: Open, content: bytes, kind: str | None
) -> None:
    preview = open_previews(write_files(tmp_path, [(content, kind)])).preview(at(0))

    assert (preview.kind, preview.media_type, preview.content) == ("text", "text/plain", b"")
    assert preview.text == content.decode()


def test_a_message_that_cannot_be_read_is_shown_without_its_secrets(
    tmp_path: Path, open_previews: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'{"uri": "https://host/a.png?X-Amz-Signature=abc&v=1", "pass'
    read = Content(content, trouble="message_malformed: the value is not JSON")
    monkeypatch.setattr(Contents, "read", lambda contents, row: read)
    preview = open_previews(write_files(tmp_path, [(content, None)])).preview(at(0))
    assert preview.text == '{"uri": "https://host/a.png?X-Amz-Signature=[redacted]&v=1", "pass'


def test_hostile_contents_are_notes_and_the_next_one_is_shown(
    tmp_path: Path, open_previews: Open
) -> None:
    header = png_chunk(b"IHDR", b"\0\0\x75\x30\0\0\x75\x30\1\0\0\0\0")
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    hostile = {
        bomb: "image_too_large: the image has 30000x30000 pixels",
        poisoned("crash"): "decoder_crashed: the decoder ended by SIGSEGV",
        poisoned("hang"): "decoder_timeout: decoding took longer than 2 s",
        poisoned("eat"): "decoder_out_of_memory",
        poisoned('say {"samples": [{"parts": [["|u1", [3]]], "media": {"type": "a"}}]}'): "crashed",
        b"\x89PNG\r\n\x1a\n" + b"x" * 40: "image_corrupt",
        b"%PDF-1.7 and more": "application/pdf, 17 bytes",
        b"": "0 bytes",
    }
    rows = file_rows(
        tmp_path, [*((one, None) for one in hostile), (poisoned("good"), "image/jpeg")]
    )
    previews = open_previews(
        write_table(tmp_path, rows), decode={"timeout_s": 2, "isolated_memory_bytes": 300_000_000}
    )

    for offset, note in enumerate(hostile.values()):
        preview = previews.preview(at(offset))
        assert (preview.kind, preview.content, preview.text) == ("none", b"", "")
        assert note in preview.note
    assert read_png(previews.preview(at(len(hostile)))).size == (320, 320)


def test_a_reference_that_the_policy_does_not_allow_is_not_fetched(
    tmp_path: Path, open_previews: Open
) -> None:
    (tmp_path / "allowed").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    uris = [
        "file:///etc/passwd",
        f"file://{tmp_path}/allowed/../secret",
        f"file://{tmp_path}/allowed/link",
        "http://127.0.0.1/",
        "s3://bucket/key",
        f"file://{tmp_path}/allowed/none",
    ]
    table = write_table(tmp_path, [made(offset, uri=uri) for offset, uri in enumerate(uris)])
    previews = open_previews(table, references={"folders": [str(tmp_path / "allowed")]})

    notes = [previews.preview(at(offset)) for offset in range(len(uris))]

    assert {(one.kind, one.text, one.content) for one in notes} == {("none", "", b"")}
    codes = [one.note.partition(":")[0] for one in notes]
    assert codes == [*["reference_denied"] * 5, "reference_not_found"]


def test_a_slow_store_is_a_note_and_tried_again(tmp_path: Path, open_previews: Open) -> None:
    with open_site() as site:
        site.pages["/slow"] = lambda visit: visit.stall()
        row = made(0, uri=f"{site.url}/slow", media={"type": "text/plain"})
        references = {
            "schemes": ["http"],
            "hosts": [f"127.0.0.1:{site.port}"],
            "networks": ["127.0.0.1/32"],
            "timeout_s": 0.5,
        }
        previews = open_previews(write_table(tmp_path, [row]), references=references)
        assert previews.preview(at(0)).note.startswith("reference_timeout: ")
        site.show("/slow", b"late")
        assert previews.preview(at(0)).text == "late"


def test_a_preview_is_kept_until_its_row_is_made_again(tmp_path: Path, open_previews: Open) -> None:
    table = write_files(tmp_path, [(b"first", "text/plain")])
    previews = open_previews(table)
    assert previews.preview(at(0)).text == "first"
    (tmp_path / "content 0").write_bytes(b"second")
    assert previews.preview(at(0)).text == "first"

    (row,) = file_rows(tmp_path, [(b"second", "text/plain")])
    again = {**row, "model_id": "a model that comes first", "processed_at": made(5)["processed_at"]}
    write_table(tmp_path, [again])

    assert previews.preview(at(0)).text == "second"
    with pytest.raises(SetupError, match="has no row of it"):
        previews.preview(at(7))


def test_a_broker_that_does_not_answer_is_a_note(
    tmp_path: Path, open_previews: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kafka
    from kafka.errors import KafkaTimeoutError

    def unanswered(**_: object) -> None:
        raise KafkaTimeoutError("no answer")

    monkeypatch.setattr(kafka, "KafkaConsumer", unanswered)
    previews = open_previews(write_table(tmp_path, [made(0)]))
    preview = previews.preview(at(0))
    assert preview.kind == "none"
    assert "cannot be read from Kafka at 127.0.0.1:1" in preview.note


@pytest.mark.kafka
def test_the_content_of_a_message_is_shown(
    tmp_path: Path, open_previews: Open, topic: Topic
) -> None:
    picture = encoded(Image.new("RGB", (20, 10), "red"))
    (tmp_path / "signed").write_bytes(b"signed")
    uri = (tmp_path / "signed").as_uri()
    topic.send([image("same", picture), json_message("same", data="dGV4dA==")])
    topic.send([image("same", b'{"broken": '), image("same", None)])
    topic.send([json_message("same", uri=uri)])
    (partition,) = [one for one, end in topic.end_offsets().items() if end]
    place: dict[str, Any] = {"topic": topic.name, "partition": partition}
    error = {"code": "message_malformed", "stage": "message"}
    failed: dict[str, Any] = {"embedding": None, "error": error}
    table = write_table(
        tmp_path,
        [
            made(0, **place, media={"type": "image/png"}),
            made(1, **place, media={"type": "text/plain"}),
            made(2, **place, **failed),
            made(3, **place),
            # As the table has it; the message has the whole reference.
            made(4, **place, uri="file://[redacted]@x", media={"type": "text/plain"}),
            made(50, **place),
        ],
    )
    kafka = {"bootstrap_servers": topic.bootstrap_servers, "subscribe": topic.name}
    previews = open_previews(table, kafka=kafka)
    found = {
        offset: previews.preview(RowPosition(topic.name, partition, offset))
        for offset in (0, 1, 2, 3, 4, 50)
    }

    assert read_png(found[0]).size == (320, 160)
    assert found[1].text == "text"
    assert found[2].text == '{"broken": '
    assert found[2].note.startswith("message_malformed: the value is not JSON")
    assert found[3].note == "the message has no value"
    assert found[4].text == "signed"
    assert found[50].note == "Kafka no longer has the message"
