"""What watching costs a stream: its rate and CPU time with the monitor and without.

    python benchmarks/monitor.py [--images 240] [--rounds 4]

A topic of JPEG is drained with EfficientNet-Lite0 and 32 messages in a micro-batch, by turns with
and without the server that `monitor.listen` starts. With it, another process scrapes `/metrics`
every second and has the page open with its event stream before the query starts. The CPU time is
that of the driver, its JVM and the workers; that of the page's viewer, which reads rows at the
lowest priority while somebody looks, is apart. The broker and the client are not among them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.synchronize import Event
from statistics import median
from typing import Any

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
from report import print_table, write_result
from stream_runs import Run, embeddings, fresh, run_by_turns

SCRAPE_S = 1.0


def main() -> None:
    arguments = _arguments()
    rounds = run_by_turns(arguments.images, arguments.rounds, _drain)
    _report(rounds, arguments.images)


def _drain(spark: SparkSession, config: StreamConfig, model: PreparedModel, watched: bool) -> Run:
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
    ):
        started, cpu = time.perf_counter(), _measure_cpu(client)
        query = start_stream(spark, new, [model], until="drained", tallies=watch.tallies).query
        while query.isActive:
            live.beat()
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        used = [after - before for after, before in zip(_measure_cpu(client), cpu, strict=True)]
    made = embeddings(table)
    return {
        "images_per_s": made / seconds,
        "cpu_ms_per_image": 1000 * used[0] / made,
        "viewer_cpu_ms_per_s": 1000 * used[1] / seconds,
    }


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


def _measure_cpu(client: int) -> tuple[float, float]:
    """Return the CPU seconds of the stream's processes and of the viewer's."""
    used = {True: 0.0, False: 0.0}
    for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        # A process may end meanwhile.
        with suppress(psutil.Error):
            times, words = one.cpu_times(), one.cmdline()
            if one.pid != client:
                used["embedstream.monitor.viewing.child" in words] += times.user + times.system
    return used[False], used[True]


def _report(rounds: list[dict[bool, Run]], images: int) -> None:
    ratios = [one[True]["images_per_s"] / one[False]["images_per_s"] for one in rounds]
    cpu = [one[True]["cpu_ms_per_image"] / one[False]["cpu_ms_per_image"] for one in rounds]
    rows: list[tuple[Any, ...]] = [
        (name, *(median(one[watched][key] for one in rounds) for key in rounds[0][watched]))
        for name, watched in (("watched", True), ("not watched", False))
    ]
    print_table(
        f"{images} images, {len(rounds)} rounds; watched / not: images/s {median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f}), CPU {median(cpu):.3f} "
        f"({min(cpu):.3f} to {max(cpu):.3f})",
        ["", "images/s", "CPU ms an image", "viewer's CPU ms a second"],
        rows,
    )
    write_result(
        "monitor",
        {
            "images": images,
            "ratio": median(ratios),
            "ratios": ratios,
            "cpu_ratio": median(cpu),
            "cpu_ratios": cpu,
            "rounds": [{"watched": one[True], "not_watched": one[False]} for one in rounds],
        },
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=240, help="in one drain")
    parser.add_argument("--rounds", type=int, default=4, help="an even number")
    return parser.parse_args()


if __name__ == "__main__":
    main()
