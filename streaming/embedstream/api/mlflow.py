"""Log encoders to MLflow; `encoder.name: mlflow` loads them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

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

    The model takes a column `content` of the bytes of images or audio files, or a column `text` of
    texts; a model of images and texts takes both, one of them null in each row. It returns the
    columns `embedding`, `array<float>`, null for what cannot be embedded, and `error`, a text,
    empty where there is an embedding. It holds the prepared tensors and their card, so that it
    loads without the original weights; nothing in it is a pickle.

    It goes to the active run, if there is one, and with `registered_model_name` to the registry as
    a new version. `pip_requirements` replaces the versions that are installed here, and
    `code_paths` are files that MLflow keeps with the model, such as a `module:function` of yours.

    Raises:
        SetupError: the encoder, its weights or a setting is wrong; nothing was written.
        MissingExtra: MLflow is not installed.
    """
    with require_extra("mlflow", feature="log_encoder"):
        import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec
    from mlflow.types.schema import Array

    settings = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    model = prepare(settings)
    card = model.card
    is_one = len(card.modalities) == 1
    columns: list[ColSpec | TensorSpec] = []
    if set(card.modalities) != {"text"}:
        columns.append(ColSpec(DataType.binary, "content", required=is_one))
    if "text" in card.modalities:
        columns.append(ColSpec(DataType.string, "text", required=is_one))
    outcomes = Schema(
        [ColSpec(Array(DataType.float), "embedding"), ColSpec(DataType.string, "error")]
    )
    facts = {name: getattr(card, name) for name in ("dimension", "license", "tensors_sha256")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / DATA_FOLDER
        save_prepared(model, folder)
        info: ModelInfo = mlflow.pyfunc.log_model(
            name=name,
            loader_module=LOADER_MODULE,
            data_path=str(folder),
            code_paths=None if code_paths is None else list(code_paths),
            signature=ModelSignature(Schema(columns), outcomes),
            pip_requirements=list(pip_requirements or _list_requirements(card)),
            model_config={
                **settings.model_dump(include={"device", "backend", "batch_size", "gpu"}),
                "precision": card.precision,
            },
            metadata={"encoder": card.model_id, **facts},
            registered_model_name=registered_model_name,
        )
    return info


def _list_requirements(card: ModelCard) -> list[str]:
    """Return every package that embedstream names for an encoder, at the version installed here."""
    from packaging.requirements import Requirement

    extra = "timm" if card.encoder.startswith("timm/") else ""
    if "audio" in card.modalities:
        # Whatever the model is, clips are decoded for it.
        extra = "audio"
    elif card.encoder in PROGRAMS:
        extra = PROGRAMS[card.encoder].extra or card.encoder
    elif card.encoder == "efficientnet_lite0":
        extra = "efficientnet-lite"
    needed = map(Requirement, metadata.requires("embedstream") or [])
    names = [one.name for one in needed if not one.marker or one.marker.evaluate({"extra": extra})]
    # No public index has a version with a plus, such as 2.14.1+cpu.
    return [
        f"embedstream{f'[{extra}]' if extra else ''}=={metadata.version('embedstream')}",
        *(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names),
    ]
