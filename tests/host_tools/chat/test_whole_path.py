"""A chat model as one engine, from `build` through the bundle to a decoder, on a fake device."""

from __future__ import annotations

import io
import os
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from edge import chat_whole, engine_child
from edge.bundle import Bundle, open_bundle
from edge.chat.golden import golden_logits
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.room import Room, room_for
from edge.chat.trt_whole import TrtWholeDecoder
from edge.chat.whole import whole_profiles
from edge.chat_preparing import DecoderPreparer
from edge.choice import Candidate, rank
from edge.config import AgentConfig
from edge.engine_child import BuildRequest, Report, TryRequest
from edge.engine_process import AttemptError
from edge.manifest import Variant
from edge.target import Target, detect_target
from edge.trust import trusted_keys_in
from host_tools.chat.build_engines import ChatBuildOptions, build_chat_engines
from host_tools.chat.chat_export import ChatExportOptions, export_chat
from host_tools.chat.engine import EngineShapes, engine_profiles
from host_tools.describe import print_manifest
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.host_tools.chat.fake_graph import open_whole_on_fake
from tests.talking import make_talking_folder

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)
LANES, CONTEXT = 2, 128
RTX, JETSON = "rtx-4060-int8", "trt-int8"


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine for an RTX card that nobody has run, and a graph that a Jetson builds from."""
    root = tmp_path_factory.mktemp("whole")
    folder = make_talking_folder(root / "hf")
    options = ChatBuildOptions(
        folder=folder,
        targets=("rtx-4060", "agx-orin-64gb"),
        precisions=("int8",),
        out=root / "engines",
        context=CONTEXT,
        lanes=LANES,
    )
    records = build_chat_engines(options, say=quiet)
    assert [record.id for record in records] == [RTX, JETSON]
    export = ChatExportOptions(
        folder=folder, out=root / "export", precisions=("fp32", "int8"), compare=False
    )
    export_chat(export, say=quiet)
    private, _ = generate_keys("release", root / "keys")
    request = PackRequest(
        fp32=root / "export",
        engines=root / "engines",
        name="tiny",
        version="1",
        key=private,
        threads=1,
        out=root / "bundle",
    )
    pack(request, say=quiet)
    return root


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return open_bundle(root / "bundle", trusted_keys_in(root / "keys"))


@pytest.fixture
def asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BuildRequest | TryRequest]]:
    """Children that are this process, and engines that are the graphs they were built from."""
    asked: list[BuildRequest | TryRequest] = []
    made: list[TrtWholeDecoder] = []

    def opened(spec: Any, plan: Any, *, library: Any, lanes: int) -> TrtWholeDecoder:
        graph, profiles = root / "engines" / "trt-rtx-int8.onnx", None
        if spec.form == "prefix":
            assert bytes(plan).startswith(b"built from ")
            graph = Path(bytes(plan).decode().removeprefix("built from "))
            profiles = whole_profiles(replace(spec, context=CONTEXT), "int8")
        else:
            assert bytes(plan) == (root / "engines" / f"{RTX}.engine").read_bytes()
            shapes = EngineShapes(lanes=LANES, capacity=CONTEXT)
            model = onnx.load(str(graph), load_external_data=False)
            profiles = engine_profiles(model, shapes, "int8")
        made.append(open_whole_on_fake(spec, graph, profiles, lanes=lanes))
        return made[-1]

    def build(request: BuildRequest, **options: Any) -> Report:
        asked.append(request)
        os.write(request.engine, f"built from {root / 'engines' / 'trt-int8.onnx'}".encode())
        return Report(seconds=1.0)

    def attempt(request: TryRequest, **options: Any) -> Report:
        asked.append(request)
        return engine_child._try(request)

    for module in (chat_whole, engine_child):
        monkeypatch.setattr(module, "load_tensorrt", lambda backend: None)
    monkeypatch.setattr(chat_whole, "build", build)
    monkeypatch.setattr(chat_whole, "attempt", attempt)
    monkeypatch.setattr(TrtWholeDecoder, "open", opened)
    yield asked
    for decoder in made:  # a child would just end
        decoder.close()


def variant_of(bundle: Bundle, id_: str) -> Variant:
    return next(v for v in bundle.manifest.models[0].variants if v.id == id_)


def target_for(id_: str) -> Target:
    """Return a machine that the variant was built for, as far as matching looks."""
    here = detect_target()
    if id_ == JETSON:
        return replace(here, kind="jetson", cuda="12.6", tensorrt="10.3.0", cuda_problem=None)
    return replace(
        here, kind="desktop", name="NVIDIA GeForce RTX 4060", device="rtx-4060", sm="8.9",
        sm_count=24, cuda="13.0", cuda_problem=None, arch="x86_64",
    )  # fmt: skip


def preparer(folder: Path, id_: str) -> DecoderPreparer:
    config = AgentConfig(cache=folder / "engines", build_timeout_s=10, open_timeout_s=10)
    return DecoderPreparer(
        config, target_for(id_), progress=lambda *_: True, stop=threading.Event()
    )


@pytest.mark.parametrize(("id_", "means"), [(RTX, "engine"), (JETSON, "build")])
def test_a_matching_device_tries_a_whole_engine_and_computes_what_onnx_runtime_does(
    bundle: Bundle, asked: list, tmp_path: Path, id_: str, means: str
) -> None:
    (model,) = bundle.manifest.models
    ranking = rank(model, target_for(id_), trusted=True)
    candidate = ranking.candidates[0]
    assert (candidate.variant.id, candidate.means) == (id_, means)
    assert candidate.variant.decoder.lanes == LANES
    tokens = np.arange(3, 43)
    graph = bundle.path(variant_of(bundle, "ort-fp32").files[0])
    reference = OrtDecoder.open(graph, lanes=1, intra_op_threads=1)
    expected = golden_logits(reference, tokens)
    reference.close()
    tolerance = model.golden.tolerance["int8"]
    assert tolerance < 0.5
    kinds = [TryRequest] if means == "engine" else [BuildRequest, TryRequest]
    for expected_kinds in (kinds, []):  # the second start knows the verdict
        asked.clear()
        open_decoder = preparer(tmp_path, id_).prepare(bundle, candidate)
        assert [type(request) for request in asked] == expected_kinds
        decoder = open_decoder(Room(lanes=LANES, context=100))
        assert (decoder.lanes, decoder.spec.context) == (LANES, 100)
        found = golden_logits(decoder, tokens)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < tolerance
        decoder.close()


def test_a_wrong_engine_is_refused_by_the_self_test(
    bundle: Bundle, asked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Callable[..., TrtWholeDecoder] = TrtWholeDecoder.open

    def wrong(*args: Any, **options: Any) -> TrtWholeDecoder:
        decoder = opened(*args, **options)
        step = decoder.step
        monkeypatch.setattr(decoder, "step", lambda *run, **more: step(*run, **more)[..., ::-1])
        return decoder

    monkeypatch.setattr(TrtWholeDecoder, "open", wrong)
    candidate = Candidate(variant=variant_of(bundle, RTX), means="engine", why="")

    def attempt(request: TryRequest, **options: Any) -> Report:
        try:
            return engine_child._try(request)
        except engine_child.EdgeError as error:
            raise AttemptError("self-test-failed", str(error)) from error

    monkeypatch.setattr(chat_whole, "attempt", attempt)
    with pytest.raises(AttemptError, match="'logits'") as refused:
        preparer(tmp_path, RTX).prepare(bundle, candidate)
    assert refused.value.refusal == "self-test-failed"


def test_without_a_driver_the_child_says_so_and_nothing_crashes(
    bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    if detect_target().cuda is not None:
        pytest.skip("this machine has a GPU")
    candidate = Candidate(variant=variant_of(bundle, RTX), means="engine", why="")
    prepare = preparer(tmp_path, RTX)
    prepare._whole._config = replace(prepare._config, open_timeout_s=60)
    with pytest.raises(AttemptError, match="CUDA driver is not there") as refused:
        prepare.prepare(bundle, candidate)
    assert refused.value.refusal == "backend-unavailable"


def test_a_changed_engine_is_not_even_tried(
    root: Path, bundle: Bundle, asked: list, tmp_path: Path
) -> None:
    variant = variant_of(bundle, RTX)
    blob = bundle.path(variant.files[0])
    content = blob.read_bytes()
    try:
        blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(AttemptError, match="does not match its digest") as refused:
            preparer(tmp_path, RTX).prepare(
                bundle, Candidate(variant=variant, means="engine", why="")
            )
    finally:
        blob.write_bytes(content)
    assert (refused.value.refusal, asked) == ("digest-mismatch", [])


def test_forms_that_no_tensorrt_here_runs_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    variant = variant_of(bundle, JETSON)
    assert variant.decoder is not None
    grown = replace(variant, decoder=replace(variant.decoder, form="concat"))
    with pytest.raises(AttemptError, match="form 'concat'") as refused:
        preparer(tmp_path, JETSON).prepare(bundle, Candidate(variant=grown, means="build", why=""))
    assert refused.value.refusal == "open-failed"


def test_a_cache_that_is_part_of_an_engine_is_not_made_smaller(bundle: Bundle) -> None:
    spec = variant_of(bundle, RTX).decoder
    whole = LANES * CONTEXT * spec.position_bytes
    asked: list[int] = []

    def problem(size: int) -> str | None:
        asked.append(size)
        return "too large"

    room, reason = room_for(spec, lanes=8, context=None, problem=problem)
    assert (room.lanes, room.context, reason, asked) == (LANES, CONTEXT, "too large", [whole])
    room, _ = room_for(spec, lanes=8, context=40, problem=lambda size: asked.append(size))
    assert (room.context, asked[-1]) == (40, whole)


def test_the_bundle_says_that_the_engine_has_been_built_but_not_run(bundle: Bundle) -> None:
    out = Console(record=True, width=200, file=io.StringIO())
    print_manifest(bundle.manifest, "release", out)
    assert "built, not run here" in out.export_text()
