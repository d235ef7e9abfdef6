"""How a model reaches the workers: a broadcast, one file per executor, one engine per worker."""

from __future__ import annotations

import hashlib
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import torch
from pyspark import Accumulator, Broadcast, SparkFiles, TaskContext
from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig
from embedstream.spark.connect import get_session_key, is_connect
from embedstream_core.atomic_files import replace_file
from embedstream_core.engine.cache import get_engine
from embedstream_core.engine.engine import Engine
from embedstream_core.engine.precision import Timing, time_precisions
from embedstream_core.models.card import ModelCard, PreparedModel
from embedstream_core.settings import EngineSettings

__all__ = ["BroadcastModel", "broadcast_model"]


@dataclass(frozen=True)
class Tensors:
    """The prepared tensors. Spark Connect has no broadcasts, but sends the file by itself."""

    name: str
    content: Broadcast[bytes] | None

    def get_file(self) -> Path:
        """Return the file on this executor's disk, which its workers map and so share.

        The executor's first worker writes it.
        """
        path = _executor_folder() / self.name
        if self.content is not None and not path.exists():
            replace_file(path, self.content.value, mode=0o600)
        return path


# By session and hash, as long as something refers to them.
_sent: WeakValueDictionary[tuple[str, str], Tensors] = WeakValueDictionary()


@dataclass(frozen=True)
class BroadcastModel:
    """A model that Spark sends to the workers as a reference.

    `counter` counts its loads there; Spark Connect has none.
    """

    card: ModelCard
    tensors: Tensors
    settings: EngineSettings
    counter: Accumulator[int] | None

    @property
    def loads(self) -> int:
        """The number of loads, read on the driver; 0 over Spark Connect."""
        return 0 if self.counter is None else self.counter.value

    def get_engine(self) -> Engine:
        """Return this worker's engine: the first task starts it, all later ones reuse it."""

        def load() -> Path:
            if self.counter is not None:
                self.counter.add(1)
            return self.tensors.get_file()

        cpu_threads = _current_task().cpus()
        return get_engine(
            self.card, load, self.settings, cuda_index=_find_gpu(), cpu_threads=cpu_threads
        )

    def time_precisions(self) -> Timing:
        """Time this worker's forward passes in each precision."""
        return time_precisions(
            self.card, self.tensors.get_file(), self.settings, cuda_index=_find_gpu()
        )

    def get_embedding_cache_file(self, *decoding: object) -> Path:
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


def broadcast_model(
    spark: SparkSession, model: PreparedModel, config: EncoderConfig
) -> BroadcastModel:
    """Send a prepared model's tensors to the executors, once for all users of a session."""
    connect = is_connect(spark)
    key = get_session_key(spark), model.card.tensors_sha256
    if (tensors := _sent.get(key)) is None:
        name = f"{model.card.tensors_sha256}.safetensors"
        if connect:
            with tempfile.TemporaryDirectory(prefix="embedstream-") as folder:
                path = Path(folder, name)
                path.write_bytes(model.tensors)
                spark.addArtifacts(str(path), file=True)
        content = None if connect else spark.sparkContext.broadcast(model.tensors)
        tensors = _sent[key] = Tensors(name, content)
    return BroadcastModel(
        card=model.card,
        tensors=tensors,
        settings=config.settings,
        counter=None if connect else spark.sparkContext.accumulator(0),
    )


def _executor_folder() -> Path:
    return Path(SparkFiles.getRootDirectory())


def _current_task() -> TaskContext:
    return cast("TaskContext", TaskContext.get())


def _find_gpu() -> int:
    """Return the GPU that Spark granted this task, or one by its partition: never all on GPU 0."""
    task = _current_task()
    granted = task.resources().get("gpu")
    if granted is not None:
        return int(granted.addresses[0])
    return task.partitionId() % max(1, torch.cuda.device_count())
