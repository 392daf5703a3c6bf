"""Chat graphs against transformers: every family, every form."""

from __future__ import annotations

import numpy as np
import pytest

from tests.chat_models import FAMILIES, make_folder, write_onnx
from tests.host_tools.chat.decoding import PlainDecoder, torch_greedy, torch_logits

FORMS = ("scatter", "scatter-primitive", "prefix", "concat")
# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4

each_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A function from family and form to (folder, graph), each written once."""
    root = tmp_path_factory.mktemp("chat")
    known = {}

    def graph_of(family, form="scatter"):
        folder = root / family
        if not folder.exists():
            make_folder(folder, family)
        if (family, form) not in known:
            known[family, form] = write_onnx(folder, root / f"{family}-{form}.onnx", form=form)
        return folder, known[family, form]

    return graph_of


def tokens(count, lanes=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (lanes, count))


@pytest.mark.parametrize("family", FAMILIES)
def test_64_greedy_tokens_are_those_of_transformers(graphs, family):
    folder, graph = graphs(family)
    prompt = tokens(33)[0]
    found = PlainDecoder(graph).greedy(prompt, 64)
    assert found == torch_greedy(folder, prompt, 64)
    assert len(set(found)) > 8  # and not one token for ever


@each_form
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_whole_text_are_those_of_transformers(graphs, family, form):
    folder, graph = graphs(family, form)
    text = tokens(96)
    np.testing.assert_allclose(
        PlainDecoder(graph).step(text), torch_logits(folder, text), rtol=0, atol=TOLERANCE
    )


VARIANTS = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-one-key": ("llama", {"num_key_value_heads": 1}),
    "llama-key-each": ("llama", {"num_key_value_heads": 4}),
    "llama-wide-heads": ("llama", {"head_dim": 24}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2-window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
    ),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
}
# Where attention is another in each form, all of them; elsewhere the one with most of its own.
CASES = [
    *((name, "prefix") for name in VARIANTS),
    *((name, form) for name in ("llama-key-each", "qwen2-window") for form in FORMS[:2]),
    ("qwen2-window", "concat"),
]


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_of_variants_are_those_of_transformers(tmp_path, name, form):
    family, changes = VARIANTS[name]
    folder = make_folder(tmp_path / "hf", family, **changes)
    text = tokens(60)
    decoder = PlainDecoder(write_onnx(folder, tmp_path / "model.onnx", form=form))
    found = np.concatenate([decoder.step(text[:, :40]), decoder.step(text[:, 40:])], axis=1)
    np.testing.assert_allclose(found, torch_logits(folder, text), rtol=0, atol=TOLERANCE)


@each_form
def test_chunks_give_what_the_whole_gives(graphs, form):
    folder, graph = graphs("mistral", form)
    text = tokens(64)
    decoder = PlainDecoder(graph)
    parts = [decoder.step(text[:, a:b]) for a, b in ((0, 20), (20, 33), (33, 34), (34, 64))]
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), torch_logits(folder, text), rtol=0, atol=TOLERANCE
    )


@each_form
def test_garbage_in_the_dead_cache_changes_nothing(graphs, form):
    _, graph = graphs("mistral", form)
    text = tokens(20)
    clean, dirty = (PlainDecoder(graph, fill=fill) for fill in (0.0, 1e4))
    for decoder in (clean, dirty):
        decoder.step(text)
    np.testing.assert_array_equal(dirty.step(tokens(1, seed=1)), clean.step(tokens(1, seed=1)))


@pytest.mark.parametrize("form", FORMS[:3])
def test_lanes_of_different_lengths_do_not_see_each_other(graphs, form):
    folder, graph = graphs("llama", form)
    lengths = (5, 17, 30)
    texts = [tokens(length + 4, seed=length)[0] for length in lengths]
    decoder = PlainDecoder(graph, lanes=len(texts))
    prompts = np.full((len(texts), max(lengths)), 7)
    for prompt, text, length in zip(prompts, texts, lengths, strict=True):
        prompt[:length] = text[:length]
    decoder.step(prompts, real=lengths)
    for step in range(4):
        new = [[text[length + step]] for text, length in zip(texts, lengths, strict=True)]
        logits = decoder.step(new)
        for lane, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            expected = torch_logits(folder, [text[: length + step + 1]])[0, -1]
            np.testing.assert_allclose(logits[lane, 0], expected, rtol=0, atol=TOLERANCE)


@each_form
def test_logits_are_given_for_the_wanted_rows_in_their_order(graphs, form):
    folder, graph = graphs("qwen2", form)
    text = tokens(12)
    found = PlainDecoder(graph).step(text, rows=[[11, 3, 3]])
    np.testing.assert_allclose(
        found, torch_logits(folder, text)[:, [11, 3, 3]], rtol=0, atol=TOLERANCE
    )


def test_a_padding_token_may_lie_beyond_the_context(graphs, tmp_path):
    folder, _ = graphs("llama")
    graph = write_onnx(folder, tmp_path / "short.onnx", context=16)
    decoder = PlainDecoder(graph, capacity=24)
    text = tokens(16)
    decoder.step(text[:, :14])
    found = decoder.step([[*text[0, 14:], 7, 7]], real=[2])
    np.testing.assert_allclose(
        found[:, :2], torch_logits(folder, text)[:, 14:], rtol=0, atol=TOLERANCE
    )
