"""A tiny chat model that has learnt something: bytes of the Python manual, in seconds.

Quantization cannot be judged on random weights; nor on weights whose channels are all alike, so
that there is a version with outliers too, of the same function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STEPS, BATCH, LENGTH = 400, 8, 64
RATE = 1e-2
OUTLIERS, OUTLIER_FACTOR = 6, 40.0


def manual() -> np.ndarray:
    """Return the text as tokens, which are its bytes."""
    from pydoc_data.topics import topics

    return np.frombuffer("\n".join(topics.values()).encode(), np.uint8).astype(np.int64)


def parts() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return text for training, for calibration and for judging, which do not overlap."""
    text = manual()
    return text[:300_000], text[300_000:340_000], text[340_000:380_000]


def train(folder: Path, seed: int = 0) -> Path:
    """Train a model and save it as transformers does."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # layers so small only wait for each other's threads
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    text = torch.tensor(parts()[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        starts = torch.randint(len(text) - LENGTH, (BATCH,))
        batch = torch.stack([text[start : start + LENGTH] for start in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    torch.set_num_threads(threads)
    model.eval().save_pretrained(folder, safe_serialization=True)
    return folder


def with_outliers(folder: Path, out: Path, seed: int = 0) -> Path:
    """Save a model of the same function in which a few channels are far larger than all others.

    What a norm multiplies them by, those who read them are divided by, as large models happen to
    learn it.
    """
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder, local_files_only=True)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                channels = rng.choice(SIZES["hidden_size"], OUTLIERS, replace=False)
                norm.weight[channels] *= OUTLIER_FACTOR
                for reader in readers:
                    reader.weight[:, channels] /= OUTLIER_FACTOR
            channels = rng.choice(SIZES["intermediate_size"], 2 * OUTLIERS, replace=False)
            mlp.up_proj.weight[channels] *= OUTLIER_FACTOR
            mlp.down_proj.weight[:, channels] /= OUTLIER_FACTOR
    model.save_pretrained(out, safe_serialization=True)
    return out
