#!/bin/sh
# Ask the stream of this pod to finish its micro-batch, and wait until it has.
#
# Kubernetes runs it before it stops the driver's container. Its own SIGTERM reaches only the JVM,
# which spark-submit started first: that would close Spark in the middle of the micro-batch.
pid=$(pgrep -f '^[^ ]*python[0-9.]* [^ ]*/main\.py run ') || exit 0
# shellcheck disable=SC2086 # there may be several
kill -TERM $pid
# shellcheck disable=SC2086
while kill -0 $pid 2>/dev/null; do sleep 1; done
