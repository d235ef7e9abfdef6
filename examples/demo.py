"""The whole way on one machine: a broker, real pictures, the stream, its table, a look at it.

Everything is kept in `demo-data/`. Run again, it sends some new pictures and resumes. While it
works, its live page is served; with `--keep` it stays open until Ctrl-C, and so does the broker.
"""

from __future__ import annotations

import io
import json
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageEnhance
from rich.console import Console
from rich.progress import track

from embedstream.cli.actions.page import serve_page
from embedstream.cli.actions.stream import run_stream
from embedstream.config.load import load_config
from embedstream.kafka.admin import create_topic, read_end_offsets
from embedstream.kafka.dev_broker import start_broker, stop_broker
from embedstream.kafka.produce import OutgoingMessage, build_message, produce
from embedstream.search.answer import list_neighbours
from embedstream.search.contact_sheet import Tile, draw_contact_sheet
from embedstream.search.contents import read_file_content, read_kafka_content
from embedstream.search.nearest import Searcher
from embedstream_core.errors import EmbedstreamError

CONFIG = Path("conf/demo.yaml")
FOLDER = Path("demo-data")
PICTURES = FOLDER / "pictures"
SHEET = FOLDER / "neighbours.png"
TOPIC = "images"

SCENES = [
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "china.jpg",
    "clock_motion.png", "coffee.png", "coins.png", "flower.jpg", "grass.png", "gravel.png",
    "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "page.png", "retina.jpg", "rocket.jpg", "text.png",
]  # fmt: skip
FIRST_RUN, LATER_RUNS = 10, 1
QUERIES = ["chelsea.png", "coffee.png", "motorcycle_left.png", "flower.jpg", "rocket.jpg"]
NEIGHBOURS = 6

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    # `kill` ends the demo as Ctrl-C does: through the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    FOLDER.mkdir(exist_ok=True)
    try:
        with console.status("starting the Kafka broker"):
            broker = start_broker(FOLDER / "broker")
        console.print(f"[bold]broker[/] at {broker.bootstrap_servers}")
        send_pictures(broker.bootstrap_servers)
        servers = f"kafka.bootstrap_servers={broker.bootstrap_servers}"
        listen = f"monitor.listen=127.0.0.1:{find_free_port()}"
        config = load_config(CONFIG, [servers, listen])
        run_stream(config, until="drained", config_words=str(CONFIG))
        show(config.table.path, broker.bootstrap_servers)
        if "--keep" in sys.argv[1:]:
            # At the same address, so that an open page connects again.
            serve_page(config, config_words=str(CONFIG))
    finally:
        stop_broker(FOLDER / "broker")


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def send_pictures(servers: str) -> None:
    """Send variations of each scene, two as bytes for each as reference, and on the first run five
    messages that cannot be embedded."""
    create_topic(servers, TOPIC, partitions=4)
    sent = sum(read_end_offsets(servers, TOPIC).values())
    rounds = LATER_RUNS if sent else FIRST_RUN
    pictures = list(make_pictures(first=sent, rounds=rounds))
    messages = [
        build_message(path, form="reference" if index % 3 == 2 else "bytes")
        for index, path in enumerate(pictures)
    ]
    if not sent:
        for index, bad in enumerate(bad_messages(pictures[0])):
            messages.insert(20 + 40 * index, bad)
    produce(messages, bootstrap_servers=servers, topic=TOPIC)
    console.print(f"[bold]{len(messages)} messages[/] sent; {sent} were in the topic before")


def make_pictures(*, first: int, rounds: int) -> Iterator[Path]:
    PICTURES.mkdir(exist_ok=True)
    total = rounds * len(SCENES)
    for index in track(range(total), description="making images", console=console):
        scene = SCENES[index % len(SCENES)]
        path = PICTURES / f"{Path(scene).stem}-{first + index:04}.jpg"
        path.write_bytes(variation(scene, seed=first + index))
        yield path


def variation(scene: str, *, seed: int) -> bytes:
    """A crop of a scene, perhaps mirrored, brighter or darker, as JPEG."""
    choose = random.Random(seed)
    image = Image.open(scene_path(scene)).convert("RGB")
    share = choose.uniform(0.6, 1.0)
    width, height = int(image.width * share), int(image.height * share)
    left, top = choose.randint(0, image.width - width), choose.randint(0, image.height - height)
    image = image.crop((left, top, left + width, top + height))
    if choose.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(choose.uniform(0.7, 1.3))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=choose.randint(60, 95))
    return data.getvalue()


def scene_path(scene: str) -> Path:
    import skimage.data
    import sklearn.datasets

    folders = [
        Path(skimage.data.__file__).parent,
        Path(sklearn.datasets.__file__).parent / "images",
    ]
    return next(folder / scene for folder in folders if (folder / scene).exists())


def bad_messages(good: Path) -> list[OutgoingMessage]:
    def message(name: str, value: bytes) -> OutgoingMessage:
        return OutgoingMessage(name, value)

    def reference(uri: str) -> bytes:
        return json.dumps({"uri": uri}).encode()

    return [
        message("cut-short.jpg", good.read_bytes()[:5000]),
        message("web-page.jpg", b"<!DOCTYPE html><title>404 Not Found</title>"),
        message("broken-json", b'{"id": "broken-json", "uri": '),
        message("missing-file", reference((PICTURES.absolute() / "missing.jpg").as_uri())),
        message("forbidden-file", reference("file:///etc/passwd")),
    ]


def show(table: str, servers: str) -> None:
    """What people want to know: is all there, what failed, and do the vectors mean something?"""
    if not Path(table, "_delta_log").exists():
        console.print("stopped early: 'make demo' again does the rest")
        return
    rows = read_rows(table)
    messages = sum(read_end_offsets(servers, TOPIC).values())
    positions = Counter((row["topic"], row["partition"], row["offset"]) for row in rows)
    doubled = len(rows) - len(positions)
    console.print(f"\n[bold]{messages} messages, {len(rows)} rows, {doubled} doubled[/]")
    if len(rows) < messages:
        console.print("stopped early: 'make demo' again does the rest")
        return
    for row in rows:
        if row["error"] is not None:
            error = row["error"]
            console.print(f"  {error['code']:<21} {row['image_id']}: {error['message'][:90]}")
    draw_sheet(table, servers)
    console.print(f"[bold]table[/]         {Path(table).relative_to(Path.cwd())}")
    console.print(f"[bold]contact sheet[/] {SHEET}")


def read_rows(table: str) -> Sequence[dict[str, Any]]:
    import pyarrow as pa
    from deltalake import DeltaTable, QueryBuilder

    outcomes = QueryBuilder().register("outcomes", DeltaTable(table))
    found = outcomes.execute('SELECT topic, partition, "offset", image_id, error FROM outcomes')
    rows: list[dict[str, Any]] = pa.table(found).to_pylist()
    return rows


def draw_sheet(table: str, servers: str) -> None:
    """Search with crops that were never sent."""
    queries = [variation(scene, seed=1_000_003 + index) for index, scene in enumerate(QUERIES)]
    with Searcher(table) as searcher:
        found = [list_neighbours(searcher.search(one, k=NEIGHBOURS).rows) for one in queries]
    sheet = draw_contact_sheet(
        list(zip(map(Tile, QUERIES, queries), found, strict=True)),
        lambda row: (
            read_file_content(row.uri)
            if row.uri
            else read_kafka_content(row, bootstrap_servers=servers)
        ),
    )
    sheet.save(SHEET)


if __name__ == "__main__":
    try:
        main()
    except EmbedstreamError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
