"""The process that forks Spark's Python workers; it has already imported what they need.

Importing torch takes seconds, and Spark ends workers that were idle for a minute. A forked worker
has the imports at once and shares their memory. This process creates no tensor before the fork: the
import alone starts no threads of torch and touches no GPU.
"""

from __future__ import annotations

from importlib import import_module

from pyspark.daemon import manager

if __name__ == "__main__":
    import_module("embedstream.worker.messages")
    # pyarrow imports pandas, if there is one, for the first array that it builds: 0.2 s a worker.
    import_module("pandas")
    manager()
