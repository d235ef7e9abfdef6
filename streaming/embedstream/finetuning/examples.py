"""The labelled images of a training: selected from a DataFrame, written once as Parquet."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from pyspark.sql import DataFrame
from pyspark.sql import functions as f
from pyspark.sql.types import BinaryType, IntegralType, StringType

from embedstream.api.input_columns import find_column
from embedstream.finetuning.distributed import TrainingJob
from embedstream_core.errors import SetupError

__all__ = ["Summary", "select_images", "summarize_images", "write_examples"]

# A share consists of several files, because their order changes with each epoch.
_FILES_PER_PROCESS = 4

_ROW_GROUP_BYTES = 32 * 2**20


class Summary(NamedTuple):
    """The number of images, a hash over them that ignores their order, and their classes, sorted.

    The names are keys in `settings.json`.
    """

    images: int
    images_hash: str
    labels: tuple[str, ...]


def select_images(df: DataFrame, content_col: str, label_col: str) -> DataFrame:
    """Return the labelled images as the columns `content` and `name`.

    Raises:
        SetupError: a column is missing or has another type.
    """
    content, content_type = find_column(df, content_col)
    name, name_type = find_column(df, label_col)
    for column, kind, allowed, meaning in (
        (content_col, content_type, BinaryType, "image bytes (binary), as read_images gives them"),
        (label_col, name_type, (StringType, IntegralType), "strings or whole numbers"),
    ):
        if not isinstance(kind, allowed):
            raise SetupError(f"column '{column}' is of type {kind.simpleString()}, not {meaning}")
    return df.select(content.alias("content"), name.alias("name")).where("name IS NOT NULL")


def summarize_images(images: DataFrame, label_col: str) -> Summary:
    """Count and hash the images by class.

    Raises:
        SetupError: there are fewer than two classes.
    """
    found = (
        images.groupBy("name")
        .agg(f.count("*").alias("rows"), f.bit_xor(f.xxhash64("name", "content")).alias("hash"))
        .orderBy("name")
        .collect()
    )
    if len(found) < 2:
        names = ", ".join(f"'{row['name']}'" for row in found) or "none"
        raise SetupError(
            f"column '{label_col}' has {len(found)} classes ({names}); a training needs two or more"
        )
    all_rows = json.dumps([[row["rows"], row["hash"]] for row in found])
    return Summary(
        images=sum(row["rows"] for row in found),
        images_hash=hashlib.sha256(all_rows.encode()).hexdigest()[:16],
        labels=tuple(str(row["name"]) for row in found),
    )


def write_examples(
    images: DataFrame, job: TrainingJob, labels: tuple[str, ...], num_processes: int
) -> None:
    """Write the images as Parquet, once, in an order that does not depend on the input's order.

    Raises:
        SetupError: a process would have nothing to train on, or nothing is held out.
    """
    # Spark writes this file last.
    if not (job.examples / "_SUCCESS").exists():
        # The content decides on the file of an image, and on whether it is trained on.
        key = f.xxhash64("content", f.lit(job.settings.seed))
        held_out = f.pmod("key", f.lit(10_000)) < job.settings.held_out * 10_000
        names = f.array(*map(f.lit, labels))
        label = (f.array_position(names, f.col("name").cast("string")) - 1).cast("int")
        (
            images.select("content", label.alias("label"), key.alias("key"))
            .withColumn("part", f.when(held_out, "held_out").otherwise("train"))
            .repartition(num_processes * _FILES_PER_PROCESS, "key")
            .sortWithinPartitions("part", "key", "label")
            .select("content", "label", "part")
            .write.mode("overwrite")
            .partitionBy("part")
            # Images are already compressed.
            .option("compression", "none")
            .option("parquet.block.size", _ROW_GROUP_BYTES)
            .parquet(job.examples.as_uri())
        )
    shares = [job.select_share("train", rank, num_processes).rows for rank in range(num_processes)]
    held = job.select_share("held_out").rows
    if not all(shares) or not held:
        raise SetupError(
            f"there are too few images: {held} held out, and to train on for each process: "
            f"{', '.join(map(str, shares))}; give more images, fewer processes or another held_out"
        )
