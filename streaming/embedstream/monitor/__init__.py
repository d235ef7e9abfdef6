"""Watching a stream: metrics, health, and a live page that shows what it does.

`status` is what is known of a stream at a time. `live` keeps it while the stream runs, with the
sums in `counts` and the last hour in `history`; `connect` ties it to the stream's parts.
`table_status` reads it from a table without a stream. `metrics` declares what Prometheus reads,
`exposition` builds it. `http` serves all of that and `page`, the live page, from a thread of the
driver. What the page shows of rows (previews, neighbours) comes from a `viewer`, which `viewing`
implements as processes of their own, so that nothing that they read can touch the stream.
"""
