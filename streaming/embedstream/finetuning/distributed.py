"""The training on Spark's executors, with PySpark's `TorchDistributor`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

from embedstream.config.sections import EncoderConfig
from embedstream.spark.connect import is_connect
from embedstream.spark.sizing import count_parallel_tasks, count_task_gpus
from embedstream_core.engine.engine import find_device
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.models.card import ModelCard
from embedstream_core.models.prepare import load_model
from embedstream_core.training.checkpoint import Epoch, read_finished_epochs
from embedstream_core.training.examples import LabelledImages
from embedstream_core.training.settings import TrainingSettings
from embedstream_core.training.trainer import Trainer, join_process_group

__all__ = ["START", "TrainingJob", "check_processes", "run_training"]

_log = logging.getLogger(__name__)

START = "start.safetensors"
"""The file of the tensors that a training starts from, in its folder."""


@dataclass(frozen=True)
class TrainingJob:
    """The input of a training process. `images` are the settings of the images, without files."""

    folder: Path
    card: ModelCard
    classes: int
    settings: TrainingSettings
    images: LabelledImages
    on_gpu: bool

    @property
    def checkpoint(self) -> Path:
        """The checkpoint after the last finished epoch."""
        return self.folder / "checkpoint.pt"

    @property
    def examples(self) -> Path:
        """The folder of the labelled images."""
        return self.folder / "examples"

    def select_share(self, part: str, rank: int = 0, processes: int = 1) -> LabelledImages:
        """Return the images of one process in a part, `train` or `held_out`."""
        files = sorted((self.examples / f"part={part}").glob("*.parquet"))
        return replace(self.images, files=tuple(files[rank::processes]))


def check_processes(spark: SparkSession, num_processes: int, encoder: EncoderConfig) -> bool:
    """Check that the processes can run at once; return whether each gets a GPU.

    Raises:
        SetupError: the session cannot run them, or `device` is `cuda` and grants no GPU.
    """
    if num_processes < 1:
        raise SetupError(f"num_processes is {num_processes}; it is 1 or more")
    if is_connect(spark):
        raise SetupError(
            "finetune needs a session in the driver's process, because PySpark's TorchDistributor "
            "does not run over Spark Connect"
        )
    master, tasks = str(spark.sparkContext.master), count_parallel_tasks(spark)
    # Spark would retry for ten minutes.
    if master.startswith("local[") and num_processes > tasks:
        raise SetupError(
            f"num_processes is {num_processes}, but '{master}' runs {tasks} tasks at once: use "
            "fewer, or a master with more"
        )
    granted = count_task_gpus(spark)
    if encoder.device == "cuda" and granted < 1:
        raise SetupError(
            "encoder.device is cuda, but spark.task.resource.gpu.amount is not 1; grant each task "
            "a GPU, or set encoder.device to auto or cpu"
        )
    return encoder.device != "cpu" and granted >= 1


def run_training(job: TrainingJob, num_processes: int) -> None:
    """Train in several processes at once, and wait until all are done.

    Raises:
        SystemicError: a process failed or was killed.
    """
    try:
        _Distributor(num_processes, local_mode=False, use_gpu=job.on_gpu).run(_train_share, job)
    except (Py4JError, PySparkException) as error:
        # Spark does not retry a barrier stage whose rows go to the driver.
        done = len(read_finished_epochs(job.checkpoint))
        raise SystemicError(
            f"the training failed after {done} of {job.settings.epochs} epochs; call again with "
            f"the same output to resume it ({str(error).strip().splitlines()[-1]})"
        ) from error


class _Distributor(TorchDistributor):
    """A distributor that leaves the environment and the disk of the workers as they were.

    Spark's own leaves its variables in the environment of the Python workers, among them
    `CUDA_VISIBLE_DEVICES`: a later task would not find its GPU. And torchrun leaves a folder.
    """

    def _get_spark_task_function(self, *args: Any, **kwargs: Any) -> Callable[..., Iterator[Any]]:
        run = super()._get_spark_task_function(*args, **kwargs)

        def run_and_clean_up(batches: Iterator[Any]) -> Iterator[Any]:
            before = dict(os.environ)
            try:
                with TemporaryDirectory(prefix="embedstream-") as scratch:
                    os.environ["TMPDIR"] = scratch
                    yield from run(batches)
            finally:
                os.environ.clear()
                os.environ.update(before)

        return run_and_clean_up


def _train_share(job: TrainingJob) -> None:
    """Train in one process, whose environment `torchrun` has set."""
    # TorchDistributor passes the standard output of the processes on to the driver.
    logging.basicConfig(stream=sys.stdout, format="embedstream: %(message)s")
    _log.setLevel(logging.INFO)
    torch.set_num_threads(job.images.threads)
    device = find_device("cuda" if job.on_gpu else "cpu")

    def log_epoch(epoch: Epoch) -> None:
        _log.info(
            "epoch %d of %d: %d images, %d skipped, loss %.3f, held-out accuracy %.3f, %.1f s",
            epoch.number,
            job.settings.epochs,
            sum(epoch.rows),
            sum(epoch.skipped.values()),
            epoch.loss,
            epoch.accuracy,
            epoch.seconds,
        )

    with join_process_group(device):
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        trainer = Trainer(
            job.card,
            load_model(job.card, job.folder / START).network,
            training=job.select_share("train", rank, processes),
            held_out=job.select_share("held_out", rank, processes),
            classes=job.classes,
            settings=job.settings,
            device=device,
        )
        trainer.run(job.checkpoint, on_epoch=log_epoch)
