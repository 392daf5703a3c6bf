"""ONNX Runtime's decoder: the contract in every form of graph, and files that are no chat graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime import GraphOptimizationLevel

from edge.chat import ort_cache, ort_decoder
from edge.chat.ort_decoder import OrtDecoder
from edge.errors import ModelError
from tests.chat_models import make_folder, write_onnx
from tests.edge.chat.decoder_contract import CONTEXT, LANES, DecoderContract, Open, run, text
from tests.host_tools.chat.decoding import torch_logits
from tests.models import affine_model

FORMS = ("scatter", "scatter-primitive", "prefix", "concat")
# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A window, so that what a token must not see any more is tested too.
    return make_folder(tmp_path_factory.mktemp("hf"), "mistral")


@pytest.fixture(scope="module")
def graph_of(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root, known = tmp_path_factory.mktemp("onnx"), {}

    def graph_of(form: str, **options: object) -> Path:
        key = (form, *sorted(options.items()))
        if key not in known:
            path = root / f"{len(known)}.onnx"
            known[key] = write_onnx(folder, path, form=form, context=CONTEXT, **options)
        return known[key]

    return graph_of


def open_graph(graph: Path, **options: int) -> OrtDecoder:
    return OrtDecoder.open(graph, **{"lanes": LANES, "intra_op_threads": 1, **options})


@pytest.mark.parametrize("form", FORMS)
class TestOrtDecoder(DecoderContract):
    tolerance = TOLERANCE

    @pytest.fixture
    def open_decoder(self, form: str, graph_of: Callable[..., Path]) -> Open:
        return lambda: open_graph(graph_of(form))


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_transformers(
    folder: Path, graph_of: Callable[..., Path], form: str
) -> None:
    tokens = text(150)
    np.testing.assert_allclose(
        run(open_graph(graph_of(form)), 1, tokens),
        torch_logits(folder, tokens[None])[0],
        rtol=0,
        atol=TOLERANCE,
    )


def test_a_cache_in_fp16_gives_nearly_the_same(folder: Path, graph_of: Callable[..., Path]) -> None:
    tokens, decoder = text(100), open_graph(graph_of("scatter", weights="fp16"))
    assert decoder.spec.cache == "FP16"
    parts = [run(decoder, 2, tokens[:70]), run(decoder, 2, tokens[70:], 70)]
    expected = torch_logits(folder, tokens[None])[0]
    # Half precision rounds to 2^-11; sums of some hundred such terms of size 1 stay below this.
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=0.1)


def test_steps_of_one_shape_bind_nothing_anew(graph_of: Callable[..., Path]) -> None:
    decoder = open_graph(graph_of("scatter"))
    tokens = text(40)
    run(decoder, 1, tokens[:30])
    run(decoder, 1, tokens[30:31], 30)
    before = dict(decoder._bindings)
    for at in range(31, 40):
        run(decoder, 1, tokens[at : at + 1], at)
    assert decoder._bindings == before
    assert len(before) == 1


def test_the_caches_are_updated_in_place(
    graph_of: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ort_decoder, "_LOG_SEVERITY", 2)  # it warns where it copies
    decoder = open_graph(graph_of("scatter"))
    decoder.step(1, text(6).reshape(2, 3), np.zeros(2, np.int64), np.array([[2], [2]]))
    assert "in-place" not in capfd.readouterr().err

    elsewhere = []
    bind = ort_cache.bind_output
    monkeypatch.setattr(
        ort_cache,
        "bind_output",
        lambda binding, name, array: bind(
            binding, name, elsewhere.append(array.copy()) or elsewhere[-1]
        ),
    )
    decoder.step(0, text(6).reshape(2, 3), np.zeros(2, np.int64), np.array([[2], [2]]))
    assert "in-place optimization not activated" in capfd.readouterr().err


@pytest.mark.parametrize(("weights", "block"), [("int8", 256), ("int4", 128)])
@pytest.mark.parametrize("saturates", [False, True])
def test_every_quantized_layer_runs_in_the_kernel_for_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str, block: int, saturates: bool
) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512}
    folder = make_folder(tmp_path / "hf", "llama", **wide)
    graph = write_onnx(folder, tmp_path / "m.onnx", weights=weights, context=CONTEXT)
    options_of = ort_decoder._options
    monkeypatch.setattr(ort_decoder, "int8_saturates", lambda: saturates)

    def opened(**changes: object) -> OrtDecoder:
        def changed(*arguments: object) -> object:
            options = options_of(*arguments)
            for name, value in changes.items():
                setattr(options, name, value)
            return options

        monkeypatch.setattr(ort_decoder, "_options", changed)
        return open_graph(graph)

    decoder = opened(optimized_model_filepath=str(tmp_path / "optimized.onnx"))
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    fused = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert len(fused) == 4 * decoder.spec.layers + 1
    assert not any(node.op_type == "DequantizeLinear" for node in nodes)
    blocks = {a.i for node in fused for a in node.attribute if a.name == "block_size"}
    assert blocks == {block}

    as_written = opened(graph_optimization_level=GraphOptimizationLevel.ORT_DISABLE_ALL)
    tokens = text(40)
    expected = run(as_written, 1, tokens)
    # The kernel rounds activations to 8 bits as well: to 1/254 of the largest of a block.
    error = run(decoder, 1, tokens) - expected
    assert 0 < np.square(error).mean() < 2e-3 * np.square(expected).mean()


@pytest.mark.parametrize("form", FORMS)
def test_no_step_changes_how_its_thread_computes(form: str, graph_of: Callable[..., Path]) -> None:
    def smallest() -> float:
        return float((np.full(4, 1e-30, np.float32) * np.float32(1e-10))[0])

    before = smallest()
    run(open_graph(graph_of(form)), 0, text(5))
    assert smallest() == before > 0


def test_a_graph_can_be_opened_for_a_shorter_context(graph_of: Callable[..., Path]) -> None:
    decoder = open_graph(graph_of("scatter"), context=50)
    assert (decoder.spec.context, decoder.longest_step) == (50, 50)
    with pytest.raises(ValueError, match="positions up to 51"):
        run(decoder, 0, text(51))
    with pytest.raises(ValueError, match=r"lanes 3\.\.3"):
        run(decoder, 3, text(5))


def test_a_graph_without_the_metadata_of_a_chat_graph_is_refused(tmp_path: Path) -> None:
    onnx.save(affine_model(), tmp_path / "affine.onnx")
    with pytest.raises(ModelError, match=r"affine\.onnx is no chat graph"):
        open_graph(tmp_path / "affine.onnx")


def test_a_graph_whose_inputs_are_not_what_its_metadata_say_is_refused(
    graph_of: Callable[..., Path], tmp_path: Path
) -> None:
    model = onnx.load(graph_of("prefix"))
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"prefix"', '"scatter"')
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(ModelError, match=r"outputs are not those .* \(key_0_new, key_0_out, "):
        open_graph(tmp_path / "altered.onnx")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot open"):
        open_graph(tmp_path / "no.onnx")
