"""The systems that are compared, each a process that speaks `peers/protocol.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from embedstream_core.settings import ModalityName

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


_Times = Mapping[psutil.Process, tuple[float, float]]


class Running:
    """A started system."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._root = psutil.Process(process.pid)
        self.versions: dict[str, str] = self._answer()["versions"]

    def run(self) -> dict[str, Any]:
        """One pass over all contents: `items`, `seconds`, and `cpu_s` of all its processes."""
        assert self._process.stdin is not None
        before = self._read_times()
        print("run", file=self._process.stdin, flush=True)
        answer = self._answer()
        return {**answer, "cpu_s": _count_cpu_s(before, self._read_times())}

    def _read_times(self) -> _Times:
        """The CPU seconds of each process, its own and those of children that it has waited for."""
        read = {}
        for process in (self._root, *self._root.children(recursive=True)):
            # One may end meanwhile.
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                waited_for = times.children_user + times.children_system
                read[process] = times.user + times.system, waited_for
        return read

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended; its standard error says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _count_cpu_s(before: _Times, after: _Times) -> float:
    """CPU seconds between two readings.

    A child that was waited for brings the time of its whole life. Spark's daemon waits for none: if
    a worker ends during a pass, its time in this pass is lost.
    """
    nothing = 0.0, 0.0
    own = sum(after[one][0] - before.get(one, nothing)[0] for one in after)
    waited_for = sum(after[one][1] - before.get(one, nothing)[1] for one in after)
    counted_before = sum(sum(before[one]) for one in before.keys() - after.keys())
    return own + max(0.0, waited_for - counted_before)


@contextmanager
def running(system: System, contents: Path, precision: str, log: Path) -> Iterator[Running]:
    """Start a system in its environment; stop it at the end. Its messages go to `log`."""
    command = [
        str(_python(system.environment)), str(HERE / "peers" / f"{system.script}.py"),
        "--contents", str(contents), "--precision", precision, *system.arguments,
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
