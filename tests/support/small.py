"""Small streams for the fault tests: tiny pictures, and a configuration file for the command."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import skimage.data
import yaml
from PIL import Image

from streams import Topic, image

__all__ = ["POISON", "poisoned", "send_pictures", "shrink", "tiny_picture", "write_config"]


POISON = Path(__file__).parent / "poison"
"""A folder for PYTHONPATH, in which decoding a poisoned picture ends as its comment says."""


def shrink(content: bytes) -> bytes:
    """The picture as a JPEG of 40 by 40 pixels."""
    data = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize((40, 40)).save(data, "JPEG")
    return data.getvalue()


def tiny_picture() -> bytes:
    """A real picture, made tiny."""
    return shrink((Path(skimage.data.__file__).parent / "coffee.png").read_bytes())


def poisoned(comment: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(tiny_picture())).save(file, "JPEG", comment=comment.encode())
    return file.getvalue()


def send_pictures(topic: Topic, count: int) -> None:
    content = tiny_picture()
    topic.send(image(str(index), content) for index in range(count))


def write_config(topic: Topic, folder: Path, **sections: Any) -> Path:
    """A stream in small micro-batches; its table, checkpoint and log lie in the folder.

    It has an encoder of its own unless one of the further sections is `encoders`.
    """
    tree: dict[str, Any] = {
        "kafka": {
            "bootstrap_servers": topic.bootstrap_servers,
            "subscribe": topic.name,
            "max_offsets_per_trigger": 8,
        },
        "table": {"path": str(folder / "table")},
        "checkpoint": str(folder / "checkpoint"),
        "trigger": {"interval_s": 0},
        "spark": {
            "master": "local[2,4]",
            "log_file": str(folder / "spark.log"),
            "options": {
                "spark.ui.enabled": "false",
                # These drivers do not live long enough for the second compiler.
                "spark.driver.defaultJavaOptions": "-XX:TieredStopAtLevel=1",
            },
        },
        **sections,
    }
    if "encoders" not in sections:
        tree["encoder"] = {"name": "efficientnet_lite0"}
    path = folder / "stream.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
