"""TensorRT's decoder on a device that is this process: the contract, and what is its own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge.chat.generator import Generator, GeneratorOptions
from edge.chat.layered import MODEL_FILE, WeightsFile, layered_model_from_folder
from edge.chat.sampling import SamplingOptions
from edge.chat.scheduler import SchedulerOptions
from edge.chat.trt_decoder import TrtDecoder
from edge.chat.trt_piece import PieceEngine
from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.errors import InferenceError, ModelError
from edge.tensorrt_library import load_tensorrt
from host_tools.chat.layered import write_layered
from host_tools.errors import ExportError
from tests.chat_models import make_folder, write_onnx
from tests.edge.chat.decoder_contract import CONTEXT, LANES, DecoderContract, Open, run, text
from tests.host_tools.chat.fake_device import Memory, open_on_fake
from tests.host_tools.chat.test_conversations import DEADLINE_S, ask, assert_greedy, prompt_of
from tests.host_tools.chat.test_ort_decoder import open_graph

# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4
CAPACITIES = (64, 128, CONTEXT)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hf"), "llama")


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("layered") / "model"
    write_layered(
        source, out, lanes=LANES, chunks=(16, 64, CONTEXT), capacities=CAPACITIES, half=False
    )
    return out


@pytest.fixture
def open_decoder(folder: Path) -> Iterator[Open]:
    opened: list[TrtDecoder] = []

    def open_one() -> TrtDecoder:
        opened.append(open_on_fake(folder))
        return opened[-1]

    yield open_one
    for decoder in opened:
        decoder.close()
    assert Memory.live == set()


class TestTrtDecoder(DecoderContract):
    tolerance = TOLERANCE

    @pytest.fixture
    def open_decoder(self, open_decoder: Open) -> Open:
        return open_decoder


def test_logits_are_those_of_onnx_runtime(source: Path, open_decoder: Open, tmp_path: Path) -> None:
    tokens = text(90)
    graph = write_onnx(source, tmp_path / "model.onnx", context=CONTEXT)
    expected = run(open_graph(graph), 0, tokens)
    decoder = open_decoder()
    np.testing.assert_allclose(run(decoder, 1, tokens[:80]), expected[:80], rtol=0, atol=TOLERANCE)
    for place in range(80, 90):
        found = run(decoder, 1, tokens[place : place + 1], place)
        np.testing.assert_allclose(found[0], expected[place], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_families_tied_heads_norms_and_biases_are_those_of_onnx_runtime(
    family: str, tmp_path: Path
) -> None:
    hf = make_folder(tmp_path / "hf", family, num_hidden_layers=3, vocab_size=9000, seed=3)
    write_layered(hf, tmp_path / "out", lanes=1, chunks=(64,), capacities=(128,), half=False)
    expected = run(open_graph(write_onnx(hf, tmp_path / "m.onnx")), 0, text(40))
    decoder = open_on_fake(tmp_path / "out")
    found = [run(decoder, 0, text(40)[:39]), run(decoder, 0, text(40)[39:], 39)]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=TOLERANCE)
    decoder.close()


def test_half_precision_is_close_to_single(source: Path, tmp_path: Path, folder: Path) -> None:
    write_layered(source, tmp_path / "half", lanes=1, chunks=(64,), capacities=(64,), half=True)
    half, single = open_on_fake(tmp_path / "half"), open_on_fake(folder)
    found, expected = run(half, 0, text(50)), run(single, 0, text(50))
    assert (found * expected).sum() / np.sqrt((found**2).sum() * (expected**2).sum()) > 0.9999
    half.close()
    single.close()


@pytest.mark.parametrize("vocabulary", [256, 9000, 128 * 70])
def test_the_likeliest_are_those_of_all_logits(vocabulary: int, tmp_path: Path) -> None:
    """Of a vocabulary in groups, of one that does not fit into groups, and of a small one."""
    hf = make_folder(tmp_path / "hf", "llama", num_hidden_layers=1, vocab_size=vocabulary)
    write_layered(hf, tmp_path / "out", lanes=2, chunks=(64,), capacities=(64,), half=False)
    decoder = open_on_fake(tmp_path / "out")
    tokens, start = np.stack([text(6), text(6, seed=1)]), np.array([0, 0])
    for begin, wanted in ((0, [[1, 4], [0, 3]]), (5, [[0], [0]])):
        step = tokens[:, begin : begin + 5], start + begin, np.array(wanted)
        whole = decoder.step(0, *step).copy()
        for _ in range(2):  # what was written before is gone
            few = decoder.step(0, *step, top=40)
            assert few.shape == whole.shape
            kept = np.isfinite(few)
            assert (kept.sum(axis=-1) == 64).all()
            np.testing.assert_array_equal(few[kept], whole[kept])
            assert (
                whole.min(axis=-1, where=kept, initial=np.inf) >= np.sort(whole)[..., -64]
            ).all()
    decoder.close()


def test_a_step_that_comes_again_is_one_launch(open_decoder: Open) -> None:
    decoder, tokens = open_decoder(), text(60)
    run(decoder, 0, tokens[:20])
    for place in range(20, 60):
        run(decoder, 0, tokens[place : place + 1], place)
    (graph,) = decoder._graphs.values()
    assert graph.launches == 40


def test_several_tokens_run_in_the_smallest_chunk_that_holds_them(
    open_decoder: Open,
) -> None:
    decoder, seen = open_decoder(), []
    for piece, engine in decoder._engines.items():
        if piece.kind == "layer":
            decoder._engines[piece] = Spy(engine, lambda tokens=piece.tokens: seen.append(tokens))
    for count, chunk in ((2, 16), (16, 16), (17, 64), (64, 64), (65, CONTEXT), (1, 1)):
        seen.clear()
        run(decoder, 0, text(count), rows=[0])
        assert set(seen) == {chunk}


class Spy:
    """An engine whose runs are told."""

    def __init__(self, engine: PieceEngine, tell: Callable[[], None]) -> None:
        self._engine, self._tell = engine, tell

    def enqueue(self, *run: object) -> None:
        self._tell()
        self._engine.enqueue(*run)

    def close(self) -> None:
        self._engine.close()


def test_a_graph_that_the_driver_refuses_is_done_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(stream: int, enqueue: Callable[[], None]) -> None:
        raise InferenceError("CUDA graph instantiate failed")

    decoder, other = open_on_fake(folder, capture=refuse), open_on_fake(folder)
    for place, token in enumerate(text(5)):
        found, expected = (run(d, 0, np.array([token]), place) for d in (decoder, other))
        np.testing.assert_array_equal(found, expected)
    decoder.close()
    other.close()


def test_weights_that_end_early_and_malformed_files_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    model = layered_model_from_folder(folder)
    content = (folder / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="the weights end before 'head' does"):
        WeightsFile(tmp_path / "weights.bin", model).tensor("head")
    with pytest.raises(ModelError, match="no tensor 'extra'"):
        WeightsFile(folder / "weights.bin", model).tensor("extra")
    for text_, problem in (
        ("{", "malformed"),
        ((folder / MODEL_FILE).read_text()[:-9], "malformed"),
    ):
        (tmp_path / MODEL_FILE).write_text(text_)
        with pytest.raises(ModelError, match=problem):
            layered_model_from_folder(tmp_path)


def test_models_that_the_pieces_do_not_know_are_refused(tmp_path: Path) -> None:
    for family, changes, problem in (
        ("llama", {"mlp_bias": True}, "no biases but those"),
        ("mistral", {"sliding_window": 24}, "window of 24 is less than the largest capacity, 64"),
    ):
        hf = make_folder(tmp_path / family, family, **changes)
        with pytest.raises(ExportError, match=problem):
            write_layered(hf, tmp_path / "out", lanes=1, chunks=(8,), capacities=(64,), half=False)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("logprobs", [None, 2])
def test_conversations_get_the_tokens_that_transformers_finds_likeliest(
    logprobs: int | None, source: Path, folder: Path
) -> None:
    """In two turns, and then on fewer lanes than there are; of the likeliest logits and of all."""
    decoder = open_on_fake(folder)
    options = GeneratorOptions(scheduler=SchedulerOptions(chunk=64, shared_chunk=32))
    generator = Generator("tiny", lambda: decoder, options=options)
    generator.start()
    how = SamplingOptions(temperature=0, logprobs=logprobs)
    lengths = (5, 90, 17, 64, 33)
    known = [prompt_of(length, seed) for seed, length in enumerate(lengths[:LANES])]
    fresh = [prompt_of(length, seed) for seed, length in enumerate(lengths, 9)]
    for texts in (known, known, fresh):
        ears = [ask(generator, tokens, 12, how) for tokens in texts]
        for tokens, ear in zip(texts, ears, strict=True):
            assert ear.end.reason == "length"
            assert_greedy(source, tokens, ear.tokens)
            tokens += ear.tokens
    assert generator.counters.prefix_hits > 0
    assert generator.stop(DEADLINE_S)
    assert Memory.live == set()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only")
@pytest.mark.parametrize("half", [True, False])
def test_tensorrt_rtx_builds_every_piece_for_cards_that_are_not_here(
    half: bool, source: Path, tmp_path: Path
) -> None:
    model = write_layered(
        source, tmp_path / "out", lanes=3, chunks=(64,), capacities=(64, 128), half=half
    )
    library = load_tensorrt("trt-rtx")
    for piece in model.pieces:
        request = EngineRequest(
            onnx=tmp_path / "out" / piece.file,
            precision="fp16" if half else "fp32",
            profiles=(),
            compute_capabilities=("SM86", "SM89", "SM120"),
        )
        assert len(engine_from_onnx(request, library).plan) > 10_000
