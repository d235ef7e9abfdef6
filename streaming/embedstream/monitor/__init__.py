"""Watching a stream: metrics, health, and a live page that shows what it does.

`status` is what is known of a stream at a time, `live` keeps it while the stream runs, `metrics`
declares what Prometheus reads. `server` serves all of that and `page`, the live page, from a thread
of the driver. What the page shows of rows (previews, neighbours) comes from `viewer`, a process of
its own, so that nothing that it reads can touch the stream.
"""
