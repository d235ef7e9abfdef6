"""`embedstream batch` over folders of texts, of audio, of images, and of all together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deltalake import DeltaTable
from pyspark.sql import SparkSession

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
from embedstream import EncoderConfig
from embedstream.bulk.files import Files
from embedstream.config.load import load_files_config
from embedstream.worker.model import prepare
from embedstream_core.errors import Code

pytestmark = pytest.mark.spark


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a subfolder for each modality."""
    for name, text in TEXTS.items():
        write(tmp_path / "files/texts" / name, text.encode())
    for name, content in CLIPS.items():
        write(tmp_path / "files/clips" / name, content)
    for name in COLOURS:
        write(tmp_path / "files/pictures" / f"{name}.png", colour_picture(name))
    return tmp_path


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def embed(spark: SparkSession, folder: Path, source: str, encoder: EncoderConfig) -> dict[str, Any]:
    """Embed the files below `source`; return the rows by the names of the files."""
    tree = {
        "encoder": encoder.model_dump(mode="json", exclude_unset=True),
        "table": {"path": str(folder / "table")},
    }
    config = load_files_config(tree)
    files = Files(spark, config, prepare(config.encoder), str(folder / source))
    for chunk in files.plan():
        files.run(chunk)
    assert files.plan() == []
    return read_rows(folder)


def read_rows(folder: Path) -> dict[str, Any]:
    rows = DeltaTable(str(folder / "table")).to_pandas().to_dict("records")
    by_name = {row["uri"].rpartition("/")[2]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


@pytest.mark.parametrize(
    ("source", "encoder", "type_", "contents"),
    [
        ("files/texts", MINILM, "text/plain", {k: v.encode() for k, v in TEXTS.items()}),
        pytest.param("files/clips", SPEECH, "audio/", CLIPS, marks=pytest.mark.long),
    ],
    ids=["texts", "clips"],
)
def test_a_folder_of_one_modality(
    spark: SparkSession,
    folder: Path,
    source: str,
    encoder: EncoderConfig,
    type_: str,
    contents: dict[str, bytes],
) -> None:
    rows = embed(spark, folder, source, encoder)

    assert rows.keys() == contents.keys()
    vectors = core_vectors([*contents.values()], encoder)
    for name, vector in zip(contents, vectors, strict=True):
        np.testing.assert_allclose(rows[name]["embedding"], vector, rtol=1e-3, atol=1e-4)
        assert rows[name]["media"]["type"].startswith(type_)
        assert rows[name]["model_id"].startswith(f"{encoder.name}/default/")


@pytest.mark.long
def test_a_mixed_folder_with_a_model_of_both(spark: SparkSession, folder: Path) -> None:
    encoder = image_text_encoder(save_colour_model(folder / "model"))

    rows = embed(spark, folder, "files", encoder)

    codes = {name: row["error"] and row["error"]["code"] for name, row in rows.items()}
    embedded = {*TEXTS, *(f"{name}.png" for name in COLOURS)}
    assert codes == dict.fromkeys(embedded) | dict.fromkeys(CLIPS, Code.MEDIA_UNSUPPORTED)
    for name in CLIPS:
        message = rows[name]["error"]["message"]
        assert message.endswith("the encoders accept image and text")
        assert message.startswith("the message holds audio/")
    np.testing.assert_allclose(
        [rows[f"{name}.png"]["embedding"] for name in COLOURS], np.eye(3, 12), atol=1e-4
    )


@pytest.mark.long
def test_the_command_over_a_mixed_folder_with_a_model_of_texts(folder: Path) -> None:
    command = ["batch", "--from", folder / "files", "--table", folder / "table"]
    options = ["--encoder", "minilm", "--set", "encoder.precision=float32"]

    ended = subprocess.run(
        [sys.executable, "-m", "embedstream", *map(str, command), *options],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    failed = len(CLIPS) + len(COLOURS)
    assert f"{len(TEXTS) + failed} files embedded, {failed} failures" in ended.stdout
    rows = read_rows(folder)
    codes = {name: row["error"] and row["error"]["code"] for name, row in rows.items()}
    others = [*CLIPS, *(f"{name}.png" for name in COLOURS)]
    assert codes == dict.fromkeys(TEXTS) | dict.fromkeys(others, Code.TEXT_MALFORMED)
    assert {rows[name]["media"]["type"].partition("/")[0] for name in others} == {"image", "audio"}
