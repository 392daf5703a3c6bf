"""What a config.json says of a model: published ones, and malformed or unsupported ones."""

from __future__ import annotations

import json

import pytest

from edge.errors import UsageError
from host_tools.chat.llm_spec import llm_spec_from_config, llm_spec_from_folder
from host_tools.errors import ExportError
from tests.chat_models import FAMILIES, make_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "pretraining_tp": 1,
    "eos_token_id": [128001, 128008, 128009],
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "max_window_layers": 21,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "eos_token_id": 151645,
}
QWEN3 = {
    **QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
    "rope_scaling": None,
    "attention_bias": False,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model_that_transformers_makes_of_the_config(family):
    model = make_model(family)
    spec = llm_spec_from_config(model.config.to_dict() | {"architectures": [type(model).__name__]})
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert (spec.family, spec.layers) == (family, len(model.model.layers))
    assert (spec.vocabulary, spec.hidden) == tuple(model.model.embed_tokens.weight.shape)
    assert spec.heads * spec.head_dim == attention.q_proj.out_features
    assert spec.kv_heads * spec.head_dim == attention.k_proj.out_features
    assert spec.intermediate == mlp.gate_proj.out_features
    assert spec.qkv_bias == (attention.q_proj.bias is not None)
    assert spec.output_bias == (attention.o_proj.bias is not None)
    assert spec.mlp_bias == (mlp.up_proj.bias is not None)
    assert spec.qk_norm == hasattr(attention, "q_norm")
    assert spec.tied == (model.lm_head.weight is model.model.embed_tokens.weight)
    assert spec.norm_eps == model.model.norm.variance_epsilon


def test_published_configs_give_the_published_sizes():
    llama = llm_spec_from_config(LLAMA, {"eos_token_id": 128009})
    assert (llama.family, llama.head_dim, llama.kv_heads, llama.tied) == ("llama", 64, 8, True)
    assert (llama.rope.scaling, llama.rope.factor, llama.context) == ("llama3", 32.0, 131072)
    assert llama.eos == (128001, 128008, 128009)
    mistral = llm_spec_from_config(MISTRAL)
    assert (mistral.head_dim, mistral.window, mistral.qkv_bias) == (128, 4096, False)
    qwen2 = llm_spec_from_config(QWEN2, {"eos_token_id": [151645, 151643]})
    assert (qwen2.head_dim, qwen2.window, qwen2.qkv_bias, qwen2.output_bias) == (
        64, None, True, False,
    )  # fmt: skip
    assert qwen2.eos == (151643, 151645)
    qwen3 = llm_spec_from_config(QWEN3)
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)


def test_the_window_of_qwen2_begins_at_the_layer_that_its_config_names():
    spec = llm_spec_from_config(QWEN2 | {"use_sliding_window": True, "sliding_window": 100})
    assert spec.windows == (None,) * 21 + (100,) * 3
    assert spec.window is None  # the cache must hold everything for the others
    kinds = ["sliding_attention"] * 24
    spec = llm_spec_from_config(
        QWEN2 | {"use_sliding_window": True, "sliding_window": 100, "layer_types": kinds}
    )
    assert spec.window == 100
    null = {"use_sliding_window": True, "sliding_window": None}
    assert llm_spec_from_config(QWEN2 | null).windows == (None,) * 24


def test_a_mistral_without_a_window_sees_everything():
    assert llm_spec_from_config(MISTRAL | {"sliding_window": None}).window is None
    without = {name: value for name, value in MISTRAL.items() if name != "sliding_window"}
    assert llm_spec_from_config(without).window == 4096  # as transformers takes it


def test_yarn_reaches_as_far_as_it_is_scaled_whatever_the_config_says_of_positions():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    spec = llm_spec_from_config(QWEN2 | {"rope_scaling": yarn})
    assert (spec.context, spec.rope.original_context) == (131072, 32768)


@pytest.mark.parametrize("missing", [
    "hidden_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings",
    "vocab_size", "intermediate_size", "architectures",
])  # fmt: skip
def test_a_missing_field_is_named(missing):
    config = {name: value for name, value in LLAMA.items() if name != missing}
    with pytest.raises(ExportError, match=missing):
        llm_spec_from_config(config)


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (LLAMA, {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*the writer knows Llama"),
        (LLAMA, {"architectures": []}, "must hold one of Llama"),
        (LLAMA, {"architectures": "LlamaForCausalLM"}, "must hold one of"),
        (LLAMA, {"architectures": [["LlamaForCausalLM"]]}, "architectures"),
        (LLAMA, {"model_type": "qwen2"}, "LlamaForCausalLM is of type llama"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act is 'gelu'; the writer knows 'silu'"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"auto_map": {"AutoModel": "x.y"}}, "auto_map"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp"),
        (LLAMA, {"hidden_size": 0}, "hidden_size is 0; it must be"),
        (LLAMA, {"hidden_size": 2048.0}, "hidden_size is 2048.0"),
        (LLAMA, {"hidden_size": True}, "hidden_size is True"),
        (LLAMA, {"hidden_size": "2048"}, "hidden_size is '2048'"),
        (LLAMA, {"hidden_size": 1 << 40}, "hidden_size"),
        (LLAMA, {"num_hidden_layers": 5000}, r"num_hidden_layers is 5000; .*1\.\.1024"),
        (LLAMA, {"num_key_value_heads": 5}, "32 query heads cannot share"),
        (LLAMA, {"head_dim": 63}, "head_dim is 63; rotary embeddings need an even one"),
        (LLAMA, {"head_dim": None, "hidden_size": 2047}, "32 heads cannot share it evenly"),
        (LLAMA, {"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        (LLAMA, {"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        (LLAMA, {"attention_bias": 1}, "attention_bias"),
        (LLAMA, {"rope_scaling": [1]}, "rope_scaling is .*; it must be an object"),
        (LLAMA, {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        (LLAMA, {"rope_scaling": {"type": "longrope"}}, "type is 'longrope'"),
        (LLAMA, {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is mis"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        (LLAMA, {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "why": 1}}, "why is 1"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "mscale": "x"}}, "mscale is 'x'"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "knows 1 only"),
        (LLAMA, {"rope_theta": float("inf")}, "rope_theta"),
        (LLAMA, {"eos_token_id": 128256}, r"tokens are 0\.\.128255"),
        (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id"),
        (MISTRAL, {"sliding_window": 0}, "sliding_window is 0"),
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "one kind of layers"),
        (QWEN2, {"use_sliding_window": "no"}, "use_sliding_window"),
        (QWEN2, {"use_sliding_window": True, "max_window_layers": "x"}, "max_window_layers"),
        (QWEN2, {"use_sliding_window": True, "layer_types": ["full_attention"]}, "for 24 layers"),
        (QWEN2, {"use_sliding_window": True, "layer_types": ["chunked"] * 24}, "full_attention or"),
        (QWEN2, {"use_sliding_window": True, "layer_types": 3}, "layer_types"),
    ],
)  # fmt: skip
def test_what_the_writer_does_not_know_is_an_error_that_names_it(base, changes, words):
    with pytest.raises(ExportError, match=words):
        llm_spec_from_config(base | changes)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (None, UsageError, "no config.json in"),
        (b"{", ExportError, "config.json is not JSON"),
        (b"[]", ExportError, "is not a JSON object"),
        (b"\xff\xfe", ExportError, "is not JSON"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, content, error, words):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(error, match=words):
        llm_spec_from_folder(tmp_path)


def test_tokens_that_end_an_answer_come_from_generation_config_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert llm_spec_from_folder(tmp_path).eos == (2, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [32000]}')
    with pytest.raises(ExportError, match=r"generation: \[32000\]"):
        llm_spec_from_folder(tmp_path)
