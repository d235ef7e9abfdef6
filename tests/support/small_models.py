"""Small models of every family of encoders, always the same ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.card import PreparedModel
from embedstream_core.models.prepare import ModelSpec, load_prepared

# Keras reads it at import; set here, it holds for all tests of a process.
os.environ.setdefault("KERAS_BACKEND", "torch")

SIDE = 32
DECLARED = ImagePreprocessing(40, SIDE, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

Vectors = npt.NDArray[np.float32]


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    """Return images with large areas of one colour: a small network cannot tell noise apart."""
    random = np.random.default_rng(0)
    coarse = random.integers(256, size=(count, 4, 4, 3), dtype=np.uint8)
    return list(coarse.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2))


def load_network(model: PreparedModel) -> nn.Module:
    """Return the network of a prepared model."""
    return load_prepared(model).network


@torch.inference_mode()
def forward(model: nn.Module) -> Vectors:
    images = (torch.from_numpy(np.stack(pictures(16))) / 255).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (DECLARED.mean, DECLARED.std))
    output: torch.Tensor = model((images - mean) / std)
    return output.numpy()


def small_network() -> nn.Module:
    """Return a network that gives vectors of 8 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)).eval()


def network_and_preprocessing() -> tuple[nn.Module, ImagePreprocessing]:
    return small_network(), DECLARED


# One function for each family: it makes a small model in a folder and returns its spec.


def torchvision_model(folder: Path) -> ModelSpec:
    return ModelSpec("resnet18", "random", preprocessing=DECLARED)


def timm_model(folder: Path) -> ModelSpec:
    return ModelSpec("timm/mobilenetv3_small_050", "random", preprocessing=DECLARED)


def own_model(folder: Path) -> ModelSpec:
    return ModelSpec("mine:network_and_preprocessing")


def onnx_model(folder: Path) -> ModelSpec:
    save_onnx(folder / "mine.onnx")
    return ModelSpec("onnx", str(folder / "mine.onnx"), preprocessing=DECLARED)


def save_onnx(
    path: Path, *, batch: str | int = "batch", order: str = "NCHW", side: int = SIDE
) -> None:
    """Write a convolution and a mean with ONNX's own tools."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    random = np.random.default_rng(0)
    kernel = random.normal(size=(8, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["features"]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vectors"]),
    ]
    shape: list[str | int] = [batch, 3, side, side]
    source = "images"
    if order == "NHWC":
        shape, source = [batch, side, side, 3], "pictures"
        nodes.insert(0, helper.make_node("Transpose", [source], ["images"], perm=[0, 3, 1, 2]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, [batch, 8])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save_model(model, path)


def keras_model(folder: Path) -> ModelSpec:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu"),
            layers.BatchNormalization(),
            layers.GlobalAveragePooling2D(),
        ]
    )
    model.save(folder / "mine.keras")
    return ModelSpec("keras", str(folder / "mine.keras"), preprocessing=DECLARED)


def huggingface_model(folder: Path) -> ModelSpec:
    save_vit(folder / "mine")
    return ModelSpec("huggingface", str(folder / "mine"))


def save_vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    config = ViTConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    model = ViTModel(config).eval()
    # With its initial weights, the layers hardly tell images apart.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    settings = {
        "do_resize": True,
        "size": {"shortest_edge": 40},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": DECLARED.mean,
        "image_std": DECLARED.std,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
