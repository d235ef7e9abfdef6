"""The one model of all peers: torchvision's ResNet-50 without its head, with seeded weights.

ImagePreprocessing is the one that the weights' documentation states
(https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.resnet50.html).
"""

from __future__ import annotations

import io
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from protocol import Precision

_transforms = ResNet50_Weights.IMAGENET1K_V2.transforms()


def architecture(precision: Precision) -> nn.Module:
    model = resnet50(weights=None)
    model.fc = nn.Identity()
    return model.to(torch.bfloat16 if precision == "bfloat16" else torch.float32).eval()


def load_model(precision: Precision) -> nn.Module:
    torch.manual_seed(0)
    return architecture(precision)


def preprocess(content: bytes) -> Tensor:
    """JPEG bytes to the model's input: float32, 3 x 224 x 224."""
    return cast(Tensor, _transforms(Image.open(io.BytesIO(content)).convert("RGB")))


@torch.inference_mode()
def embed(model: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """A batch of preprocessed images to a batch of embeddings."""
    output: Tensor = model(images.to(next(model.parameters()).dtype))
    return output.float().numpy()
