"""The rows of the table that are nearest to an image, a text or a clip."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstream_core.engine.engine import Engine, find_device
from embedstream_core.errors import SetupError
from embedstream_core.fetch.fetcher import deny_references
from embedstream_core.media.detect import detect_type, find_modality
from embedstream_core.media.modalities import Preprocessing
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.model_id import MLFLOW, ModelId
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.encoders.listing import list_modalities
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.mlflow_store import format_registered_uri
from embedstream_core.models.networks import RANDOM_NAME
from embedstream_core.models.prepare import ModelSpec, load_prepared, prepare_model
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.records import Failure, Item
from embedstream_core.settings import ModalityName

__all__ = ["Neighbour", "Vector", "embed_queries", "find_nearest", "list_models"]

Vector = npt.NDArray[np.float32]

_COLUMNS = ["embedding", "image_id", "uri", "topic", "partition", "offset"]
_ARROW_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A row near the query. `similarity` is the cosine, from -1 to 1.

    `media_type` and `duration_s` are those of the column `media`.
    """

    similarity: float
    image_id: str
    uri: str | None
    topic: str
    partition: int
    offset: int
    media_type: str | None = None
    duration_s: float | None = None


def list_models(table: str) -> list[str]:
    """Return the `model_id`s of the models that fill the table, from its properties.

    Raises:
        SetupError: there is no table of embedstream at that path.
    """
    model_ids = _open(table).metadata().configuration.get("embedstream.model_id")
    if model_ids is None:
        raise SetupError(f"the table '{table}' names no model: it was not made by embedstream")
    return str(model_ids).splitlines()


def embed_queries(
    queries: Sequence[bytes | str], *, model_ids: Sequence[str], weights: str | None = None
) -> tuple[str, list[Vector]]:
    """Embed queries of one modality on this machine, by the model that a `model_id` names.

    A query is the bytes of an image, of an audio file or of a text, or a text itself. Of several
    models, the only one that accepts the queries' modality embeds them. `weights` is the file or
    the folder that the model's weights came from, or the MLflow URI of a run's weights.

    Returns:
        The `model_id`, and the vectors in order: float32 of shape (dimension,).

    Raises:
        SetupError: no model or several accept the queries, the model cannot be prepared again, or a
            query cannot be embedded.
    """
    first = queries[0]
    kind = "text/plain" if isinstance(first, str) else detect_type(first)
    model_id, modality, model = _choose_model(kind, model_ids, weights=weights)
    loaded = load_prepared(model.accept_only(modality))
    engine = Engine.start(
        loaded._replace(inputs=tuple(map(_use_query_prefix, loaded.inputs))),
        device=find_device("auto"),
        precision=ModelId.parse(model_id).precision,
        normalize=model.card.normalize,
    )
    items = [
        Item("query", content=query.encode("utf-8", "surrogatepass"), media_type="text/plain")
        if isinstance(query, str)
        else Item("query", content=query)
        for query in queries
    ]
    (entries,) = Pipeline([engine], fetch=deny_references).run([items])
    vectors = []
    for (outcome,) in entries:
        if isinstance(outcome, Failure):
            raise SetupError(f"the query cannot be used: {outcome.message}")
        vectors.append(outcome.vector)
    return model_id, vectors


def _choose_model(
    kind: str, model_ids: Sequence[str], *, weights: str | None
) -> tuple[str, ModalityName, PreparedModel]:
    """Prepare the only model that accepts content of a MIME type.

    What an encoder accepts is mostly known by its name, so few others are prepared. `weights` are
    of one model: the others' hashes refuse them.
    """
    accepting = {one: list_modalities(ModelId.parse(one).encoder) for one in model_ids}
    modality = find_modality(kind)
    prepared: dict[str, PreparedModel] = {}
    refused: dict[str, SetupError] = {}
    for model_id in [one for one in model_ids if modality in (None, *accepting[one])]:
        try:
            prepared[model_id] = made = _prepare_again(model_id, weights=weights)
            accepting[model_id] = made.card.modalities
        except SetupError as error:
            refused[model_id] = error
    known = sorted({*chain.from_iterable(accepting.values())})
    if modality is None and len(known) == 1:
        # The modality itself says what is wrong with the query.
        (modality,) = known
    fitting = [one for one in prepared if modality in accepting[one]]
    possible = fitting if weights else [*fitting, *refused]
    if modality is not None and len(possible) > 1:
        raise SetupError(
            f"several models of the table may embed {modality}: {', '.join(possible)}; choose one "
            "with --model-id"
        )
    if modality is not None and fitting:
        return fitting[0], modality, prepared[fitting[0]]
    if modality is not None and refused:
        raise next(iter(refused.values()))
    accepted = " and ".join(known)
    raise SetupError(
        f"the query is {kind}, and the table's models embed {accepted}: {', '.join(model_ids)}; "
        f"give a query of {accepted}, or choose another table"
    )


def _prepare_again(model_id: str, *, weights: str | None) -> PreparedModel:
    named = ModelId.parse(model_id)
    if named.preprocessing:
        raise SetupError(
            f"'{model_id}' was made with an encoder.preprocessing of its configuration, which a "
            "model_id does not hold; queries cannot be prepared as its rows were"
        )
    if (
        weights is None
        and named.encoder in PROGRAMS
        and named.weights != "default"
        and not Path(named.weights).exists()
    ):
        raise SetupError(
            f"'{model_id}' was made by a file or folder '{named.weights}', which is not in the "
            "table; give its path as --weights"
        )
    if named.encoder == MLFLOW:
        spec = ModelSpec(MLFLOW, weights or format_registered_uri(named.weights), named.sha256)
    elif named.weights == RANDOM_NAME and weights is None:
        spec = ModelSpec(named.encoder, "random")
    else:
        spec = ModelSpec(named.encoder, weights or named.weights, named.sha256)
    return prepare_model(replace(spec, normalize=named.normalize))


def _use_query_prefix(preprocessing: Preprocessing) -> Preprocessing:
    if isinstance(preprocessing, TextPreprocessing):
        return replace(preprocessing, prefix=preprocessing.query_prefix)
    return preprocessing


def find_nearest(table: str, query: Vector, *, model_id: str, k: int) -> list[Neighbour]:
    """Return the k rows of a model with the greatest cosine similarity, the nearest first.

    Reads the Delta table without Spark, one Arrow batch at a time; memory does not grow with the
    table.

    Raises:
        SetupError: the table cannot be read, or has no embedding of that model, or one of another
            dimension than the query's.
    """
    opened = _open(table)
    columns = ", ".join(f'"{name}"' for name in _COLUMNS)
    # A table of an earlier version has no such column, and can be searched.
    if any(field.name == "media" for field in opened.schema().fields):
        columns += ", media['type'] AS media_type, media['duration_s'] AS duration_s"
    escaped = model_id.replace("'", "''")
    condition = f"embedding IS NOT NULL AND model_id = '{escaped}'"
    unit = query / np.linalg.norm(query)
    found: list[Neighbour] = []
    for batch in _select(opened, f"{columns} FROM outcomes WHERE {condition}"):
        lengths = batch.column("embedding").value_lengths().unique().to_pylist()
        if others := [length for length in lengths if length != len(query)]:
            raise SetupError(
                f"the query's embedding has {len(query)} floats, and the table '{table}' has rows "
                f"of '{model_id}' with {others[0]}: only embeddings of one dimension can be "
                "compared; search with the model that made the rows, or delete those that it did "
                "not make"
            )
        candidates = [*found, *_find_in_batch(batch, unit, k)]
        found = heapq.nlargest(k, candidates, key=attrgetter("similarity"))
    if not found:
        models = _select(opened, "DISTINCT model_id FROM outcomes WHERE embedding IS NOT NULL")
        names = sorted(f"'{name}'" for batch in models for name in batch.column(0).to_pylist())
        known = f"those of {', '.join(names)} (--model-id)" if names else "none at all yet"
        raise SetupError(
            f"the table '{table}' holds no embedding of '{model_id}'; it holds {known}"
        )
    return found


def _find_in_batch(batch: Any, unit: Vector, k: int) -> list[Neighbour]:
    """Return the rows of an Arrow batch that are nearest to a vector of length 1."""
    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(batch.num_rows, -1)
    # A vector of zeros has no direction: its cosine with any other is taken as 0.
    norms = np.maximum(np.linalg.norm(vectors, axis=1), np.finfo(np.float32).tiny)
    similarities = vectors @ unit / norms
    others = batch.drop_columns(["embedding"])
    # Not `take`: pyarrow has none for string views, which deltalake returns.
    return [
        Neighbour(similarity=float(similarities[index]), **others.slice(index, 1).to_pylist()[0])
        for index in np.argsort(-similarities, kind="stable")[:k]
    ]


def _select(opened: Any, query: str) -> Iterator[Any]:
    """Yield the non-empty Arrow batches of a SELECT over the table `outcomes`.

    deltalake's query engine knows deletion vectors, column mapping and v2 checkpoints, which its
    pyarrow readers do not; docs/decisions/0017 has the other reasons.
    """
    import pyarrow as pa
    from deltalake import QueryBuilder

    builder = QueryBuilder({"datafusion.execution.batch_size": str(_ARROW_BATCH_ROWS)})
    try:
        reader = builder.register("outcomes", opened).execute(f"SELECT {query}")
        for batch in pa.RecordBatchReader.from_stream(reader):
            if batch.num_rows:
                yield batch
    # The engine raises no type of its own for a file that is missing or cut short.
    except Exception as error:
        raise _refuse_table(opened.table_uri, error) from error


def _open(table: str) -> Any:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    try:
        return DeltaTable(table)
    except TableNotFoundError:
        raise SetupError(f"there is no Delta table at '{table}'; has the stream run?") from None
    except (DeltaError, OSError) as error:
        raise _refuse_table(table, error) from None


def _refuse_table(table: str, error: Exception) -> SetupError:
    # deltalake's messages have several lines, with colours.
    reason = " ".join(re.sub(r"\x1b\[[\d;]*m", "", str(error)).split())
    return SetupError(
        f"the Delta table '{table}' cannot be read without Spark: {reason}; it has to be a folder "
        "of this machine, or at s3a://, gs:// or abfss:// with credentials in the environment, "
        "and the deltalake package has to know all features of the table"
    )
