"""Searches of the page: by a row, an upload and words; uploads are decoded in a sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from contents import COLOURS, MINILM, TEXTS, colour_picture
from doors import core_vectors
from embedstream.config.sections import EncoderConfig, StreamConfig
from embedstream.monitor.viewer import Found, Question, RowPosition
from embedstream.monitor.viewing.process import open_viewer
from embedstream.monitor.viewing.questions import Questions
from embedstream.worker.model import prepare
from embedstream_core.errors import SetupError
from outcome_tables import write_table
from pictures import encoded
from small import POISON, poisoned
from viewed_tables import at, made, stream_config

PICTURES = EncoderConfig(name="resnet18", weights="random", precision="float32")
CONTENTS = [*map(colour_picture, COLOURS), *(text.encode() for text in TEXTS.values())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of pictures and texts, a model for each."""
    folder = tmp_path_factory.mktemp("mixed")
    pictures = core_vectors(CONTENTS[: len(COLOURS)], PICTURES)
    texts = core_vectors(CONTENTS[len(COLOURS) :], MINILM)
    models = [find_model(PICTURES)] * len(COLOURS) + [find_model(MINILM)] * len(TEXTS)
    rows = [
        made(
            offset,
            image_id=name,
            embedding=vector.tolist(),
            model_id=model_id,
            media={"type": "image/png" if name in COLOURS else "text/plain"},
            attributes=[("name", f"<b>{name}</b>")],
        )
        for offset, (name, vector, model_id) in enumerate(
            zip([*COLOURS, *TEXTS], [*pictures, *texts], models, strict=True)
        )
    ]
    write_table(folder, rows, model_id="\n".join(dict.fromkeys(models)))
    return folder


@cache
def find_model(encoder: EncoderConfig) -> str:
    return prepare(encoder).card.model_id


def configure_table(folder: Path, **sections: Any) -> StreamConfig:
    encoders = [one.model_dump(exclude_defaults=True) for one in (PICTURES, MINILM)]
    return stream_config(folder, str(folder / "table"), encoders=encoders, **sections)


@pytest.fixture(scope="module")
def ask(folder: Path) -> Iterator[Callable[..., Found]]:
    """Search the table; some pictures end or hang their decoder."""
    opened: dict[str, Questions] = {}

    def search(question: Question, **decode: Any) -> Found:
        config = configure_table(folder, decode=decode)
        return opened.setdefault(str(decode), Questions(config)).search(question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(POISON), os.getenv("PYTHONPATH", "")]))
        yield search
    for one in opened.values():
        one.close()


def names(found: Found) -> list[str]:
    return [card.image_id for card in found.cards]


def test_rows_uploads_and_words_find_the_nearest(ask: Callable[..., Found]) -> None:
    rows = [*COLOURS, *TEXTS]
    for name in ("green", "tower.txt"):
        offset, is_picture = rows.index(name), name in COLOURS
        model_id = find_model(PICTURES if is_picture else MINILM)
        questions = [Question(like=at(offset)), Question(upload=CONTENTS[offset], k=3)]
        if not is_picture:
            questions.append(Question(words=TEXTS[name], model_id=model_id))
        for question in questions:
            found = ask(question)
            assert sorted(names(found)) == sorted(COLOURS if is_picture else TEXTS)
            card = found.cards[0]
            assert (card.image_id, card.position, card.model_id) == (name, at(offset), model_id)
            assert card.similarity == pytest.approx(1, abs=1e-3)
            assert card.media_type == ("image/png" if is_picture else "text/plain")
            assert card.attributes == {"name": f"<b>{name}</b>"}
            assert found.model_id == model_id
            assert found.source == "compared all rows of the table, version 1"


def test_a_condition_and_a_number_limit_what_is_found(ask: Callable[..., Found]) -> None:
    assert len(ask(Question(words="towers", k=2)).cards) == 2
    where = "attributes['name'] LIKE '%socket%'"
    assert names(ask(Question(words="towers", where=where))) == ["socket.txt"]
    with pytest.raises(SetupError, match="the condition"):
        ask(Question(words="towers", where="1; DROP TABLE outcomes"))


def test_words_for_a_model_of_images_are_refused(ask: Callable[..., Found]) -> None:
    with pytest.raises(SetupError, match=r"the query is text/plain, and .* models embed image: "):
        ask(Question(words="red", model_id=find_model(PICTURES)))


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        (Question(), "exactly one of a row, a file and words"),
        (Question(words="a", upload=b"b"), "exactly one of a row, a file and words"),
        (Question(words="red", model_id="os:getcwd/x/0"), "no rows of the model 'os:getcwd/x/0'"),
        (Question(like=at(9)), "has no row of the message images-0-9"),
        (Question(like=RowPosition("' OR 1=1 --", 0, 0)), "has no row of the message"),
        (Question(words="red", k=0), "at least 1"),
        (Question(words=" "), "the query cannot be used: the text has no characters"),
        (Question(upload=b"%PDF-1.7"), "the query is application/pdf"),
        (Question(upload=b"<svg onload=alert(1)></svg>"), "cannot be used: the bytes, starting"),
        (Question(upload=poisoned("crash")), "cannot be used: the decoder ended by SIGSEGV"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_sentence(
    ask: Callable[..., Found], question: Question, sentence: str
) -> None:
    with pytest.raises(SetupError, match=sentence):
        ask(question)


def test_an_upload_has_the_limits_of_the_stream(ask: Callable[..., Found]) -> None:
    limits = {"max_image_pixels": 100_000, "timeout_s": 2}
    with pytest.raises(SetupError, match="pixels; the limit is 100000"):
        ask(Question(upload=encoded(Image.new("1", (500, 500)))), **limits)
    with pytest.raises(SetupError, match="cannot be used: decoding took longer than 2 s"):
        ask(Question(upload=poisoned("hang")), **limits)


def test_the_viewers_process_searches(folder: Path) -> None:
    viewer = open_viewer(configure_table(folder))
    try:
        found = asyncio.run(viewer.search(Question(upload=colour_picture("blue"))))
        assert names(found)[0] == "blue"
    finally:
        viewer.close()
