from __future__ import annotations

import pytest

from edge.chat.sampling_defaults import SamplingDefaults, defaults_from_generation_config
from edge.errors import ModelError


def test_what_a_file_does_not_say_is_as_in_openais_api() -> None:
    assert defaults_from_generation_config(b'{"eos_token_id": 2, "do_sample": true}') == (
        SamplingDefaults(temperature=1.0, top_p=1.0, top_k=None, min_p=0.0, repetition_penalty=1.0)
    )


def test_what_a_file_says_counts() -> None:
    content = b"""{"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.05,
        "repetition_penalty": 1.05, "transformers_version": "5"}"""
    assert defaults_from_generation_config(content) == SamplingDefaults(
        temperature=0.7, top_p=0.8, top_k=20, min_p=0.05, repetition_penalty=1.05
    )


@pytest.mark.parametrize("content", [b'{"top_k": 0}', b'{"top_k": null, "temperature": null}'])
def test_nothing_may_be_said_in_more_than_one_way(content: bytes) -> None:
    assert defaults_from_generation_config(content) == SamplingDefaults()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b'{"temperature": -1}', b'{"top_p": 2}', b'{"top_k": "all"}'],
)
def test_a_file_that_says_what_cannot_be_is_refused(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json cannot be used"):
        defaults_from_generation_config(content)
