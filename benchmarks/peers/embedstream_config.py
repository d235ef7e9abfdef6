"""embedstream as it comes, on two cores, with the model that all peers have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from deltalake import DeltaTable

from embedstream.config import Config
from protocol import CORES, Backend, Precision


def config(
    folder: Path, precision: Precision, backend: Backend, **sections: dict[str, Any]
) -> Config:
    """Whatever it writes lies in `folder`."""
    defaults: dict[str, Any] = {
        "kafka": {"bootstrap_servers": "localhost:9092", "subscribe": "images"},
        "encoder": {
            "name": "resnet50",
            "weights": "random",
            "precision": precision,
            "backend": backend,
        },
        "table": {"path": f"{folder}/table"},
        "checkpoint": f"{folder}/checkpoint",
        "spark": {
            "master": f"local[{CORES},4]",
            "log_file": f"{folder}/spark.log",
            "options": {"spark.ui.enabled": "false"},
        },
    }
    return Config.model_validate({**defaults, **sections})


def embeddings(table: str) -> int:
    """How many rows of a Delta table have one."""
    rows = DeltaTable(table).to_pyarrow_dataset()
    return int(rows.count_rows(filter=pc.field("embedding").is_valid()))
