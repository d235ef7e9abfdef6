#!/bin/sh
# Print the GPUs of this pod in the form that Spark's resource discovery reads.
set -e
indexes=$(nvidia-smi --query-gpu=index --format=csv,noheader)
echo "$indexes" | awk '{ list = list (NR > 1 ? ", " : "") "\"" $1 "\"" }
    END { print "{\"name\": \"gpu\", \"addresses\": [" list "]}" }'
