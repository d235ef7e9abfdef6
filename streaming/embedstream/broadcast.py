"""One model: driver to broadcast to one file an executor to one engine a worker."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

import torch
from pyspark import Accumulator, Broadcast, SparkFiles, TaskContext
from pyspark.sql import SparkSession

from embedstream.config import EncoderConfig
from embedstream_core.backends import Backend, obstacle
from embedstream_core.engine import Device, Engine, Precision, find_device
from embedstream_core.programs import is_fixed
from embedstream_core.weights import ModelCard, PreparedModel, load_model

__all__ = ["BroadcastModel", "broadcast_model"]


@dataclass(frozen=True)
class _EngineKey:
    card: ModelCard
    device: Device
    precision: Precision
    backend: Backend
    batch_size: int | None


# Lives as long as the Python worker, across tasks and micro-batches.
_engines: dict[_EngineKey, Engine] = {}

# By application and hash, as long as something refers to them.
_sent: WeakValueDictionary[tuple[str, str], Broadcast[bytes]] = WeakValueDictionary()


@dataclass(frozen=True)
class BroadcastModel:
    """A model that travels to the workers as a reference; `loads` counts its loads there."""

    card: ModelCard
    tensors: Broadcast[bytes]
    device: Device
    precision: Precision
    backend: Backend
    batch_size: int | None
    loads: Accumulator[int]

    def engine(self) -> Engine:
        """This worker's engine; loaded by the first task that asks, kept for all later ones."""
        key = _EngineKey(self.card, self.device, self.precision, self.backend, self.batch_size)
        if key not in _engines:
            _engines[key] = self._start_engine()
            self.loads.add(1)
        return _engines[key]

    def known_file(self, *decoding: object) -> Path:
        """Where this executor's workers remember embeddings, if the job has them do so.

        What moves a vector is in the file's name, `decoding` included, by its repr: two files never
        hold different vectors for one image, and one never serves two models.
        """
        made_by = (self.card, self.device, self.precision, self.backend, *decoding)
        name = hashlib.sha256(repr(made_by).encode()).hexdigest()
        path = _executor_folder() / f"{name}.known.sqlite3"
        # SQLite would make it for all to read; where it cannot be made, SQLite says so.
        with suppress(OSError):
            path.touch(mode=0o600)
        return path

    def _start_engine(self) -> Engine:
        device = _task_device(self.device)
        preprocessing = self.card.preprocessing
        hindered = obstacle(self.backend, device, fixed=is_fixed(self.card.encoder))
        engine = Engine.start(
            load_model(self.card, self._tensors_file()),
            preprocessing,
            device=device,
            precision=self.precision,
            backend="torch" if hindered else self.backend,
            batch_size=self.batch_size,
            cpu_threads=_task_cores(),
        )
        engine.check(preprocessing)
        return engine

    def _tensors_file(self) -> Path:
        """The tensors on this executor's disk: written by its first worker, mapped by all."""
        path = _executor_folder() / f"{self.card.tensors_sha256}.safetensors"
        if not path.exists():
            handle, unfinished = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(self.tensors.value)
            Path(unfinished).replace(path)
        return path


def broadcast_model(
    spark: SparkSession, model: PreparedModel, config: EncoderConfig
) -> BroadcastModel:
    """Send a prepared model's tensors to the executors, once for all that use them."""
    context = spark.sparkContext
    sent = context.applicationId, model.card.tensors_sha256
    if (tensors := _sent.get(sent)) is None:
        tensors = _sent[sent] = context.broadcast(model.tensors)
    return BroadcastModel(
        card=model.card,
        tensors=tensors,
        device=config.device,
        precision=config.precision,
        backend=config.backend,
        batch_size=config.batch_size,
        loads=context.accumulator(0),
    )


def _executor_folder() -> Path:
    return Path(SparkFiles.getRootDirectory())


def _task_device(device: Device) -> torch.device:
    return find_device(device, cuda_index=_granted_gpu())


def _granted_gpu() -> int:
    """The GPU that Spark gave this task, else one by turns: never all tasks on GPU 0."""
    task = _task()
    granted = task.resources().get("gpu")
    if granted is not None:
        return int(granted.addresses[0])
    return task.partitionId() % max(1, torch.cuda.device_count())


def _task_cores() -> int:
    return _task().cpus()


def _task() -> TaskContext:
    return cast("TaskContext", TaskContext.get())
