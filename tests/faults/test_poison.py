"""Contents that end, hang or exhaust the worker that decodes them: each fails, and nothing else."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyspark.sql import SparkSession

from clips import make_clip
from embedstream.kafka.produce import OutgoingMessage
from embedstream_core.errors import Code, Stage
from embedstream_core.pipeline.steps import Outcomes
from embedstream_core.records import Failure, Media
from embedstream_core.settings import ModalityName
from mixed_messages import Kind
from mixed_streams import Mix, MixedStream
from oracle import CAREFUL, check_messages
from small import POISON, poisoned
from streams import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.spark]


CODES = {
    "crash": Code.DECODER_CRASHED,
    "kill": Code.DECODER_CRASHED,
    "hang": Code.DECODER_TIMEOUT,
    "eat": Code.DECODER_OUT_OF_MEMORY,
}
PICTURES = 12

Case = tuple[ModalityName, str]

IMAGES: list[Case] = [("image", comment) for comment in CODES]
ONE_OF_EACH: list[Case] = [*IMAGES, ("text", "crash"), ("audio", "crash")]
OTHERS: list[Case] = [(name, comment) for name in ("text", "audio") for comment in CODES]


def poison(modality: ModalityName, comment: str) -> Kind:
    match modality:
        case "image":
            return Kind(poisoned(comment), modality, "image/jpeg", CODES[comment])
        case "text":
            text = f"poison: {comment} and more words"
            return Kind(text.encode(), modality, "text/plain", CODES[comment])
        case "audio":
            samples = (make_clip(1.0, channels=1)[:, 0] * 2**15).astype("<i2")
            mark = f"poison: {comment} ".ljust(20).encode()
            samples[: len(mark) // 2] = np.frombuffer(mark, "<i2")
            file = io.BytesIO()
            soundfile.write(file, samples, 16_000, format="WAV")
            return Kind(file.getvalue(), modality, "audio/wav", CODES[comment])


@pytest.mark.parametrize(
    "cases", [ONE_OF_EACH, pytest.param(OTHERS, marks=pytest.mark.long)], ids=["one", "others"]
)
def test_a_poisonous_message_fails_alone_and_a_picture_is_decoded_once_for_two_models(
    spark: SparkSession, topic: Topic, tmp_path: Path, mix: Mix, cases: Sequence[Case]
) -> None:
    kinds = {f"{modality}-{comment}": poison(modality, comment) for modality, comment in cases}
    notes = [tmp_path / "scratch" / f"note-{number}" for number in range(PICTURES)]
    notes[0].parent.mkdir()
    pictures = {path.name: poisoned(f"note {path}") for path in notes}
    good = {"text": b"a good text", "audio": mix.kinds["audio-flac_16"].value}
    values = {**pictures, **good, **{name: kind.value for name, kind in kinds.items()}}
    # Poisons are in the middle of others.
    topic.send(OutgoingMessage(name, values[name]) for name in sorted(values, key=hash_of))

    def expect(key: str) -> Outcomes:
        if key not in kinds:
            return mix.core.embed(values[key])
        code, kind = kinds[key].code, kinds[key].media_type
        assert code
        assert kind
        digest = hashlib.sha256(values[key] or b"").hexdigest()
        return tuple(
            Failure(code, Stage.DECODE, "", digest, Media(kind), model_id)
            for model_id in mix.core.find_models(kinds[key])
        )

    stream = MixedStream.mixed(spark, topic, tmp_path, mix)
    settings = ["decode.timeout_s=8", "kafka.max_offsets_per_trigger=100"]
    paths = os.pathsep.join([str(POISON), stream.python_path])
    with stream.run(*settings, until="drained", environment={"PYTHONPATH": paths}) as driver:
        output, _ = driver.communicate(timeout=240)

    assert driver.returncode == 0, output
    rows = check_messages(stream.table, topic.positions(), expect, tolerance=CAREFUL)
    models = Counter(row["image_id"] for row in rows.values())
    for path in notes:
        assert models[path.name] == 2
        # A worker that decoded it may have ended after that; then another process did so again.
        processes = path.read_text().splitlines()
        assert len(processes) == len(set(processes)) > 0


def hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
