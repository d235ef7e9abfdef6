"""The systems that are compared, each a process that speaks `peers/protocol.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SYSTEMS", "Running", "System", "running"]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".tools" / "peers"


@dataclass(frozen=True, slots=True)
class System:
    """A script of `peers/`; `environment` names its requirements, where they are its own."""

    label: str
    script: str
    environment: str | None = None
    arguments: Sequence[str] = ()


SYSTEMS: Mapping[str, System] = {
    "limit": System("the limit", "limit"),
    "plain": System("plain loop", "plain_loop"),
    "row_udf": System("row UDF, broadcast model", "row_udf"),
    "pandas_udf": System("pandas_udf, DataLoader(500, 8)", "pandas_udf"),
    "mlflow": System("mlflow.pyfunc.spark_udf", "mlflow_udf", "mlflow"),
    "predict_batch": System("predict_batch_udf", "predict_batch"),
    "ray": System("Ray Data", "ray_data", "ray"),
    "daft": System("Daft", "daft_udf", "daft"),
    "dataframe": System("embedstream, DataFrame", "embedstream_dataframe"),
    "stream": System("embedstream, Kafka to Delta", "embedstream_stream"),
    "batch": System("embedstream, batch", "embedstream_batch"),
    **{
        name: System(f"embedstream, {label}", "embedstream_door", arguments=(name,))
        for name, label in {
            "featurize": "featurize()",
            "column": "column function",
            "spark_ml": "Spark ML",
            "sql": "SQL",
            "log_encoder": "log_encoder() and MLflow",
        }.items()
    },
    "openvino": System(
        "embedstream, OpenVINO", "embedstream_dataframe", arguments=("--backend", "openvino")
    ),
}


class Running:
    """A started system."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.versions: dict[str, str] = self._answer()["versions"]

    def run(self) -> dict[str, Any]:
        """One pass over all images: `images`, `seconds`, and what else the system tells."""
        assert self._process.stdin is not None
        print("run", file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended; its standard error says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def running(system: System, images: Path, precision: str, log: Path) -> Iterator[Running]:
    """Start a system in its environment; stop it at the end. Its messages go to `log`."""
    command = [
        str(_python(system.environment)), str(HERE / "peers" / f"{system.script}.py"),
        "--images", str(images), "--precision", precision, *system.arguments,
    ]  # fmt: skip
    # What the benchmarks of streams share, the doors of embedstream import too.
    path = os.pathsep.join(filter(None, (str(HERE), os.getenv("PYTHONPATH"))))
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    try:
        yield Running(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _python(environment: str | None) -> Path:
    if environment is None:
        return Path(sys.executable)
    folder = ENVIRONMENTS / environment
    if not (folder / ".complete").exists():
        _install(folder, HERE / "peers" / "requirements" / f"{environment}.txt")
    return folder / "bin" / "python"


def _install(folder: Path, requirements: Path) -> None:
    own = HERE.parent / ".tools" / "bin"
    uv = shutil.which("uv", path=own) or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is needed to install the peers; 'make setup' brings it")
    print(f"installing {folder.name}", file=sys.stderr)
    subprocess.run([uv, "venv", "--quiet", "--clear", "-p", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    install: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "-r",
        requirements,
    ]
    subprocess.run(install, check=True)
    (folder / ".complete").touch()
