from __future__ import annotations

from transformers import GenerationConfig

from edge.chat.sampling_defaults import SamplingDefaults, defaults_from_generation_config


def test_what_transformers_writes_is_read() -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, min_p=0.05
    )
    assert defaults_from_generation_config(config.to_json_string().encode()) == SamplingDefaults(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, min_p=0.05
    )
