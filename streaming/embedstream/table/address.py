"""The address by which Spark reads and writes a table: its name in a catalog, or its folder."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import DataFrame, SparkSession

from embedstream.config.sections import TableConfig
from embedstream.config.table_names import quote_table_name

__all__ = ["TableAddress", "quote_table"]


@dataclass(frozen=True, slots=True)
class TableAddress:
    """A table's folder, and its name if it is in a catalog.

    Spark reads and writes a table by its name where it has one, so that the catalog's permissions
    apply. What reads the log or the files without Spark uses the path. The text of an address is
    what a message calls the table.
    """

    path: str
    name: str | None = None

    @classmethod
    def of(cls, table: TableConfig) -> TableAddress:
        """Return the address of a configured table whose folder is known; see `resolve_table`."""
        assert table.path, "the table's folder must be resolved first"
        return cls(table.path, table.name)

    def __str__(self) -> str:
        return self.path if self.name is None else self.name

    @property
    def sql(self) -> str:
        """The table in SQL."""
        return quote_table(self.path) if self.name is None else quote_table_name(self.name)

    def read(self, spark: SparkSession) -> DataFrame:
        """Return the table, which must exist."""
        if self.name is None:
            return spark.read.format("delta").load(self.path)
        return spark.table(self.sql)

    def append(self, rows: DataFrame) -> None:
        """Append rows to the table, which must exist, in one commit."""
        # Delta does not read the codec from the table's properties.
        writer = rows.write.format("delta").mode("append").option("compression", "zstd")
        if self.name is None:
            writer.save(self.path)
        else:
            writer.saveAsTable(self.sql)


def quote_table(path: str) -> str:
    """Return the table at a path in SQL."""
    return f"delta.`{path.replace('`', '``')}`"
