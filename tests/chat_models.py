"""Tiny chat models with random weights: Hugging Face folders, and the ONNX files from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 32},
}

# Of architectures that no writer is for; see the tests of traced models.
OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {},
    "cohere": {},
    "falcon": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "granite": {},
    "mamba": {},
    "mixtral": {"num_local_experts": 4},
    "olmo2": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "smollm3": {"pad_token_id": 0},
    "stablelm": {},
    "starcoder2": {},
}


def make_folder(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """Write a model of a family with random weights into a folder, as transformers saves it."""
    model = make_model(family, seed, **changes)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def make_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """Return a transformers model in float32 whose next tokens are anything but all the same."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model(
        family, **(SIZES | (FAMILIES | OTHERS)[family] | changes)
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or "layernorm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                # As large as keeps sums of a row near 1, so that attention has preferences.
                parameter.normal_(0, 1.5 / parameter.shape[-1] ** 0.5)
    return model


def write_onnx(folder: Path, out: Path, **options: Any) -> Path:
    """Write the ONNX file of a folder; options are those of the writer."""
    from host_tools.chat.writer import WriteOptions, write_decoder

    return write_decoder(folder, out, WriteOptions(**options)).path


def make_sparse_folder(folder: Path, **changes: Any) -> int:
    """Write a Llama of nothing but zeros, which takes no room on the disk; return its parameters.

    Weights are BF16 in one file, as far as the folder tells.
    """
    from host_tools.chat.layout import expected_shapes
    from host_tools.chat.llm_spec import llm_spec_from_config

    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, **changes}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in expected_shapes(llm_spec_from_config(config)).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end // 2
