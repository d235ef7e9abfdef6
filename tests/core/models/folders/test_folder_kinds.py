"""What a folder holds is recognised from its files."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedstream_core.errors import SetupError
from embedstream_core.media.image.preprocessing import ImagePreprocessing
from embedstream_core.models.folders.folder_kinds import (
    bind_input,
    pack_folder,
    read_inputs,
    recognise_folder,
)
from small_models import DECLARED, save_vit
from small_text_models import change_json, save_bert, save_clip

BERT: dict[str, Any] = {"model_type": "bert", "vocab_size": 9}
VIT: dict[str, Any] = {"model_type": "vit", "image_size": 32}
BEIT: dict[str, Any] = {"model_type": "beit", "image_size": 32, "vocab_size": 9}
CLIP: dict[str, Any] = {"model_type": "clip", "text_config": {}, "vision_config": {}}


@pytest.mark.parametrize(
    ("config", "others", "kind"),
    [
        (BERT, ["tokenizer.json"], "text"),
        (BERT, ["tokenizer_config.json", "vocab.txt"], "text"),
        (BERT, [], "text"),
        ({}, ["modules.json"], "text"),
        ({"model_type": "t5"}, ["spiece.model"], "text"),
        (VIT, ["preprocessor_config.json"], "image"),
        (VIT, ["processor_config.json", "tokenizer.json"], "image"),
        (VIT, [], "image"),
        (BEIT, [], "image"),
        ({"model_type": "resnet"}, [], "image"),
        (CLIP, ["preprocessor_config.json", "tokenizer.json"], "image-text"),
        (CLIP, ["tokenizer.json"], "image-text"),
        (CLIP, ["preprocessor_config.json", "vocab.json", "merges.txt"], "image"),
        (CLIP, ["preprocessor_config.json"], "image"),
    ],
)
def test_a_folder_is_recognised(
    config: dict[str, Any], others: list[str], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in others:
        (tmp_path / name).write_text("{}")
    assert recognise_folder(tmp_path) == kind


def save_image_model(folder: Path) -> Path:
    save_vit(folder)
    return folder


@pytest.mark.parametrize("save", [save_bert, save_clip, save_image_model])
def test_a_packed_folder_is_of_the_same_kind(save: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = save(tmp_path / "mine")
    with zipfile.ZipFile(io.BytesIO(pack_folder(folder))) as archive:
        archive.extractall(tmp_path / "again")
    assert recognise_folder(tmp_path / "again") == recognise_folder(folder)


def test_the_preprocessing_of_images_is_read_and_needs_nothing_bound(tmp_path: Path) -> None:
    (found,) = read_inputs(save_image_model(tmp_path / "mine"))
    assert isinstance(found, ImagePreprocessing)
    assert found.crop_px == DECLARED.crop_px
    assert bind_input(found, tmp_path / "none") is found


def test_a_model_of_images_may_state_no_preprocessing(tmp_path: Path) -> None:
    folder = save_image_model(tmp_path / "mine")
    (folder / "preprocessor_config.json").unlink()
    assert read_inputs(folder) == ()


def test_a_text_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder, marker = save_bert(tmp_path / "mine"), tmp_path / "marker"
    code = f"import os\nos.mkdir({str(marker)!r})\nclass Net: pass\n"
    (folder / "modeling_mine.py").write_text(code)
    code_map = {"AutoConfig": "modeling_mine.Net", "AutoModel": "modeling_mine.Net"}
    change_json(folder / "config.json", model_type="mine", auto_map=code_map)
    with pytest.raises(SetupError, match="cannot be opened"):
        read_inputs(folder)
    assert not marker.exists()


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SetupError, match=r"config\.json' cannot be read as JSON"):
        read_inputs(tmp_path)


def test_a_configuration_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(SetupError, match=r"config\.json' is not a JSON object"):
        pack_folder(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="holds no"):
        pack_folder(tmp_path)


@pytest.mark.parametrize("place", ["", "0_Transformer"])
def test_an_adapter_is_refused(place: str, tmp_path: Path) -> None:
    """transformers leaves it out where PEFT is not installed."""
    folder = save_bert(tmp_path / "bert")
    (folder / place).mkdir(exist_ok=True)
    (folder / place / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    for read in (pack_folder, read_inputs):
        with pytest.raises(SetupError, match=r"has an adapter .*merge_and_unload"):
            read(folder)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    folder = save_image_model(tmp_path / "vit")
    change_json(folder / "config.json", quantization_config={"quant_method": "gptq"})
    for read in (pack_folder, read_inputs):
        with pytest.raises(SetupError, match=r"holds a quantized model \(gptq\)"):
            read(folder)


def test_a_missing_part_of_the_weights_is_named(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": names}))
    # The whole model takes precedence.
    assert pack_folder(folder)
    whole.rename(folder / names["a"])
    with pytest.raises(SetupError, match=f"lacks {names['b']}, which {index.name} names"):
        pack_folder(folder)


def test_weights_under_another_name_are_named(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(SetupError, match=r"as 'model\.fp16\.safetensors', .*: rename the file"):
        pack_folder(folder)


def test_a_folder_of_the_cache_is_named(tmp_path: Path) -> None:
    save_bert(tmp_path / "snapshots" / "abc")
    with pytest.raises(SetupError, match=r"in the cache of Hugging Face: give the folder below"):
        pack_folder(tmp_path)
