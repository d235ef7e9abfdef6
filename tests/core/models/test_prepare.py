"""Models prepared from a seed, a file or a package, and loaded again elsewhere."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from embedstream_core.errors import SetupError
from embedstream_core.media.audio.preprocessing import AudioPreprocessing
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.encoders.architecture import Encoder, PublishedWeights
from embedstream_core.models.encoders.catalog import find_encoder
from embedstream_core.models.prepare import ModelSpec, load_model, load_prepared, prepare_model

State = dict[str, torch.Tensor]

SMALL = ImagePreprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.inference_mode()
def vectors(model: nn.Module, side: int = 64) -> torch.Tensor:
    pictures = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    output: torch.Tensor = model(pictures)
    return output


# The contract of every family.


@pytest.mark.parametrize("name", ["resnet18", "timm/mobilenetv3_small_050", "efficientnet_lite0"])
def test_a_model_loads_as_it_was_prepared(name: str, tmp_path: Path) -> None:
    spec = ModelSpec(name, weights="random")
    prepared = prepare_model(spec)
    card = prepared.card
    path = tmp_path / "model.safetensors"
    path.write_bytes(prepared.tensors)
    here = vectors(load_prepared(prepared).network)
    there = vectors(load_model(card, path).network)
    # Not equal to the last bit: a tensor's alignment in memory chooses the kernel.
    torch.testing.assert_close(here, there)
    assert here.shape == (2, card.dimension)
    assert card.tensors_sha256 == sha256_of(path)
    encoder, weights, digest = card.model_id.rsplit("/", 2)
    assert (encoder, weights, len(digest)) == (name, "random-seed-0", 12)
    assert prepare_model(spec) == prepared


def test_random_weights_are_pinned_by_the_hash_in_their_model_id() -> None:
    (_, _, digest) = prepare_model(ModelSpec("resnet18", "random")).card.model_id.split("/")

    assert prepare_model(ModelSpec("resnet18", "random", sha256=digest)).card.model_id
    with pytest.raises(SetupError, match=r"random weights has sha256 .*, not 00000000"):
        prepare_model(ModelSpec("resnet18", "random", sha256="00000000"))


@pytest.mark.parametrize("encoder", ["resnet18", "regnet_y_400mf"])
def test_random_weights_leave_the_callers_seed_alone(encoder: str) -> None:
    """Also where the network cannot be built without memory, as regnet_y_400mf cannot."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    prepare_model(ModelSpec(encoder, weights="random"))
    assert torch.equal(torch.rand(3), expected)


def test_efficientnet_lite0_comes_with_its_weights() -> None:
    card = prepare_model(ModelSpec("efficientnet_lite0")).card
    assert card.model_id == "efficientnet_lite0/imagenet/579344248a93"
    assert (card.dimension, card.license) == (1280, "Apache-2.0")


def test_normalization_makes_another_model_of_the_same_tensors() -> None:
    plain = prepare_model(ModelSpec("resnet18", "random"))

    normalized = prepare_model(ModelSpec("resnet18", "random", normalize="l2"))

    assert normalized.tensors == plain.tensors
    assert (plain.card.normalize, normalized.card.normalize) == ("none", "l2")
    assert normalized.card.model_id == f"{plain.card.model_id}+l2"
    rounded = normalized.in_precision("bfloat16").card
    assert (rounded.model_id, rounded.normalize) == (f"{plain.card.model_id}+l2@bfloat16", "l2")


def test_a_declared_preprocessing_makes_another_model() -> None:
    spec = ModelSpec("efficientnet_lite0")
    published = prepare_model(spec).card
    declared = [
        prepare_model(replace(spec, preprocessing=replace(published.image, crop_px=size)))
        for size in (128, 160, 128)
    ]

    names = [model.card.model_id for model in declared]

    assert names[0] == names[2]
    assert len({published.model_id, *names}) == 3
    assert all(name.startswith(f"{published.model_id}-") for name in names)


def test_windows_that_leave_samples_out_are_refused() -> None:
    windows = AudioPreprocessing(16_000, 100, 200)
    with pytest.raises(SetupError, match="is wrong: hop_samples is at most window_samples, 100"):
        ModelSpec("huggingface").choose_inputs((windows,))


# Weights from files.


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = torchvision.models.regnet_y_400mf(weights=None)
    return model.eval()


@pytest.fixture(scope="module")
def expected(network: nn.Module) -> torch.Tensor:
    body = nn.Sequential(*list(network.children())[:-1], nn.Flatten())
    return vectors(body.eval())


def save_safetensors(state: State, path: Path) -> Path:
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_state(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def save_parallel_safetensors(state: State, path: Path) -> Path:
    return save_safetensors({f"module.{name}": state[name] for name in state}, path)


def save_lightning(state: State, path: Path) -> Path:
    prefixed = {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": prefixed}, path)
    return path


def save_ten_classes(state: State, path: Path) -> Path:
    head = {"fc.0.weight": torch.zeros(10, 440), "fc.0.bias": torch.zeros(10)}
    torch.save({**body_of(state), **head}, path)
    return path


def save_headless(state: State, path: Path) -> Path:
    torch.save(body_of(state), path)
    return path


def body_of(state: State) -> State:
    return {name: state[name] for name in state if not name.startswith("fc.")}


@pytest.mark.parametrize(
    "save",
    [
        save_safetensors,
        save_state,
        save_parallel_safetensors,
        save_lightning,
        save_ten_classes,
        save_headless,
    ],
)
def test_weights_come_from_a_file(
    save: Callable[[State, Path], Path],
    network: nn.Module,
    expected: torch.Tensor,
    tmp_path: Path,
) -> None:
    path = save(network.state_dict(), tmp_path / "mine.pth")
    sha256 = sha256_of(path)
    prepared = prepare_model(ModelSpec("regnet_y_400mf", weights=str(path), sha256=sha256))
    assert prepared.card.model_id == f"regnet_y_400mf/mine/{sha256[:12]}"
    found = vectors(load_prepared(prepared).network)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def densenet_as_published(state: State) -> State:
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)\.")
    return {pattern.sub(r"\1.\2.", name): tensor for name, tensor in state.items()}


def googlenet_as_published(state: State) -> State:
    return {**state, "aux1.fc1.weight": torch.zeros(2, 2), "aux2.conv.bn.bias": torch.zeros(2)}


def vit_as_once_published(state: State) -> State:
    names = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    return {**state, "heads.0.weight": torch.zeros(3, 8), "heads.head.weight": torch.zeros(3)}


def with_one_linear_head(state: State) -> State:
    body = {name: state[name] for name in state if not name.startswith("classifier.")}
    return {**body, "classifier.weight": torch.zeros(3, 4), "classifier.bias": torch.zeros(3)}


def unchanged(state: State) -> State:
    return state


def small_vit() -> Encoder:
    """A vision transformer of torchvision that is quick to make."""
    preprocessing = ImagePreprocessing(16, 16, "bilinear", (0, 0, 0), (1, 1, 1))
    weights = PublishedWeights("none", preprocessing, "none", "", lambda: Path())
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}
    build = partial(torchvision.models.VisionTransformer, image_size=16, patch_size=8, **sizes)
    return Encoder("vit", build, {"none": weights})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("densenet121", densenet_as_published),
        ("googlenet", googlenet_as_published),
        ("mnasnet0_5", unchanged),
        ("mobilenet_v2", with_one_linear_head),
        ("efficientnet_b0", with_one_linear_head),
        ("mine:small_vit", vit_as_once_published),
        ("timm/deit_tiny_distilled_patch16_224", unchanged),
        ("timm/convnext_atto", unchanged),
    ],
)
def test_weights_of_a_family_come_from_a_file(
    name: str, change: Callable[[State], State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    encoder = find_encoder(name)
    torch.manual_seed(1)
    model = encoder.build().eval()
    path = save_safetensors(change(model.state_dict()), tmp_path / "mine")
    # A transformer takes images of its own size only.
    preprocessing = None if "vit" in name or "deit" in name else SMALL

    prepared = prepare_model(ModelSpec(name, str(path), preprocessing=preprocessing))

    encoder.cut(model)
    side = prepared.card.image.crop_px
    found = vectors(load_prepared(prepared).network, side)
    torch.testing.assert_close(found, vectors(model, side), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_weights_of_another_precision_are_float32(
    kind: torch.dtype, network: nn.Module, expected: torch.Tensor, tmp_path: Path
) -> None:
    state = {
        name: tensor.to(kind) if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    prepared = prepare_model(
        ModelSpec("regnet_y_400mf", str(save_state(state, tmp_path / "mine.pth")))
    )
    found = vectors(load_prepared(prepared).network)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["best.ckpt", "model.pth.tar", "weights"])
def test_a_file_in_the_working_directory_is_a_file(
    name: str, network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_state(network.state_dict(), tmp_path / name)
    model_id = prepare_model(ModelSpec("regnet_y_400mf", name)).card.model_id
    assert model_id == f"regnet_y_400mf/{Path(name).stem}/{sha256_of(tmp_path / name)[:12]}"


# Errors are raised before anything runs.


def refused(path: Path, *, encoder: str = "regnet_y_400mf", sha256: str | None = None) -> str:
    with pytest.raises(SetupError) as caught:
        prepare_model(ModelSpec(encoder, weights=str(path), sha256=sha256))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_sha256_is_refused(network: nn.Module, tmp_path: Path) -> None:
    path = save_safetensors(network.state_dict(), tmp_path / "mine")
    message = refused(path, sha256="ab" * 32)
    assert "ab" * 32 in message
    assert sha256_of(path) in message


@pytest.mark.parametrize("save", [save_safetensors, save_state])
def test_a_truncated_file_is_refused(
    save: Callable[[State, Path], Path], network: nn.Module, tmp_path: Path
) -> None:
    path = save(network.state_dict(), tmp_path / "mine.pth")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is broken" in refused(path)


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "mine.pth", tmp_path / "marker"
    torch.save({"fc.weight": Exploit(marker)}, path)
    assert "holds more than tensors" in refused(path)
    assert not marker.exists()
    with pytest.raises(AttributeError):
        # Loading without the check runs the code, which makes the folder.
        torch.load(path, weights_only=False)["fc.weight"].shape  # noqa: B018
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mine.pth", "holds more than tensors"),
        ("mine.bin", "holds more than tensors"),
        ("mine.safetensors", "is broken"),
    ],
)
def test_a_plain_pickle_is_not_run(name: str, reason: str, tmp_path: Path) -> None:
    path, marker = tmp_path / name, tmp_path / "marker"
    # The protocol of torch.save: torch warns of any other.
    path.write_bytes(pickle.dumps({"fc.weight": Exploit(marker)}, protocol=2))
    assert reason in refused(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "are a folder: give the path of a file" in refused(tmp_path)


def test_weights_of_another_network_are_refused(network: nn.Module, tmp_path: Path) -> None:
    path = save_safetensors(network.state_dict(), tmp_path / "mine")
    assert "does not fit the encoder" in refused(path, encoder="resnet34")


def test_a_missing_name_is_neither_weights_nor_a_file() -> None:
    with pytest.raises(SetupError, match=r"unknown weights 'best' .* there is no such file"):
        prepare_model(ModelSpec("regnet_y_400mf", "best"))
    with pytest.raises(SetupError, match=r"the weights file 'best\.ckpt' cannot be read: No such"):
        prepare_model(ModelSpec("regnet_y_400mf", "best.ckpt"))


def test_an_incomplete_body_is_refused(network: nn.Module, tmp_path: Path) -> None:
    state = network.state_dict()
    del state["trunk_output.block4.block4-5.f.c.0.weight"]
    message = refused(save_state(state, tmp_path / "mine.pth"))
    assert "does not fit the encoder: it lacks trunk_output.block4.block4-5.f.c.0.weight" in message
    state = {**network.state_dict(), "layer5.weight": torch.ones(1)}
    message = refused(save_state(state, tmp_path / "more.pth"))
    assert "does not fit the encoder: it has also layer5.weight" in message


def test_a_head_that_is_kept_must_fit(network: nn.Module, tmp_path: Path) -> None:
    path = save_ten_classes(network.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(SetupError, match=r"lacks fc\.weight, fc\.bias and has also fc\.0\.weight"):
        prepare_model(ModelSpec("regnet_y_400mf", str(path), head="kept"))


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save([torch.zeros(3)], path)
    assert "holds no state dict" in refused(path)


def test_a_tampered_prepared_file_is_refused(tmp_path: Path) -> None:
    prepared: PreparedModel = prepare_model(ModelSpec("regnet_y_400mf", weights="random"))
    path = tmp_path / "model.safetensors"
    path.write_bytes(prepared.tensors[:-1] + bytes([prepared.tensors[-1] ^ 1]))
    with pytest.raises(SetupError, match=prepared.card.tensors_sha256):
        load_model(prepared.card, path)


def test_a_head_may_have_the_name_of_another_library(network: nn.Module, tmp_path: Path) -> None:
    state = {name: value for name, value in network.state_dict().items() if name[:3] != "fc."}
    body = save_state(state, tmp_path / "body.pth")
    tensors = prepare_model(ModelSpec("regnet_y_400mf", str(body), None, SMALL)).tensors
    for head in ("head", "classifier", "last_linear"):
        tuned = save_state({**state, f"{head}.weight": torch.ones(3, 440)}, tmp_path / "a.pth")
        assert (
            prepare_model(ModelSpec("regnet_y_400mf", str(tuned), None, SMALL)).tensors == tensors
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to(torch.int8),
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_quantized_complex_and_sparse_weights_are_refused(
    network: nn.Module, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    state = network.state_dict()
    state["stem.0.weight"] = change(state["stem.0.weight"])
    message = refused(save_state(state, tmp_path / "mine.pth"))
    assert "'stem.0.weight' as torch." in message
    assert "neither quantized nor sparse" in message


def test_a_file_of_torch_may_be_called_safetensors(network: nn.Module, tmp_path: Path) -> None:
    plain = save_state(network.state_dict(), tmp_path / "a.pth")
    other = save_state(network.state_dict(), tmp_path / "a.safetensors")
    one, two = (
        prepare_model(ModelSpec("regnet_y_400mf", path, None, SMALL))
        for path in (str(plain), f"file://{other}")
    )
    assert one.tensors == two.tensors


@pytest.mark.parametrize("weights", ["https://host/a.pth", "s3://bucket/a.pth", "dbfs:/a.pth"])
def test_weights_at_an_address_are_refused(weights: str) -> None:
    with pytest.raises(SetupError, match=rf"{weights}' is an address: download the file"):
        prepare_model(ModelSpec("regnet_y_400mf", weights))


_OWN = """
import random, torch
from torch import nn
from embedstream_core.media.image.preprocessing import ImagePreprocessing
class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = random.random()
    def forward(self, pictures):
        means = pictures.mean((2, 3))
        return {output}
def make():
    return Own(), ImagePreprocessing({preprocessing})
"""


@pytest.mark.parametrize(
    ("output", "preprocessing", "message"),
    [
        ("means * self.factor", "8, 8, 'bilinear', (0, 0, 0), (1, 1, 1)", "makes other vectors"),
        (
            "(means, means)",
            "8, 8, 'bilinear', (0, 0, 0), (1, 1, 1)",
            "gives tuple for two images, not two vectors",
        ),
        ("means[:, :0]", "8, 8, 'bilinear', (0, 0, 0), (1, 1, 1)", "not vectors of real numbers"),
        ("means * 1j", "8, 8, 'bilinear', (0, 0, 0), (1, 1, 1)", "not vectors of real numbers"),
        ("means", "8, 8, 'magic', (0, 0, 0), (1, 1, 1)", "interpolation is one of .* not 'magic'"),
        ("means", "8.0, 8, 'bilinear', (0, 0, 0), (1, 1, 1)", "whole numbers above 0"),
        ("means", "8, 8, 'bilinear', 0.5, (1, 1, 1)", "mean is three numbers, not 0.5"),
        ("means", "8, 8, 'bilinear', (0, 0, 0), (0, 1, 1)", "std is three numbers above 0"),
        ("means", "8, 8, 'bilinear', (0, 0, 0), (1, 1, 1), 'zoom'", "crop_mode is one of"),
    ],
)
def test_a_function_that_returns_nonsense_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    preprocessing: str,
    message: str,
) -> None:
    (tmp_path / "own_nonsense.py").write_text(
        _OWN.format(output=output, preprocessing=preprocessing)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nonsense", raising=False)
    with pytest.raises(SetupError, match=message):
        prepare_model(ModelSpec("own_nonsense:make"))


def test_a_module_without_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_lazy.py").write_text(
        "from torch import nn\n"
        "from embedstream_core.media.image.preprocessing import ImagePreprocessing\n"
        "def make():\n"
        "    own = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))\n"
        "    return own, ImagePreprocessing(8, 8, 'bilinear', (0, 0, 0), (1, 1, 1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SetupError, match=r"'1\.weight' of the network is not a tensor with values"):
        prepare_model(ModelSpec("own_lazy:make"))
