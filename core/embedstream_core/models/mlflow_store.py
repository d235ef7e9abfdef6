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
from typing import Any

from embedstream_core.errors import SetupError
from embedstream_core.extras import require_extra
from embedstream_core.models.card import PreparedModel, read_prepared
from embedstream_core.redaction import REDACTED, redact_uri

__all__ = [
    "DATA_FOLDER",
    "LOADER_MODULE",
    "format_registered_uri",
    "is_registered",
    "read_registered",
]

LOADER_MODULE = "embedstream_core.pyfunc"
DATA_FOLDER = "encoder"
"""The name of the folder, among a model's data, that holds the encoder."""

_URI = re.compile(
    r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)|models:/[^/@]+/\d+|models:/m-[^/@]+"
    r"|runs:/(?P<run>[^/]+)/.+"
)
_USER = re.compile(r"//[^/\s@]+@")


def is_registered(weights: str) -> bool:
    """Return whether `encoder.weights` is a URI of MLflow."""
    return weights.startswith(("models:/", "runs:/"))


def format_registered_uri(source: str) -> str:
    """Return the URI that always gives the same model.

    Raises:
        SetupError: the model came from a run, which identifies its models by their paths only.
    """
    if "/" in source or source.startswith("m-"):
        return f"models:/{source}"
    raise SetupError(
        f"the model came from the run '{source}' of MLflow, which may hold several; give its URI, "
        f"runs:/{source}/<path>, as the weights"
    )


def read_registered(uri: str) -> tuple[str, PreparedModel]:
    """Download a model from MLflow; an alias is resolved to a version first.

    Returns:
        The model's source as `model_id` names it, and the model.

    Raises:
        SetupError: the URI is not MLflow's, the server does not answer, there is no such model, or
            `log_encoder` did not write it.
        MissingExtra: MLflow is not installed.
    """
    form = _URI.fullmatch(uri)
    if form is None:
        raise SetupError(
            f"'{uri}' names no model in MLflow; encoder.weights is models:/<name>@<alias>, "
            "models:/<name>/<version>, models:/<model id> or runs:/<run id>/<path>"
        )
    with require_extra("mlflow", feature=f"encoder '{uri}'"):
        import mlflow.artifacts
        import mlflow.models
    resolved = uri
    with tempfile.TemporaryDirectory() as folder:
        try:
            if form["alias"]:
                version = mlflow.MlflowClient().get_model_version_by_alias(
                    form["name"], form["alias"]
                )
                resolved = f"models:/{form['name']}/{version.version}"
            path = Path(mlflow.artifacts.download_artifacts(resolved, dst_path=folder))
        except Exception as error:
            # Tracking servers and the stores behind them raise types of their own.
            raise _build_download_error(mlflow, uri, error) from error
        try:
            flavors = mlflow.models.Model.load(str(path)).flavors
            loader_module = flavors["python_function"]["loader_module"]
        except Exception:
            # A folder that holds no model fails in many ways.
            loader_module = None
        if loader_module != LOADER_MODULE:
            raise SetupError(
                f"'{uri}' was not written by embedstream.log_encoder, so its preprocessing is "
                "unknown; log the encoder with that"
            )
        source = form["run"] or resolved.removeprefix("models:/")
        return source, read_prepared(path / "data" / DATA_FOLDER)


def _build_download_error(mlflow: Any, uri: str, error: Exception) -> SetupError:
    where, variables = mlflow.get_tracking_uri(), "MLFLOW_TRACKING_URI"
    if uri.startswith("models:/"):
        where = mlflow.get_registry_uri()
        variables = "MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI"
    # A URI in the error's text may contain a password.
    reason = _USER.sub(f"//{REDACTED}@", str(error).rstrip("."))
    return SetupError(
        f"'{uri}' could not be downloaded from MLflow at {redact_uri(str(where))}: {reason}; "
        f"correct encoder.weights, or set {variables}"
    )
