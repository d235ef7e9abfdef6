"""The process that Spark forks Python workers from: it has already imported what they need.

Importing torch takes seconds, and Spark ends workers that were idle for a minute. A worker forked
from here has the imports at once and shares their memory. No tensor is made before the fork: being
imported, torch starts no threads and touches no GPU.
"""

from __future__ import annotations

from importlib import import_module

from pyspark.daemon import manager

if __name__ == "__main__":
    import_module("embedstream.worker.messages")
    manager()
