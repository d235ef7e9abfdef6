"""Write `docs/metrics.md` from the declarations: `python -m embedstream.monitor.reference`."""

from __future__ import annotations

import json
import sys

from embedstream.monitor.metrics import METRICS, Metric
from embedstream.monitor.status import Status

__all__ = ["build_reference"]

_INTRODUCTION = """\
<!-- Written by `make docs` from streaming/embedstream/monitor; edit that instead. -->

# Metrics and health

With `monitor.listen: 127.0.0.1:9464`, or `embedstream run CONFIG --listen 127.0.0.1:9464`, the
driver serves over HTTP what it knows of the stream. It needs the extra `monitor`:
`pip install 'embedstream[monitor]'`.

| Path | Answer |
| --- | --- |
| `/` | the live page |
| `/metrics` | the metrics below, as Prometheus and OpenMetrics have them |
| `/livez` | 200 while the process works, else 503: a reason to restart it |
| `/readyz` | 200 while the query runs and the claim is held, else 503; why, if there is no token |
| `/api/status` | the status as JSON, see below |

The server starts before Spark, so `/livez` answers from the first second, and it ends with the
stream. A port that is taken is an error at the start; later errors of the server are logged and
never affect the stream. No request changes anything.

`embedstream page CONFIG` serves the same over a table without its stream: values that only a stream
knows are absent, and `/readyz` says whether the table can be read. The rows are counted again when
the table has a new version; a million rows in ten local files take 0.06 s.

## Access

At a loopback address such as 127.0.0.1 only this machine can connect, and a request must name it in
its Host header. Any other address needs `monitor.token`. Send the token as
`Authorization: Bearer TOKEN`, or enter it in a browser as the password, with any user name.
`/livez` and `/readyz` need no token. The server has no TLS: put a reverse proxy in front of it, or
forward its port ([examples](page.md#security)).

## Health

`/livez` fails when

- the driver's main thread has not run its loop for a minute plus `trigger.stop_timeout_s`. It runs
  five times a second, but waits for the micro-batch in flight while models are swapped; or
- the thread that receives the calls of Spark's listeners has ended, so that micro-batches would no
  longer be counted.

While models are swapped, one query ends and the next one starts; `/readyz` does not change.

A long micro-batch, an unreachable broker and a growing lag fail neither path, because a restart
would not help. A query that ends with an error ends the process: see
[Operations](operations.md#stop-and-restart).

## How to read them

- **Is it keeping up?** `embedstream_lag_seconds`: how long the oldest waiting message has waited.
  It stays near the duration of a micro-batch while the stream keeps up, and grows by a second each
  second while it stands still. `sum(embedstream_lag_messages)` is the same in messages. Both come
  from Kafka's offsets, which the driver reads every 10 s while it is scraped or its page is open,
  so they are right for an idle or stuck stream too.
- **Does it still commit?** `time() - embedstream_last_commit_timestamp_seconds`, where
  `sum(embedstream_lag_messages) > 0`: an idle stream has nothing to commit.
- **How fast is it?** `sum(rate(embedstream_rows_total[5m]))` rows per second. A counter steps at
  each commit: take a window of several micro-batches, see
  `embedstream_micro_batch_duration_seconds`.
- **What fails?** `sum by (code) (rate(embedstream_rows_total{outcome="failure"}[5m]))`. The codes
  are in [Troubleshooting](troubleshooting.md).
- **Where does the time go?** `sum by (stage) (rate(embedstream_stage_seconds_total[5m]))` seconds
  of all threads per second. The stages overlap, so the sum can be more than the number of cores.
  Where `wait` is large, fetching or decoding limits the rate; where it is small, `forward` does.
- **Can messages be lost?** `embedstream_retention_margin_messages` of partitions with
  `embedstream_lag_messages > 0`: when it reaches 0, Kafka's retention deletes unread messages.
- **Is the index behind?** `embedstream_table_version - embedstream_index_version` commits.
- **Are outcomes waiting to be published?** `embedstream_table_version -
  embedstream_published_version` commits.
- **Does it restart?** `changes(process_start_time_seconds[1h])`; a process cannot count its own
  restarts. All counters begin at 0 with the process: `rate` and `increase` allow for that.

Label values are bounded: at most 50 topics, 20 models and 500 partitions have series of their own;
the rest is summed under `other` (of the retention margins, the least).

The names that begin with `process_` and `python_` are those of the
[Prometheus client](https://prometheus.github.io/client_python/collector/): they describe the
driver's Python process, not Spark's JVM and not the workers."""

_HEAD = """\
## All metrics

| Metric | Type | Unit | Labels | Meaning |
| --- | --- | --- | --- | --- |"""

_STATUS = """\
## Status

`/api/status` returns an object of this JSON schema. Times are in UTC. Fields that are not known yet
are null. Fields may be added."""


def build_reference() -> str:
    """Return the page in Markdown: how to read the metrics, all of them, and the status."""
    table = "\n".join([_HEAD, *map(_format_row, METRICS)])
    buckets = "\n".join(["Buckets of the histograms, in seconds:", "", *_list_buckets()])
    schema = json.dumps(Status.model_json_schema(mode="serialization"), indent=2)
    return "\n\n".join([_INTRODUCTION, table, buckets, _STATUS, f"```json\n{schema}\n```"]) + "\n"


def _format_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    cells = [f"`{metric.name}`", metric.kind, metric.unit, labels, metric.help]
    return " | ".join(["", *(cell.replace("|", "\\|") for cell in cells), ""]).strip()


def _list_buckets() -> list[str]:
    return [
        f"- `{one.name}`: {', '.join(f'{bound:g}' for bound in one.buckets)}; {one.bucket_reason}."
        for one in METRICS
        if one.buckets
    ]


if __name__ == "__main__":
    sys.stdout.write(build_reference())
