"""A chat model in pieces, from `build` through the bundle to a decoder, on a fake device."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge import chat_preparing
from edge.bundle import Bundle, open_bundle
from edge.chat.golden import golden_logits
from edge.chat.layered import Piece
from edge.chat.ort_decoder import OrtDecoder
from edge.chat.room import Room
from edge.chat.trt_decoder import TrtDecoder
from edge.chat_preparing import DecoderPreparer
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.engine_child import BuildRequest, Report
from edge.engine_process import AttemptError
from edge.manifest import Variant
from edge.target import detect_target
from edge.trust import trusted_keys_in
from host_tools.chat.build_engines import ChatBuildOptions, build_chat_engines
from host_tools.chat.chat_export import ChatExportOptions, export_chat
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.host_tools.chat.fake_device import open_plans_on_fake
from tests.talking import make_talking_folder

LANES, CONTEXT = 2, 128


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("pieces")
    folder = make_talking_folder(root / "hf")
    build = ChatBuildOptions(
        folder=folder,
        targets=("agx-orin-64gb",),
        precisions=("fp32", "fp16"),
        out=root / "engines",
        context=CONTEXT,
        lanes=LANES,
    )
    records = build_chat_engines(build, say=quiet)
    assert [record.id for record in records] == ["trt-fp32-pieces", "trt-fp16-pieces"]
    export_chat(ChatExportOptions(folder=folder, out=root / "export", compare=False), say=quiet)
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
    return open_bundle(root / "bundle", trusted_keys_in(root / "keys"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Builders that give the graph itself for an engine, which the fake device runs."""
    asked: list[BuildRequest] = []

    def build(request: BuildRequest, **options: Any) -> Report:
        asked.append(request)
        os.write(request.engine, request.request.onnx.read_bytes())
        return Report(seconds=1.0)

    def opened(model: Any, weights: Any, plans: dict[Piece, bytes], **options: Any) -> Any:
        return open_plans_on_fake(model, weights, plans)

    monkeypatch.setattr(chat_preparing, "build", build)
    monkeypatch.setattr(chat_preparing, "load_tensorrt", lambda backend: None)
    monkeypatch.setattr(TrtDecoder, "open", opened)
    return asked


def variant_of(bundle: Bundle, id_: str) -> Variant:
    return next(v for v in bundle.manifest.models[0].variants if v.id == id_)


def preparer(tmp_path: Path) -> DecoderPreparer:
    target = replace(detect_target(), kind="jetson", tensorrt="8.6.2")
    config = AgentConfig(cache=tmp_path / "engines", build_timeout_s=10)
    return DecoderPreparer(config, target, progress=lambda *_: True, stop=threading.Event())


@pytest.mark.parametrize(
    ("id_", "tolerance"), [("trt-fp32-pieces", 1e-4), ("trt-fp16-pieces", 2e-2)]
)
def test_a_device_builds_the_pieces_once_and_computes_what_onnx_runtime_does(
    bundle: Bundle, builds: list[BuildRequest], tmp_path: Path, id_: str, tolerance: float
) -> None:
    variant = variant_of(bundle, id_)
    assert variant.decoder is not None
    assert (variant.decoder.form, variant.decoder.lanes) == ("layered", LANES)
    candidate = Candidate(variant=variant, means="build", why="")
    tokens = np.arange(3, 43)
    graph = bundle.path(variant_of(bundle, "ort-fp32").files[0])
    reference = OrtDecoder.open(graph, lanes=1, intra_op_threads=1)
    expected = golden_logits(reference, tokens)
    reference.close()
    for built in (len(variant.files) - 2, 0):
        builds.clear()
        decoder = preparer(tmp_path).prepare(bundle, candidate)(Room(lanes=LANES, context=100))
        assert len(builds) == built
        assert (decoder.lanes, decoder.spec.context) == (LANES, 100)
        found = golden_logits(decoder, tokens)
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < tolerance
        decoder.close()


@pytest.mark.parametrize("kept", [2, 3])
def test_a_bundle_that_lacks_a_piece_is_refused(
    bundle: Bundle, builds: list[BuildRequest], tmp_path: Path, kept: int
) -> None:
    variant = variant_of(bundle, "trt-fp32-pieces")
    short = replace(variant, files=variant.files[:kept])
    with pytest.raises(AttemptError, match="pack it again"):
        preparer(tmp_path).prepare(bundle, Candidate(variant=short, means="build", why=""))
    assert builds == []
