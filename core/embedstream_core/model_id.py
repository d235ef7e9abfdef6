"""The `model_id`: which model made a vector, from which pixels, in which precision."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from embedstream_core.errors import SetupError
from embedstream_core.settings import Normalization

__all__ = ["MLFLOW", "PRECISIONS", "ModelId", "Precision"]

Precision = Literal["float32", "bfloat16"]
"""The number format of a forward pass."""

PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

MLFLOW = "mlflow"
"""The name of MLflow's registry in `encoder.name` and in a `model_id`."""

_FORM = re.compile(
    rf"({MLFLOW}(?=/)|.+(?=/[^/]+/))/(.+)/([0-9a-f]{{1,12}})"
    r"(?:-([0-9a-f]{6}))?(?:\+(l2))?(?:@(bfloat16))?"
)


@dataclass(frozen=True, slots=True)
class ModelId:
    """The id of a model's vectors: only vectors with the same id can be compared.

    Its text is `<encoder>/<weights>/<sha256>`, then `-<preprocessing>` where a preprocessing was
    declared, `+l2` where vectors are divided by their length, and `@bfloat16` for vectors of that
    precision: `resnet50/IMAGENET1K_V2/11ad3fa6f4b5-5d41c3+l2@bfloat16`. `sha256` is the first 12
    characters of the weights' hash, `preprocessing` the first 6 of its own.
    """

    encoder: str
    weights: str
    sha256: str
    preprocessing: str = ""
    normalize: Normalization = "none"
    precision: Precision = "float32"

    def __str__(self) -> str:
        declared = f"-{self.preprocessing}" if self.preprocessing else ""
        normalized = "" if self.normalize == "none" else f"+{self.normalize}"
        rounded = "" if self.precision == "float32" else f"@{self.precision}"
        return f"{self.encoder}/{self.weights}/{self.sha256}{declared}{normalized}{rounded}"

    @classmethod
    def parse(cls, text: str) -> ModelId:
        """Read the text of a `model_id`; raise SetupError for another text."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise SetupError(
                f"'{text}' is not a model_id; one is <encoder>/<weights>/<start of the sha256>, as "
                "resnet50/IMAGENET1K_V2/11ad3fa6f4b5; see the table's column model_id"
            )
        encoder, weights, sha256, preprocessing, normalize, precision = found.groups("")
        return cls(
            encoder,
            weights,
            sha256,
            preprocessing,
            "l2" if normalize else "none",
            "bfloat16" if precision else "float32",
        )

    def in_precision(self, precision: Precision) -> ModelId:
        """Return the id of the same model's vectors in a precision."""
        return replace(self, precision=precision)
