"""The layer-by-layer reference against transformers, and the numbers of quality against torch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from edge.chat.ort_decoder import OrtDecoder
from edge.chat.quality_facts import ChatQuality
from edge.errors import UsageError
from host_tools.chat.layerwise import layerwise_logits
from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.quality import (
    LIMITS,
    decoder_logits,
    measure_quality,
    quality_from_logits,
    quality_problems,
    token_windows,
)
from host_tools.chat.weights import Checkpoint
from tests.chat_models import FAMILIES, make_folder, write_onnx
from tests.host_tools.chat.decoding import PlainDecoder, torch_logits

WINDOWS = np.random.default_rng(0).integers(0, 256, (3, 40))
# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4
CHANGES = {
    "llama": {
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")

    def folder_of(family):
        folder = root / family
        if not folder.exists():
            make_folder(folder, family, **CHANGES.get(family, {}))
        return folder

    return folder_of


@pytest.fixture(scope="module")
def int4(folder_of, tmp_path_factory):
    path = tmp_path_factory.mktemp("int4") / "model.onnx"
    return write_onnx(folder_of("mistral"), path, weights="int4")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_one_by_one_give_the_logits_of_transformers(folder_of, family):
    folder = folder_of(family)
    found = layerwise_logits(
        llm_spec_from_folder(folder), Checkpoint.from_folder(folder), WINDOWS, chunk=16
    )
    np.testing.assert_allclose(
        np.concatenate(list(found)),
        torch_logits(folder, WINDOWS).reshape(-1, 256),
        rtol=0,
        atol=TOLERANCE,
    )


def test_perplexity_divergence_and_agreement_are_those_of_torch(folder_of, int4):
    folder = folder_of("mistral")
    quality = measure_quality(folder, int4, WINDOWS, intra_op_threads=1)
    expected = torch.tensor(torch_logits(folder, WINDOWS))[:, :-1]
    plain = np.concatenate([PlainDecoder(int4).step(window) for window in WINDOWS])
    found = torch.tensor(plain)[:, :-1]
    targets = torch.tensor(WINDOWS)[:, 1:]
    divergence = torch.nn.functional.kl_div(
        found.double().log_softmax(-1),
        expected.double().log_softmax(-1),
        log_target=True,
        reduction="none",
    ).sum(-1)
    assert quality.tokens == targets.numel() == 3 * 39
    for value, logits in ((quality.fp32_perplexity, expected), (quality.perplexity, found)):
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 256), targets.reshape(-1))
        assert value == pytest.approx(loss.exp().item(), rel=1e-4)
    assert quality.kl_mean == pytest.approx(divergence.mean().item(), rel=1e-3)
    assert quality.kl_p99 == pytest.approx(divergence.quantile(0.99).item(), rel=1e-3)
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean().item()
    assert quality.top1_agreement_percent == pytest.approx(100 * same)
    assert quality.kl_mean > 1e-3  # or there was nothing to measure


def test_fp32_perplexity_is_the_loss_that_transformers_reports(folder_of, int4):
    import transformers

    folder = folder_of("mistral")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    text = torch.tensor(WINDOWS)
    with torch.no_grad():
        loss = model(text, labels=text).loss.item()
    quality = measure_quality(folder, int4, WINDOWS, intra_op_threads=1)
    assert math.log(quality.fp32_perplexity) == pytest.approx(loss, rel=1e-5)


def test_the_fp32_graph_is_its_own_model(folder_of, tmp_path):
    folder = folder_of("qwen2")
    graph = write_onnx(folder, tmp_path / "model.onnx")
    quality = measure_quality(folder, graph, WINDOWS, intra_op_threads=1)
    assert quality_problems(quality, LIMITS["fp32"]) == []
    assert 0 <= quality.kl_p99 < 1e-8


def test_the_size_of_chunks_changes_nothing(folder_of, int4):
    folder = folder_of("mistral")
    spec, weights = llm_spec_from_folder(folder), Checkpoint.from_folder(folder)
    found = []
    for chunk in (7, 40):
        decoder = OrtDecoder.open(int4, lanes=1, intra_op_threads=1)
        reference = layerwise_logits(spec, weights, WINDOWS, chunk=chunk)
        logits = decoder_logits(decoder, WINDOWS, chunk=chunk)
        found.append(dataclasses.asdict(quality_from_logits(reference, logits, WINDOWS)))
        decoder.close()
    # Kernels for few and for many rows sum in different orders.
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def quality(**changes):
    values = {
        "tokens": 1000,
        "perplexity": 10.1,
        "fp32_perplexity": 10.0,
        "kl_mean": 0.01,
        "kl_p99": 0.1,
        "top1_agreement_percent": 97.0,
    }
    return ChatQuality(**(values | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"perplexity": 11.5}, "perplexity rises by 15.00 %"),
        ({"kl_mean": 0.5}, "mean divergence"),
        ({"kl_p99": 3.0}, "99th percentile"),
        ({"top1_agreement_percent": 60.0}, "likeliest token"),
        ({"kl_mean": math.nan}, "mean divergence"),
        ({"perplexity": math.nan}, "perplexity rises"),
    ],
)
def test_each_limit_is_a_problem_of_its_own(change, words):
    assert quality_problems(quality(), LIMITS["int4"]) == []
    (problem,) = quality_problems(quality(**change), LIMITS["int4"])
    assert words in problem


def test_windows_are_spread_over_a_long_text_and_may_begin_with_a_token():
    windows = token_windows(np.arange(1000), length=20, most=60, begin=7)
    assert windows.shape == (3, 20)
    assert windows[:, 0].tolist() == [7, 7, 7]
    assert windows[:, 1].tolist() == [0, 494, 969]
    assert (np.diff(windows[:, 1:]) == 1).all()


def test_a_short_text_is_one_window_and_a_shorter_one_an_error():
    assert token_windows(range(30)).shape == (1, 30)
    with pytest.raises(UsageError, match="12 tokens of text are too few"):
        token_windows(range(12))


def test_a_token_of_another_tokenizer_is_an_error_that_says_so(folder_of, int4):
    with pytest.raises(UsageError, match="token 300 is beyond the vocabulary of 256"):
        measure_quality(folder_of("mistral"), int4, np.array([[3, 300] * 8]))


@pytest.mark.parametrize("form", ["scatter", "prefix"])
def test_int8_weights_run_where_int8_may_saturate(folder_of, tmp_path, form):
    # `session_options` asks for kernels that do not; ONNX Runtime then rewrites the weights.
    folder = folder_of("llama")
    graph = write_onnx(folder, tmp_path / "model.onnx", weights="int8", form=form)
    found = measure_quality(folder, graph, WINDOWS, intra_op_threads=1)
    assert found.kl_mean < 0.01  # int4 gives 0.3
