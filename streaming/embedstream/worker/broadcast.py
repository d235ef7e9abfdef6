"""One model: driver to broadcast to one file an executor to one engine a worker."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast
from weakref import WeakValueDictionary

import torch
from pyspark import Accumulator, Broadcast, SparkFiles, TaskContext
from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig
from embedstream.spark.connect import is_connect, session_key
from embedstream_core.atomic_files import replace_file
from embedstream_core.engine.cache import engine_of
from embedstream_core.engine.engine import Engine
from embedstream_core.engine.precision import Timing, time_precisions
from embedstream_core.models.prepare import ModelCard, PreparedModel
from embedstream_core.settings import EngineSettings

__all__ = ["BroadcastModel", "broadcast_model"]


class Tensors(Protocol):
    """The prepared tensors, as they travel."""

    def file(self) -> Path:
        """Where they lie on this executor's disk; what workers of it map, they share."""


@dataclass(frozen=True)
class _BroadcastTensors:
    name: str
    sent: Broadcast[bytes]

    def file(self) -> Path:
        """Written by the executor's first worker."""
        path = _executor_folder() / self.name
        if not path.exists():
            replace_file(path, self.sent.value, mode=0o600)
        return path


@dataclass(frozen=True)
class _SessionFile:
    """What Spark Connect has in the place of broadcasts."""

    name: str

    def file(self) -> Path:
        return _executor_folder() / self.name


# By session and hash, as long as something refers to them.
_sent: WeakValueDictionary[tuple[str, str], Tensors] = WeakValueDictionary()


@dataclass(frozen=True)
class BroadcastModel:
    """A model that travels to the workers as a reference.

    `counter` counts its loads there; Spark Connect has none.
    """

    card: ModelCard
    tensors: Tensors
    settings: EngineSettings
    counter: Accumulator[int] | None

    @property
    def loads(self) -> int:
        """How often it was loaded, as far as that is counted; on the driver."""
        return 0 if self.counter is None else self.counter.value

    def engine(self) -> Engine:
        """This worker's engine; loaded by the first task that asks, kept for all later ones."""
        return engine_of(
            self.card,
            self._loaded_file,
            self.settings,
            cuda_index=_granted_gpu(),
            cpu_threads=_task().cpus(),
        )

    def time_precisions(self) -> Timing:
        """Time this worker's forward passes in each precision."""
        return time_precisions(
            self.card, self.tensors.file(), self.settings, cuda_index=_granted_gpu()
        )

    def embedding_cache_file(self, *decoding: object) -> Path:
        """Return the file in which this executor's workers cache embeddings.

        The file's name is a hash of everything that can change a vector, with `decoding` by its
        repr, so one file never serves two models or two ways of decoding.
        """
        made_by = (self.card, self.settings, *decoding)
        name = hashlib.sha256(repr(made_by).encode()).hexdigest()
        path = _executor_folder() / f"{name}.embeddings.sqlite3"
        # SQLite would create it readable for all; if it cannot be created, SQLite reports that.
        with suppress(OSError):
            path.touch(mode=0o600)
        return path

    def _loaded_file(self) -> Path:
        if self.counter is not None:
            self.counter.add(1)
        return self.tensors.file()


def broadcast_model(
    spark: SparkSession, model: PreparedModel, config: EncoderConfig
) -> BroadcastModel:
    """Send a prepared model's tensors to the executors, once for all that use them."""
    connect = is_connect(spark)
    sent = session_key(spark), model.card.tensors_sha256
    if (tensors := _sent.get(sent)) is None:
        send = _add_file if connect else _broadcast
        name = f"{model.card.tensors_sha256}.safetensors"
        tensors = _sent[sent] = send(spark, name, model.tensors)
    return BroadcastModel(
        card=model.card,
        tensors=tensors,
        settings=EngineSettings(config.device, config.backend, config.batch_size),
        counter=None if connect else spark.sparkContext.accumulator(0),
    )


def _broadcast(spark: SparkSession, name: str, tensors: bytes) -> Tensors:
    return _BroadcastTensors(name, spark.sparkContext.broadcast(tensors))


def _add_file(spark: SparkSession, name: str, tensors: bytes) -> Tensors:
    with tempfile.TemporaryDirectory(prefix="embedstream-") as folder:
        path = Path(folder, name)
        path.write_bytes(tensors)
        spark.addArtifacts(str(path), file=True)
    return _SessionFile(name)


def _executor_folder() -> Path:
    return Path(SparkFiles.getRootDirectory())


def _granted_gpu() -> int:
    """The GPU that Spark gave this task, else one by turns: never all tasks on GPU 0."""
    task = _task()
    granted = task.resources().get("gpu")
    if granted is not None:
        return int(granted.addresses[0])
    return task.partitionId() % max(1, torch.cuda.device_count())


def _task() -> TaskContext:
    return cast("TaskContext", TaskContext.get())
