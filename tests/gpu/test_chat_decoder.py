"""TensorRT's chat decoder on a real GPU: the contract, and the tokens of ONNX Runtime.

Needs the folders that `chat_prepare` and `chat_build` have filled: build/chat/tiny, a Llama with
one size of chunks, and build/chat/qwen3, with norms of queries and keys and chunks of three sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.chat.decoder import Decoder
from edge.chat.layered import WEIGHTS_FILE, WeightsFile, layered_model_from_folder
from edge.chat.trt_decoder import TrtDecoder
from edge.tensorrt_library import TensorRT, load_tensorrt
from tests.edge.chat.decoder_contract import DecoderContract, Open, run, text

pytestmark = [pytest.mark.gpu, pytest.mark.trt]
ROOT = Path("build/chat")
# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_tensorrt("trt")


@pytest.fixture(scope="module", params=["tiny", "qwen3"])
def folder(request: pytest.FixtureRequest) -> Path:
    return ROOT / str(request.param)


@pytest.fixture(scope="module")
def plans(folder: Path) -> dict[object, bytes]:
    model = layered_model_from_folder(folder)
    return {p: (folder / p.file).with_suffix(".engine").read_bytes() for p in model.pieces}


@pytest.fixture
def open_decoder(folder: Path, library: TensorRT, plans: dict) -> Iterator[Open]:
    model, opened = layered_model_from_folder(folder), []

    def open_one() -> TrtDecoder:
        weights = WeightsFile(folder / WEIGHTS_FILE, model)
        opened.append(TrtDecoder.open(model, weights, plans, library=library))
        return opened[-1]

    yield open_one
    for decoder in opened:
        decoder.close()


class TestTrtDecoder(DecoderContract):
    """With CUDA graphs."""

    tolerance = TOLERANCE

    @pytest.fixture
    def open_decoder(self, open_decoder: Open) -> Open:
        return open_decoder


def assert_greedy(decoder: Decoder, known: Path, top: int | None = None) -> None:
    """Fail unless a decoder finds the tokens in a file that `chat_prepare` wrote."""
    for lane, case in enumerate(json.loads(known.read_text())):
        tokens, answer, start = np.array(case["prompt"]), [], 0
        while len(answer) < len(case["answer"]):
            step = tokens[None], np.array([start]), np.array([[len(tokens) - 1]])
            logits = decoder.step(lane % decoder.lanes, *step, top=top)[0, 0]
            start += len(tokens)
            answer.append(int(logits.argmax()))
            tokens = np.array(answer[-1:])
        assert answer == case["answer"]


@pytest.mark.parametrize("top", [1, None])
def test_greedy_tokens_are_those_of_onnx_runtime(
    open_decoder: Open, folder: Path, top: int | None
) -> None:
    assert_greedy(open_decoder(), folder / "greedy.json", top)


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
    found = np.concatenate(
        [
            run(decoder, 1, tokens[:30]),
            *(run(decoder, 1, tokens[i : i + 1], i) for i in range(30, 40)),
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
