"""Find a table that is named by its catalog: its folder, or the folder of a new one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from embedstream.config.locations import make_absolute
from embedstream.config.sections import BulkFilesConfig, StreamConfig, TableConfig
from embedstream.config.table_names import split_table_name
from embedstream.spark.errors import find_reason
from embedstream.spark.hadoop import locate
from embedstream.table.address import TableAddress
from embedstream_core.errors import SetupError

__all__ = ["find_address", "find_default_folder", "resolve_table"]

Config = TypeVar("Config", bound=StreamConfig | BulkFilesConfig)
Result = TypeVar("Result")

_SESSION_CATALOG = "spark_catalog"
_DELTA_TABLE = "DeltaTableV2"


def resolve_table(spark: SparkSession, config: Config) -> Config:
    """Return the configuration with the folder of its table, which a catalog may know alone.

    A table that is not in the catalog yet gets the configured path, or else the folder in which the
    catalog would create it. Creates nothing. A table without a name is left as it is.

    Raises:
        SetupError: the catalog or the schema does not exist or cannot be asked, the name is not
            that of a Delta table, the catalog has it in another folder than the configured path, or
            only the catalog's own CREATE TABLE would choose a folder.
    """
    name, path = config.table.name, config.table.path
    if name is None:
        return config
    entry = _Entry.of(spark, name)
    folder = entry.find_folder()
    if path and folder is not None and _qualify(spark, path) != _qualify(spark, folder):
        raise SetupError(
            f"table.path is '{path}', but the catalog has table.name '{name}' in '{folder}'; leave "
            "table.path out, or correct one of them"
        )
    found = path or make_absolute(folder or entry.choose_folder())
    config.spark.check_location(f"the folder of table.name '{name}',", found)
    table = config.table.model_copy(update={"path": found})
    return cast(Config, config.model_copy(update={"table": table}))


def find_default_folder(spark: SparkSession, name: str) -> str | None:
    """Return the folder in which Spark's own catalog would create a table; None for another one."""
    entry = _Entry.of(spark, name)
    return make_absolute(entry.choose_folder()) if entry.is_of_session else None


def find_address(spark: SparkSession, table: TableConfig) -> TableAddress:
    """Return the address by which a table can be read now: until its catalog has it, by its path.

    `create_table` registers the name; `TableAddress.of` is the address from then on.
    """
    if table.name is not None and _Entry.of(spark, table.name).find_folder() is None:
        return TableAddress(table.path)
    return TableAddress.of(table)


@dataclass(frozen=True, slots=True)
class _Entry:
    """The place of a name in its catalog, whose Java object is `catalog`; its schema exists."""

    spark: SparkSession
    name: str
    catalog: Any
    schema: str
    table: str

    @classmethod
    def of(cls, spark: SparkSession, name: str) -> _Entry:
        """Find the catalog and the schema of a name."""
        *above, schema, table = split_table_name(name)
        session: Any = spark._jsparkSession
        manager = session.sessionState().catalogManager()
        if not above and _ask(name, lambda: manager.isCatalogRegistered(schema)):
            raise SetupError(
                f"table.name '{name}' begins with the catalog '{schema}'; name the schema too, "
                f"{schema}.SCHEMA.{table}"
            )
        if above and not _ask(name, lambda: manager.isCatalogRegistered(above[0])):
            raise SetupError(
                f"there is no catalog '{above[0]}', of table.name '{name}'; correct the name, or "
                f"define it by spark.sql.catalog.{above[0]} in spark.options"
            )
        catalog = _ask(name, lambda: manager.catalog(*above) if above else manager.currentCatalog())
        entry = cls(spark, name, catalog, schema, table)
        if not _ask(name, lambda: catalog.namespaceExists(entry._namespace())):
            raise SetupError(
                f"the catalog '{catalog.name()}' has no schema '{schema}', of table.name '{name}'; "
                f"create it with CREATE SCHEMA {schema}, or correct the name"
            )
        return entry

    @property
    def is_of_session(self) -> bool:
        """Whether it is Spark's own catalog, in memory or in a Hive metastore."""
        return bool(self.catalog.name() == _SESSION_CATALOG)

    def find_folder(self) -> str | None:
        """Return the folder of an existing table; None if the catalog has no such table."""
        jvm: Any = self.spark.sparkContext._jvm
        identifier = jvm.org.apache.spark.sql.connector.catalog.Identifier
        place = identifier.of(self._namespace(), self.table)
        if not _ask(self.name, lambda: self.catalog.tableExists(place)):
            return None
        table = _ask(self.name, lambda: self.catalog.loadTable(place))
        if table.getClass().getSimpleName() == _DELTA_TABLE:
            return str(table.path().toString())
        properties = dict(table.properties())
        kind = "a view" if properties.get("table_type") == "VIEW" else "no Delta table"
        provider = f" but {properties['provider']}" if "provider" in properties else ""
        raise SetupError(
            f"table.name '{self.name}' is {kind}{provider}; choose another name for the table of "
            "outcomes"
        )

    def choose_folder(self) -> str:
        """Return the folder in which the catalog would create the table."""
        if not self.is_of_session:
            raise SetupError(
                f"the catalog '{self.catalog.name()}' has no table '{self.name}', and only says "
                "where a table is once it exists; give table.path too, the folder of a new "
                "external table, or create the table with CREATE TABLE"
            )
        jvm: Any = self.spark.sparkContext._jvm
        session: Any = self.spark._jsparkSession
        place = jvm.org.apache.spark.sql.catalyst.TableIdentifier(
            self.table, jvm.scala.Option.apply(self.schema)
        )
        uri = _ask(self.name, lambda: session.sessionState().catalog().defaultTablePath(place))
        return str(jvm.org.apache.hadoop.fs.Path(uri).toString())

    def _namespace(self) -> Any:
        gateway: Any = self.spark.sparkContext._gateway
        namespace = gateway.new_array(gateway.jvm.java.lang.String, 1)
        namespace[0] = self.schema
        return namespace


def _ask(name: str, question: Callable[[], Result]) -> Result:
    """Ask a catalog about a name; what it raises becomes a sentence."""
    try:
        return question()
    except (Py4JJavaError, PySparkException) as error:
        reason = find_reason(error)
        raise SetupError(
            f"the catalog of table.name '{name}' cannot be asked ({reason}); check its "
            "address, its credentials and your permission in it (`spark.sql.catalog.…` and "
            "`spark.hadoop.…` in spark.options)"
        ) from error


def _qualify(spark: SparkSession, location: str) -> str:
    """Return a location with its file system, as Hadoop writes it."""
    with locate(spark, location) as (system, path):
        return str(system.makeQualified(path).toString())
