"""Searching by words, texts, sounds and pictures, in tables of one model or several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contents import (
    CLIPS,
    COLOURS,
    MINILM,
    SPEECH,
    TEXTS,
    colour_picture,
    image_text_encoder,
    save_colour_model,
)
from doors import core_vectors
from embedstream.cli.app import main
from embedstream.search.queries import Vector, embed_queries
from embedstream.worker.model import prepare
from embedstream_core.errors import SetupError
from embedstream_core.model_id import ModelId
from outcome_tables import row, write_table
from pictures import real_pictures
from small_text_models import HIDDEN, save_bert, save_sentence_model

Run = Callable[..., tuple[object, list[str], str]]


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `embedstream search`; return its exit code, its lines, and what it said of an error."""

    def run(*arguments: object) -> tuple[object, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["embedstream", "search", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out.splitlines(), said.err

    return run


@pytest.fixture(scope="module")
def models() -> dict[str, str]:
    """The ids of the encoders that need no folder."""
    return {one.name: prepare(one).card.model_id for one in (MINILM, SPEECH)}


def save(folder: Path, vectors: Mapping[str, Mapping[str, Vector]]) -> str:
    """Write a table with the rows of each model: vectors by name."""
    rows = [
        row(name, vector.tolist(), uri=(folder / name).as_uri(), model_id=model_id)
        for model_id, named in vectors.items()
        for name, vector in named.items()
    ]
    return write_table(folder, rows, model_id="\n".join(vectors))


def embed_texts() -> dict[str, Vector]:
    contents = [text.encode() for text in TEXTS.values()]
    return dict(zip(TEXTS, core_vectors(contents, MINILM), strict=True))


def embed_clips() -> dict[str, Vector]:
    return dict(zip(CLIPS, core_vectors([*CLIPS.values()], SPEECH), strict=True))


def list_names(lines: Sequence[str]) -> list[str]:
    return [line.split()[1] for line in lines[1:]]


def test_texts_are_found_by_words_and_by_a_file(
    tmp_path: Path, search: Run, models: dict[str, str]
) -> None:
    table = save(tmp_path, {models["minilm"]: embed_texts()})
    (tmp_path / "query.txt").write_text(TEXTS["socket.txt"])

    by_words = search("--text", "read a compressed file", "--table", table)
    by_file = search(tmp_path / "query.txt", "--table", table, "-k", "1")

    assert by_words[0] == by_file[0] == 0
    assert list_names(by_words[1])[0] == "gzip.txt"
    (row,) = by_file[1][1:]
    assert row.split() == ["1.0000", "socket.txt", (tmp_path / "socket.txt").as_uri()]


def test_words_are_drawn_with_the_texts_that_they_find(
    tmp_path: Path, search: Run, models: dict[str, str]
) -> None:
    table = save(tmp_path, {models["minilm"]: embed_texts()})
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    sheet = tmp_path / "sheet.png"

    code, lines, error = search("--text", "a tall tower", "--table", table, "--out", sheet)

    assert (code, lines[-1]) == (0, f"contact sheet: {sheet}")
    assert error == "compared all rows of the table, version 1\n"
    assert list_names(lines)[0] == "tower.txt"
    with Image.open(sheet) as drawn:
        assert len(drawn.getcolors(2**24) or []) > 2


def test_clips_are_found_by_a_sound(tmp_path: Path, search: Run, models: dict[str, str]) -> None:
    table = save(tmp_path, {models["speech-embedding"]: embed_clips()})
    query = tmp_path / "query.flac"
    query.write_bytes(CLIPS["long.flac"])

    code, lines, _ = search(query, "--table", table)

    assert code == 0
    assert lines[1].split()[:2] == ["1.0000", "long.flac"]
    assert {*list_names(lines)} == {*CLIPS}


def test_pictures_are_found_by_words_and_by_a_picture(tmp_path: Path, search: Run) -> None:
    """The weights' folder is not in the table, so it is named."""
    folder = save_colour_model(tmp_path / "colours")
    model_id = prepare(image_text_encoder(folder)).card.model_id
    contents = [colour_picture(name) for name in COLOURS]
    _, vectors = embed_queries(contents, model_ids=[model_id], weights=str(folder))
    table = save(tmp_path, {model_id: dict(zip(COLOURS, vectors, strict=True))})
    (tmp_path / "query.png").write_bytes(colour_picture("blue"))

    for name in COLOURS:
        code, lines, _ = search("--text", name, "--table", table, "--weights", folder)
        assert code == 0
        assert list_names(lines)[0] == name
        assert lines[1].split()[0] == "1.0000"
    _, lines, _ = search(tmp_path / "query.png", "--table", table, "--weights", folder)
    assert list_names(lines)[0] == "blue"
    code, lines, error = search("--text", "red", "--table", table)
    assert (code, lines) == (2, [])
    assert error == (
        f"embedstream: '{model_id}' was made by a file or folder 'colours', which is not in the "
        "table; give its path as --weights\n"
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, models: dict[str, str]) -> str:
    """A table of texts and clips."""
    folder = tmp_path_factory.mktemp("mixed")
    vectors = {models["minilm"]: embed_texts(), models["speech-embedding"]: embed_clips()}
    return save(folder, vectors)


def test_a_query_goes_to_the_model_that_accepts_it(
    tmp_path: Path, search: Run, mixed: str, models: dict[str, str]
) -> None:
    sound = tmp_path / "query"
    sound.write_bytes(CLIPS["low.ogg"])

    assert list_names(search("--text", "towers", "--table", mixed)[1])[0] == "tower.txt"
    assert list_names(search(sound, "--table", mixed)[1])[0] == "low.ogg"
    assert embed_queries(["a"], model_ids=[*models.values()])[0] == models["minilm"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("cat.png", real_pictures()["chelsea.png"], "image/png"),
        ("page.pdf", b"%PDF-1.7\n", "application/pdf"),
        ("none", b"", "application/octet-stream"),
    ],
)
def test_a_query_that_no_model_accepts_is_a_sentence(
    tmp_path: Path, search: Run, mixed: str, name: str, content: bytes, kind: str
) -> None:
    (tmp_path / name).write_bytes(content)

    code, lines, error = search(tmp_path / name, "--table", mixed)

    assert (code, lines) == (2, [])
    assert error.startswith(
        f"embedstream: the query is {kind}, and the table's models embed audio and text: "
    )
    assert error.endswith("; give a query of audio and text, or choose another table\n")


@pytest.mark.parametrize(
    ("encoder", "query", "reason"),
    [
        ("minilm", " \n", "the query cannot be used: the text has no characters"),
        ("minilm", b"", "the query cannot be used: the text has no bytes"),
        ("minilm", "\ud800", "the query cannot be used: the text is not UTF-8"),
        ("minilm", b"\xff\xfe\x00", "the query cannot be used: the text is not UTF-8"),
        ("minilm", CLIPS["short.wav"], "the query is audio/wav, and .* models embed text: "),
        ("speech-embedding", "hello", "the query is text/plain, and .* models embed audio: "),
        ("speech-embedding", CLIPS["short.wav"][:9000], "the query cannot be used: .*WAV"),
    ],
)
def test_a_broken_query_is_a_sentence(
    models: dict[str, str], encoder: str, query: bytes | str, reason: str
) -> None:
    with pytest.raises(SetupError, match=reason):
        embed_queries([query], model_ids=[models[encoder]])


def test_of_two_models_of_texts_one_is_chosen(
    tmp_path: Path,
    search: Run,
    models: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_bert(tmp_path / "bert")
    other = prepare(image_text_encoder(folder)).card.model_id
    contents = [text.encode() for text in TEXTS.values()]
    others = core_vectors(contents, image_text_encoder(folder))
    named = dict(zip(TEXTS, others, strict=True))
    table = save(tmp_path, {models["minilm"]: embed_texts(), other: named})
    query = ["--text", TEXTS["tower.txt"], "--table", table, "-k", "1"]

    capsys.readouterr()
    code, _, error = search(*query)
    chosen = search(*query, "--model-id", models["minilm"])
    by_weights = search(*query, "--weights", folder)

    assert code == 2
    assert error == (
        f"embedstream: several models of the table may embed text: {models['minilm']}, {other}; "
        "choose one with --model-id\n"
    )
    for _, lines, _ in (chosen, by_weights):
        assert lines[1].split()[:2] == ["1.0000", "tower.txt"]


def test_weights_of_no_model_are_refused(tmp_path: Path, models: dict[str, str]) -> None:
    folder = save_bert(tmp_path / "bert")

    with pytest.raises(SetupError, match=r"the minilm file .* has sha256 .*, not "):
        embed_queries(["a"], model_ids=[models["minilm"]], weights=str(folder))


def test_a_query_has_the_prefix_of_queries(tmp_path: Path) -> None:
    """Rows and queries of such a model are compared, though their prefixes differ."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    prompts = {"query": "ask: ", "document": "tell: "}
    folder = save_sentence_model(tmp_path, Pooling(HIDDEN), prompts=prompts)
    encoder = image_text_encoder(folder)
    model_id = prepare(encoder).card.model_id
    plain = image_text_encoder(save_bert(tmp_path / "bert"))
    expected, as_row = core_vectors([b"ask: towers", b"tell: towers"], plain)

    _, (query,) = embed_queries(["towers"], model_ids=[model_id], weights=str(folder))
    (stored,) = core_vectors([b"towers"], encoder)

    np.testing.assert_allclose(query, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stored, as_row, rtol=1e-4, atol=1e-5)


def test_vectors_of_length_one_are_searched_so(models: dict[str, str]) -> None:
    encoder = SPEECH.model_copy(update={"normalize": "l2"})
    model_id = prepare(encoder).card.model_id

    named, (vector,) = embed_queries([CLIPS["short.wav"]], model_ids=[model_id])

    assert named == model_id
    assert ModelId.parse(model_id).normalize == "l2"
    assert np.linalg.norm(vector) == pytest.approx(1)
