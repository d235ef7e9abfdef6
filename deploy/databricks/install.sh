#!/bin/bash
# The cluster's init script: everything but PySpark, which is the runtime's own.
set -euo pipefail
folder=/Volumes/main/embeddings/embedstream
/databricks/python/bin/pip install --no-deps --requirement "$folder/requirements.txt" "$folder"/embedstream-*.whl
