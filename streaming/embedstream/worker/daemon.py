"""The process that forks Spark's Python workers; it has already imported what they need.

Importing torch takes seconds, and Spark ends workers that were idle for a minute. A forked worker
has the imports at once and shares their memory. This process creates no tensor before the fork: the
import alone starts no threads of torch and touches no GPU. The same holds for the libraries of the
encoders that the session names: importing torchvision would take each worker another 1.1 s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from importlib import import_module

from pyspark.daemon import manager

from embedstream.spark.session import ENCODERS_VARIABLE

__all__ = ["import_libraries"]

_log = logging.getLogger(__name__)


def import_libraries(encoders: Iterable[str]) -> None:
    """Import what has the networks of these encoders; what cannot be imported is logged.

    Whatever is raised, this process must start: the engine names the reason as a worker's failure.
    A torchvision built for another torch raises RuntimeError.
    """
    catalog = import_module("embedstream_core.models.encoders.catalog")
    for name in encoders:
        if (library := catalog.find_library(name)) is not None:
            try:
                import_module(library)
            except Exception:
                _log.info("%s was not imported before the workers start", library, exc_info=True)


if __name__ == "__main__":
    import_module("embedstream.worker.messages")
    # pyarrow imports pandas, if installed, for the first array that it builds: 0.2 s a worker.
    import_module("pandas")
    import_libraries(os.environ.get(ENCODERS_VARIABLE, "").split())
    manager()
