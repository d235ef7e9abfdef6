"""Models that are files: broken, unsuitable and dangerous ones are refused before anything runs."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedstream_core.errors import SetupError
from embedstream_core.models.prepare import ModelSpec, prepare_model
from engines import embed_pixels, start_engine
from small_models import (
    DECLARED,
    SIDE,
    forward,
    huggingface_model,
    keras_model,
    load_network,
    onnx_model,
    pictures,
    save_onnx,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def refused(spec: ModelSpec) -> str:
    with pytest.raises(SetupError) as caught:
        prepare_model(spec)
    return str(caught.value)


# Every kind of file.


@pytest.mark.parametrize("make", [onnx_model, keras_model])
def test_the_preprocessing_has_to_be_declared(
    make: Callable[[Path], ModelSpec], tmp_path: Path
) -> None:
    message = refused(replace(make(tmp_path), preprocessing=None))
    assert "encoder.preprocessing, such as {resize_px: 256" in message


@pytest.mark.parametrize("name", ["onnx", "keras"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    message = refused(ModelSpec(name, str(tmp_path / "none"), preprocessing=DECLARED))
    assert "cannot be read (No such file" in message
    assert "encoder.weights" in message


@pytest.mark.parametrize("make", [onnx_model, keras_model])
def test_a_truncated_file_is_refused(make: Callable[[Path], ModelSpec], tmp_path: Path) -> None:
    spec = make(tmp_path)
    path = Path(spec.weights)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"the {spec.encoder} file cannot be opened" in refused(spec)


@pytest.mark.parametrize("make", [onnx_model, keras_model])
def test_a_size_that_the_model_was_not_made_for_is_refused(
    make: Callable[[Path], ModelSpec], tmp_path: Path
) -> None:
    other = replace(DECLARED, resize_px=64, crop_px=64)
    message = refused(replace(make(tmp_path), preprocessing=other))
    assert "cannot embed any number of images of 64 pixels squared" in message


class Exploit:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickle_exploit(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Exploit(marker),), buffer)
    return buffer.getvalue()


# ONNX.


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
def test_onnx_models_take_either_order_of_channels(order: str, tmp_path: Path) -> None:
    for each in ("NCHW", order):
        save_onnx(tmp_path / f"{each}.onnx", order=each)
    spec = ModelSpec("onnx", preprocessing=DECLARED)
    expected, vectors = (
        forward(load_network(prepare_model(replace(spec, weights=str(tmp_path / f"{each}.onnx")))))
        for each in ("NCHW", order)
    )
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)


def test_an_onnx_model_for_one_image_is_refused(tmp_path: Path) -> None:
    save_onnx(tmp_path / "one.onnx", batch=1)
    spec = ModelSpec("onnx", str(tmp_path / "one.onnx"), preprocessing=DECLARED)
    assert "export it for any number, and" in refused(spec)


def test_onnxruntime_follows_the_threads_of_torch(tmp_path: Path) -> None:
    model = load_network(prepare_model(onnx_model(tmp_path)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        forward(model)
    finally:
        torch.set_num_threads(before)
    session: Any = model.session
    assert session.get_session_options().intra_op_num_threads == 1


def onnx_with_outputs(folder: Path, *names: str) -> ModelSpec:
    """The small model with some of its inner values as outputs; their shapes are not declared."""
    import onnx

    model = onnx.load(onnx_model(folder).weights)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(model, folder / "outputs.onnx")
    return ModelSpec("onnx", str(folder / "outputs.onnx"), preprocessing=DECLARED)


@pytest.mark.parametrize("names", [("features", "vectors"), ("vectors", "pooled", "features")])
def test_the_only_output_with_vectors_is_used(names: tuple[str, ...], tmp_path: Path) -> None:
    expected = forward(load_network(prepare_model(onnx_model(tmp_path))))
    prepared = prepare_model(onnx_with_outputs(tmp_path, *names))
    np.testing.assert_allclose(forward(load_network(prepared)), expected, rtol=1e-5)


def test_the_output_does_not_depend_on_the_first_batch(tmp_path: Path) -> None:
    """A temperature, an output of CLIP's exports, looks like the vector of one image."""
    import onnx

    spec = onnx_with_outputs(tmp_path, "vectors", "scale")
    model = onnx.load(spec.weights)
    scale = onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), "scale")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["scale"], value=scale))
    onnx.save(model, spec.weights)

    loaded = load_network(prepare_model(spec))

    assert loaded(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 8)


def test_a_single_output_that_is_not_a_vector_is_refused(tmp_path: Path) -> None:
    message = refused(onnx_with_outputs(tmp_path, "features"))
    assert "gives (2, 8, 30, 30) for two images, not two vectors" in message


def test_outputs_without_vectors_are_named(tmp_path: Path) -> None:
    message = refused(onnx_with_outputs(tmp_path, "features", "pooled"))
    assert "has 2 outputs, of which none are one vector for each image" in message
    assert "features (2, 8, 30, 30), pooled (2, 8, 1, 1) for 2 images" in message


def test_weights_in_another_file_are_named(tmp_path: Path) -> None:
    """As torch.onnx.export writes them by default; workers would look for them where they run."""
    import onnx

    spec = onnx_with_outputs(tmp_path, "vectors")
    model = onnx.load(spec.weights)
    options: dict[str, Any] = {
        "save_as_external_data": True,
        "location": "model.onnx.data",
        "size_threshold": 0,
    }
    onnx.save(model, tmp_path / "model.onnx", **options)
    message = refused(replace(spec, weights=str(tmp_path / "model.onnx")))
    assert "has its weights in another file, 'model.onnx.data': export it with" in message
    onnx.save(onnx.load(tmp_path / "model.onnx"), tmp_path / "whole.onnx")
    assert prepare_model(replace(spec, weights=str(tmp_path / "whole.onnx"))).card.dimension


def test_several_inputs_are_named(tmp_path: Path) -> None:
    import onnx

    spec = onnx_with_outputs(tmp_path, "vectors")
    model = onnx.load(spec.weights)
    other = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1])
    model.graph.input.append(other)
    onnx.save(model, spec.weights)
    assert "has 2 inputs (images, mask); export it with one" in refused(spec)


def test_two_outputs_with_vectors_are_named(tmp_path: Path) -> None:
    import onnx

    spec = onnx_with_outputs(tmp_path, "vectors", "twice")
    model = onnx.load(spec.weights)
    model.graph.node.append(onnx.helper.make_node("Add", ["vectors", "vectors"], ["twice"]))
    onnx.save(model, spec.weights)
    assert "of which 2 are one vector" in refused(spec)


# Keras.


def test_keras_runs_only_on_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = keras_model(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert "set KERAS_BACKEND=torch" in refused(spec)


def test_a_lambda_in_a_keras_file_is_not_run(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((SIDE, SIDE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(pooled)).save(tmp_path / "mine.keras")
    spec = ModelSpec("keras", str(tmp_path / "mine.keras"), preprocessing=DECLARED)
    assert "safe_mode" in refused(spec)


@pytest.mark.parametrize(
    ("layer", "argument"),
    [
        ({"module": "keras.layers", "class_name": "TorchModuleWrapper"}, "module"),
        ({"module": "os", "class_name": "mkdir"}, "path"),
    ],
)
def test_code_in_a_keras_file_is_not_run(
    layer: dict[str, str], argument: str, tmp_path: Path
) -> None:
    spec, marker = keras_model(tmp_path), tmp_path / "marker"
    pickled = base64.b64encode(pickle_exploit(marker)).decode()
    value = pickled if argument == "module" else str(marker)
    with zipfile.ZipFile(spec.weights) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(records["config.json"])
    config["config"]["layers"].append(
        {**layer, "config": {argument: value}, "registered_name": None}
    )
    records["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(spec.weights, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)

    assert "the keras file cannot be opened" in refused(spec)
    assert not marker.exists()


def test_a_keras_file_of_the_older_format_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    spec = ModelSpec("keras", str(tmp_path / "mine.h5"), preprocessing=DECLARED)
    assert "is an HDF5 file, as older Keras wrote them" in refused(spec)


def test_a_keras_model_may_have_channels_first(tmp_path: Path) -> None:
    import keras

    inputs = keras.Input((3, SIDE, SIDE))
    mean = keras.layers.GlobalAveragePooling2D(data_format="channels_first")(inputs)
    keras.Model(inputs, mean).save(tmp_path / "mine.keras")
    spec = ModelSpec("keras", str(tmp_path / "mine.keras"), preprocessing=DECLARED)
    assert prepare_model(spec).card.dimension == 3


# Hugging Face.


def test_a_folder_travels_as_the_same_bytes_from_anywhere(tmp_path: Path) -> None:
    spec = huggingface_model(tmp_path)
    copy = shutil.copytree(spec.weights, tmp_path / "elsewhere" / "mine")
    (copy / "notes.txt").write_text("not of the model")
    assert prepare_model(replace(spec, weights=str(copy))) == prepare_model(spec)


def test_a_model_id_has_the_folders_whole_name(tmp_path: Path) -> None:
    spec = huggingface_model(tmp_path)
    named = Path(spec.weights).rename(tmp_path / "vit-1.5")
    model_id = prepare_model(replace(spec, weights=f"{named}/")).card.model_id
    assert model_id.startswith("huggingface/vit-1.5/")


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    spec, marker = huggingface_model(tmp_path), tmp_path / "marker"
    (Path(spec.weights) / "model.safetensors").unlink()
    (Path(spec.weights) / "pytorch_model.bin").write_bytes(pickle_exploit(marker))
    assert "holds no .safetensors file" in refused(spec)
    assert not marker.exists()


def with_config(spec: ModelSpec, **values: object) -> ModelSpec:
    path = Path(spec.weights) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return spec


def test_a_folder_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    spec, marker = huggingface_model(tmp_path), tmp_path / "marker"
    code = f"import os\nos.mkdir({str(marker)!r})\nclass Net: pass\n"
    (Path(spec.weights) / "modeling_mine.py").write_text(code)
    code_map = {"AutoConfig": "modeling_mine.Net", "AutoModel": "modeling_mine.Net"}
    assert "cannot be opened" in refused(with_config(spec, model_type="mine", auto_map=code_map))
    assert not marker.exists()


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    spec = with_config(huggingface_model(tmp_path), num_hidden_layers=3)
    assert "its weights lack" in refused(spec)


def test_a_folder_without_preprocessing_needs_one_declared(tmp_path: Path) -> None:
    spec = huggingface_model(tmp_path)
    (Path(spec.weights) / "preprocessor_config.json").unlink()
    assert "declare encoder.preprocessing" in refused(spec)
    prepared = prepare_model(replace(spec, preprocessing=DECLARED))
    assert prepared.card.inputs == (DECLARED,)


def test_a_folder_without_pooler_weights_gives_the_mean(tmp_path: Path) -> None:
    from transformers import ViTForImageClassification, ViTModel

    spec = huggingface_model(tmp_path)
    whole = ViTModel.from_pretrained(spec.weights)
    classifier = ViTForImageClassification(whole.config)
    classifier.vit.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if "pooler" not in name}
    )
    with torch.inference_mode():
        images = torch.rand(2, 3, SIDE, SIDE)
        expected = whole.eval()(pixel_values=images).last_hidden_state.mean(1)
        # This may overwrite the file that the weights of `whole` are mapped from.
        classifier.save_pretrained(spec.weights)
        model = load_network(prepare_model(spec))
        torch.testing.assert_close(model(images), expected)


def clip_sizes() -> dict[str, int]:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 12}
    return {**sizes, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_image_half_of_clip_gives_its_projection(tmp_path: Path) -> None:
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(0)
    vision = {**clip_sizes(), "image_size": SIDE, "patch_size": 8}
    text = {**clip_sizes(), "vocab_size": 50, "max_position_embeddings": 8}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    half = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).eval()
    half.vision_model.load_state_dict(whole.vision_model.state_dict())
    half.visual_projection.load_state_dict(whole.visual_projection.state_dict())
    images = torch.rand(2, 3, SIDE, SIDE)
    for name, model in (("whole", whole), ("half", half)):
        model.save_pretrained(tmp_path / name)
        spec = ModelSpec("huggingface", str(tmp_path / name), preprocessing=DECLARED)
        with torch.inference_mode():
            vectors = load_network(prepare_model(spec))(images)
            torch.testing.assert_close(vectors, half(pixel_values=images).image_embeds)


@pytest.mark.slow
def test_the_layers_of_a_folder_may_be_compiled(tmp_path: Path) -> None:
    prepared = prepare_model(huggingface_model(tmp_path))
    engine = start_engine(load_network(prepared), DECLARED, backend="openvino")
    expected = forward(load_network(prepared))
    np.testing.assert_allclose(embed_pixels(engine, pictures(16)), expected, rtol=1e-3, atol=1e-4)


def test_a_convolutional_model_gives_its_pooled_features(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).eval().save_pretrained(tmp_path / "mine")
    spec = ModelSpec("huggingface", str(tmp_path / "mine"), preprocessing=DECLARED)
    assert prepare_model(spec).card.dimension == 16


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_an_onnx_model_for_a_fixed_number_of_images_is_refused(tmp_path: Path, batch: int) -> None:
    save_onnx(tmp_path / "fixed.onnx", batch=batch)
    spec = ModelSpec("onnx", str(tmp_path / "fixed.onnx"), preprocessing=DECLARED)
    with pytest.raises(SetupError, match="any number of images"):
        prepare_model(spec)


@pytest.mark.parametrize(("kind", "taken"), [("FLOAT16", True), ("DOUBLE", True), ("UINT8", False)])
def test_an_onnx_model_gets_pixels_of_its_input_type(
    tmp_path: Path, kind: str, taken: bool
) -> None:
    import onnx

    model = onnx.load(onnx_model(tmp_path).weights)
    model.graph.input[0].type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["images"], ["floats"], to=1))
    model.graph.node[1].input[0] = "floats"
    path = tmp_path / "other.onnx"
    onnx.save_model(model, path)
    spec = ModelSpec("onnx", str(path), preprocessing=DECLARED)
    if taken:
        plain = forward(load_network(prepare_model(onnx_model(tmp_path))))
        np.testing.assert_allclose(forward(load_network(prepare_model(spec))), plain, atol=0.01)
    else:
        with pytest.raises(SetupError, match=r"takes tensor\(uint8\): export it with .* floats"):
            prepare_model(spec)
