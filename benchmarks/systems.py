"""The systems that are compared, each a process that speaks `peers/protocol.py`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from active_clock import PAUSED_FILE, write_paused_s
from embedstream_core.settings import ModalityName
from running import Running

__all__ = ["FORWARD", "SYSTEMS", "System", "running"]

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".tools" / "peers"


@dataclass(frozen=True, slots=True)
class System:
    """A script of `peers/`; `environment` names its requirements, where they are its own."""

    label: str
    script: str
    environment: str | None = None
    arguments: Sequence[str] = ()


FORWARD = System("ResNet-50's forward pass", "forward")
"""What the machine does; it reads no contents."""

_IMAGES = {
    "limit": System("the limit", "limit", arguments=("resnet50",)),
    "plain": System("plain loop", "plain_loop"),
    "row_udf": System("row UDF, broadcast model", "row_udf"),
    "pandas_udf": System("pandas_udf, DataLoader(500, 8)", "pandas_udf"),
    "mlflow": System("mlflow.pyfunc.spark_udf", "mlflow_udf", "mlflow"),
    "predict_batch": System("predict_batch_udf", "predict_batch"),
    "ray": System("Ray Data", "ray_data", "ray"),
    "daft": System("Daft", "daft_udf", "daft"),
    "dataframe": System("embedstream, DataFrame", "embedstream_dataframe", arguments=("resnet50",)),
    "stream": System("embedstream, Kafka to Delta", "embedstream_stream", arguments=("resnet50",)),
    "batch": System("embedstream, batch", "embedstream_batch"),
    **{
        name: System(f"embedstream, {label}", "embedstream_door", arguments=("resnet50", name))
        for name, label in {
            "featurize": "featurize()",
            "column": "column function",
            "spark_ml": "Spark ML",
            "sql": "SQL",
            "log_encoder": "log_encoder() and MLflow",
        }.items()
    },
    "openvino": System(
        "embedstream, OpenVINO",
        "embedstream_dataframe",
        arguments=("--backend", "openvino", "resnet50"),
    ),
}

_TEXTS = {
    # Two threads, 240 texts: 39.3 texts/s with 2, 40.3 with 4 and 8, 36.7 with 16, 31.8 with 32.
    "limit": System("encode(batch_size=8)", "encode", arguments=("8",)),
    **{
        f"encode_{size}": System(f"encode(batch_size={size})", "encode", arguments=(str(size),))
        for size in (8, 16, 32, 64)
    },
    **{
        f"pool_{size}": System(
            f"encode(pool, batch_size={size})", "encode_pool", arguments=(str(size), "100")
        )
        for size in (8, 16, 32)
    },
    "pandas_udf": System("pandas_udf around encode()", "pandas_udf_text"),
    "daft": System("Daft, embed_text()", "daft_text", "daft_text"),
    "featurize": System(
        "embedstream, featurize()", "embedstream_door", arguments=("minilm", "featurize")
    ),
    "stream": System("embedstream, Kafka to Delta", "embedstream_stream", arguments=("minilm",)),
}

_CLIPS = {
    "limit": System("decode plus forward", "limit", arguments=("speech-embedding",)),
    "featurize": System(
        "embedstream, featurize()", "embedstream_door", arguments=("speech-embedding", "featurize")
    ),
    "stream": System(
        "embedstream, Kafka to Delta", "embedstream_stream", arguments=("speech-embedding",)
    ),
}

SYSTEMS: Mapping[ModalityName, Mapping[str, System]] = {
    "image": _IMAGES,
    "text": _TEXTS,
    "audio": _CLIPS,
}
"""The systems of each modality; the others are compared with `limit`."""


@contextmanager
def running(system: System, contents: Path, precision: str, log: Path) -> Iterator[Running]:
    """Start a system in its environment; stop it at the end. Its messages go to `log`.

    SIGTERM becomes a KeyboardInterrupt, so that it leaves no stopped process behind either.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [
        str(_python(system.environment)), str(HERE / "peers" / f"{system.script}.py"),
        "--contents", str(contents), "--precision", precision, *system.arguments,
    ]  # fmt: skip
    # What the benchmarks of streams share, the doors of embedstream import too.
    path = os.pathsep.join(filter(None, (str(HERE), os.getenv("PYTHONPATH"))))
    with log.open("ab") as errors, tempfile.TemporaryDirectory() as folder:
        paused_file = Path(folder) / "paused"
        write_paused_s(paused_file, 0.0)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path, PAUSED_FILE: str(paused_file)},
        )
        try:
            started = Running(process, paused_file)
            with closing(started):
                yield started
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
    install: list[str | Path] = [uv, "pip", "install", "-q", "-p", python, "-r", requirements]
    subprocess.run(install, check=True)
    (folder / ".complete").touch()
