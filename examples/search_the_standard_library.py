"""Search by words: the docstrings of Python's standard library become a table of embeddings.

Each module is a message of a real topic: its docstring, and those of its public classes and
functions, of each the first paragraph, because `minilm` takes no more than 256 tokens. Afterwards:

    embedstream search --text "open a compressed file" --table library-data/table -k 5

Everything is kept in `library-data/`; needs the extra `text`.
"""

from __future__ import annotations

import ast
import json
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from embedstream.cli.actions.search import search_table
from embedstream.cli.actions.stream import run_stream
from embedstream.config.load import load_config
from embedstream.kafka.admin import create_topic, read_end_offsets
from embedstream.kafka.dev_broker import start_broker, stop_broker
from embedstream.kafka.produce import OutgoingMessage, produce
from embedstream_core.errors import EmbedstreamError

FOLDER = Path("library-data")
TOPIC = "docstrings"
QUESTION = "open a compressed file"

# Tests, a text editor, a drawing toy and an installer: no part of the library that people import.
LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "ensurepip", "lib2to3", "site-packages"}

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    # `kill` ends the example as Ctrl-C does: through the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    FOLDER.mkdir(exist_ok=True)
    try:
        with console.status("starting the Kafka broker"):
            broker = start_broker(FOLDER / "broker")
        send_docstrings(broker.bootstrap_servers)
        servers = f"kafka.bootstrap_servers={broker.bootstrap_servers}"
        config = load_config(Path("conf/library.yaml"), [servers])
        run_stream(config, until="drained")
        console.print(f'\n[bold]embedstream search --text "{QUESTION}"[/]')
        search_table(QUESTION, config.table.path, k=5)
    finally:
        stop_broker(FOLDER / "broker")


def send_docstrings(servers: str) -> None:
    """Send the docstrings once: a second run finds them in the topic."""
    create_topic(servers, TOPIC, partitions=4)
    if sum(read_end_offsets(servers, TOPIC).values()):
        return
    messages = [
        OutgoingMessage(name, json.dumps({"id": name, "text": text}).encode())
        for name, text in read_docstrings(Path(sysconfig.get_path("stdlib")))
    ]
    produce(messages, bootstrap_servers=servers, topic=TOPIC)
    console.print(f"docstrings of [bold]{len(messages)} modules[/] sent")


def read_docstrings(library: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each public module, and its docstrings as one text."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        names = parts[:-1] if parts[-1] == "__init__" else parts
        if LEFT_OUT & set(parts) or any(name.startswith("_") for name in names):
            continue
        module, tree = ".".join(names), ast.parse(path.read_bytes())
        documented = {module: tree} | {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        }
        lines = [
            f"{name}: " + text.partition("\n\n")[0]
            for name, node in documented.items()
            if (text := ast.get_docstring(node))
        ]
        if lines:
            yield module, "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except EmbedstreamError as error:
        sys.exit(f"search_the_standard_library: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
