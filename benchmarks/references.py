"""Images by reference against the same images by bytes, from a server that answers after 50 ms.

    python benchmarks/references.py [--images 200] [--turns 5] [--delay-ms 50]

The images go from Kafka to Delta twice: as the messages' bytes, and as JSON with an `http://`
address of a server in a process of its own on this machine, which shares the two cores. Both take
turns. With a network and with an encoder that costs nothing, for which waiting is hardest to hide.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow.parquet as pq

import free
from images import jpegs, write_images
from report import bars, print_turns, write_result
from stream_runs import Workplace, drain, fill, opened, settings, workplace
from turns import Turns, add_turns, take_turns

ENCODERS = ("efficientnet_lite0", free.NAME)


def main() -> None:
    arguments = _arguments()
    contents = list(jpegs(arguments.images))
    with workplace() as place:
        images = write_images(place.folder / "images.parquet", contents)
        with _server(images, arguments.delay_ms / 1000) as port:
            fill(place.servers, "bytes", contents)
            fill(place.servers, "references", _references(port, len(contents)))
            measured = {name: _measure(name, place, port, arguments) for name in arguments.encoders}
    _report(measured, arguments)


def _references(port: int, count: int) -> list[bytes]:
    return [
        json.dumps({"id": f"picture-{index}", "uri": f"http://127.0.0.1:{port}/{index}"}).encode()
        for index in range(count)
    ]


def _measure(encoder: str, place: Workplace, port: int, arguments: argparse.Namespace) -> Turns:
    allowed = {
        "schemes": ["http"],
        "hosts": [f"127.0.0.1:{port}"],
        "networks": ["127.0.0.0/8"],
    }
    config = settings(place, "bytes", encoder=encoder, references=allowed)
    with opened(config) as (spark, model):
        taken = take_turns(
            lambda topic, _: drain(spark, config, model, topic=topic).turn,
            ("references", "bytes"),
            arguments.turns,
        )
        return Turns(taken["references"], taken["bytes"])


@contextmanager
def _server(images: Path, delay_s: float) -> Iterator[int]:
    """The port of a server of these images, `/0` the first."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(images, delay_s, sender), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.terminate()
        process.join()


def _serve(images: Path, delay_s: float, port: Connection) -> None:
    contents: Sequence[bytes] = pq.read_table(images, columns=["content"])["content"].to_pylist()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body leave in two writes; the second would wait for an acknowledgement.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            time.sleep(delay_s)
            content = contents[int(self.path.removeprefix("/"))]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def _report(measured: dict[str, Turns], arguments: argparse.Namespace) -> None:
    for name, turns in measured.items():
        title = f"{name}: a server that answers after {arguments.delay_ms:g} ms, 500x375 JPEG"
        print_turns(title, "images", {"references": turns}, "bytes")
    write_result(
        "references",
        {
            "images": arguments.images,
            "delay_ms": arguments.delay_ms,
            "encoders": {name: turns.as_json() for name, turns in measured.items()},
        },
    )
    ratios = {f"embedstream, {name}": turns.speed for name, turns in measured.items()}
    bars("references", "References for bytes", "ratio of images/s", ratios)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=200, help="in one pass")
    add_turns(parser)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--delay-ms", type=float, default=50)
    return parser.parse_args()


if __name__ == "__main__":
    main()
