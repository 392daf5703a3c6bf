"""Rotary tables against those of transformers."""

from __future__ import annotations

import numpy as np
import pytest

from host_tools.chat.llm_spec import llm_spec_from_config
from host_tools.chat.rope import inverse_frequencies, rotary_tables
from tests.chat_models import make_folder, write_onnx
from tests.host_tools.chat.decoding import PlainDecoder, torch_logits

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-attention-factor": YARN | {"attention_factor": 1.25},
    "yarn-mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
    "yarn-betas": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    "yarn-of-few": YARN | {"original_max_position_embeddings": 256},
}
POSITIONS = 2048


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_that_transformers_computes(name, head_dim):
    import torch
    import transformers
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=dict(SCALINGS[name]),
    )
    theirs = LlamaRotaryEmbedding(config)
    with torch.no_grad():
        cosines, sines = theirs(torch.zeros(1), torch.arange(POSITIONS)[None])
    rope = llm_spec_from_config(config.to_dict() | {"architectures": ["LlamaForCausalLM"]}).rope
    # Some roundings in float32, of 6e-8 each, that follow each other.
    np.testing.assert_allclose(
        inverse_frequencies(rope, head_dim), theirs.inv_freq.numpy(), rtol=5e-7
    )
    half = head_dim // 2
    # Angles of up to 2047 that differ by that share.
    for table, expected in zip(
        rotary_tables(rope, head_dim, POSITIONS), (cosines, sines), strict=True
    ):
        np.testing.assert_allclose(table, expected[0, :, :half].numpy(), rtol=0, atol=2e-3)
        np.testing.assert_allclose(table, expected[0, :, half:].numpy(), rtol=0, atol=2e-3)
        np.testing.assert_allclose(table[:8], expected[0, :8, :half].numpy(), rtol=0, atol=8e-6)


@pytest.mark.parametrize("form", ["scatter", "prefix"])
@pytest.mark.parametrize("name", ["linear", "llama3", "yarn-of-few"])
def test_a_scaled_model_gives_the_logits_of_transformers(tmp_path, name, form):
    rope = dict(SCALINGS[name])
    if name == "llama3":
        rope["original_max_position_embeddings"] = 32  # so that positions here feel it
    folder = make_folder(tmp_path / "hf", "llama", rope_parameters=rope)
    text = np.random.default_rng(0).integers(0, 256, (1, 80))
    found = PlainDecoder(write_onnx(folder, tmp_path / "model.onnx", form=form)).step(text)
    np.testing.assert_allclose(found, torch_logits(folder, text), rtol=0, atol=1e-4)
    plain = make_folder(tmp_path / "plain", "llama", rope_parameters=SCALINGS["default"])
    assert np.abs(found - torch_logits(plain, text)).max() > 0.01
