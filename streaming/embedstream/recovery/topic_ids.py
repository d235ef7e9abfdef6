"""The ids of the topics that a table was filled from, to recognize a topic that was created again.

Kafka gives each topic an id when it is created. The ids are stored with the checkpoint and with
the table, so that they survive the loss of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from embedstream.kafka.topics import TopicState
from embedstream.spark.folder import OWN_FOLDER, Folder
from embedstream_core.errors import SetupError

__all__ = ["check_ids", "record_ids"]

_FILE = f"{OWN_FOLDER}/topics.json"

# Kafka's client gives this id where the broker has none: Kafka before 2.8, and other servers that
# speak its protocol. Such a server may have ids after an upgrade.
_NO_ID = "A" * 22


def check_ids(folder: Folder, topics: Mapping[str, TopicState]) -> None:
    """Check that the topics are the ones that were read before; write nothing.

    Raises:
        SetupError: A topic was deleted and created again.
    """
    recorded = _read(folder)
    for name, state in topics.items():
        before = recorded.get(name, {"id": state.id})
        if state.id not in (before["id"], _NO_ID):
            raise SetupError(
                f"topic '{name}' is not the one that was read so far: its id was {before['id']} "
                f"(noted {before['noted']} in {folder.location}/{_FILE}) and is {state.id} now; it "
                "was deleted and created again, so its offsets name other messages; start over "
                "with another table and checkpoint"
            )


def record_ids(folder: Folder, topics: Mapping[str, TopicState]) -> None:
    """Store the ids of topics that are read for the first time, as far as the broker has them."""
    recorded = _read(folder)
    noted = datetime.now(UTC).isoformat(timespec="seconds")
    new = {
        name: {"id": state.id, "noted": noted}
        for name, state in topics.items()
        if state.id != _NO_ID
    }
    if new.keys() - recorded.keys():
        folder.replace(_FILE, json.dumps({**new, **recorded}, indent=1))


def _read(folder: Folder) -> dict[str, dict[str, str]]:
    def parse(text: str) -> dict[str, dict[str, str]]:
        topics = json.loads(text or "{}").items()
        return {name: {"id": topic["id"], "noted": topic["noted"]} for name, topic in topics}

    remedy = "restore it, or delete it if no topic was created again"
    return folder.parse(_FILE, parse, meaning="the ids of the topics", remedy=remedy) or {}
