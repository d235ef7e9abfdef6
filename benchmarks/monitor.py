"""What watching costs a stream: its rate and CPU time with the monitor and without.

    python benchmarks/monitor.py [--images 240] [--turns 5]

A topic of JPEG is drained with EfficientNet-Lite0 and 32 messages in a micro-batch, by turns with
and without the server that `monitor.listen` starts. With it, another process scrapes `/metrics`
every second and has the page open with its event stream before the query starts. The CPU time is
that of the driver, its JVM, the workers and the broker; that of the page's viewer, which reads rows
at the lowest priority while somebody looks, is apart. The client is not among them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.synchronize import Event
from statistics import median

import psutil
import requests
from pyspark.sql import SparkSession

from embedstream.config.sections import MonitorConfig, StreamConfig
from embedstream.monitor.connect import watch_table
from embedstream.monitor.http.site import open_site
from embedstream.monitor.live import LiveStream
from embedstream.stream.job import list_ids, start_stream
from embedstream.stream.watching import watch_stream
from embedstream.table.delta import create_table
from embedstream_core.models.card import PreparedModel
from processes import measure
from report import print_table, print_turns, write_result
from stream_runs import compare_drains, embeddings, fresh
from turns import Turn, add_turns

SCRAPE_S = 1.0


def main() -> None:
    arguments = _arguments()
    viewers: list[Turn] = []
    turns = compare_drains(arguments.images, arguments.turns, partial(_drain, viewers=viewers))
    title = f"{arguments.images} images, {arguments.turns} turns"
    print_turns(title, "images", {"watched": turns}, "not watched")
    viewer_ms = median(1000 * one.cpu_s / one.seconds for one in viewers)
    print_table("The page's viewer while the stream is watched", ["CPU ms a second"], [[viewer_ms]])
    result = {"images": arguments.images, **turns.as_json(), "viewer_cpu_ms_per_s": viewer_ms}
    write_result("monitor", result)


def _drain(
    spark: SparkSession,
    config: StreamConfig,
    model: PreparedModel,
    watched: bool,
    *,
    viewers: list[Turn],
) -> Turn:
    new = fresh(config)
    table = new.table.path
    create_table(spark, new.table, model_ids=list_ids([model]))
    live = LiveStream(new)
    with (
        watch_stream(
            spark,
            new,
            replay="",
            observers=[live.add_batch],
            on_topics=live.set_offsets,
            is_watched=lambda: live.is_watched,
        ) as watch,
        _watch(spark, new, live) if watched else nullcontext(0) as client,
        measure(lambda one: one.pid == client or _is_viewer(one)) as spent,
        measure(lambda one: not _is_viewer(one)) as viewer,
    ):
        query = start_stream(spark, new, [model], until="drained", tallies=watch.tallies).query
        while query.isActive:
            live.beat()
            time.sleep(0.2)
    made = embeddings(table)
    if watched:
        viewers.append(viewer.on(made))
    return spent.on(made)


def _is_viewer(process: psutil.Process) -> bool:
    return "embedstream.monitor.viewing.child" in process.cmdline()


@contextmanager
def _watch(spark: SparkSession, config: StreamConfig, live: LiveStream) -> Iterator[int]:
    """Serve the status and let another process ask for it; yield the process's id."""
    served = config.model_copy(update={"monitor": MonitorConfig(listen="127.0.0.1:0")})
    with (
        watch_table(spark, live, config.table.path),
        open_site(live, served, read_counts=live.read_counts) as url,
    ):
        spawn = multiprocessing.get_context("spawn")
        is_open = spawn.Event()
        client = spawn.Process(target=_ask, args=(url, is_open), daemon=True)
        client.start()
        is_open.wait(60)
        try:
            assert client.pid is not None
            yield client.pid
        finally:
            client.kill()
            client.join()


def _ask(url: str, is_open: Event) -> None:
    """Scrape every second; keep the page open as a browser does."""

    def listen() -> None:
        requests.get(url, timeout=60)
        with requests.get(f"{url}/events", stream=True, timeout=60) as events:
            for _ in events.iter_content(65536):
                is_open.set()

    threading.Thread(target=listen, daemon=True).start()
    while True:
        requests.get(f"{url}/metrics", timeout=60).raise_for_status()
        time.sleep(SCRAPE_S)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=240, help="in one drain")
    add_turns(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
