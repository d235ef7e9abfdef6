"""Files in bulk: each file at a path becomes one row of the outcome table, in chunks.

A row's identity is its `uri` and `model_id`: a file that has a row is done. So re-running the same
command resumes a run that was stopped or killed, and embeds new files. The core fetches the files
as it does references: each within its limits, and a file that cannot be read is a failure row.
"""

from __future__ import annotations

import shlex
from urllib.parse import urlsplit

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from embedstream.bulk.chunks import Chunk, commit_chunk
from embedstream.config.sections import BulkFilesConfig, ReferencesConfig
from embedstream.kafka.source import MESSAGES_SCHEMA
from embedstream.spark.listing import Listing, list_files
from embedstream.spark.sizing import count_parallel_tasks, count_rows_per_commit
from embedstream.table.address import TableAddress
from embedstream.table.catalog import find_address
from embedstream.table.delta import check_models, check_table, create_table
from embedstream.table.features import check_fillable
from embedstream.table.layout import fill_layout
from embedstream.worker.counts import CommitReport
from embedstream.worker.messages import Featurizer, featurize_messages
from embedstream.worker.model import choose_precision
from embedstream.worker.task import build_embedder
from embedstream_core.errors import SetupError
from embedstream_core.messages.parse import MessageReader
from embedstream_core.models.card import PreparedModel
from embedstream_core.redaction import redact_uri

__all__ = ["Files"]

# Files take different times to decode and embed: more tasks than run at once even that out.
_TASKS_A_SLOT = 4
# What Spark lists and the workers fetch by the same name.
_STORES = {"s3", "gs", "abfss", "abfs"}


class Files:
    """The files at a path, some of which may have their rows already.

    `hidden` counts the files and folders that are left out; see `list_files`.
    """

    def __init__(
        self, spark: SparkSession, config: BulkFilesConfig, model: PreparedModel, source: str
    ) -> None:
        """List the files, and create the table if there is none.

        Raises:
            SetupError: the path or the table cannot be used; nothing was written.
        """
        self._spark = spark
        self._config = config
        self._table = TableAddress.of(config.table)
        listing = list_files(spark, source)
        self._uris = listing.build_references()
        self.hidden = listing.hidden
        references = _restrict_references(config.references, source, listing)
        bounds = config.model_copy(update={"references": references})
        upgrade = f"embedstream upgrade --table {shlex.quote(self._table.path)}"
        present = find_address(spark, config.table)
        rows = check_table(spark, present, upgrade=upgrade)
        table = None if rows is None else present
        self.model = model = choose_precision(spark, model, config.encoder, table=table).model
        if table is not None:
            check_fillable(spark, config.table, door="files")
            check_models(spark, table, [model.card.model_id], remedy="choose another table")
        self._featurizer = Featurizer(
            embedder=build_embedder(spark, [(model, config.encoder)], bounds),
            reader=MessageReader(format="json", id_header=""),
        )
        create_table(spark, config.table, model_ids=[model.card.model_id])

    def plan(self, *, chunk_rows: int | None = None) -> list[Chunk[str]]:
        """Return the files without a row; a chunk has as many rows as a commit of the stream."""
        table = self._table.read(self._spark)
        done = table.where(f.col("model_id") == self.model.card.model_id).select("uri")
        files = [(uri, redact_uri(uri)) for uri in self._uris]
        listed = self._spark.createDataFrame(files, "uri string, in_table string")
        left = listed.join(done, listed.in_table == done.uri, "left_anti").orderBy("uri").collect()
        uris = tuple(row.uri for row in left)
        size = chunk_rows or count_rows_per_commit(self._spark)
        parts = [uris[start : start + size] for start in range(0, len(uris), size)]
        return [Chunk(part, len(part)) for part in parts]

    def run(self, chunk: Chunk[str]) -> CommitReport:
        """Embed a chunk and commit its outcomes."""
        # The messages that would refer to these files; none came from Kafka.
        rows = self._spark.createDataFrame([(uri,) for uri in chunk.parts], "uri string")
        value = f.to_json(f.struct(f.col("uri").alias("id"), "uri")).cast("binary")
        columns = [
            (value if field.name == "value" else f.lit(None)).cast(field.dataType).alias(field.name)
            for field in MESSAGES_SCHEMA
        ]
        tasks = _TASKS_A_SLOT * count_parallel_tasks(self._spark)
        messages = rows.repartition(tasks).select(*columns)

        def append(outcomes: DataFrame) -> None:
            self._table.append(fill_layout(outcomes, self._config.table))

        return commit_chunk(featurize_messages(messages, self._featurizer), append)


def _restrict_references(
    references: ReferencesConfig, source: str, listing: Listing
) -> ReferencesConfig:
    """Allow only local files below the source, or only the source's bucket.

    Raises:
        SetupError: there is no file, or the workers cannot fetch its kind.
    """
    if not listing.files:
        hidden = f", except {listing.hidden} that are hidden" if listing.hidden else ""
        raise SetupError(f"there are no files at '{source}'{hidden}")
    if listing.folder is not None:
        return references.model_copy(update={"schemes": ("file",), "folders": (listing.folder,)})
    parts = urlsplit(listing.build_references()[0])
    if parts.scheme not in _STORES:
        raise SetupError(
            f"'{source}' has the scheme {parts.scheme}; batch reads local files, s3a://, gs:// and "
            "abfss://"
        )
    bucket = f"{parts.scheme}://{parts.netloc}"
    return references.model_copy(update={"schemes": (parts.scheme,), "buckets": (bucket,)})
