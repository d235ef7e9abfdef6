"""Encoders in MLflow that `embedstream.log_encoder` wrote; reading one needs the extra `mlflow`.

| URI | `<source>` in its `model_id`, `mlflow/<source>/<12 characters of the tensors' sha256>` |
| --- | --- |
| `models:/<name>@<alias>`, `models:/<name>/<version>` | `<name>/<version>` |
| `models:/<model id>` | `<model id>` |
| `runs:/<run id>/<path>` | `<run id>` |
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.models.card import PreparedModel, read_prepared
from embedstream_core.redaction import REDACTED, redacted_uri

__all__ = [
    "DATA_FOLDER",
    "LOADER_MODULE",
    "Registered",
    "is_registered",
    "read_registered",
    "registered_uri",
]

LOADER_MODULE = "embedstream_core.pyfunc"
DATA_FOLDER = "encoder"
"""The name of the folder, among a model's data, that holds the encoder."""

_FORMS = (
    "models:/<name>@<alias>, models:/<name>/<version>, models:/<model id> or runs:/<run id>/<path>"
)
_ALIASED = re.compile(r"models:/([^/@]+)@([^/@]+)")
_NUMBERED = re.compile(r"models:/([^/@]+)/(\d+)")
_LOGGED = re.compile(r"models:/(m-[^/@]+)")
_IN_RUN = re.compile(r"runs:/([^/]+)/.+")
_USER = re.compile(r"//[^/\s@]+@")


class Registered(NamedTuple):
    """A model as it lies in MLflow; `source` is its place in a `model_id`."""

    source: str
    model: PreparedModel


def is_registered(weights: str) -> bool:
    """Whether `encoder.weights` is a URI of MLflow's."""
    return weights.startswith(("models:/", "runs:/"))


def registered_uri(source: str) -> str:
    """The URI that gives the model again, forever the same one.

    Raises:
        SetupError: it came from a run, whose models are known by their paths alone.
    """
    if "/" in source or source.startswith("m-"):
        return f"models:/{source}"
    raise SetupError(
        f"the model came from the run '{source}' of MLflow, which may hold several; give its URI, "
        f"runs:/{source}/<path>, as the weights"
    )


def read_registered(uri: str) -> Registered:
    """Download a model from MLflow; an alias is resolved to a version first.

    Raises:
        SetupError: the URI is none of MLflow's, nothing answers, there is no such model, or it
            was not written by `log_encoder`.
        MissingExtra: MLflow is not installed.
    """
    if not any(form.fullmatch(uri) for form in (_ALIASED, _NUMBERED, _LOGGED, _IN_RUN)):
        raise SetupError(f"'{uri}' names no model in MLflow; encoder.weights is {_FORMS}")
    with require_extra("mlflow", feature=f"encoder '{uri}'"):
        import mlflow.artifacts
        import mlflow.models
    with tempfile.TemporaryDirectory() as folder:
        try:
            uri_of_one = _resolved(mlflow, uri)
            path = Path(mlflow.artifacts.download_artifacts(uri_of_one, dst_path=folder))
        except Exception as error:
            # Tracking servers and the stores behind them raise types of their own.
            raise _not_had(mlflow, uri, error) from error
        return Registered(_source(uri_of_one), _read(mlflow, uri, path))


def _resolved(mlflow: Any, uri: str) -> str:
    if aliased := _ALIASED.fullmatch(uri):
        name, alias = aliased.groups()
        version = mlflow.MlflowClient().get_model_version_by_alias(name, alias).version
        return f"models:/{name}/{version}"
    return uri


def _source(uri: str) -> str:
    in_run = _IN_RUN.fullmatch(uri)
    return in_run[1] if in_run else uri.removeprefix("models:/")


def _read(mlflow: Any, uri: str, folder: Path) -> PreparedModel:
    try:
        written = mlflow.models.Model.load(str(folder)).flavors["python_function"]["loader_module"]
    except Exception:
        # What is no model at all fails in as many ways.
        written = None
    if written != LOADER_MODULE:
        raise SetupError(
            f"'{uri}' was not written by embedstream.log_encoder, so it does not tell what it "
            "does with a picture; log the encoder with that"
        )
    return read_prepared(folder / "data" / DATA_FOLDER)


def _not_had(mlflow: Any, uri: str, error: Exception) -> SetupError:
    of_registry = uri.startswith("models:/")
    where = mlflow.get_registry_uri() if of_registry else mlflow.get_tracking_uri()
    variable = (
        "MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI" if of_registry else "MLFLOW_TRACKING_URI"
    )
    # A URI in the error's text may carry a password.
    reason = _USER.sub(f"//{REDACTED}@", str(error).rstrip("."))
    return SetupError(
        f"'{uri}' cannot be had from MLflow at {redacted_uri(str(where))}: {reason}; correct "
        f"encoder.weights, or set {variable}"
    )
