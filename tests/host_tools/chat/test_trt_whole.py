"""TensorRT's decoder of a whole engine on a device that is this process."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge.chat.spec import DecoderSpec, Form
from edge.chat.trt_whole import TrtWholeDecoder
from edge.chat.whole import Run, whole_profiles
from edge.errors import InferenceError, ModelError
from edge.spec import Profile
from host_tools.chat.engine import EngineShapes, engine_profiles, write_engine_graph
from tests.chat_models import make_folder, write_onnx
from tests.edge.chat.decoder_contract import CONTEXT, LANES, DecoderContract, Open, run, text
from tests.host_tools.chat.fake_device import FakeGraph, Memory
from tests.host_tools.chat.fake_graph import open_whole_on_fake
from tests.host_tools.chat.test_ort_decoder import open_graph

# Logits are of size 1; float32 sums of a few hundred terms agree to about 1e-5.
TOLERANCE = 1e-4
FORMS: tuple[Form, ...] = ("scatter", "scatter-primitive", "prefix")
SHAPES = EngineShapes(lanes=LANES, capacity=CONTEXT, chunk=CONTEXT, wanted=16)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A window, so that what a token must not see any more is tested too.
    return make_folder(tmp_path_factory.mktemp("hf"), "mistral")


Written = Callable[..., tuple[DecoderSpec, Path, tuple[Profile, ...]]]


@pytest.fixture(scope="module")
def written(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Graphs as `build` writes them, with the profiles that it builds them for."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def one(form: Form, precision: str = "fp32", lanes: int = LANES):
        key = (form, precision, lanes)
        if key not in known:
            out, shapes = root / f"{len(known)}.onnx", replace(SHAPES, lanes=lanes)
            spec = write_engine_graph(source, out, form=form, precision=precision, shapes=shapes)
            model = onnx.load(str(out), load_external_data=False)
            # Two profiles, one for steps, as int4 has them: fp32 has one for all.
            profiles = engine_profiles(model, shapes, "int4" if lanes > 1 else precision)
            known[key] = replace(spec, lanes=lanes), out, profiles
        return known[key]

    return one


@pytest.fixture
def open_whole(written: Written) -> Iterator[Callable[..., TrtWholeDecoder]]:
    opened: list[TrtWholeDecoder] = []

    def open_one(graph_form: Form, *, lanes: int = LANES, capture=None, **changes):
        spec, graph, profiles = written(graph_form, lanes=lanes)
        spec = replace(spec, **changes)
        opened.append(open_whole_on_fake(spec, graph, profiles, lanes=lanes, capture=capture))
        return opened[-1]

    yield open_one
    for decoder in opened:
        decoder.close()
    assert Memory.live == set()


@pytest.mark.parametrize("form", FORMS)
class TestTrtWholeDecoder(DecoderContract):
    tolerance = TOLERANCE

    @pytest.fixture
    def open_decoder(self, form: Form, open_whole: Callable[..., TrtWholeDecoder]) -> Open:
        return lambda: open_whole(form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lanes", [1, LANES])
def test_logits_are_those_of_onnx_runtime(
    source: Path, open_whole, tmp_path: Path, form: Form, lanes: int
) -> None:
    tokens = text(90)
    expected = run(open_graph(write_onnx(source, tmp_path / "m.onnx", context=CONTEXT)), 0, tokens)
    decoder = open_whole(form, lanes=lanes)
    found = [run(decoder, lanes - 1, tokens[:60])]
    found += [run(decoder, lanes - 1, tokens[i : i + 1], i) for i in range(60, 90)]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_comes_again_is_one_launch_of_one_graph(open_whole, form: Form) -> None:
    graphs: list[FakeGraph] = []

    def capture(stream: int, enqueue: Callable[[], None]) -> FakeGraph:
        graphs.append(FakeGraph(enqueue))
        return graphs[-1]

    decoder, tokens = open_whole(form, capture=capture), text(64)
    run(decoder, 1, tokens[:20])
    for place in range(20, 64):
        run(decoder, 1, tokens[place : place + 1], place)
    assert [graph.launches for graph in graphs] == [44]


@pytest.mark.parametrize("form", FORMS)
def test_the_execution_context_of_a_graph_lives_as_long_as_the_graph(
    open_whole, form: Form
) -> None:
    """A real graph does not hold it, and crashes in the driver without it."""
    decoder = open_whole(form, capture=lambda stream, enqueue: FakeGraph(lambda: None))
    run(decoder, 0, text(1), 5)
    gc.collect()
    assert [made() is not None for made in decoder._engine.made] == [True]
    decoder.close()
    gc.collect()
    assert [made() is not None for made in decoder._engine.made] == [False]


def test_one_token_takes_the_profile_that_is_made_for_it(open_whole) -> None:
    decoder = open_whole("scatter")
    run(decoder, 0, text(9))
    run(decoder, 0, text(1), 9)
    assert [profile for profile, _ in decoder._engine.runs] == [1, 0]


def test_a_graph_that_the_driver_refuses_is_done_without(open_whole) -> None:
    def refuse(stream: int, enqueue: Callable[[], None]) -> None:
        raise InferenceError("CUDA graph instantiate failed")

    decoder, other = open_whole("scatter", capture=refuse), open_whole("scatter")
    for place, token in enumerate(text(5)):
        found, expected = (run(d, 0, np.array([token]), place) for d in (decoder, other))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_whose_logits_nobody_wants_still_fills_the_cache(open_whole, form: Form) -> None:
    decoder, tokens = open_whole(form), text(30)
    nothing = np.empty((1, 0), np.int64)
    assert decoder.step(1, tokens[None, :20], np.array([0]), nothing).shape[:2] == (1, 0)
    expected = run(open_whole(form), 0, tokens)[20:]
    np.testing.assert_allclose(run(decoder, 1, tokens[20:], 20), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
def test_fewer_positions_than_the_engine_has_are_a_bound_for_steps(open_whole, form: Form) -> None:
    decoder = open_whole(form, context=100)
    assert decoder.spec.context == 100
    run(decoder, 0, text(100))
    with pytest.raises(ValueError, match="positions up to 101"):
        run(decoder, 0, text(101))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"layers": 3}, r"no chat graph of form 'scatter' \(key_2, key_2_out"),
        ({"form": "prefix"}, r"no chat graph of form 'prefix' \(key_0_new, key_0_out"),
        ({"kv_heads": 4}, r"key_0 is \[3, 2, 300, 16\], the bundle says \[3, 4, 300, 16\]"),
        ({"cache": "FP16"}, "a cache of float32 and 256 logits, the bundle says float16"),
        ({"vocabulary": 300}, "256 logits, the bundle says float32 and 300"),
    ],
)
def test_an_engine_of_another_model_is_refused(open_whole, changes, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        open_whole("scatter", **changes)


@pytest.mark.parametrize("precision", ["fp16", "int4"])
@pytest.mark.parametrize("lanes", [1, LANES])
def test_a_device_builds_for_the_profiles_that_the_host_would(
    source: Path, tmp_path: Path, precision: str, lanes: int
) -> None:
    shapes = EngineShapes(lanes=lanes, capacity=CONTEXT, chunk=512, wanted=16)
    out = tmp_path / "m.onnx"
    spec = write_engine_graph(source, out, form="prefix", precision=precision, shapes=shapes)
    model = onnx.load(str(out), load_external_data=False)
    expected = engine_profiles(model, shapes, precision)
    found = whole_profiles(replace(spec, lanes=lanes), precision)
    for one, other in zip(found, expected, strict=True):
        assert one.ranges.keys() == other.ranges.keys()
        for name in one.ranges:
            assert (one.ranges[name].min, one.ranges[name].max) == (
                other.ranges[name].min, other.ranges[name].max,
            )  # fmt: skip


@pytest.mark.skipif(platform.machine() != "x86_64", reason="TensorRT-RTX is for x86-64 only")
@pytest.mark.parametrize("lanes", [1, LANES])
def test_tensorrt_rtx_reads_the_tensors_that_the_decoder_binds(tmp_path: Path, lanes: int) -> None:
    """As far as can be seen without a card: names, types and shapes of what it parses."""
    trt = pytest.importorskip("tensorrt_rtx")
    folder = make_folder(tmp_path / "hf", "llama", hidden_size=128, head_dim=64)
    shapes, out = replace(SHAPES, lanes=lanes), tmp_path / "m.onnx"
    spec = write_engine_graph(folder, out, form="scatter", precision="int4", shapes=shapes)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse_from_file(str(out))
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    wanted = Run(lanes=lanes, tokens=5, wanted=2).shapes(spec)
    assert inputs.keys() == wanted.keys()
    for name, shape in wanted.items():
        pairs = zip(inputs[name].shape, shape, strict=True)
        assert all(dim in {-1, size} for dim, size in pairs), name
        assert inputs[name].dtype == (
            trt.int64 if name in {"input_ids", "start", "rows"} else trt.float16
        )
    outputs = {
        network.get_output(i).name: network.get_output(i) for i in range(network.num_outputs)
    }
    assert outputs.pop("logits").dtype == trt.float32
    for name, output in outputs.items():
        of = name.removesuffix("_out")
        assert (output.dtype, tuple(output.shape)) == (trt.float16, tuple(inputs[of].shape))
