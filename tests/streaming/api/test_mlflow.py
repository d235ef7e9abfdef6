"""Logging encoders to MLflow, running them there, and loading them: on a real store, in a file."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession

from doors import ENCODER, SMALL, digits, mlflow_store, write_pictures
from embedstream import (
    EncoderConfig,
    TrainingSettings,
    featurize,
    finetune,
    image_labeler,
    log_encoder,
    read_images,
)
from embedstream.search.queries import embed_queries
from embedstream.worker.model import prepare
from embedstream_core.errors import Code, MissingExtra, SetupError
from embedstream_core.models.card import ModelCard, read_card
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.mlflow_store import format_registered_uri
from embedstream_core.pyfunc import LoggedEncoder, _load_pyfunc

__all__ = ["mlflow_store"]

pytestmark = [
    pytest.mark.spark,
    pytest.mark.usefixtures("mlflow_store"),
    # MLflow and its dependencies warn of each other.
    pytest.mark.filterwarnings("ignore"),
]

TENSORS = "data/encoder/tensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def logged(mlflow_store: None, folder: Path) -> Any:
    """Version 1 of `shoes`, whose weights came from a file that is gone."""
    download = find_encoder("efficientnet_lite0").default_weights.download
    assert download is not None
    path = Path(shutil.copy(download(), folder / "mine.pth"))
    with mlflow.start_run():
        info = log_encoder(
            SMALL.model_copy(update={"weights": str(path)}), registered_model_name="shoes"
        )
    path.unlink()
    mlflow.MlflowClient().set_registered_model_alias("shoes", "champion", "1")
    return info


@pytest.fixture(scope="module")
def artifacts(logged: Any) -> Path:
    """The folder in which the store keeps the model."""
    return Path(logged.artifact_path.removeprefix("file://"))


@pytest.fixture(scope="module")
def pictures(folder: Path) -> dict[str, bytes]:
    (folder / "pictures").mkdir()
    return write_pictures(folder / "pictures")


@pytest.fixture(scope="module")
def images(spark: SparkSession, folder: Path, pictures: dict[str, bytes]) -> DataFrame:
    return read_images(spark, str(folder / "pictures")).select("path", "content")


@pytest.fixture(scope="module")
def expected(images: DataFrame) -> dict[str, Any]:
    """The results of `featurize` with the same weights, by path; None for no image."""
    return vectors(featurize(images, encoder=SMALL))


def vectors(df: DataFrame) -> dict[str, Any]:
    return {row.path.rpartition("/")[2]: row.embedding for row in df.collect()}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, vector in expected.items():
        if vector is None:
            assert found[name] is None
        else:
            np.testing.assert_allclose(found[name], vector, rtol=1e-3, atol=1e-4)


def registered(uri: str, **settings: Any) -> EncoderConfig:
    # Without the preprocessing, which comes with the model.
    return ENCODER.model_copy(update={"name": "mlflow", "weights": uri, **settings})


def card(uri: str, **settings: Any) -> ModelCard:
    return prepare(registered(uri, **settings)).card


def test_the_files_of_a_logged_model(logged: Any, artifacts: Path) -> None:
    files = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    requirements = (artifacts / "requirements.txt").read_text().splitlines()

    assert files == {
        "MLmodel",
        "conda.yaml",
        "data/encoder/card.json",
        TENSORS,
        "python_env.yaml",
        "requirements.txt",
    }
    assert logged.signature.inputs.to_dict() == [
        {"type": "binary", "name": "content", "required": True}
    ]
    assert [one["name"] for one in logged.signature.outputs.to_dict()] == ["embedding", "error"]
    assert "embedstream[efficientnet-lite]==0.1.0" in requirements
    assert "efficientnet-lite-pytorch==0.1.0" in requirements
    assert {"torch", "torchvision", "pillow", "numpy"} <= {
        line.partition("==")[0] for line in requirements
    }
    assert all("==" in line and "+" not in line for line in requirements)
    assert logged.metadata["encoder"].startswith("efficientnet_lite0/mine/")
    assert logged.metadata["dimension"] == 1280


def test_mlflow_loads_it_and_predicts(
    logged: Any, pictures: dict[str, bytes], expected: dict[str, Any]
) -> None:
    model = mlflow.pyfunc.load_model("models:/shoes@champion")
    frame = pd.DataFrame({"content": [*pictures.values(), None]}, index=[*pictures, "null"])

    found = model.predict(frame)

    assert list(found.index) == [*pictures, "null"]
    assert_same(found["embedding"].to_dict(), expected | {"null": None})
    assert found["embedding"]["astronaut.jpg"].dtype == np.float32
    assert found["error"]["astronaut.jpg"] == ""
    assert found["error"]["broken.jpg"].startswith(Code.IMAGE_UNSUPPORTED)
    assert found["error"]["null"].startswith(Code.IMAGE_EMPTY)


def test_it_answers_requests(logged: Any, pictures: dict[str, bytes]) -> None:
    """`mlflow models serve` calls this with a request."""
    # Imported here because it warns.
    from mlflow.pyfunc import scoring_server

    contents = [base64.b64encode(one).decode() for one in (pictures["astronaut.jpg"], b"none")]
    request = {"dataframe_records": [{"content": content} for content in contents]}
    model = mlflow.pyfunc.load_model("models:/shoes/1")

    answer = scoring_server.invocations(  # type: ignore[no-untyped-call]
        json.dumps(request), "application/json", model, model.metadata.get_input_schema()
    )

    good, bad = json.loads(answer.response)["predictions"]
    assert len(good["embedding"]) == 1280
    assert bad["embedding"] is None
    assert bad["error"].startswith(Code.IMAGE_UNSUPPORTED)


def test_spark_udf_gives_the_vectors_of_featurize(
    spark: SparkSession, logged: Any, images: DataFrame, expected: dict[str, Any]
) -> None:
    embed = mlflow.pyfunc.spark_udf(spark, "models:/shoes/1", env_manager="local")

    found = images.withColumn("found", embed("content")).select("path", "found.*")

    assert dict(found.dtypes)["embedding"] == "array<float>"
    assert_same(vectors(found.cache()), expected)
    bad = found.where("error != ''").collect()
    assert [row.path.rpartition("/")[2] for row in bad] == ["broken.jpg"]


def test_featurize_takes_it_from_the_registry(
    logged: Any, images: DataFrame, expected: dict[str, Any]
) -> None:
    found = featurize(images, encoder=registered("models:/shoes@champion"))

    assert_same(vectors(found), expected)
    assert found.where("error is not null").count() == 1


# None in sys.modules makes an import fail, as if the package were not installed.
EMBED_WITHOUT_MLFLOW = """
import sys
sys.modules.update(mlflow=None, pyspark=None)
from pathlib import Path
import pandas as pd
from embedstream_core.pyfunc import _load_pyfunc
frame = pd.DataFrame({"content": [Path(sys.argv[2]).read_bytes()]})
print(_load_pyfunc(sys.argv[1]).predict(frame)["embedding"][0].shape)
"""


def test_the_model_itself_needs_neither_mlflow_nor_spark(
    artifacts: Path, folder: Path, pictures: dict[str, bytes]
) -> None:
    paths = [str(artifacts / "data/encoder"), str(folder / "pictures" / "astronaut.jpg")]

    run = subprocess.run(
        [sys.executable, "-c", EMBED_WITHOUT_MLFLOW, *paths],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert run.stdout == "(1280,)\n", run.stderr


def test_the_engine_is_the_processs_and_never_travels(
    artifacts: Path, tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    frame = pd.DataFrame({"content": [pictures["astronaut.jpg"]]})
    settings = {"precision": "float32"}
    first = _load_pyfunc(str(artifacts / "data/encoder"), settings)
    embedded = first.predict(frame)["embedding"][0]
    # With the card alone it could not load.
    shutil.copy(artifacts / "data/encoder/card.json", tmp_path)

    again = pickle.loads(pickle.dumps(_load_pyfunc(str(tmp_path), settings)))

    assert isinstance(again, LoggedEncoder)
    assert len(pickle.dumps(first)) < 4000
    np.testing.assert_array_equal(again.predict(frame)["embedding"][0], embedded)


def test_the_model_id_names_its_source(logged: Any) -> None:
    sha256 = logged.metadata["tensors_sha256"]

    assert card("models:/shoes/1").model_id == f"mlflow/shoes/1/{sha256[:12]}"
    assert card("models:/shoes@champion") == card("models:/shoes/1")
    assert card(logged.model_uri).model_id == f"mlflow/{logged.model_id}/{sha256[:12]}"
    in_run = card(f"runs:/{logged.run_id}/encoder")
    assert in_run.model_id == f"mlflow/{logged.run_id}/{sha256[:12]}"
    assert in_run.encoder == "efficientnet_lite0"
    assert in_run.license == "Apache-2.0"


def test_another_version_under_the_alias_is_another_model(logged: Any) -> None:
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("shoes", "latest-trained", "1")
    before = card("models:/shoes@latest-trained")
    log_encoder(SMALL.model_copy(update={"weights": "random"}), registered_model_name="shoes")
    client.set_registered_model_alias("shoes", "latest-trained", "2")

    after = card("models:/shoes@latest-trained")

    assert before.model_id.startswith("mlflow/shoes/1/")
    assert after.model_id.startswith("mlflow/shoes/2/")
    assert before.tensors_sha256 != after.tensors_sha256


def test_a_declared_preprocessing_wins(logged: Any) -> None:
    declared = {"resize_px": 40, "crop_px": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    settings = EncoderConfig.model_validate(
        {"name": "mlflow", "weights": "models:/shoes/1", "preprocessing": declared}
    )

    assert prepare(settings).card.image.crop_px == 32
    assert card("models:/shoes/1").image.crop_px == 64


def test_a_search_finds_the_model_again(
    logged: Any, pictures: dict[str, bytes], expected: dict[str, Any]
) -> None:
    content, vector = pictures["astronaut.jpg"], expected["astronaut.jpg"]
    sha256 = logged.metadata["tensors_sha256"][:12]
    in_run = f"mlflow/{logged.run_id}/{sha256}"

    model_id = f"mlflow/shoes/1/{sha256}"
    named, (found,) = embed_queries([content], model_ids=[model_id])

    assert named == model_id

    assert found @ vector / np.linalg.norm(found) / np.linalg.norm(vector) > 0.999
    with pytest.raises(SetupError, match=rf"give its URI, runs:/{logged.run_id}/<path>"):
        embed_queries([content], model_ids=[in_run])
    with pytest.raises(SetupError, match="the query cannot be used"):
        embed_queries([b"\0"], model_ids=[in_run], weights=f"runs:/{logged.run_id}/encoder")


@pytest.mark.parametrize("source", ["shoes/1", "m-0123", "catalog.schema.shoes/12"])
def test_a_source_gives_its_uri(source: str) -> None:
    assert format_registered_uri(source) == f"models:/{source}"


def test_a_sha256_can_be_pinned(logged: Any) -> None:
    sha256 = logged.metadata["tensors_sha256"]

    assert card("models:/shoes/1", sha256=sha256).tensors_sha256 == sha256
    with pytest.raises(SetupError, match=r"the tensors of 'models:/shoes/1' has sha256"):
        card("models:/shoes/1", sha256="0" * 64)


def test_tensors_that_were_changed_are_refused(artifacts: Path, folder: Path) -> None:
    changed = log_encoder(SMALL, name="changed")
    tensors = Path(changed.artifact_path.removeprefix("file://")) / TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")

    with pytest.raises(SetupError, match="it was changed or cut short"):
        card(changed.model_uri)
    tensors.unlink()
    with pytest.raises(SetupError, match="cannot be read"):
        card(changed.model_uri)


def test_a_function_named_by_a_registry_is_not_called(logged: Any) -> None:
    function = "small_models:network_and_preprocessing"
    own = log_encoder(function, name="own")

    with pytest.raises(SetupError, match=rf"made by the function '{function}'; to have it called"):
        card(own.model_uri)
    assert prepare(EncoderConfig(name=function, weights=own.model_uri)).card.encoder == function


@pytest.mark.long
def test_a_registered_encoder_can_be_trained(
    spark: SparkSession, logged: Any, tmp_path: Path
) -> None:
    contents, labels = digits(60)
    rows = [(content, str(label)) for content, label in zip(contents, labels, strict=True)]
    images = spark.createDataFrame(rows, "content binary, label string").cache()

    made = finetune(
        images,
        label_col="label",
        output=tmp_path,
        encoder=registered("models:/shoes/1"),
        settings=TrainingSettings(epochs=1, held_out=0.3),
    )

    assert made.config.name == "efficientnet_lite0"
    assert made.config.preprocessing == SMALL.preprocessing
    embedded = featurize(images, encoder=made.config)
    before = featurize(images, encoder=SMALL)
    assert embedded.where("error IS NULL").count() == len(rows)
    assert embedded.select("embedding").exceptAll(before.select("embedding")).count() == len(rows)


def test_it_names_no_classes(spark: SparkSession, logged: Any) -> None:
    with pytest.raises(SetupError, match="'models:/shoes/1' was logged without its head"):
        image_labeler(spark, encoder=registered("models:/shoes/1"))


@pytest.mark.parametrize(
    ("uri", "name", "message"),
    [
        ("default", "mlflow", r"'default' names no model in MLflow; encoder.weights is models:/"),
        ("models:/shoes/latest", "mlflow", "names no model in MLflow"),
        ("models:/shoes@nobody", "mlflow", r"'models:/shoes@nobody' could not be .* nobody not f"),
        ("models:/boots/1", "mlflow", "name=boots not found; correct encoder.weights, or set MLFL"),
        ("models:/shoes/99", "mlflow", "version=99"),
        ("runs:/0123/encoder", "mlflow", "0123 not found"),
        ("models:/shoes/1", "resnet50", "is of the encoder 'efficientnet_lite0', and encoder.name"),
    ],
)
def test_a_missing_model_is_a_setup_error(logged: Any, uri: str, name: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        prepare(EncoderConfig(name=name, weights=uri))


def test_models_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("import mlflow\nmlflow.models.set_model(lambda x: x)\n")
    with mlflow.start_run() as run:
        mlflow.log_text("no model", "notes/one.txt")
        other = mlflow.pyfunc.log_model(
            name="other", python_model=str(tmp_path / "other.py"), pip_requirements=["pandas"]
        )

    for uri in (other.model_uri, f"runs:/{run.info.run_id}/notes"):
        with pytest.raises(SetupError, match=r"was not written by embedstream\.log_encoder"):
            card(uri)


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    here = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://user:hunter2@127.0.0.1:9")
    try:
        with pytest.raises(SetupError, match=r"downloaded from MLflow at http://\[") as caught:
            card("models:/shoes/1")
    finally:
        mlflow.set_tracking_uri(here)
    assert "hunter2" not in str(caught.value)


def test_without_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)

    with pytest.raises(MissingExtra, match=r"log_encoder needs .*'embedstream\[mlflow\]'"):
        log_encoder(ENCODER)
    with pytest.raises(MissingExtra, match=r"encoder 'models:/shoes/1' needs"):
        card("models:/shoes/1")


def test_the_card_is_read_as_it_was_written(artifacts: Path) -> None:
    found = read_card(artifacts / "data/encoder")

    assert isinstance(found.image.mean, tuple)
    assert found.encoder == "efficientnet_lite0"
    assert hash(found) == hash(read_card(artifacts / "data/encoder"))
