"""TensorRT's decoder of a whole engine on a real GPU: the contract, and ONNX Runtime's tokens.

Needs the folder that `chat_prepare` has filled, build/chat/whole; the engine is built here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.chat.spec import DecoderSpec
from edge.chat.trt_whole import TrtWholeDecoder
from edge.chat.whole import whole_profiles
from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.errors import ModelError
from edge.tensorrt_library import TensorRT, load_tensorrt
from tests.edge.chat.decoder_contract import DecoderContract, Open, run, text
from tests.gpu.test_chat_decoder import TOLERANCE, assert_greedy

pytestmark = [pytest.mark.gpu, pytest.mark.trt]
FOLDER = Path("build/chat/whole")


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_tensorrt("trt")


@pytest.fixture(scope="module")
def spec() -> DecoderSpec:
    return msgspec.json.decode((FOLDER / "decoder.json").read_bytes(), type=DecoderSpec)


@pytest.fixture(scope="module")
def plan(library: TensorRT, spec: DecoderSpec) -> bytes:
    """The engine, with a profile for one token and one for more, as quantized ones have."""
    request = EngineRequest(
        onnx=FOLDER / "model.onnx", precision="fp32", profiles=whole_profiles(spec, "int8")
    )
    built = engine_from_onnx(request, library)
    print(f"built in {built.seconds:.1f} s, {len(built.plan) / 1e6:.2f} MB")
    return bytes(built.plan)


@pytest.fixture
def open_decoder(library: TensorRT, spec: DecoderSpec, plan: bytes) -> Iterator[Open]:
    opened: list[TrtWholeDecoder] = []

    def open_one() -> TrtWholeDecoder:
        opened.append(TrtWholeDecoder.open(spec, plan, library=library, lanes=spec.lanes or 1))
        return opened[-1]

    yield open_one
    for decoder in opened:
        decoder.close()


class TestTrtWholeDecoder(DecoderContract):
    """With CUDA graphs."""

    tolerance = TOLERANCE

    @pytest.fixture
    def open_decoder(self, open_decoder: Open) -> Open:
        return open_decoder


def test_greedy_tokens_are_those_of_onnx_runtime(open_decoder: Open) -> None:
    assert_greedy(open_decoder(), FOLDER / "greedy.json")


def test_steps_are_cuda_graphs(open_decoder: Open) -> None:
    from edge.cuda_graph import CudaGraph

    decoder, tokens = open_decoder(), text(12)
    run(decoder, 0, tokens[:10])
    for place in (10, 11):
        run(decoder, 0, tokens[place : place + 1], place)
    assert [type(graph) for graph in decoder._graphs.values()] == [CudaGraph]


def test_what_lies_in_dead_positions_changes_nothing(open_decoder: Open) -> None:
    decoder, tokens = open_decoder(), text(40)
    expected = run(decoder, 0, tokens)
    for lane in range(decoder.lanes):  # large values everywhere, and then only some overwritten
        run(decoder, lane, text(120, seed=7))
    parts = [run(decoder, 1, tokens[:30])]
    parts += [run(decoder, 1, tokens[i : i + 1], i) for i in range(30, 40)]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=TOLERANCE)


def test_an_engine_of_another_shape_is_refused(
    library: TensorRT, spec: DecoderSpec, plan: bytes
) -> None:
    import dataclasses

    other = dataclasses.replace(spec, kv_heads=spec.kv_heads + 1)
    with pytest.raises(ModelError, match="the bundle says"):
        TrtWholeDecoder.open(other, plan, library=library, lanes=1)
