"""The section of the Spark application."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from embedstream.config.errors import LocationError
from embedstream.config.field_types import LocalFolder, Section
from embedstream.config.locations import get_scheme
from embedstream.config.options import check_spark_options
from embedstream.config.secrets import Options

__all__ = ["SparkConfig"]


class SparkConfig(Section):
    """The Spark application."""

    app_name: str = "embedstream"
    """The application's name."""
    master: str | None = None
    """Such as `local[*,4]` or `spark://host:7077`. Leave it unset under spark-submit, which has its
    own; elsewhere the default is `local[*,4]`."""
    jars: Literal["fetch", "provided"] = "fetch"
    """`fetch` downloads the pinned jars, once; use `provided` if the cluster has them."""
    jar_sets: tuple[Literal["spark", "s3"], ...] | None = None
    """The jar sets to fetch; by default `spark`, and `s3`, the S3A file system, if the table, the
    checkpoint or the files are in `s3a://`."""
    log_file: LocalFolder | None = None
    """A file for Spark's own log; by default standard error."""
    options: Options = Field(default_factory=dict)
    """Further `spark.*` settings. A setting that has a key here, or that the stream needs
    unchanged, is refused; jars, extensions and patterns of secrets are added to embedstream's
    own."""

    @model_validator(mode="after")
    def _check(self) -> SparkConfig:
        check_spark_options(self.options, jars=self.jars)
        return self

    def check_location(self, key: str, location: str) -> None:
        """Check that Spark has a file system for a location.

        Raises:
            LocationError: none of the fetched jars has it.
        """
        scheme = get_scheme(location)
        is_configured = f"spark.hadoop.fs.{scheme}.impl" in self.options
        if scheme in ("s3", "s3n") and self.jars == "fetch" and not is_configured:
            raise LocationError(
                f"{key} '{location}': Spark's file system for S3 is s3a, so write s3a://; if the "
                f"cluster has one for {scheme}, set spark.jars to `provided`"
            )
