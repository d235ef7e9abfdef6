"""A better encoder: trained on labelled images over Spark's executors, for stream and batch alike.

What is in the output folder:

| file | |
| --- | --- |
| `encoder.safetensors` | the trained network: what `EncoderConfig.weights` takes |
| `encoder.json` | its sha256, encoder, preprocessing, labels, accuracy, epochs and settings |
| `examples/` | the labelled images as Parquet, written once |
| `start.safetensors`, `settings.json`, `checkpoint.pt` | what an interrupted training needs |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f
from pyspark.sql.types import BinaryType, IntegralType, StringType

from embedstream.api.image_columns import find_column
from embedstream.config.locations import scheme_of
from embedstream.config.sections import DataFrameConfig, EncoderConfig, PreprocessingConfig
from embedstream.spark.connect import is_connect
from embedstream.spark.local_disk import check_writable
from embedstream.spark.sizing import task_cores, task_gpus, tasks_at_once
from embedstream.worker.model import prepare
from embedstream_core.atomic_files import replace_file
from embedstream_core.engine.engine import find_device
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.image.decode import DecodeLimits
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.mlflow_store import is_registered
from embedstream_core.models.prepare import ModelCard, PreparedModel, load_model, load_prepared
from embedstream_core.settings import Fidelity
from embedstream_core.training.examples import Pictures
from embedstream_core.training.trainer import (
    Epoch,
    TrainingSettings,
    finished_epochs,
    process_group,
    train,
    trained_blocks,
    trained_tensors,
)

__all__ = ["FinetunedEncoder", "TrainingSettings", "finetune"]

# So that a share is made of several files, whose order changes with each epoch.
_FILES_PER_PROCESS = 4

_ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class FinetunedEncoder:
    """What `finetune` made: `config` is an encoder for a stream, a backfill or `featurize`.

    `labels` are the classes in the order of the network's outputs, `accuracy` the part of the
    held-out images that it names rightly. `path` is the weights file, `sha256` its hash.
    """

    config: EncoderConfig
    labels: tuple[str, ...]
    accuracy: float
    path: Path
    sha256: str


def finetune(
    df: DataFrame,
    *,
    label_col: str,
    output: str | Path,
    encoder: str | EncoderConfig = "resnet50",
    input: str = "content",  # noqa: A002 - as in featurize
    num_processes: int = 1,
    settings: TrainingSettings | None = None,
    config: DataFrameConfig | None = None,
) -> FinetunedEncoder:
    """Train an encoder on the labelled images of a DataFrame.

    `input` is a column of image bytes, `label_col` one of strings or whole numbers; rows without a
    label are left out, images that cannot be decoded are skipped and counted. With
    `settings.trainable` `head` the embeddings stay as they were, for the body does not change; the
    default trains the encoder's last blocks too.

    `num_processes` train at once, each in a task of its own, with PySpark's `TorchDistributor`: on
    a GPU each where Spark grants one to each task. `output` is a folder that the driver and all
    executors see under one path. The images are written there once, as Parquet, in files whose
    number is a multiple of the processes; each process reads those of its share as a stream, in
    bounded memory. Images of the same bytes are either all trained on or all held out.

    Called again with the same output it goes on after the last whole epoch, and is done at once
    where all are done. The same settings, images and number of processes give the same encoder, as
    far as the hardware computes alike.

    Raises:
        SetupError: a column is missing or of another type, there are fewer than two classes, the
            encoder is unknown or cannot be trained, the folder cannot be written or holds a
            training of other settings or images; no training was started.
        SystemicError: a process of the training failed or was killed: call again.
    """
    given = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    chosen = settings or TrainingSettings()
    _check_columns(df, input, label_col)
    on_gpu = _check_processes(df.sparkSession, num_processes, given)
    folder = _checked_folder(output)
    model, blocks = _prepared(given, chosen)
    decode = (config or DataFrameConfig()).decode
    content, name = (find_column(df, one)[0] for one in (input, label_col))
    images = df.select(content.alias("content"), name.alias("name"))
    contents = _contents(images.where("name IS NOT NULL"), label_col)
    job = _Job(
        folder=folder,
        card=model.card,
        classes=len(contents.labels),
        settings=chosen,
        limits=decode.limits,
        fidelity=decode.fidelity,
        threads=task_cores(df.sparkSession),
        on_gpu=on_gpu,
    )
    _claim(job, contents, num_processes)
    job.start.write_bytes(model.tensors)
    _write_examples(images, job, contents.labels, num_processes)
    if len(finished_epochs(job.checkpoint)) < chosen.epochs:
        _train(job, num_processes)
    return _finished(given, job, contents.labels, blocks)


@dataclass(frozen=True)
class _Job:
    """What a training process needs; it travels there."""

    folder: Path
    card: ModelCard
    classes: int
    settings: TrainingSettings
    limits: DecodeLimits
    fidelity: Fidelity
    threads: int
    on_gpu: bool

    @property
    def start(self) -> Path:
        return self.folder / "start.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def examples(self) -> Path:
        return self.folder / "examples"

    @property
    def examples_are_whole(self) -> Path:
        """What Spark writes last."""
        return self.examples / "_SUCCESS"

    def pictures(self, part: str, rank: int = 0, processes: int = 1) -> Pictures:
        """One process's share of a part, `train` or `held_out`."""
        files = sorted((self.examples / f"part={part}").glob("*.parquet"))
        return Pictures(
            tuple(files[rank::processes]),
            self.card.preprocessing,
            self.limits,
            self.fidelity,
            self.threads,
        )


class _Contents(NamedTuple):
    """What the images are: how many, a hash over them in any order, and their classes, sorted."""

    rows: int
    hash: str
    labels: tuple[str, ...]


def _train(job: _Job, num_processes: int) -> None:
    distributor = _Distributor(num_processes, local_mode=False, use_gpu=job.on_gpu)
    try:
        distributor.run(_train_share, job)
    except (Py4JError, PySparkException) as error:
        # Spark does no barrier stage again whose rows go to the driver.
        done = len(finished_epochs(job.checkpoint))
        raise SystemicError(
            f"the training ended after {done} of {job.settings.epochs} epochs; call again with the "
            f"same output, and it goes on after them ({str(error).strip().splitlines()[-1]})"
        ) from error


class _Distributor(TorchDistributor):
    """One that leaves no trace where its tasks ran.

    Spark's own leaves its settings in the environment of the Python workers, `CUDA_VISIBLE_DEVICES`
    among them: a task that came later would not find its GPU. And torchrun leaves a folder.
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


def _train_share(job: _Job) -> None:
    """What each process runs; `torchrun` has set its environment."""
    torch.set_num_threads(job.threads)
    device = find_device("cuda" if job.on_gpu else "cpu")
    with process_group(device):
        rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
        train(
            job.card,
            load_model(job.card, job.start),
            training=job.pictures("train", rank, processes),
            held_out=job.pictures("held_out", rank, processes),
            classes=job.classes,
            settings=job.settings,
            checkpoint=job.checkpoint,
            device=device,
            on_epoch=lambda epoch: print(_told(epoch, job.settings.epochs), flush=True),
        )


def _told(epoch: Epoch, epochs: int) -> str:
    skipped = f", {sum(epoch.skipped.values())} skipped" if epoch.skipped else ""
    return (
        f"embedstream: epoch {epoch.number} of {epochs}: {sum(epoch.rows)} images{skipped}, loss "
        f"{epoch.loss:.3f}, held-out accuracy {epoch.accuracy:.3f}, {epoch.seconds:.1f} s"
    )


def _checked_folder(output: str | Path) -> Path:
    if scheme_of(str(output)) is not None:
        raise SetupError(
            f"output is '{output}'; it is a folder, which driver and executors see under one path"
        )
    folder = Path(output).expanduser().absolute()
    check_writable("output", str(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"output '{folder}' cannot be created ({error.strerror}); choose another path"
        ) from error
    return folder


def _check_columns(df: DataFrame, input: str, label_col: str) -> None:  # noqa: A002
    allowed = {
        input: ((BinaryType,), "image bytes (binary), as read_images gives them"),
        label_col: ((StringType, IntegralType), "strings or whole numbers"),
    }
    for name, (kinds, meaning) in allowed.items():
        _, kind = find_column(df, name)
        if not isinstance(kind, kinds):
            raise SetupError(f"column '{name}' is of type {kind.simpleString()}, not {meaning}")


def _check_processes(spark: SparkSession, num_processes: int, encoder: EncoderConfig) -> bool:
    """Whether they get a GPU each."""
    if num_processes < 1:
        raise SetupError(f"num_processes is {num_processes}; it is 1 or more")
    if is_connect(spark):
        raise SetupError(
            "finetune needs a session on the driver itself: Spark Connect gives PySpark's "
            "TorchDistributor nothing to run on"
        )
    master, tasks = str(spark.sparkContext.master), tasks_at_once(spark)
    # Spark would try again for ten minutes.
    if master.startswith("local[") and num_processes > tasks:
        raise SetupError(
            f"num_processes is {num_processes}, but '{master}' runs {tasks} tasks at once: use "
            "fewer, or a master with more"
        )
    granted = task_gpus(spark)
    if encoder.device == "cuda" and granted < 1:
        raise SetupError(
            "encoder.device is cuda, but spark.task.resource.gpu.amount is not 1; grant each task "
            "a GPU, or set encoder.device to auto or cpu"
        )
    return encoder.device != "cpu" and granted >= 1


def _prepared(
    encoder: EncoderConfig, settings: TrainingSettings
) -> tuple[PreparedModel, list[str]]:
    """The encoder to start from, and the names of its blocks that are trained."""
    _refuse_program(encoder.name)
    model = prepare(encoder)
    # One from a registry has its name there.
    _refuse_program(model.card.encoder)
    return model, trained_blocks(load_prepared(model), model.card.preprocessing, settings)


def _refuse_program(name: str) -> None:
    if name in PROGRAMS:
        raise SetupError(
            f"the encoder '{name}' is a program and cannot be trained: name a network, or a "
            "function of yours as module:function"
        )


def _contents(images: DataFrame, label_col: str) -> _Contents:
    found = (
        images.groupBy("name")
        .agg(f.count("*").alias("rows"), f.bit_xor(f.xxhash64("name", "content")).alias("hash"))
        .orderBy("name")
        .collect()
    )
    if len(found) < 2:
        names = ", ".join(f"'{row['name']}'" for row in found) or "none"
        raise SetupError(
            f"column '{label_col}' has {len(found)} classes ({names}); a training tells two or "
            "more apart"
        )
    all_rows = json.dumps([[row["rows"], row["hash"]] for row in found])
    return _Contents(
        rows=sum(row["rows"] for row in found),
        hash=hashlib.sha256(all_rows.encode()).hexdigest()[:16],
        labels=tuple(str(row["name"]) for row in found),
    )


def _claim(job: _Job, contents: _Contents, num_processes: int) -> None:
    """Note the settings in the folder, or see that those there are the same."""
    path = job.folder / "settings.json"
    now = _as_read(
        {
            "encoder": job.card.encoder,
            "start": job.card.model_id,
            "start_sha256": job.card.tensors_sha256,
            "preprocessing": asdict(job.card.preprocessing),
            "decoding": [job.fidelity, asdict(job.limits)],
            "images": contents.rows,
            "images_hash": contents.hash,
            "labels": contents.labels,
            "num_processes": num_processes,
            **asdict(job.settings),
        }
    )
    before = json.loads(path.read_bytes()) if path.exists() else {}
    changed = [name for name in now if now[name] != before.get(name)]
    if changed and job.checkpoint.exists():
        differences = ", ".join(f"{one} {before.get(one)}, not {now[one]}" for one in changed)
        raise SetupError(
            f"output '{job.folder}' holds a training with {differences}: give what it was begun "
            "with to go on, or another folder"
        )
    if changed:
        # No epoch is done: it begins anew.
        job.examples_are_whole.unlink(missing_ok=True)
        replace_file(path, json.dumps(now, indent=2).encode())


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(settings))
    return read


def _write_examples(
    images: DataFrame, job: _Job, labels: tuple[str, ...], num_processes: int
) -> None:
    """Write the images as Parquet, once, in an order that does not depend on how they come.

    Raises:
        SetupError: a process would have nothing to train on, or nothing is held out.
    """
    if not job.examples_are_whole.exists():
        names = f.array(*map(f.lit, labels))
        # What decides is the content: where it comes, and whether it is trained on.
        key = f.xxhash64("content", f.lit(job.settings.seed))
        held_out = f.pmod("key", f.lit(10_000)) < job.settings.held_out * 10_000
        rows = images.where("name IS NOT NULL").select(
            "content",
            (f.array_position(names, f.col("name").cast("string")) - 1).cast("int").alias("label"),
            key.alias("key"),
        )
        split = rows.withColumn("part", f.when(held_out, "held_out").otherwise("train"))
        (
            split.repartition(num_processes * _FILES_PER_PROCESS, "key")
            .sortWithinPartitions("part", "key", "label")
            .select("content", "label", "part")
            .write.mode("overwrite")
            .partitionBy("part")
            # Images are compressed already.
            .option("compression", "none")
            .option("parquet.block.size", _ROW_GROUP_BYTES)
            .parquet(job.examples.as_uri())
        )
    shares = [job.pictures("train", rank, num_processes).rows for rank in range(num_processes)]
    held = job.pictures("held_out").rows
    if not all(shares) or not held:
        raise SetupError(
            f"there are too few images: {held} held out, and to train on for each process: "
            f"{', '.join(map(str, shares))}; give more images, fewer processes or another held_out"
        )


def _finished(
    given: EncoderConfig, job: _Job, labels: tuple[str, ...], blocks: list[str]
) -> FinetunedEncoder:
    tensors = trained_tensors(job.checkpoint, job.card)
    epochs = finished_epochs(job.checkpoint)
    path, sha256 = job.folder / "encoder.safetensors", hashlib.sha256(tensors).hexdigest()
    replace_file(path, tensors)
    told = {
        "sha256": sha256,
        "encoder": job.card.encoder,
        "start": job.card.model_id,
        "preprocessing": asdict(job.card.preprocessing),
        "labels": labels,
        "accuracy": epochs[-1].accuracy,
        "trained_blocks": blocks,
        "epochs": [asdict(epoch) for epoch in epochs],
        "settings": asdict(job.settings),
    }
    replace_file(job.folder / "encoder.json", json.dumps(told, indent=2).encode())
    config = given.model_copy(update={"weights": str(path), "sha256": sha256})
    if given.name != job.card.encoder or is_registered(given.weights):
        # What was known in the registry alone is told from now on.
        preprocessing = PreprocessingConfig(**asdict(job.card.preprocessing))
        known = {"name": job.card.encoder, "preprocessing": preprocessing}
        config = config.model_copy(update=known)
    return FinetunedEncoder(config, labels, epochs[-1].accuracy, path, sha256)
