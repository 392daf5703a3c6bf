"""Scaling of channels: the same function, and what is left of it after rounding."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.kernels import INTEGER_KERNELS, optimized_nodes
from edge.errors import UsageError
from host_tools.chat import calibrate
from host_tools.chat.calibrate import calibrate_chat
from host_tools.chat.layerwise import head_matrix
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.quality import LIMITS, measure_quality, quality_problems, token_windows
from host_tools.chat.scaling import (
    Activations,
    Calibration,
    ScaledWeights,
    site_of_head,
    sites_of_layer,
)
from host_tools.chat.weights import Checkpoint, whole
from host_tools.errors import ExportError
from tests.chat_models import FAMILIES, make_folder, write_onnx
from tests.host_tools.chat import trained
from tests.host_tools.chat.decoding import torch_logits

TOLERANCE = 1e-4
FORMS = ("scatter", "scatter-primitive", "prefix", "concat")
CHANGES = {"llama": {"attention_bias": True, "mlp_bias": True}}
LINEARS = 2 * 4 + 1  # of two layers, those with the same inputs as one, and the head


def windows(part, most):
    return token_windows(trained.parts()[part], length=128, most=most)


def random_factors(spec, seed=0):
    """Return a calibration of anything, but with equal factors where they must be equal."""
    rng = np.random.default_rng(seed)
    sites = {}
    for site in (*sites_of_layer(spec, 0), *sites_of_layer(spec, 1), site_of_head()):
        inputs = spec.heads * spec.head_dim if site.group > 1 else spec.hidden
        if site.name.endswith("down_proj"):
            inputs = spec.intermediate
        factors = site.shared(rng.uniform(0.2, 5, inputs).astype(np.float32))
        sites[site.name] = Activations(factors=factors, importance=factors, amax=1.0)
    return Calibration(weights="int4", sites=sites)


@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_weights_are_the_same_model_to_transformers(tmp_path, family):
    from safetensors.numpy import save_file

    folder = make_folder(tmp_path / "plain", family, **CHANGES.get(family, {}))
    spec, checkpoint = llm_spec_from_folder(folder), Checkpoint.from_folder(folder)
    scaled = ScaledWeights(checkpoint, spec, random_factors(spec))
    names = {*checkpoint.shapes, "lm_head.weight"}
    tensors = {name: whole(scaled, name) for name in names}
    changed = [n for n in checkpoint.shapes if (tensors[n] != whole(checkpoint, n)).any()]
    assert len(changed) >= 2 * (4 + 5)  # linear layers but q, k, v's heads, and norms
    out = tmp_path / "scaled"
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
    (out / "config.json").write_text(json.dumps(config))
    text = np.random.default_rng(0).integers(0, 256, (2, 40))
    np.testing.assert_allclose(
        torch_logits(out, text), torch_logits(folder, text), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_calibrated_and_written(tmp_path, family):
    folder = make_folder(tmp_path / "hf", family, **CHANGES.get(family, {}))
    text = np.random.default_rng(0).integers(0, 256, (4, 40))
    found = calibrate_chat(folder, text, "int8")
    graph = write_onnx(folder, tmp_path / "model.onnx", weights="int8", calibration=found)
    quality = measure_quality(folder, graph, text, intra_op_threads=1)
    assert quality.kl_mean < 0.01  # random weights are far more sensitive than learnt ones


def test_a_tied_head_is_scaled_without_its_table(tmp_path):
    folder = make_folder(tmp_path / "hf", "qwen2")
    spec, checkpoint = llm_spec_from_folder(folder), Checkpoint.from_folder(folder)
    scaled = ScaledWeights(checkpoint, spec, random_factors(spec))
    table = "model.embed_tokens.weight"
    assert head_matrix(spec) == table
    np.testing.assert_array_equal(whole(scaled, table), whole(checkpoint, table))
    assert (whole(scaled, "lm_head.weight") != whole(checkpoint, table)).any()


def test_memory_is_that_of_one_layer(tmp_path):
    peaks = []
    for layers in (2, 6):
        folder = make_folder(
            tmp_path / str(layers), "llama", num_hidden_layers=layers, intermediate_size=512
        )
        tracemalloc.start()
        calibrate_chat(folder, np.zeros((1, 16), np.int64), "int8")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]


def test_weights_that_are_not_finite_are_an_error(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = make_folder(tmp_path, "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][3, 3] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.self_attn\.q_proj.* holds NaN"):
        calibrate_chat(folder, np.zeros((1, 16), np.int64), "int4")


def test_a_token_of_another_tokenizer_is_an_error_that_says_so(tmp_path):
    folder = make_folder(tmp_path, "llama")
    with pytest.raises(UsageError, match="token 256 is beyond the vocabulary of 256"):
        calibrate_chat(folder, np.array([[256] * 16]), "int4")


def test_w8a8_without_calibration_is_an_error_that_says_so(tmp_path):
    folder = make_folder(tmp_path, "llama")
    with pytest.raises(UsageError, match="w8a8 needs the ranges of activations"):
        write_onnx(folder, tmp_path / "model.onnx", weights="w8a8")


def test_a_calibration_for_other_weights_is_an_error_that_says_so(tmp_path):
    folder = make_folder(tmp_path, "llama")
    found = random_factors(llm_spec_from_folder(folder))
    with pytest.raises(UsageError, match="for int4, the weights are to be int8"):
        write_onnx(folder, tmp_path / "model.onnx", weights="int8", calibration=found)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "gain"), [("int4", 5), ("int8", 20)])
def test_outliers_cost_little_once_they_are_scaled(outlier_folder, tmp_path, kind, gain):
    found = calibrate_chat(outlier_folder, windows(1, 2048), kind)
    qualities = [
        measure_quality(
            outlier_folder,
            write_onnx(outlier_folder, tmp_path / "model.onnx", weights=kind, calibration=given),
            windows(2, 1024),
            intra_op_threads=1,
        )
        for given in (None, found)
    ]
    assert qualities[1].kl_mean < qualities[0].kl_mean / gain
    assert quality_problems(qualities[0], LIMITS[kind]) != []
    assert quality_problems(qualities[1], LIMITS[kind]) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_a_model_without_outliers_is_not_harmed(trained_folder, tmp_path, kind):
    found = calibrate_chat(trained_folder, windows(1, 2048), kind)
    plain, calibrated = (
        measure_quality(
            trained_folder,
            write_onnx(trained_folder, tmp_path / "model.onnx", weights=kind, calibration=given),
            windows(2, 1024),
            intra_op_threads=1,
        )
        for given in (None, found)
    )
    assert calibrated.kl_mean < 1.15 * plain.kl_mean


@pytest.fixture(scope="module")
def ranges(outlier_folder):
    """The calibration for w8a8, of the model that needs it most."""
    return calibrate_chat(outlier_folder, windows(1, 2048), "w8a8")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_w8a8_runs_in_integer_kernels_and_passes_the_gate(outlier_folder, ranges, tmp_path, form):
    graph = write_onnx(
        outlier_folder, tmp_path / "model.onnx", weights="w8a8", calibration=ranges, form=form
    )
    nodes = optimized_nodes(onnx.load(graph))
    assert sum(node.op_type in INTEGER_KERNELS for node in nodes) == LINEARS
    assert not [node for node in nodes if node.op_type == "DequantizeLinear"]
    quality = measure_quality(outlier_folder, graph, windows(2, 1024), intra_op_threads=1)
    assert quality_problems(quality, LIMITS["w8a8"]) == []


@pytest.mark.slow
def test_w8a8_without_scaling_fails_the_gate(outlier_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrate, "MIGRATIONS", ())
    plain = calibrate_chat(outlier_folder, windows(1, 2048), "w8a8")
    graph = write_onnx(outlier_folder, tmp_path / "model.onnx", weights="w8a8", calibration=plain)
    quality = measure_quality(outlier_folder, graph, windows(2, 1024), intra_op_threads=1)
    assert quality_problems(quality, LIMITS["w8a8"]) != []


@pytest.mark.slow
def test_w8a8_for_tensorrt_8_has_the_one_form_it_reads(outlier_folder, ranges, tmp_path):
    graph = write_onnx(
        outlier_folder, tmp_path / "model.onnx", weights="w8a8", calibration=ranges, form="prefix"
    )
    model = onnx.load(graph)
    initializers = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert model.opset_import[0].version == 17
    assert len(pairs) == 2 * LINEARS
    assert len({node.input[1] for node in pairs}) == len(pairs)
    for node in pairs:
        scale, zero = (initializers[name] for name in node.input[1:])
        assert zero.dtype == np.int8
        assert not zero.any()
        is_weight = node.input[0] in initializers
        assert (scale.ndim, zero.shape) == (int(is_weight), scale.shape)


@pytest.mark.slow
def test_a_finer_head_is_nearer_to_the_model(trained_folder, tmp_path):
    found = calibrate_chat(trained_folder, windows(1, 2048), "int4")
    divergences = []
    for head in (None, "int8"):
        graph = write_onnx(
            trained_folder,
            tmp_path / "model.onnx",
            weights="int4",
            calibration=found,
            head=head,
        )
        quality = measure_quality(trained_folder, graph, windows(2, 1024), intra_op_threads=1)
        divergences.append(quality.kl_mean)
    assert divergences[1] < 0.85 * divergences[0]
