"""Streams to look at on the page: a status, and a viewer that keeps rows in memory."""

from __future__ import annotations

import asyncio
import io
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from PIL import Image

from embedstream.config.sections import StreamConfig
from embedstream.monitor.status import (
    IndexStatus,
    ModelStatus,
    PartitionStatus,
    Percentiles,
    Point,
    Status,
    TableStatus,
)
from embedstream.monitor.viewer import Card, FailureGroup, Found, Preview, Question, RowPosition
from embedstream_core.errors import SetupError
from pictures import encoded, real_pictures

__all__ = [
    "CONFIG",
    "MemoryViewer",
    "SettableSource",
    "make_failures",
    "make_pictures",
    "make_status",
]

NOW = datetime(2026, 11, 26, 13, 47, 52, tzinfo=UTC)
MODEL_ID = "efficientnet_lite0/imagenet/11ad3fa6f4b5"

CONFIG = StreamConfig.model_validate(
    {
        "kafka": {"bootstrap_servers": "127.0.0.1:9092", "subscribe": "images"},
        "table": {"path": "/srv/embeddings/outcomes"},
        "checkpoint": "/srv/embeddings/checkpoint",
    }
)


def make_status(**changes: Any) -> Status:
    """A busy stream; each change replaces a field."""
    fields: dict[str, Any] = {
        "state": "running",
        "now": NOW,
        "started_at": NOW - timedelta(hours=3, minutes=12),
        "version": "0.1.0",
        "models": (
            ModelStatus(
                model_id=MODEL_ID,
                name="efficientnet_lite0",
                modalities=("image",),
                dimension=1280,
                precision="float32",
                loads=2,
            ),
        ),
        "table": TableStatus(
            path=CONFIG.table.path, version=1204, last_commit=NOW - timedelta(seconds=2)
        ),
        "index": IndexStatus(address="/srv/embeddings/outcomes/_embedstream/index", version=1203),
        "partitions": tuple(
            PartitionStatus(
                topic="images",
                partition=number,
                earliest=10_000 + number,
                read=91_200 + 40 * number,
                end=91_260 + 40 * number,
                lag=60,
                margin=81_200,
            )
            for number in range(4)
        ),
        "micro_batch": 1203,
        "last_micro_batch": NOW - timedelta(seconds=2),
        "embeddings": 364_812,
        "failures": {"image_corrupt": 212, "reference_not_found": 87, "message_malformed": 9},
        "cache_hits": 12_034,
        "rows_per_s": 31.6,
        "stage_seconds": {
            "fetch": 0.31, "decode": 0.58, "forward": 1.42, "write": 0.22, "wait": 0.4
        },
        "lag_s": 1.8,
        "append_to_commit": Percentiles(p50=1.9, p95=3.4, p99=6.2),
        "history": make_history(),
    }  # fmt: skip
    return Status(**{**fields, **changes})


def make_history(*, points: int = 120, lag: float = 240, growth: float = 0) -> tuple[Point, ...]:
    source = random.Random(7)
    start = NOW.replace(second=30) - timedelta(seconds=30 * (points - 1))
    return tuple(
        Point(
            at=start + timedelta(seconds=30 * index),
            embeddings=int(30 * (30 + 7 * math.sin(index / 9) + source.uniform(-3, 3))),
            failures=source.choice([0, 0, 0, 1, 2, 5 if index % 31 else 24]),
            lag=int(lag * (1.2 + math.sin(index / 7)) + source.uniform(0, 80) + growth * index),
        )
        for index in range(points)
    )


@dataclass
class SettableSource:
    """A source of a status that the test sets."""

    status: Status = field(default_factory=make_status)
    is_alive: bool = True
    is_ready: bool = True

    def read_status(self) -> Status:
        return self.status


@dataclass
class MemoryViewer:
    """Rows in memory: an embedding is near to those whose names begin like its own.

    `failure` is raised by every question; `delay_s` is how long each takes, and a search longer by
    `search_delay_s`.
    """

    cards: list[Card] = field(default_factory=list)
    contents: dict[RowPosition, Preview] = field(default_factory=dict)
    failure: Exception | None = None
    delay_s: float = 0
    search_delay_s: float = 0
    asked: Counter[str] = field(default_factory=Counter)
    questions: list[Question] = field(default_factory=list)

    async def _answer(self, method: str) -> None:
        self.asked[method] += 1
        await asyncio.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure

    async def list_newest(self, *, count: int = 24) -> list[Card]:
        await self._answer("list_newest")
        return [card for card in reversed(self.cards) if card.code is None][:count]

    async def list_failures(self, *, newest: int = 6) -> list[FailureGroup]:
        await self._answer("list_failures")
        failed = [card for card in reversed(self.cards) if card.code is not None]
        return [
            FailureGroup(
                code=str(code),
                count=count,
                newest=tuple([card for card in failed if card.code == code][:newest]),
                replay=f"embedstream replay CONFIG --code {code}",
            )
            for code, count in Counter(card.code for card in failed).most_common()
        ]

    async def find_card(self, position: RowPosition) -> Card:
        await self._answer("find_card")
        for card in self.cards:
            if card.position == position:
                at = card.position
                offsets = f"{at.topic}:{at.partition}:{at.offset}-{at.offset}"
                replay = f"embedstream replay CONFIG --offsets {offsets}" if card.code else ""
                return replace(card, replay=replay)
        raise SetupError(f"the table has no row at {position.topic}, offset {position.offset}")

    async def preview(self, position: RowPosition) -> Preview:
        await self._answer("preview")
        return self.contents.get(position, Preview("none", note="the content is gone"))

    async def search(self, question: Question) -> Found:
        self.questions.append(question)
        await asyncio.sleep(self.search_delay_s)
        await self._answer("search")
        if question.like is not None:
            name = (await self.find_card(question.like)).image_id
        else:
            name = question.words or (question.upload or b"").decode("latin-1")
        found = [
            replace(card, similarity=_compare(card.image_id, name))
            for card in self.cards
            if card.code is None
        ]
        found.sort(key=lambda card: card.similarity or 0, reverse=True)
        return Found(
            cards=tuple(found[: question.k]),
            model_id=question.model_id or MODEL_ID,
            source="from the index at /srv/index, version 1203: 1 version behind the table",
        )

    def close(self) -> None:
        """Nothing runs."""


def _compare(first: str, second: str) -> float:
    same = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
        min(len(first), len(second)),
    )
    return round(same / max(len(first), len(second), 1), 3)


def make_pictures(count: int = 40) -> MemoryViewer:
    """A viewer of crops of real pictures."""
    viewer = MemoryViewer()
    for index, (name, png, width, height) in enumerate(_crop_pictures(count)):
        position = RowPosition("images", index % 4, index // 4)
        viewer.contents[position] = Preview("image", png, "image/png")
        viewer.cards.append(
            Card(
                position=position,
                image_id=name,
                model_id=MODEL_ID,
                uri=f"https://images.example.com/2026/11/{name}",
                media_type="image/jpeg",
                width=width,
                height=height,
                attributes={"camera": f"north-{index % 3}", "lang": "en"},
                timestamp=NOW - timedelta(seconds=90 - index),
                processed_at=NOW - timedelta(seconds=60 - index),
            )
        )
    return viewer


@cache
def _crop_pictures(count: int) -> tuple[tuple[str, bytes, int, int], ...]:
    return tuple(_crop(count))


def _crop(count: int) -> Iterator[tuple[str, bytes, int, int]]:
    source = random.Random(3)
    scenes = ["astronaut.png", "brick.png", "camera.png", "chelsea.png", "china.jpg",
              "coffee.png", "coins.png", "flower.jpg", "horse.png", "hubble_deep_field.jpg",
              "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"]  # fmt: skip
    pictures = real_pictures()
    scenes = [scene for scene in scenes if scene in pictures]
    opened = {}
    for index in range(count):
        scene = scenes[index * 5 % len(scenes)]
        if scene not in opened:
            image = Image.open(io.BytesIO(pictures[scene])).convert("RGB")
            image.thumbnail((400, 400))
            opened[scene] = image
        image = opened[scene]
        share = source.uniform(0.6, 1)
        width, height = int(image.width * share), int(image.height * share)
        left = source.randint(0, image.width - width)
        top = source.randint(0, image.height - height)
        crop = image.crop((left, top, left + width, top + height))
        crop.thumbnail((160, 160))
        yield f"{scene.partition('.')[0]}-{index:04}.jpg", encoded(crop), width * 4, height * 4


def make_failures(viewer: MemoryViewer) -> None:
    """Add failures of three kinds."""
    reasons = [
        ("image_corrupt", "decode", "the image is cut short: 5,000 of 48,211 bytes", "image/jpeg"),
        (
            "reference_not_found",
            "fetch",
            "no file at file:///srv/pictures/missing.jpg",
            None,
        ),
        ("image_corrupt", "decode", "broken PNG: a chunk has a wrong checksum", "image/png"),
        ("message_malformed", "message", "the value is not JSON: line 1, column 30", None),
    ]
    for index, (code, stage, message, media_type) in enumerate(reasons):
        viewer.cards.append(
            Card(
                position=RowPosition("images", index % 4, 91_100 + index),
                image_id=f"upload-{index}.jpg",
                model_id=MODEL_ID if media_type else None,
                media_type=media_type,
                processed_at=NOW - timedelta(minutes=index),
                code=code,
                stage=stage,
                message=message,
            )
        )
