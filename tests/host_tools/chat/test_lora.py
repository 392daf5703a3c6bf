"""LoRA adapters merged at export, against transformers with the same sums done by hand."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest

from calibration.model_file import PROVENANCE_KEY, load_model
from edge.errors import UsageError
from host_tools.errors import ExportError
from tests.chat_models import make_folder, write_onnx
from tests.host_tools.chat.decoding import PlainDecoder, _torch_model, torch_logits
from tests.host_tools.chat.dequantized import WrittenWeights

TOLERANCE = 1e-4  # logits of size 1, float32 sums of a few hundred terms
PREFIX = "base_model.model."
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somewhere/model",
    "inference_mode": True,
    "r": 4,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "use_rslora": False,
    "use_dora": False,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "modules_to_save": None,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {},
    "megatron_core": "megatron.core",
    "layer_replication": None,
    "loftq_config": {},
}
QUERY, VALUE, DOWN = (
    f"model.layers.{layer}.{name}"
    for layer, name in ((0, "self_attn.q_proj"), (1, "self_attn.v_proj"), (1, "mlp.down_proj"))
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("hf")

    def model(family: str, **changes: object) -> Path:
        folder = root / "-".join([family, *map(str, changes.values())])
        return folder if folder.exists() else make_folder(folder, family, **changes)

    return model


def save(folder: Path, tensors: dict, **changes: object) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file({PREFIX + n: t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def pairs(model, modules: tuple[str, ...], rank: int = 4, seed: int = 0) -> dict:
    """Return A and B of these modules, large enough to change what the model says."""
    import torch

    torch.manual_seed(seed)
    tensors = {}
    for name in modules:
        layer = model.get_submodule(name)
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features) * 0.1
        tensors[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank) * 0.1
    return tensors


def merged_by_hand(folder: Path, tensors: dict, scales: dict[str, float]):
    import torch

    model = copy.deepcopy(_torch_model(folder))
    with torch.no_grad():
        for module, scale in scales.items():
            down, up = (tensors[f"{module}.lora_{part}.weight"] for part in "AB")
            layer = model.get_submodule(module)
            layer.weight = torch.nn.Parameter(layer.weight + scale * (up @ down))
    return model


def text() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (1, 40))


def logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor(text())).logits.numpy()


def written(folder: Path, tmp_path: Path, *adapters: Path, **options: object) -> PlainDecoder:
    out = write_onnx(folder, tmp_path / "m.onnx", adapters=adapters, **options)
    return PlainDecoder(out, as_written=True)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("is_rank_stabilized", [False, True])
def test_a_merged_adapter_gives_the_logits_of_the_sum(models, tmp_path, family, is_rank_stabilized):
    folder = models(family)
    tensors = pairs(_torch_model(folder), (QUERY, VALUE, DOWN))
    adapter = save(tmp_path / "adapter", tensors, use_rslora=is_rank_stabilized)
    scale = 16 / math.sqrt(4) if is_rank_stabilized else 16 / 4
    expected = logits(merged_by_hand(folder, tensors, dict.fromkeys((QUERY, VALUE, DOWN), scale)))
    found = written(folder, tmp_path, adapter).step(text())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(found - torch_logits(folder, text())).max() > 0.05


def test_modules_have_the_rank_and_alpha_of_the_pattern_that_they_match(models, tmp_path):
    folder = models("llama")
    model = _torch_model(folder)
    tensors = pairs(model, (QUERY, VALUE)) | pairs(model, (DOWN,), rank=6)
    adapter = save(
        tmp_path / "adapter",
        tensors,
        rank_pattern={"down_proj": 6},
        alpha_pattern={
            r"model\.layers\.\d+\.mlp\.down_proj": 3,
            ".*v_proj": 12,
            "proj": 99,
            "layers.0.*q_proj": 8,
        },
    )
    scales = {QUERY: 8 / 4, VALUE: 12 / 4, DOWN: 3 / 6}  # a pattern is a whole name, or its end
    found = written(folder, tmp_path, adapter).step(text())
    expected = logits(merged_by_hand(folder, tensors, scales))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_adapters_are_merged_one_behind_the_other(models, tmp_path):
    folder = models("llama")
    model = _torch_model(folder)
    first, second = pairs(model, (QUERY, DOWN)), pairs(model, (QUERY, VALUE), seed=1)
    adapters = (
        save(tmp_path / "first", first),
        save(tmp_path / "second", second, lora_alpha=8),
    )
    expected = merged_by_hand(folder, first, {QUERY: 4, DOWN: 4})
    for module in (QUERY, VALUE):
        down, up = (second[f"{module}.lora_{part}.weight"] for part in "AB")
        expected.get_submodule(module).weight.data += 2 * (up @ down)
    decoder = written(folder, tmp_path, *adapters)
    np.testing.assert_allclose(decoder.step(text()), logits(expected), rtol=0, atol=TOLERANCE)
    metadata = {e.key: e.value for e in load_model(tmp_path / "m.onnx").metadata_props}
    assert "llama + first + second" in metadata[PROVENANCE_KEY]


def test_what_is_quantized_is_the_sum(models, tmp_path):
    folder = models("llama")
    tensors = pairs(_torch_model(folder), (DOWN,))
    out = write_onnx(
        folder, tmp_path / "m.onnx", weights="int8", adapters=(save(tmp_path / "a", tensors),)
    )
    expected = merged_by_hand(folder, tensors, {DOWN: 4}).get_submodule(DOWN).weight.detach()
    found = WrittenWeights(out).matrix("layers.1.down.weight")
    steps = np.abs(expected.numpy()).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - expected.numpy()) <= steps * 0.501).all()


@pytest.mark.parametrize("wrapper", ["", ".base_layer", ".modules_to_save.default"])
def test_biases_and_modules_that_were_trained_whole_take_the_place_of_others(
    models, tmp_path, wrapper
):
    import torch

    folder = models("qwen2", tie_word_embeddings=False)
    model = copy.deepcopy(_torch_model(folder))
    bias, head = torch.randn(64), torch.randn(256, 64) * 0.1
    model.get_submodule(QUERY).bias = torch.nn.Parameter(bias)
    model.lm_head.weight = torch.nn.Parameter(head)
    tensors = {f"{QUERY}{wrapper}.bias": bias, f"lm_head{wrapper}.weight": head}
    adapter = save(tmp_path / "adapter", tensors, bias="all", modules_to_save=["lm_head"])
    found = written(folder, tmp_path, adapter).step(text())
    np.testing.assert_allclose(found, logits(model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("weights", ["fp32", "int4"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_an_adapted_head_parts_from_the_embedding_that_it_was_tied_to(
    models, tmp_path, is_whole, weights
):
    import torch

    folder = models("qwen2")
    model = copy.deepcopy(_torch_model(folder))
    if is_whole:
        tensors = {"lm_head.weight": torch.randn(256, 64) * 0.1}
        head = tensors["lm_head.weight"]
    else:
        tensors = pairs(model, ("lm_head",))
        head = model.lm_head.weight.detach() + 4 * (tensors["lm_head.lora_B.weight"] @ tensors[
            "lm_head.lora_A.weight"])  # fmt: skip
    model.lm_head.weight = torch.nn.Parameter(head)
    adapter = save(tmp_path / "adapter", tensors)
    decoder = written(folder, tmp_path, adapter, weights=weights)
    if weights == "fp32":
        np.testing.assert_allclose(decoder.step(text()), logits(model), rtol=0, atol=TOLERANCE)
    stored = WrittenWeights(tmp_path / "m.onnx").matrix("logits.weight")
    step = 0 if weights == "fp32" else float(head.abs().max()) / 7 * 1.05
    assert np.abs(stored - head.numpy()).max() <= step + 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA can be merged"),
        ({"use_dora": True}, "DoRA scales .* merge it with PEFT"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16', which changed the model's"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is .* does not know it"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"r": 8}, "has rank 4, adapter_config.json says 8"),
        ({"r": None}, "r is None; it must be positive"),
        ({"lora_alpha": "16"}, "lora_alpha is '16'"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"alpha_pattern": [1]}, "alpha_pattern is malformed"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern is malformed"),
    ],
)
def test_a_config_that_cannot_be_merged_is_an_error(models, tmp_path, changes, words):
    folder = models("llama")
    adapter = save(tmp_path / "adapter", pairs(_torch_model(folder), (QUERY,)), **changes)
    with pytest.raises(ExportError, match=words):
        written(folder, tmp_path, adapter)
    assert not list(tmp_path.glob("m.onnx*"))


def sized(*shape: int):
    import torch

    return torch.ones(shape)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "adapter_model.safetensors is empty"),
        ({f"{QUERY}.lora_A.weight": (4, 64)}, "of model.* it has lora_A alone"),
        (
            {f"{QUERY}.lora_A.weight": (4, 32), f"{QUERY}.lora_B.weight": (64, 4)},
            r"made for another model: its .*q_proj\.weight is \[64, 32\], the model's \[64, 64\]",
        ),
        (
            {f"{QUERY}.lora_A.weight": (4, 64), f"{QUERY}.lora_B.weight": (64, 5)},
            r"is \[\], the model's \[64, 64\]",
        ),
        (
            {"model.layers.7.x.lora_A.weight": (4, 64), "model.layers.7.x.lora_B.weight": (64, 4)},
            r"adapts model\.layers\.7\.x\.weight, which the model does not have",
        ),
        ({f"{QUERY}.bias": (64,)}, r"adapts .*q_proj\.bias, which the model does not have"),
        ({"lm_head.weight": (300, 64)}, r"its lm_head\.weight is \[300, 64\]"),
        ({"model.embed_tokens.lora_embedding_A": (4, 256)}, "cannot merge .*lora_embedding_A"),
        ({f"{QUERY}.lora_magnitude_vector": (64,)}, "cannot merge .*magnitude"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_an_error(models, tmp_path, tensors, words):
    adapter = save(tmp_path / "adapter", {name: sized(*s) for name, s in tensors.items()})
    with pytest.raises(ExportError, match=words):
        written(models("llama"), tmp_path, adapter)


def test_an_embedding_alone_is_not_changed_where_the_head_is_tied_to_it(models, tmp_path):
    adapter = save(tmp_path / "adapter", {"model.embed_tokens.weight": sized(256, 64)})
    with pytest.raises(ExportError, match="does not say what becomes of the head"):
        written(models("qwen2"), tmp_path, adapter)


def test_what_one_adapter_changed_is_not_replaced_by_the_next(models, tmp_path):
    folder = models("llama")
    first = save(tmp_path / "first", pairs(_torch_model(folder), ("lm_head",)))
    second = save(tmp_path / "second", {"lm_head.weight": sized(256, 64)})
    with pytest.raises(ExportError, match=r"second replaces lm_head\.weight, which another"):
        written(folder, tmp_path, first, second)


def test_a_folder_that_is_no_adapter_is_a_usage_error(models, tmp_path):
    with pytest.raises(UsageError, match=r"no adapter_config\.json in"):
        written(models("llama"), tmp_path, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(UsageError, match="safe_serialization=True"):
        written(models("llama"), tmp_path, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(ExportError, match="is no adapter config"):
        written(models("llama"), tmp_path, tmp_path)
