"""A model on a device: samples in, float32 vectors out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from embedstream_core.engine.backends import (
    BACKENDS,
    Forward,
    Placement,
    find_graph_obstacle,
    find_obstacle,
)
from embedstream_core.engine.passes import start_pass
from embedstream_core.engine.transfer import Finish
from embedstream_core.errors import SetupError, SystemicError
from embedstream_core.media.modalities import MODALITIES, Preprocessing
from embedstream_core.media.modality import Array, Sample
from embedstream_core.model_id import Precision
from embedstream_core.models.files.fixed_module import FixedModule
from embedstream_core.models.loaded import LoadedModel
from embedstream_core.models.probe import find_flaw, normalize_vectors
from embedstream_core.records import Vectors
from embedstream_core.settings import Backend, Device, GpuSettings, ModalityName, Normalization

__all__ = ["Engine", "choose_batch_size", "find_device"]

_log = logging.getLogger(__name__)

# Measured with ResNet-50: on a CPU 64 is slower than 16, whose activations stay in the cache. On an
# H100, in bfloat16 and with stacking and copies: 8,015 images/s with 64, 7,166 with 128, 6,874 with
# 256, 6,395 with 512. Those of audio are not measured.
_BATCH_SIZES: Mapping[str, Mapping[ModalityName, int]] = {
    "cpu": {"image": 16, "text": 64, "audio": 8},
    "cuda": {"image": 64, "text": 2048, "audio": 64},
}
# The most tokens of a forward pass over texts, padding included. all-MiniLM-L6-v2 on one core, with
# texts of 5 to 200 words: 44.6 ms a text with 512, 46 with 1,024, 49 with 4,096, and 60 with any 32
# texts. Short passes leave a second core idle, so this is not the least. A network of that size on
# an H100 in bfloat16, texts of 7 to 256 tokens, of 2,048 collected ones: 21,300 texts/s with 2**14,
# 37,500 with 2**16, 33,700 with 2**18; of 256 collected ones 24,800 with 2**16.
_MAX_TOKENS: Mapping[str, int] = {"cpu": 1024, "cuda": 2**16}
# Texts and clips have many lengths: so many are collected, of which those of similar length are
# embedded together, which keeps padding low.
_COLLECTED: Mapping[ModalityName, int] = {"image": 1, "text": 256, "audio": 64}

_ALL_OFF = GpuSettings()

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Engine:
    """A model ready to embed. Called from one thread at a time.

    `inputs` has the preprocessing of each modality that the model accepts; `batch_sizes` has the
    largest number of parts in one forward pass. `max_tokens` bounds the tokens of a forward pass
    over several texts, padding included; it is None if the user has set the batch size. At most
    `in_flight` forward passes of samples that were submitted together are unfinished at a time, and
    a caller may submit the next samples before it finishes the last.
    """

    forwards: Mapping[ModalityName, Forward]
    inputs: Mapping[ModalityName, Preprocessing]
    batch_sizes: Mapping[ModalityName, int]
    max_tokens: int | None
    device: torch.device
    normalize: Normalization
    model_id: str
    in_flight: int = 1

    @classmethod
    def start(
        cls,
        model: LoadedModel,
        *,
        device: torch.device,
        precision: Precision = "float32",
        normalize: Normalization = "none",
        backend: Backend = "torch",
        gpu: GpuSettings = _ALL_OFF,
        batch_size: int | None = None,
        cpu_threads: int | None = None,
        model_id: str = "",
    ) -> Engine:
        """Move a model to its device and precision, changing it in place.

        torch replaces a backend that this device cannot use, and switches of `gpu` that cannot be
        used are off; the log says so. `cpu_threads` bounds the threads of one forward pass on
        a CPU, for the whole process.

        Raises:
            SetupError: the backend cannot run the model.
        """
        inputs = {one.modality: one for one in model.inputs}
        is_fixed = isinstance(model.network, FixedModule)
        if reason := find_obstacle(backend, device, modalities=[*inputs], fixed=is_fixed):
            _log.warning("torch replaces the backend %s: %s", backend, reason)
            backend = "torch"
        gpu = _find_usable(gpu, backend, device, modalities=[*inputs], fixed=is_fixed)
        sizes = {one: batch_size or choose_batch_size(device, one) for one in inputs}
        forwards = {}
        for modality, preprocessing in inputs.items():
            placement = Placement(
                device=device,
                dtype=_DTYPES[precision],
                batch_size=sizes[modality],
                cpu_threads=cpu_threads,
                gpu=gpu,
            )
            branch = model.get_branch(modality)
            forwards[modality] = BACKENDS[backend](branch, preprocessing, placement)
        kind = "cpu" if device.type == "cpu" else "cuda"
        max_tokens = None if batch_size else _MAX_TOKENS[kind]
        return cls(forwards, inputs, sizes, max_tokens, device, normalize, model_id, gpu.in_flight)

    def count_collected(self, modality: ModalityName) -> int:
        """Return how many samples to collect before `embed` is called."""
        return max(self.batch_sizes[modality], _COLLECTED[modality])

    def embed(
        self,
        samples: Sequence[Sample],
        modality: ModalityName,
        *,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Vectors:
        """Embed samples of one modality.

        Returns float32 of shape (number of samples, dimension), in order: for each sample the mean
        of its parts' vectors, weighted by their lengths, and divided by its own length if
        `normalize` is l2. Parts of similar length share a forward pass, which `watch` encloses. If
        the device runs out of memory, the model batch is halved, down to one part.

        Raises:
            RuntimeError: not even one part fits, or the network itself fails.
            SystemicError: the GPU failed. Every later call in this process would fail too: CUDA
                keeps such an error until the process ends.
        """
        return self.submit(samples, modality, watch=watch)()

    def submit(
        self,
        samples: Sequence[Sample],
        modality: ModalityName,
        *,
        watch: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Finish:
        """Start to embed samples as `embed` does; call what is returned once, for their vectors.

        With `in_flight` 1 all forward passes are finished here. Otherwise `watch` encloses each
        start of a pass together with the wait for an earlier one, and then each wait for one of
        the last. Both calls raise the errors of `embed`.
        """
        parts = [part for sample in samples for part in sample.parts]
        lengths = np.array([len(part) for part in parts])
        order = np.argsort(lengths, kind="stable")
        started: deque[Finish] = deque()
        embedded: list[Vectors] = []
        for batch in self._cut_batches([parts[index] for index in order], modality):
            with watch():
                started.append(start_pass(self.forwards[modality], MODALITIES[modality], batch))
                if len(started) >= self.in_flight:
                    embedded.append(started.popleft()())

        def finish() -> Vectors:
            while started:
                with watch():
                    embedded.append(started.popleft()())
            vectors: Vectors = np.empty((len(parts), embedded[0].shape[1]), np.float32)
            vectors[order] = np.concatenate(embedded)
            return self._pool_parts(samples, vectors, lengths)

        return finish

    def _pool_parts(
        self, samples: Sequence[Sample], vectors: Vectors, lengths: npt.NDArray[np.int64]
    ) -> Vectors:
        """Return a vector for each sample, of those of its parts."""
        if len(vectors) > len(samples):
            starts = np.cumsum([0, *(len(sample.parts) for sample in samples[:-1])])
            weighted = np.add.reduceat(vectors * lengths[:, None], starts)
            total = np.add.reduceat(lengths, starts)
            vectors = (weighted / total[:, None]).astype(np.float32)
        # A vector without a direction becomes a failure.
        return normalize_vectors(vectors) if self.normalize == "l2" else vectors

    def _cut_batches(self, parts: Sequence[Array], modality: ModalityName) -> Iterator[list[Array]]:
        """Yield model batches of parts that are sorted by length."""
        max_tokens = self.max_tokens if modality == "text" else None
        batch: list[Array] = []
        for part in parts:
            # All parts of a batch are padded to its last, which is the longest.
            is_over = max_tokens is not None and (len(batch) + 1) * len(part) > max_tokens
            if batch and (is_over or len(batch) == self.batch_sizes[modality]):
                yield batch
                batch = []
            batch.append(part)
        yield batch

    def check(self) -> None:
        """Embed two samples of each modality that every encoder must distinguish.

        Raises:
            SystemicError: the model or the device is broken.
        """
        for modality, preprocessing in self.inputs.items():
            probes = MODALITIES[modality].make_probes(preprocessing)
            if flaw := find_flaw(self.embed(probes, modality), modality):
                raise SystemicError(
                    f"the encoder gives {flaw} on this device, though not where it was prepared; "
                    "try encoder.precision float32, or encoder.backend torch"
                )


def _find_usable(
    gpu: GpuSettings,
    backend: Backend,
    device: torch.device,
    *,
    modalities: Sequence[ModalityName],
    fixed: bool,
) -> GpuSettings:
    """Return the switches that this model and this device can use; log the others."""
    if device.type == "cpu":
        if gpu != _ALL_OFF:
            _log.warning("encoder.gpu is ignored: the model runs on a CPU")
        return _ALL_OFF
    reason = find_graph_obstacle(backend, modalities=modalities, fixed=fixed)
    if gpu.cuda_graphs and reason:
        _log.warning("encoder.gpu.cuda_graphs is ignored: %s", reason)
        return replace(gpu, cuda_graphs=False)
    return gpu


def find_device(device: Device, *, cuda_index: int = 0) -> torch.device:
    """Return the torch device; `auto` is CUDA if there is a GPU, else the CPU.

    Raises:
        SetupError: the device is `cuda`, and that GPU is not visible.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if device == "cuda" and cuda_index >= torch.cuda.device_count():
        raise SetupError(
            f"device is 'cuda', but GPU {cuda_index} of {torch.cuda.device_count()} is not "
            "visible; grant the executor one (spark.executor.resource.gpu.amount) or set "
            "encoder.device to auto or cpu"
        )
    return torch.device("cuda", cuda_index)


def choose_batch_size(device: torch.device, modality: ModalityName = "image") -> int:
    """Return the default number of parts in a model batch."""
    return _BATCH_SIZES["cpu" if device.type == "cpu" else "cuda"][modality]
