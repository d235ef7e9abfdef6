"""README.md and pages of docs: the code that they offer runs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image
from pyspark.sql import Row, SparkSession

from doors import mlflow_store
from embedstream import EncoderConfig
from embedstream.config.load import load_config
from embedstream.table.views import embeddings, failures
from pictures import real_pictures
from small_models import save_onnx
from streams import Topic, drain, image

__all__ = ["mlflow_store"]

ROOT = Path(__file__).parents[2]
README, PAGE = ROOT / "README.md", ROOT / "docs" / "coming-from.md"
PAGES = (README, PAGE, ROOT / "docs" / "doors.md", ROOT / "docs" / "finetuning.md")
# Keras 3 with NumPy 2, as it reads a layer's weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MARKS = {
    "finetune(": pytest.mark.long,
    # MLflow and what it stands on warn of each other.
    "log_encoder(": pytest.mark.filterwarnings("ignore"),
}
"""Of snippets, by a word in them."""

LONG = (
    "readImages and DeepImageFeaturizer",
    "KerasImageFileTransformer",
    "registerKerasImageUDF",
    "Elephas",
    "ModelPredictor",
    "Keras on Qubole",
)
"""Headings whose snippets differ little from others that are run."""

SIDE = 224
BROKEN = "broken.jpg"
EACH = 4


class Snippet(NamedTuple):
    """A fenced block that is marked as ours, and where it stands."""

    page: str
    heading: str
    language: str
    code: str


def snippets(language: str, page: Path = PAGE) -> list[Snippet]:
    found = []
    heading = ""
    pattern = r"^#+ (?P<heading>[^\n]*)$|^```(?P<language>\w+)(?P<ours> ours)?\n(?P<code>.*?)^```$"
    for match in re.finditer(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        heading = match["heading"] or heading
        if match["ours"] and match["language"] == language:
            plain = heading.replace("`", "")
            found.append(Snippet(page.name, plain, language, match["code"]))
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real pictures for each of two classes, and one file that is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("chelsea", "coffee"):
        (folder / name).mkdir()
        whole = Image.open(io.BytesIO(real_pictures()[f"{name}.png"])).convert("RGB")
        for index in range(EACH):
            crop = whole.crop((20 * index, 10 * index, 20 * index + 280, 10 * index + 240))
            crop.save(folder / name / f"{index}.jpg")
    (folder / "coffee" / BROKEN).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def given(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The paths that the page takes for given, by their names there."""
    folder = tmp_path_factory.mktemp("models")
    files = {
        f"{kind}_file": folder / f"mine.{suffix}"
        for kind, suffix in (("keras", "keras"), ("onnx", "onnx"))
    }
    _save_keras(files["keras_file"])
    save_onnx(files["onnx_file"], side=SIDE)
    return {"pictures": str(pictures)} | {name: str(path) for name, path in files.items()}


def _save_keras(path: Path) -> None:
    # small_models, imported above, has set what Keras runs on.
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((SIDE, SIDE, 3)),
        keras.layers.Conv2D(8, 3, strides=4, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
    ]
    keras.Sequential(layers).save(path)


# PySpark leaves CrossValidator's pool of threads open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.spark
@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(
            one,
            marks=[mark for word, mark in MARKS.items() if word in one.code]
            + [pytest.mark.long] * (one.heading in LONG),
        )
        for page in PAGES
        for one in snippets("python", page)
    ],
    ids=lambda one: f"{one.page}: {one.heading}",
)
def test_the_code_runs(
    spark: SparkSession, given: Mapping[str, str], snippet: Snippet, tmp_path: Path
) -> None:
    names: dict[str, Any] = {"spark": spark, **given}

    place = f"{snippet.page}: {snippet.heading}"
    exec(compile(_at_hand(snippet.code, tmp_path), place, "exec"), names)

    rows: list[Row] = names["found"].collect()
    made = {row.path: row[-1] for row in rows}
    nothing = {made.pop(path) for path in list(made) if path.endswith(BROKEN)}
    assert len(made) == 2 * EACH
    assert all(_is_something(value) for value in made.values())
    assert nothing <= {None}


def _at_hand(code: str, folder: Path) -> str:
    """With the encoder whose weights come with the tests, for the one that is downloaded."""
    return code.replace('"resnet50"', '"efficientnet_lite0"').replace('"/shared', f'"{folder}')


def _is_something(value: Any) -> bool:
    return value is not None and (isinstance(value, float | int) or len(value) > 0)


def test_the_encoder_that_is_replaced_is_the_usual_one() -> None:
    assert EncoderConfig().name == "resnet50"


def test_each_library_has_code_of_ours() -> None:
    """A block that lost its mark would no longer be run."""
    page = PAGE.read_text(encoding="utf-8")
    sections = re.split(r"^##+ ", page, flags=re.MULTILINE)[1:]
    without = [part for part in sections if "```python\n" in part and " ours\n" not in part]

    assert without == []
    assert len(snippets("python")) + len(snippets("yaml")) == page.count("\nHere")


def test_the_table_leads_to_the_sections() -> None:
    page = PAGE.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    known = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}

    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= known


@pytest.mark.spark
@pytest.mark.kafka
@pytest.mark.long
def test_the_stream_runs(
    spark: SparkSession, topic: Topic, pictures: Path, given: Mapping[str, str], tmp_path: Path
) -> None:
    (snippet,) = snippets("yaml")
    path = tmp_path / "stream.yaml"
    path.write_text(snippet.code, encoding="utf-8")
    own = {
        "kafka.bootstrap_servers": topic.bootstrap_servers,
        "kafka.subscribe": topic.name,
        "encoder.weights": given["keras_file"],
        "table.path": str(tmp_path / "table"),
        "checkpoint": str(tmp_path / "checkpoint"),
    }
    config = load_config(path, [f"{key}={value}" for key, value in own.items()], environment={})
    topic.send([image(file.name, file.read_bytes()) for file in sorted(pictures.rglob("*.jpg"))])

    drain(spark, config)

    assert embeddings(spark, config.table.path).count() == 2 * EACH
    assert [row.image_id for row in failures(spark, config.table.path).collect()] == [BROKEN]
