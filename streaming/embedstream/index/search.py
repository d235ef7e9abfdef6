"""The nearest rows of the table to a picture, and a contact sheet of them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.errors import ItemError, SetupError
from embedstream_core.fetch import deny_references
from embedstream_core.media.image.decode import DecodeLimits, Preprocessing, open_image, render
from embedstream_core.messages.parse import Message, parse_message
from embedstream_core.model_id import MLFLOW, ModelId
from embedstream_core.models.mlflow_store import registered_uri
from embedstream_core.models.prepare import RANDOM_NAME, ModelSpec, load_prepared, prepare_model
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Embedding, Failure, Item

__all__ = [
    "Neighbour",
    "Vector",
    "check_sheet_path",
    "contact_sheet",
    "embed_pictures",
    "file_content",
    "kafka_content",
    "nearest",
    "newest_model",
    "save_sheet",
]

Vector = npt.NDArray[np.float32]

_COLUMNS = ["embedding", "image_id", "uri", "topic", "partition", "offset"]
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row near the query. `similarity` is the cosine, from -1 to 1."""

    similarity: float
    image_id: str
    uri: str | None
    topic: str
    partition: int
    offset: int


def newest_model(table: str) -> str:
    """The `model_id` of the rows to search: the one recorded last in the table's properties.

    Raises:
        SetupError: there is no table of embedstream at that path.
    """
    model_id = _open(table).metadata().configuration.get("embedstream.model_id")
    if model_id is None:
        raise SetupError(f"the table '{table}' names no model: it was not made by embedstream")
    return str(model_id)


def embed_pictures(
    contents: Sequence[bytes], *, model_id: str, weights: str | None = None
) -> list[Vector]:
    """Embed image bytes on this machine, in the model and the precision that `model_id` names.

    `weights` is the file, where the model's weights came from one, or the URI in MLflow of one from
    a run.

    Raises:
        SetupError: the model cannot be had again, or an image cannot be read.
    """
    model = prepare_model(_model_spec(model_id, weights))
    engine = Engine.start(
        load_prepared(model),
        model.card.preprocessing,
        device=find_device("auto"),
        precision=ModelId.parse(model_id).precision,
    )
    pipeline = Pipeline(engine, model.card.preprocessing, fetch=deny_references)
    items = [Item(image_id=str(index), content=content) for index, content in enumerate(contents)]
    outcomes = [outcome for batch in pipeline.run([items]) for outcome in batch]
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            raise SetupError(f"the query picture cannot be used: {outcome.message}")
    return [outcome.vector for outcome in outcomes if isinstance(outcome, Embedding)]


def _model_spec(model_id: str, weights: str | None) -> ModelSpec:
    named = ModelId.parse(model_id)
    if named.preprocessing:
        raise SetupError(
            f"'{model_id}' was made with an encoder.preprocessing of its configuration, which a "
            "model_id does not hold; query pictures cannot be prepared as its rows were"
        )
    if named.encoder == MLFLOW:
        return ModelSpec(MLFLOW, weights or registered_uri(named.weights), named.sha256)
    if named.weights == RANDOM_NAME and weights is None:
        return ModelSpec(named.encoder, "random")
    return ModelSpec(named.encoder, weights or named.weights, named.sha256)


def nearest(table: str, query: Vector, *, model_id: str, k: int) -> list[Neighbour]:
    """The k rows of that model with the greatest cosine similarity, the nearest first.

    Reads the Delta table without Spark, a part at a time; memory does not grow with the table.

    Raises:
        SetupError: the table cannot be read, holds no embedding of that model, or one of another
            dimension than the query's.
    """
    opened = _open(table)
    columns = ", ".join(f'"{name}"' for name in _COLUMNS)
    of_model = f"embedding IS NOT NULL AND model_id = {_literal(model_id)}"
    unit = query / np.linalg.norm(query)
    found: list[Neighbour] = []
    sql = f"SELECT {columns} FROM outcomes WHERE {of_model}"  # noqa: S608 - it is quoted
    for batch in _batches(opened, sql):
        _check_dimension(batch, len(query), model_id, table)
        candidates = [*found, *_neighbours(batch, unit, k)]
        found = heapq.nlargest(k, candidates, key=attrgetter("similarity"))
    if not found:
        raise SetupError(
            f"the table '{table}' holds no embedding of '{model_id}'; {_known_models(opened)}"
        )
    return found


def _neighbours(batch: Any, unit: Vector, k: int) -> list[Neighbour]:
    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(batch.num_rows, -1)
    # A vector of zeros has no direction: its cosine to any other is taken as 0.
    norms = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    similarities = vectors @ unit / norms
    others = batch.drop_columns(["embedding"])
    # Not `take`: pyarrow has none for string views, which is what deltalake gives.
    return [
        Neighbour(similarity=float(similarities[index]), **others.slice(index, 1).to_pylist()[0])
        for index in np.argsort(-similarities, kind="stable")[:k]
    ]


def _check_dimension(batch: Any, expected: int, model_id: str, table: str) -> None:
    lengths = batch.column("embedding").value_lengths().unique().to_pylist()
    others = [length for length in lengths if length != expected]
    if others:
        raise SetupError(
            f"the query's embedding has {expected} floats, and the table '{table}' has rows of "
            f"'{model_id}' with {others[0]}: only embeddings of one dimension can be compared; "
            "search with the model that made the rows, or delete those that it did not make"
        )


def _known_models(opened: Any) -> str:
    sql = "SELECT DISTINCT model_id FROM outcomes WHERE embedding IS NOT NULL"
    known = [name for batch in _batches(opened, sql) for name in batch.column(0).to_pylist()]
    names = ", ".join(sorted(f"'{name}'" for name in known))
    return f"it holds those of {names} (--model-id)" if known else "it holds none at all yet"


def _batches(opened: Any, sql: str) -> Iterator[Any]:
    """The rows that a query over the table `outcomes` finds, in record batches that are not empty.

    deltalake's query engine knows deletion vectors, column mapping and v2 checkpoints, which its
    pyarrow readers do not; why else these are not used: docs/decisions/0017.
    """
    import pyarrow as pa
    from deltalake import QueryBuilder

    builder = QueryBuilder({"datafusion.execution.batch_size": str(_BATCH_ROWS)})
    try:
        reader = builder.register("outcomes", opened).execute(sql)
        for batch in pa.RecordBatchReader.from_stream(reader):
            if batch.num_rows:
                yield batch
    # Of a file that is gone or cut the engine raises no type of its own.
    except Exception as error:
        raise _unreadable(opened.table_uri, error) from error


def _literal(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _open(table: str) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(table)
    except TableNotFoundError:
        raise SetupError(f"there is no Delta table at '{table}'; has the stream run?") from None
    except (DeltaError, OSError) as error:
        raise _unreadable(table, error) from None


def _unreadable(table: str, error: Exception) -> SetupError:
    # Messages of deltalake stand in several lines, with colours.
    reason = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())
    return SetupError(
        f"the Delta table '{table}' cannot be read without Spark: {reason}; what can be is a "
        "folder of this machine, or s3a://, gs:// and abfss:// with credentials in the "
        "environment, if the deltalake package knows all features of the table"
    )


def file_content(uri: str) -> bytes | None:
    """The bytes of a row's picture, read from this machine; None where no such file is readable."""
    try:
        parts = urlsplit(uri)
        path = Path(unquote(parts.path))
        return path.read_bytes() if parts.scheme == "file" and path.is_file() else None
    except (OSError, ValueError):
        return None


def kafka_content(neighbour: Neighbour, *, bootstrap_servers: str) -> bytes | None:
    """The bytes of a row's picture, read back from its message; None where Kafka has let it go.

    Raises:
        SetupError: no broker answers, or the message is compressed in a way that cannot be read.
    """
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError, UnsupportedCodecError

    try:
        consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers, group_id=None, bootstrap_timeout_ms=10_000
        )
    except KafkaError as error:
        raise SetupError(
            f"no picture can be read back from Kafka at {bootstrap_servers}: {error}; check the "
            "address, or leave --bootstrap-servers out"
        ) from error
    try:
        partition = TopicPartition(neighbour.topic, neighbour.partition)
        consumer.assign([partition])
        consumer.seek(partition, neighbour.offset)
        records = consumer.poll(timeout_ms=5000, max_records=1).get(partition, [])
        if not records or records[0].offset != neighbour.offset or records[0].value is None:
            return None
        message = Message(value=records[0].value, position="")
        return parse_message(message, message_format="auto", id_header="").content
    except ItemError:
        return None
    except UnsupportedCodecError as error:
        raise SetupError(
            f"the pictures in topic '{neighbour.topic}' cannot be read back: {error}; install what "
            "kafka-python needs (pip install lz4, python-snappy or zstandard), or leave "
            "--bootstrap-servers out"
        ) from error
    except KafkaError as error:
        raise SetupError(
            f"the pictures in topic '{neighbour.topic}' cannot be read back: {error!r}"
        ) from error
    finally:
        consumer.close()


# Lengths of the contact sheet, in pixels.
_TILE, _CAPTION, _GAP = 168, 34, 10
_EMPTY = "#eeeeee"
_SHEET_SUFFIXES = (".png", ".jpg")


def check_sheet_path(path: Path) -> None:
    """Check, before any work, that a contact sheet can be written there.

    Raises:
        SetupError: the folder is not there, or the suffix is no picture's.
    """
    if path.suffix.lower() not in _SHEET_SUFFIXES:
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: it is a picture, and its name ends in "
            f"{' or '.join(_SHEET_SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: there is no folder '{path.parent}'; "
            "create it first"
        )


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a contact sheet, in the format of the file's suffix.

    Raises:
        SetupError: the file cannot be written.
    """
    try:
        sheet.save(path)
    except OSError as error:
        raise SetupError(
            f"the contact sheet '{path}' cannot be written: {error.strerror or error}"
        ) from None


def contact_sheet(
    rows: Sequence[tuple[str, bytes, Sequence[Neighbour]]],
    content: Callable[[Neighbour], bytes | None],
) -> Image.Image:
    """Draw a row for each query: its name and picture, then its neighbours, the nearest first.

    `content` gives a neighbour's image bytes, or None. A tile is empty without bytes, and where
    they are no image, as of a file that was overwritten since.
    """
    columns = 1 + max((len(neighbours) for _, _, neighbours in rows), default=0)
    width = columns * (_TILE + _GAP) + 2 * _GAP
    height = len(rows) * (_TILE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    for index, (name, picture, neighbours) in enumerate(rows):
        top = _GAP + index * (_TILE + _CAPTION + _GAP)
        _draw_tile(sheet, (_GAP, top), picture, name, "query")
        for column, neighbour in enumerate(neighbours, start=1):
            left = 2 * _GAP + column * (_TILE + _GAP)
            similarity = f"{neighbour.similarity:.3f}"
            _draw_tile(sheet, (left, top), content(neighbour), neighbour.image_id, similarity)
    return sheet


def _draw_tile(
    sheet: Image.Image, corner: tuple[int, int], content: bytes | None, name: str, note: str
) -> None:
    left, top = corner
    sheet.paste(_EMPTY, (left, top, left + _TILE, top + _TILE))
    if content is not None and (picture := _fitted(content)) is not None:
        sheet.paste(picture, corner)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    draw.text((left, top + _TILE + 3), _short(name), fill="black", font=font)
    draw.text((left, top + _TILE + 17), note, fill="#666666", font=font)


def _fitted(content: bytes) -> Image.Image | None:
    red, green, blue = (channel / 255 for channel in ImageColor.getrgb(_EMPTY)[:3])
    whole = Preprocessing(
        _TILE, _TILE, "bicubic", mean=(red, green, blue), std=(1, 1, 1), crop_mode="border"
    )
    try:
        return Image.fromarray(render(open_image(content, DecodeLimits()), whole).pixels)
    except ItemError:
        # A sheet is drawn without it.
        return None


def _short(name: str, length: int = 28) -> str:
    tail = Path(name).name or name
    return tail if len(tail) <= length else f"…{tail[-length + 1 :]}"
