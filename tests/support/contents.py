"""Contents of every modality for the tests of the doors, and the encoders that embed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from clips import encode_clip, make_clip, make_file
from embedstream import EncoderConfig
from pictures import encoded
from small_text_models import save_clip

__all__ = [
    "CLIPS",
    "COLOURS",
    "MINILM",
    "SPEECH",
    "TEXTS",
    "colour_picture",
    "image_text_encoder",
    "save_colour_model",
]

MINILM = EncoderConfig(name="minilm", precision="float32")
SPEECH = EncoderConfig(name="speech-embedding")

TEXTS = {
    "gzip.txt": "Open a gzip-compressed file in binary or text mode.",
    "socket.txt": "Wait until one of the sockets is ready to be read or written.",
    "tower.txt": "The Eiffel Tower is 330 metres tall, Straßenbahn und Bäume inbegriffen.",
}

CLIPS = {
    "short.wav": make_file("pcm_16"),
    "long.flac": encode_clip(make_clip(2.5, seed=1), "flac_16"),
    "low.ogg": encode_clip(
        make_clip(1.5, rate_hz=8_000, channels=1, seed=2), "vorbis", rate_hz=8_000
    ),
    "loud.mp3": encode_clip(2 * make_clip(1.2, seed=3), "mp3"),
}

COLOURS = {"red": (250, 20, 20), "green": (20, 200, 30), "blue": (10, 30, 240)}


def colour_picture(name: str) -> bytes:
    """Return a PNG of one colour."""
    return encoded(Image.new("RGB", (48, 40), COLOURS[name]))


def save_colour_model(folder: Path) -> Path:
    """Write a small CLIP in which the word for a colour has the vector of a picture of it.

    Each half's projection is solved for that: the first colour is to become the first unit vector,
    and so on.
    """
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    save_clip(folder)
    model: Any = CLIPModel.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor: Any = CLIPImageProcessor.from_pretrained(folder)
    pictures = [Image.new("RGB", (48, 40), colour) for colour in COLOURS.values()]
    wanted = torch.eye(len(COLOURS), model.config.projection_dim)
    with torch.inference_mode():
        pixels = processor(pictures, return_tensors="pt")["pixel_values"]
        seen = model.vision_model(pixel_values=pixels).pooler_output
        read = torch.cat(
            [
                model.text_model(**tokenizer(word, return_tensors="pt")).pooler_output
                for word in COLOURS
            ]
        )
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.linalg.lstsq(seen.clone(), wanted).solution.T)
        model.text_projection.weight.copy_(torch.linalg.lstsq(read.clone(), wanted).solution.T)
    model.save_pretrained(folder)
    return folder


def image_text_encoder(folder: Path) -> EncoderConfig:
    """Return the settings for a model of images and texts in a folder."""
    return EncoderConfig(name="huggingface", weights=str(folder), precision="float32")
