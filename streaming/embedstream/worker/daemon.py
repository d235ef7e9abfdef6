"""The process that forks Spark's Python workers; it has already imported what they need.

Importing torch takes seconds, and Spark ends workers that were idle for a minute. A forked worker
has the imports at once and shares their memory. This process creates no tensor before the fork: the
import alone starts no threads of torch and touches no GPU. The same holds for the libraries of the
encoders that the session names: importing torchvision would take each worker another 1.1 s.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module

from pyspark.daemon import manager

from embedstream.spark.session import ENCODERS_VARIABLE

if __name__ == "__main__":
    import_module("embedstream.worker.messages")
    # pyarrow imports pandas, if installed, for the first array that it builds: 0.2 s a worker.
    import_module("pandas")
    catalog = import_module("embedstream_core.models.encoders.catalog")
    for name in os.environ.get(ENCODERS_VARIABLE, "").split():
        # The engine names a missing extra.
        with suppress(ImportError):
            if (library := catalog.find_library(name)) is not None:
                import_module(library)
    manager()
