"""Training a classifier on an encoder: one process of several that share the work.

The encoder's body keeps its place in the network, a new linear head gives the classes, and the last
blocks of the body change with it. What comes out is a state dict that `prepare_model` takes.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from embedstream_core.atomic_files import open_draft
from embedstream_core.errors import SetupError
from embedstream_core.media.image.decode import Preprocessing
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.prepare import ModelCard
from embedstream_core.models.probe import probe_pictures
from embedstream_core.training.examples import Source

__all__ = [
    "Epoch",
    "Trainable",
    "TrainingSettings",
    "finished_epochs",
    "process_group",
    "train",
    "trained_blocks",
    "trained_tensors",
]

Trainable = Literal["head", "last_blocks", "all"]

# Trained layers need a tenth of what the new head needs: at its rate they would forget.
_BODY_RATE = 0.1
_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How an encoder is trained.

    `trainable` says what changes beside the new head: the `last_blocks`, so many as `blocks` says,
    `all` of the body, or nothing, with `head`: then the embeddings stay as they were.
    `batch_size` is the pictures of one process in a step; `learning_rate` the head's highest, of
    which the body has a tenth. `held_out` is the part of the pictures that only judges.

    Raises:
        SetupError: a number is out of its range.
    """

    trainable: Trainable = "last_blocks"
    blocks: int = 3
    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("blocks", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise SetupError(f"{name} is {getattr(self, name)}; it is 1 or more")
        if not 0 < self.held_out < 1:
            raise SetupError(f"held_out is {self.held_out}; it is between 0 and 1")
        if self.learning_rate <= 0:
            raise SetupError(f"learning_rate is {self.learning_rate}; it is more than 0")
        if self.trainable not in ("head", "last_blocks", "all"):
            raise SetupError(f"trainable is '{self.trainable}'; it is head, last_blocks or all")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch came to.

    `loss` is the mean of its steps, `accuracy` the part of the `judged` held-out pictures that it
    names rightly. `rows` are the pictures that each process trained on, by rank; `skipped` those of
    all processes that cannot be decoded, by error code.
    """

    number: int
    loss: float
    accuracy: float
    judged: int
    rows: tuple[int, ...]
    skipped: Mapping[str, int]
    seconds: float


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, with its environment."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def trained_blocks(
    body: nn.Module, preprocessing: Preprocessing, settings: TrainingSettings
) -> list[str]:
    """The names of the modules that are trained; an empty name is the body itself.

    A block is a child module with parameters that the output depends on. One that holds more than
    half of them all is no block, but made of its own children: ResNet-18 ends in `layer3`,
    `layer4.0` and `layer4.1`.

    Raises:
        SetupError: the output depends on no parameter in a way that can be trained.
    """
    used = _used_parameters(body, preprocessing)
    if settings.trainable == "head":
        return []
    if not used:
        raise SetupError(
            f"{type(body).__name__} has no parameter that can be trained; choose trainable 'head' "
            "or another encoder"
        )
    if settings.trainable == "all":
        return [""]
    sizes = {name: p.numel() for name, p in body.named_parameters() if name in used}
    return list(_blocks(body, "", sizes))[-settings.blocks :]


def train(
    card: ModelCard,
    body: nn.Module,
    *,
    training: Source,
    held_out: Source,
    classes: int,
    settings: TrainingSettings,
    checkpoint: Path,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> None:
    """Train in this process of a group, from the last whole epoch on to the last one.

    The sources are this process's shares. Each process calls it with the same settings; the first
    writes the checkpoint after each epoch, whole or not at all. With equal settings, shares and
    processes the result is the same, be it interrupted or not, as far as the device computes alike.

    Raises:
        SetupError: no picture of a share can be decoded.
    """
    trainer = _Trainer(card, body, training, held_out, classes, settings, device)
    done = trainer.resume(checkpoint)
    for number in range(len(done) + 1, settings.epochs + 1):
        epoch = trainer.epoch(number)
        done.append(epoch)
        if distributed.get_rank() == 0:
            _save(checkpoint, trainer.state() | {"epochs": [asdict(one) for one in done]})
            on_epoch(epoch)
    # Nobody leaves before the checkpoint is there.
    distributed.barrier()


def finished_epochs(checkpoint: Path) -> list[Epoch]:
    """The whole epochs of a checkpoint; none where there is no file."""
    return _epochs(_load(checkpoint)) if checkpoint.exists() else []


def trained_tensors(checkpoint: Path, card: ModelCard) -> bytes:
    """The network of a checkpoint in safetensors format: the body, and the head under its name."""
    state = _load(checkpoint)
    encoder = find_encoder(card.encoder)
    head = encoder.cut(encoder.build())
    named_head = {f"{head}.{name}": tensor for name, tensor in state["head"].items()}
    tensors = {name: tensor.contiguous() for name, tensor in (state["body"] | named_head).items()}
    return safetensors.torch.save(tensors)


class _Normalize(nn.Module):
    """uint8 of shape (n, side, side, 3) to float32 of shape (n, 3, side, side)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        normalized = (pixels.float() / 255 - self.mean) / self.std
        return normalized.permute(0, 3, 1, 2)


class _Trainer:
    """The network, its optimizer, and this process's share."""

    def __init__(
        self,
        card: ModelCard,
        body: nn.Module,
        training: Source,
        held_out: Source,
        classes: int,
        settings: TrainingSettings,
        device: torch.device,
    ) -> None:
        self._settings, self._device = settings, device
        self._rank = distributed.get_rank()
        torch.manual_seed(settings.seed)
        self._head = nn.Linear(card.dimension, classes).to(device)
        # Its tensors may be mapped to a file, which stays as it is.
        self._body = copy.deepcopy(body).to(device).to(memory_format=torch.channels_last)
        self._blocks = _open_blocks(self._body, card.preprocessing, settings)
        encoder = nn.Sequential(_Normalize(card.preprocessing), self._body).to(device)
        if settings.trainable == "head":
            # The body gives the same at each epoch.
            training, held_out = (
                _Features.of(encoder, source, card.dimension, settings.batch_size, device)
                for source in (training, held_out)
            )
            self._network: nn.Module = self._head
        else:
            self._network = nn.Sequential(encoder, self._head)
        self._network.eval()
        self._training, self._held_out = training, held_out
        self._parallel = DistributedDataParallel(
            self._network, device_ids=[device] if device.type == "cuda" else None
        )
        self._steps = math.ceil(max(_gathered(training.rows)) / settings.batch_size)
        self._optimizer, self._schedule = self._optimization()

    def _optimization(self) -> tuple[AdamW, LambdaLR]:
        rate = self._settings.learning_rate
        body = [one for one in self._body.parameters() if one.requires_grad]
        groups = [(list(self._head.parameters()), rate), (body, rate * _BODY_RATE)]
        optimizer = AdamW(
            [{"params": parameters, "lr": highest} for parameters, highest in groups if parameters],
            weight_decay=self._settings.weight_decay,
        )
        steps = self._settings.epochs * self._steps
        return optimizer, LambdaLR(optimizer, lambda step: _warmed_cosine(step, steps))

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def resume(self, checkpoint: Path) -> list[Epoch]:
        """Take up the state of a checkpoint, if there is one, as the first process reads it."""
        found = [_load(checkpoint) if self._rank == 0 and checkpoint.exists() else None]
        distributed.broadcast_object_list(found, src=0)
        if (state := found[0]) is None:
            return []
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        return _epochs(state)

    def epoch(self, number: int) -> Epoch:
        started = time.perf_counter()
        # Anew for each epoch, so that one after a resumption is the one that would have been.
        seed = [self._settings.seed, number, self._rank]
        random = np.random.default_rng(seed)
        torch.manual_seed(int(random.integers(2**63)))
        skipped: Counter[str] = Counter()
        _set_training(self._blocks)
        losses = [self._step(*batch) for batch in self._batches(random, skipped)]
        rows = self._training.rows - skipped.total()
        right, judged = self._judge(skipped)
        gathered = _gathered((float(np.mean(losses)), rows, dict(skipped), right, judged))
        all_losses, all_rows, all_skipped, all_right, all_judged = zip(*gathered, strict=True)
        return Epoch(
            number=number,
            loss=sum(all_losses) / len(all_losses),
            accuracy=sum(all_right) / max(1, sum(all_judged)),
            judged=sum(all_judged),
            rows=all_rows,
            skipped=dict(sum(map(Counter, all_skipped), Counter[str]())),
            seconds=round(time.perf_counter() - started, 2),
        )

    def _batches(
        self, random: np.random.Generator, skipped: Counter[str]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As many whole batches as the process with the most pictures needs: all step together.

        One with fewer begins its share anew.
        """
        size = self._settings.batch_size
        inputs = _repeated(self._training, random, skipped)
        return _stacked(islice(inputs, self._steps * size), size, self._device)

    def _step(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        loss = nn.functional.cross_entropy(self._parallel(inputs), labels)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._schedule.step()
        return loss.item()

    @torch.inference_mode()
    def _judge(self, skipped: Counter[str]) -> tuple[int, int]:
        """Right answers, and all, among the held-out pictures of this share."""
        self._network.eval()
        right = judged = 0
        inputs = self._held_out.read(None, skipped)
        for batch, labels in _stacked(inputs, self._settings.batch_size, self._device):
            right += int((self._network(batch).argmax(1) == labels).sum())
            judged += len(labels)
        return right, judged

    def _parts(self) -> dict[str, Any]:
        return {
            "body": self._body,
            "head": self._head,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
        }


@dataclass(frozen=True, slots=True)
class _Features:
    """What a body that does not change gives for each picture, on disk until the process ends."""

    vectors: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    unreadable: Counter[str]

    @classmethod
    def of(
        cls,
        encoder: nn.Module,
        source: Source,
        dimension: int,
        batch_size: int,
        device: torch.device,
    ) -> _Features:
        rows, skipped = source.rows, Counter[str]()
        vectors = _scratch((max(1, rows), dimension))
        labels = np.zeros(rows, np.int64)
        done = 0
        encoder.eval()
        with torch.inference_mode():
            for batch, of_batch in _stacked(source.read(None, skipped), batch_size, device):
                end = done + len(batch)
                vectors[done:end] = encoder(batch).float().cpu().numpy()
                labels[done:end] = of_batch.cpu().numpy()
                done = end
        return cls(vectors[:done], labels[:done], skipped)

    @property
    def rows(self) -> int:
        return len(self.labels) + self.unreadable.total()

    def read(
        self, random: np.random.Generator | None, skipped: Counter[str]
    ) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
        skipped.update(self.unreadable)
        many = len(self.labels)
        for index in range(many) if random is None else random.permutation(many):
            yield self.vectors[index], int(self.labels[index])


def _scratch(shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, mode="w+", shape=shape)


def _repeated(
    source: Source, random: np.random.Generator, skipped: Counter[str]
) -> Iterator[tuple[npt.NDArray[Any], int]]:
    """A share over and over; what is skipped counts once."""
    for reading in count():
        empty = True
        for read in source.read(random, skipped if reading == 0 else Counter()):
            empty = False
            yield read
        if empty:
            raise SetupError(
                f"none of the {source.rows} pictures of one process can be decoded "
                f"({dict(skipped)}): look at the column of images, or use fewer processes"
            )


def _warmed_cosine(step: int, steps: int) -> float:
    """The part of the highest rate: up in the first tenth, then down along a cosine."""
    warmed = (step + 1) / max(1.0, steps * _WARM_UP)
    return min(1.0, warmed) * (1 + math.cos(math.pi * step / steps)) / 2


def _stacked(
    inputs: Iterable[tuple[npt.NDArray[Any], int]], size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    remaining = iter(inputs)
    while batch := list(islice(remaining, size)):
        arrays, labels = zip(*batch, strict=True)
        yield torch.from_numpy(np.stack(arrays)).to(device), torch.tensor(labels).to(device)


def _open_blocks(
    body: nn.Module, preprocessing: Preprocessing, settings: TrainingSettings
) -> list[nn.Module]:
    """Let the trained blocks have gradients, and nothing else of the body."""
    names = trained_blocks(body, preprocessing, settings)
    used = _used_parameters(body, preprocessing) if names else set()
    body.requires_grad_(False)
    blocks = [body.get_submodule(name) for name in names]
    trained = {id(parameter) for block in blocks for parameter in block.parameters()}
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name in used and id(parameter) in trained)
    return blocks


def _set_training(blocks: Iterable[nn.Module]) -> None:
    """All but batch norms, which keep the statistics of far more pictures than are trained on here.

    With their own, EfficientNet-Lite0 named 18 % of digits rightly after two short epochs.
    """
    for module in (module for block in blocks for module in block.modules()):
        module.training = not hasattr(module, "running_mean")


def _used_parameters(body: nn.Module, preprocessing: Preprocessing) -> set[str]:
    """Those that the output depends on: some networks have heads for their first training only."""
    body.eval().requires_grad_(True)
    device = next((one.device for one in body.parameters()), torch.device("cpu"))
    pixels = torch.from_numpy(probe_pictures(preprocessing.crop_px)).to(device)
    output: torch.Tensor = body(_Normalize(preprocessing).to(device)(pixels))
    if output.requires_grad:
        output.square().sum().backward()  # type: ignore[no-untyped-call]
    used = {name for name, one in body.named_parameters() if one.grad is not None}
    body.zero_grad(set_to_none=True)
    return used


def _blocks(module: nn.Module, name: str, sizes: Mapping[str, int]) -> Iterator[str]:
    half = sum(sizes.values()) / 2
    for child_name, child in module.named_children():
        path = f"{name}{child_name}"
        size = sum(many for key, many in sizes.items() if key.startswith(f"{path}."))
        if size > half and any(True for _ in child.children()):
            yield from _blocks(child, f"{path}.", sizes)
        elif size:
            yield path


def _gathered(value: Any) -> list[Any]:
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _save(checkpoint: Path, state: Mapping[str, Any]) -> None:
    with open_draft(checkpoint) as draft:
        torch.save(state, draft)
    Path(draft.name).replace(checkpoint)


def _load(checkpoint: Path) -> dict[str, Any]:
    return cast("dict[str, Any]", torch.load(checkpoint, map_location="cpu", weights_only=True))


def _epochs(state: Mapping[str, Any]) -> list[Epoch]:
    return [Epoch(**epoch) for epoch in state["epochs"]]
