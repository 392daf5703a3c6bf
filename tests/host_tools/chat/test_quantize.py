"""Packed weights, and graphs of them against transformers with the weights that they stand for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from host_tools.chat.quantize import CLIPS, block_size, int4_blocks, int8_channels, packed_pairs
from tests.chat_models import make_folder, write_onnx
from tests.host_tools.chat.decoding import PlainDecoder, _torch_model, torch_logits
from tests.host_tools.chat.dequantized import WrittenWeights

TOLERANCE = 1e-4  # logits of size 1, float32 sums of a few hundred terms


def matrix(outputs: int, inputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, (outputs, inputs)).astype(np.float32)


@pytest.mark.parametrize(
    ("inputs", "block"),
    [
        (4096, 128),
        (4864, 128),
        (128, 128),
        (704, 64),
        (896, 128),
        (96, 32),
        (100, None),
        (16, None),
    ],
)
def test_blocks_are_as_large_as_divides_the_inputs(inputs: int, block: int | None) -> None:
    assert block_size(inputs) == block


def test_each_int4_block_gets_the_best_of_the_ranges_that_are_tried() -> None:
    weights = matrix(6, 64)
    weights[2, :32] = 0
    weights[3, 5] = 40  # beyond everything else of its block
    values, scales = int4_blocks(weights, 32)
    for row in range(6):
        for number in range(2):
            block = weights[row, 32 * number : 32 * (number + 1)].astype(np.float64)
            errors = []
            for clip in CLIPS:
                scale = np.abs(block).max() * clip / 7 or 1.0
                errors.append(((np.clip(np.rint(block / scale), -7, 7) * scale - block) ** 2).sum())
            got = values[row, 32 * number : 32 * (number + 1)] * float(scales[row, number])
            # A value that lies between two steps may round either way in float32.
            assert ((got - block) ** 2).sum() <= min(errors) * (1 + 1e-5) + 1e-12
    assert values.min() >= -7
    assert values.max() <= 7
    assert scales[2, 0] == 1  # and not 0, which nothing can be divided by


def test_int8_is_off_by_half_a_step_at_most() -> None:
    weights = matrix(9, 50)
    weights[4] = 0
    values, scales = int8_channels(weights)
    assert np.abs(values.astype(np.float64)).max() == 127
    off = np.abs(values * scales[:, None].astype(np.float64) - weights)
    assert (off <= scales[:, None] / 2 * (1 + 1e-6)).all()
    assert scales[4] == 1


def test_pairs_are_packed_as_onnx_reads_them() -> None:
    values = np.random.default_rng(0).integers(-8, 8, (6, 10)).astype(np.int8)
    tensor = helper.make_tensor(
        "x", TensorProto.INT4, values.shape, packed_pairs(values).tobytes(), raw=True
    )
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


CASES = [
    ("llama", "int4", {"hidden_size": 128, "intermediate_size": 256}),
    ("mistral", "int4", {}),
    ("qwen2", "int4", {}),
    ("qwen3", "int4", {}),
    ("llama", "int8", {}),
    ("qwen2", "int8", {}),
]


@pytest.mark.parametrize("form", ["scatter", "prefix"])
@pytest.mark.parametrize(("family", "weights", "changes"), CASES)
def test_a_quantized_graph_computes_with_exactly_the_weights_that_it_holds(
    tmp_path, family, weights, changes, form
):
    folder = make_folder(tmp_path / "hf", family, **changes)
    out = write_onnx(folder, tmp_path / "m.onnx", form=form, weights=weights)
    text = np.random.default_rng(1).integers(0, 256, (1, 48))
    decoder = PlainDecoder(out, as_written=True)
    found = np.concatenate([decoder.step(text[:, :30]), decoder.step(text[:, 30:])], axis=1)
    expected = _logits(WrittenWeights(out).into(_fresh(folder)), text)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert np.abs(found - torch_logits(folder, text)).max() > 100 * TOLERANCE


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_each_layer_is_stored_as_its_shape_allows(tmp_path, weights, half):
    folder = make_folder(
        tmp_path / "hf", "llama", hidden_size=96, intermediate_size=320, head_dim=20
    )
    out = write_onnx(folder, tmp_path / "m.onnx", weights=weights, half=half)
    written = WrittenWeights(out)
    head = "head" if half else "logits"
    names = [*(f"layers.1.{name}.weight" for name in ("qkv", "output", "gate_up", "down"))]
    kinds = [written.kind(name) for name in (*names, f"{head}.weight")]
    if weights == "int8":
        assert kinds == ["int8"] * 5
    else:  # 96, 80, 96, 320 and 96 inputs
        assert kinds == ["int4/32", "int8", "int4/32", "int4/64", "int4/32"]
    weight = _fresh(folder).model.layers[1].mlp.down_proj.weight.detach().numpy()
    step = np.abs(weight).max() / (127 if weights == "int8" else 7)
    # Half a step; three quarters where the range was clipped; scales in FP16 are off by 2^-11.
    bound = step * (0.5 if weights == "int8" else 7 * 0.15) + np.abs(weight).max() * 2.0**-10
    assert np.abs(written.matrix(names[3]) - weight).max() <= bound


@pytest.mark.parametrize("form", ["scatter", "scatter-primitive", "prefix", "concat"])
@pytest.mark.parametrize("weights", ["fp16", "int8", "int4"])
def test_fp16_rounds_no_worse_than_transformers_in_fp16(tmp_path, weights, form):
    folder = make_folder(tmp_path / "hf", "llama", hidden_size=128, intermediate_size=256)
    out = write_onnx(folder, tmp_path / "m.onnx", form=form, weights=weights, half=True)
    text = np.random.default_rng(1).integers(0, 256, (1, 48))
    model = WrittenWeights(out).into(_fresh(folder))
    exact = _logits(model, text)
    theirs = np.abs(_logits(copy.deepcopy(model).half(), text).astype(np.float32) - exact)
    ours = np.abs(PlainDecoder(out, as_written=True).step(text) - exact)
    assert ours.max() < 2 * theirs.max()
    assert ours.mean() < 1.5 * theirs.mean()
    if weights == "fp16":
        expected = _fresh(folder).model.layers[0].mlp.down_proj.weight.detach().half().float()
        written = WrittenWeights(out).matrix("layers.0.down.weight")
        np.testing.assert_array_equal(written, expected.numpy())


def _fresh(folder):
    return copy.deepcopy(_torch_model(folder))


def _logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()
