"""The systems that the benchmark for GPUs measures: one for each set of switches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import torch

from embedstream_core.engine.engine import Engine
from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import open_image
from embedstream_core.media.image.fast_jpeg import render_quickly
from embedstream_core.media.image.gpu_jpeg import BatchDecoder
from embedstream_core.media.image.opened_image import Pixels
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.model_id import Precision
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.pipeline.decode_threads import InProcessDecoder
from embedstream_core.pipeline.jpeg_batches import open_batch_decoder
from embedstream_core.pipeline.pipeline import Pipeline
from embedstream_core.pipeline.watchdog import Watchdog
from embedstream_core.settings import (
    Backend,
    DecodeDevice,
    DecodeSettings,
    GpuSettings,
    PipelineLimits,
)

__all__ = ["SWITCHES", "Run", "Switches", "open_run"]


@dataclass(frozen=True)
class Switches:
    """How the pipeline runs: `encoder.gpu`, `encoder.backend` and `decode.device`."""

    gpu: GpuSettings = field(default_factory=GpuSettings)
    backend: Backend = "torch"
    decode_device: DecodeDevice = "cpu"

    @property
    def decode(self) -> DecodeSettings:
        """The settings of decoding."""
        return DecodeSettings(device=self.decode_device)


_OVERLAPPED = GpuSettings(pinned_memory=True, in_flight=2)
_GRAPHS = GpuSettings(pinned_memory=True, in_flight=2, cuda_graphs=True)

SWITCHES: Mapping[str, Switches] = {
    "off": Switches(),
    "pinned": Switches(GpuSettings(pinned_memory=True)),
    "in-flight": Switches(_OVERLAPPED),
    "graphs": Switches(_GRAPHS),
    "compile": Switches(_OVERLAPPED, backend="compile"),
    "gpu-decode": Switches(_GRAPHS, decode_device="cuda"),
}
"""Each adds to those before it; `compile` takes the place of `graphs`."""


@dataclass(frozen=True)
class Run:
    """A system that is measured: an engine and what decodes for it."""

    switches: Switches
    engine: Engine
    preprocessing: ImagePreprocessing
    batch_decoder: BatchDecoder | None

    @contextmanager
    def open_decoder(self, threads: int) -> Iterator[tuple[Callable[[bytes], Pixels], int]]:
        """Yield what decodes one image, and how many threads have to call it."""
        settings, preprocessing = self.switches.decode, self.preprocessing
        if self.batch_decoder is None:

            def decode(content: bytes) -> Pixels:
                return render_quickly(content, open_image(content, settings), preprocessing)[0]

            yield decode, threads
            return
        decoder = InProcessDecoder(
            inputs={"image": (preprocessing,)},
            settings=settings,
            limits=PipelineLimits(),
            threads=threads,
            watchdog=Watchdog(),
            batch_decoder=self.batch_decoder,
        )
        with closing(decoder):
            yield (
                lambda content: decoder.decode(content, "image")[0].parts[0],
                threads + decoder.waiting,
            )

    def build_pipeline(self, *, decode_threads: int, rows: int) -> Pipeline:
        """Build the pipeline of a task, which reads `rows` rows ahead of the model."""
        return Pipeline(
            [self.engine],
            fetch=_refuse,
            limits=PipelineLimits(decode_threads=decode_threads, rows=rows),
            decode_settings=self.switches.decode,
            batch_decoder=self.batch_decoder,
        )


def _refuse(uri: str) -> bytes:
    raise AssertionError(f"there are no references, such as {uri}")


def open_run(
    switches: Switches, device: torch.device, *, precision: Precision, batch_size: int | None
) -> Run:
    """Start ResNet-50 with random weights, which are as fast as trained ones.

    Raises:
        SetupError: the switches need a GPU, or it cannot decode.
        RuntimeError: torch.compile fails, for example without a compiler.
    """
    needs_gpu = switches.gpu.cuda_graphs or switches.decode_device == "cuda"
    if needs_gpu and device.type != "cuda":
        raise SetupError("it needs an NVIDIA GPU")
    batch_decoder = open_batch_decoder(switches.decode, [device])
    encoder = find_encoder("resnet50")
    torch.manual_seed(0)
    model = encoder.build()
    encoder.cut(model)
    preprocessing = encoder.default_weights.preprocessing
    assert preprocessing is not None
    engine = Engine.start(
        LoadedModel(model.eval(), (preprocessing,)),
        device=device,
        precision=precision,
        backend=switches.backend,
        gpu=switches.gpu,
        batch_size=batch_size,
    )
    return Run(switches, engine, preprocessing, batch_decoder)
