"""Small text and image-text models in folders, always the same ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from embedstream_core.media.modality import Sample
from embedstream_core.media.text.modality import TEXT
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.files.file_formats import PROGRAMS, open_program
from embedstream_core.settings import DecodeSettings

HIDDEN = 16
POSITIONS = 24
SIDE = 32
TEXTS = (
    "the quick brown fox",
    "a",
    "Über den Wolken, it's 7 o'clock!",
    "one text that is much longer than the others and so is cut at the end of its tokens",
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_SIZES = {"hidden_size": HIDDEN, "intermediate_size": 32, "num_attention_heads": 2}

Vectors = npt.NDArray[np.float32]


def make_tokenizer(**settings: Any) -> Any:
    """Return a tokenizer of transformers whose tokens are single characters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(33, 127)]
    words = [*_SPECIAL, *characters, *(f"##{one}" for one in characters)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token"), _SPECIAL, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(names), **settings)


def spread(model: nn.Module) -> Any:
    """Add noise to the weights: with its initial ones, a network hardly tells texts apart."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_bert(folder: Path, **settings: Any) -> Path:
    """Write a plain folder of transformers, without anything of sentence-transformers."""
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer(**settings)
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, num_hidden_layers=2, **_SIZES
    )
    return save(spread(BertModel(config)), folder, tokenizer)


def save(model: Any, folder: Path, *others: Any) -> Path:
    for each in (model, *others):
        each.save_pretrained(folder)
    return folder


def save_sentence_model(folder: Path, *modules: Any, **settings: Any) -> Path:
    """Write a folder of sentence-transformers: BERT, and the modules after it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

    bert = Transformer(str(save_bert(folder / "bert")), max_seq_length=20)
    SentenceTransformer(modules=[bert, *modules], **settings).save(str(folder / "whole"))
    return folder / "whole"


def save_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = make_tokenizer(model_max_length=POSITIONS, eos_token="[SEP]")
    text, vision = describe_halves(tokenizer)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    size = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    return save(spread(CLIPModel(config)), folder, tokenizer, processor)


def save_siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    # A padding token that is not 0: the model sees it.
    tokenizer = make_tokenizer(model_max_length=POSITIONS, eos_token="[SEP]")
    tokenizer.pad_token = "~"
    text, vision = describe_halves(tokenizer)
    config = SiglipConfig(text_config=text, vision_config=vision)
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    return save(spread(SiglipModel(config)), folder, tokenizer, processor)


def describe_halves(tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    layers = {**_SIZES, "num_hidden_layers": 2}
    text = {
        **layers,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": POSITIONS,
        "projection_dim": 12,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    return text, {**layers, "image_size": SIDE, "patch_size": 8, "projection_dim": 12}


def change_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def bind_minilm() -> TextPreprocessing:
    """Return the preprocessing of the encoder `minilm` with its real tokenizer."""
    from embedstream_core.models.folders import tokenizer_files

    find = PROGRAMS["minilm"].default
    assert find is not None
    return tokenizer_files.bind_tokenizer(TextPreprocessing(256), find())


def load(folder: Path, encoder: str = "huggingface") -> tuple[nn.Module, TextPreprocessing]:
    """Pack a folder; return its network and its bound preprocessing of texts."""
    program = PROGRAMS[encoder]
    packed = folder.parent / f"{folder.name}.packed"
    packed.write_bytes(program.pack(folder))
    inputs = program.read_inputs(folder, None)
    (text,) = [each for each in inputs if isinstance(each, TextPreprocessing)]
    bound = program.bind(text, packed)
    assert isinstance(bound, TextPreprocessing)
    return open_program(encoder, packed), bound


def tokenize(text: str, preprocessing: TextPreprocessing) -> Sample:
    content, settings = text.encode(), DecodeSettings()
    header = TEXT.identify(content, settings)
    (sample,) = TEXT.decode(content, header, [preprocessing], settings)
    return sample


@torch.inference_mode()
def forward_texts(
    model: nn.Module, preprocessing: TextPreprocessing, texts: Sequence[str]
) -> Vectors:
    """Embed the texts in one forward pass, so that all but the longest are padded."""
    parts = [tokenize(text, preprocessing).parts[0] for text in texts]
    output: torch.Tensor = model(*map(torch.from_numpy, TEXT.collate(parts)))
    return output.numpy()


def embed_texts(folder: Path, texts: Sequence[str] = TEXTS, *, query: bool = False) -> Vectors:
    """Pack, load and bind a folder, and embed texts with it."""
    model, preprocessing = load(folder)
    if query:
        preprocessing = replace(preprocessing, prefix=preprocessing.query_prefix)
    return forward_texts(model, preprocessing, texts)
