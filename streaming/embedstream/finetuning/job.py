"""Train a better encoder on labelled images over Spark's executors, for streams and batches.

The output folder contains:

| file | |
| --- | --- |
| `encoder.safetensors` | the trained network, for `EncoderConfig.weights` |
| `encoder.json` | its sha256, encoder, preprocessing, labels, accuracy, epochs and settings |
| `examples/` | the labelled images as Parquet, written once |
| `start.safetensors`, `settings.json`, `checkpoint.pt` | the state that resumes a training |
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pyspark.sql import DataFrame

from embedstream.config.locations import get_scheme, make_local
from embedstream.config.sections import DataFrameConfig, EncoderConfig, PreprocessingConfig
from embedstream.finetuning.distributed import START, TrainingJob, check_processes, run_training
from embedstream.finetuning.examples import Summary, select_images, summarize_images, write_examples
from embedstream.spark.local_disk import check_writable
from embedstream.spark.sizing import count_task_cores
from embedstream.worker.model import prepare
from embedstream_core.atomic_files import replace_file
from embedstream_core.errors import SetupError
from embedstream_core.media.image.readers import require_decoders
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.mlflow_store import is_registered
from embedstream_core.models.prepare import load_prepared
from embedstream_core.training.blocks import select_blocks
from embedstream_core.training.checkpoint import export_tensors, read_finished_epochs
from embedstream_core.training.examples import LabelledImages
from embedstream_core.training.settings import TrainingSettings

__all__ = ["FinetunedEncoder", "TrainingSettings", "finetune"]


@dataclass(frozen=True)
class FinetunedEncoder:
    """The result of `finetune`; `config` is an encoder for a stream, a backfill or `featurize`.

    `labels` are the classes in the order of the network's outputs, `accuracy` the fraction of the
    held-out images that it classifies correctly. `path` is the weights file, `sha256` its hash.
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

    `input` is a column of image bytes, `label_col` one of strings or whole numbers. Rows without a
    label are left out; images that cannot be decoded are skipped and counted. With
    `settings.trainable` set to `head` the embeddings do not change, because the body does not; the
    default trains the encoder's last blocks too.

    `num_processes` train at once with PySpark's `TorchDistributor`, each in a task of its own, and
    each on a GPU if Spark grants one to each task. `output` is a folder that the driver and all
    executors see under one path. The images are written there once, as Parquet, in files whose
    number is a multiple of the processes; each process reads the files of its share as a stream, in
    bounded memory. Images with the same bytes are either all trained on or all held out.

    A call with the same output resumes after the last finished epoch, and returns at once if all
    are finished. The same settings, images and number of processes give the same encoder, as far as
    the hardware computes reproducibly.

    Raises:
        SetupError: a column is missing or has another type, there are fewer than two classes, the
            encoder is unknown or cannot be trained, the folder cannot be written or holds a
            training with other settings or images; no training was started.
        SystemicError: a process of the training failed or was killed: call again.
    """
    given = EncoderConfig(name=encoder) if isinstance(encoder, str) else encoder
    settings = settings or TrainingSettings()
    spark, decode = df.sparkSession, (config or DataFrameConfig()).decode
    images = select_images(df, input, label_col)
    on_gpu = check_processes(spark, num_processes, given)
    if get_scheme(str(output)) not in (None, "file"):
        raise SetupError(
            f"output is '{output}'; it is a folder that driver and executors see under one path"
        )
    folder = Path(make_local(str(output)))
    check_writable("output", str(folder))
    require_decoders(decode.formats)
    _refuse_program(given.name)
    model = prepare(given)
    # A registered model names its encoder only in the registry.
    _refuse_program(model.card.encoder)
    blocks = select_blocks(load_prepared(model).network, model.card.image, settings)
    summary = summarize_images(images, label_col)
    reading = (decode.settings, count_task_cores(spark))
    no_files = LabelledImages((), model.card.image, *reading)
    job = TrainingJob(folder, model.card, len(summary.labels), settings, no_files, on_gpu)
    _claim_folder(job, summary, num_processes)
    (folder / START).write_bytes(model.tensors)
    write_examples(images, job, summary.labels, num_processes)
    if len(read_finished_epochs(job.checkpoint)) < settings.epochs:
        run_training(job, num_processes)
    return _write_encoder(given, job, summary.labels, blocks)


def _refuse_program(name: str) -> None:
    if name in PROGRAMS:
        raise SetupError(
            f"the encoder '{name}' is a program and cannot be trained: name a network, or a "
            "function of yours as module:function"
        )


def _claim_folder(job: TrainingJob, summary: Summary, num_processes: int) -> None:
    """Write the settings to the folder, or check that it holds the same ones."""
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"output '{job.folder}' cannot be created ({error.strerror}); choose another path"
        ) from error
    settings = {
        "encoder": job.card.encoder,
        "start": job.card.model_id,
        "start_sha256": job.card.tensors_sha256,
        "preprocessing": asdict(job.card.image),
        "decoding": asdict(job.images.settings),
        **summary._asdict(),
        "num_processes": num_processes,
        **asdict(job.settings),
    }
    path = job.folder / "settings.json"
    text = json.dumps(settings, indent=2)
    now = json.loads(text)
    before = json.loads(path.read_bytes()) if path.exists() else {}
    changed = [name for name in now if now[name] != before.get(name)]
    if changed and job.checkpoint.exists():
        differences = ", ".join(f"{name} {before.get(name)}, not {now[name]}" for name in changed)
        raise SetupError(
            f"output '{job.folder}' holds a training with {differences}: use the settings and "
            "images that it was started with to resume it, or another folder"
        )
    if changed:
        # No epoch is finished, so the training starts from the beginning.
        shutil.rmtree(job.examples, ignore_errors=True)
        replace_file(path, text.encode())


def _write_encoder(
    given: EncoderConfig, job: TrainingJob, labels: tuple[str, ...], blocks: list[str]
) -> FinetunedEncoder:
    tensors = export_tensors(job.checkpoint, job.card)
    epochs = read_finished_epochs(job.checkpoint)
    path, sha256 = job.folder / "encoder.safetensors", hashlib.sha256(tensors).hexdigest()
    replace_file(path, tensors)
    preprocessing = asdict(job.card.image)
    description = {
        "sha256": sha256,
        "encoder": job.card.encoder,
        "start": job.card.model_id,
        "preprocessing": preprocessing,
        "labels": labels,
        "accuracy": epochs[-1].accuracy,
        "trained_blocks": blocks,
        "epochs": [asdict(epoch) for epoch in epochs],
        "settings": asdict(job.settings),
    }
    replace_file(job.folder / "encoder.json", json.dumps(description, indent=2).encode())
    update: dict[str, object] = {"weights": str(path), "sha256": sha256}
    if given.name != job.card.encoder or is_registered(given.weights):
        # Only the registry named the encoder and its preprocessing until now.
        update |= {"name": job.card.encoder, "preprocessing": PreprocessingConfig(**preprocessing)}
    config = given.model_copy(update=update)
    return FinetunedEncoder(config, labels, epochs[-1].accuracy, path, sha256)
