"""Images for the tests of the batch API, and an encoder that is small and real."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from embedstream import EncoderConfig
from embedstream.config.sections import PreprocessingConfig
from embedstream.search.queries import Vector
from embedstream.worker.model import prepare
from embedstream_core.engine.engine import Engine
from embedstream_core.models.prepare import load_prepared
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Item
from engines import run_only
from pictures import real_pictures

__all__ = ["ENCODER", "SMALL", "core_vectors", "digits", "folder", "mlflow_store", "write_pictures"]

ENCODER = EncoderConfig(name="efficientnet_lite0", precision="float32")

SMALL = ENCODER.model_copy(
    update={
        "preprocessing": PreprocessingConfig(
            resize_px=64,
            crop_px=64,
            interpolation="bicubic",
            mean=(127 / 255,) * 3,
            std=(128 / 255,) * 3,
        )
    }
)
"""The same at a quarter of the side: for tests that need many images."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of `write_pictures`, for tests that do not change it."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tracking store and registry of MLflow, on this machine."""
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as environment:
        # It would log the lock file of the folder in which the tests run.
        environment.setenv("MLFLOW_UV_AUTO_DETECT", "false")
        # MLflow and its dependencies warn of each other.
        with warnings.catch_warnings(action="ignore"):
            mlflow.set_tracking_uri(f"sqlite:///{folder}/store.db")
            experiment = mlflow.create_experiment("encoders", (folder / "artifacts").as_uri())
            mlflow.set_experiment(experiment_id=experiment)
        yield
        mlflow.set_tracking_uri("")


def write_pictures(folder: Path) -> dict[str, bytes]:
    """Write real images, and one file that is not an image; return their bytes by name."""
    pictures = dict(list(real_pictures().items())[:6])
    files = {f"{Path(name).stem}.jpg": content for name, content in pictures.items()}
    files["broken.jpg"] = b"no picture"
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def core_vectors(contents: Sequence[bytes], encoder: EncoderConfig = ENCODER) -> list[Vector]:
    """Return vectors from the core alone, in float32, by an encoder of one modality."""
    engine = Engine.start(load_prepared(prepare(encoder)), device=torch.device("cpu"))
    items = [Item(str(index), content=content) for index, content in enumerate(contents)]
    (outcomes,) = run_only(Pipeline([engine], fetch=str.encode), [items])
    return [one.vector for one in outcomes if isinstance(one, Embedding)]


def digits(count: int) -> tuple[list[bytes], list[int]]:
    """Return some of scikit-learn's scanned digits as PNG bytes, and the digits.

    They are drawn at random, the same ones each time: the data set is sorted by who wrote them.
    """
    data = load_digits()
    drawn = np.random.default_rng(0).permutation(len(data.images))[:count]
    return [_png(data.images[one]) for one in drawn], [int(data.target[one]) for one in drawn]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((image * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
