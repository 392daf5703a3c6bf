"""What happens to a candidate before it is opened, on a machine that has no GPU.

Builds are real, with TensorRT-RTX for a GPU that is not here; only the attempt to open the result
is replaced, because that needs the GPU.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edge.engine_process
import edge.preparing
from edge.bundle import Bundle, open_bundle
from edge.choice import Candidate
from edge.config import AgentConfig
from edge.engine_builder import EngineRequest
from edge.engine_child import Report, TryRequest
from edge.engine_process import AttemptError
from edge.manifest import EngineFacts, Variant
from edge.preparing import Preparer
from edge.self_test import SelfTest
from edge.target import Target
from tests.bundles import affine_parts, make_key, write_bundle
from tests.models import affine_model

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)
CARD = Target(
    kind="desktop", arch="x86_64", name="NVIDIA GeForce RTX 4060", device="rtx-4060", sm="8.9",
    sm_count=24, memory_bytes=8 << 30, cuda="13.0", driver="580.65", tensorrt_rtx="1.7.1.116",
)  # fmt: skip
FACTS = EngineFacts(
    device="rtx-4060", kind="desktop", arch="x86_64", runtime="1.7.1.116", sms=("8.9",),
    portable=True,
)  # fmt: skip
RECIPE = Variant(id="recipe", backend="trt-rtx", precision="fp32", files=("affine/fp32.onnx",))
ENGINE = Variant(
    id="engine", backend="trt-rtx", precision="fp32", files=("affine/engine",), engine=FACTS
)
PASSED = Report(
    self_test=SelfTest(cases=1, output="y", relative_error=0.0, tolerance=1e-5), memory_bytes=7
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    manifest, files = affine_parts()
    files["affine/engine"] = b"an engine"
    model = replace(manifest.models[0], variants=(RECIPE, ENGINE), preferences=())
    root = write_bundle(tmp_path / "b", replace(manifest, models=(model,)), files, make_key())
    return open_bundle(root, (), allow_unsigned=True)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The engines that a child would have opened; each passes."""
    seen: list[bytes] = []

    def attempt(request: TryRequest, **_: object) -> Report:
        seen.append(Path(f"/proc/self/fd/{request.engine}").read_bytes())
        return PASSED

    monkeypatch.setattr(edge.preparing, "attempt", attempt)
    monkeypatch.setattr(edge.engine_process, "attempt", attempt)
    return seen


@pytest.fixture(autouse=True)
def for_a_card_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def request(**values: object) -> EngineRequest:
        return EngineRequest(**values, compute_capabilities=("SM89",))  # type: ignore[arg-type]

    monkeypatch.setattr(edge.preparing, "EngineRequest", request)


@pytest.fixture
def make(bundle: Bundle, tmp_path: Path) -> Callable[..., Preparer]:
    def make(target: Target = CARD, **options: object) -> Preparer:
        config = AgentConfig(cache=tmp_path / "cache", bundle=bundle.root)
        values = {"progress": lambda *_: True, "stop": threading.Event(), **options}
        return Preparer(config, target, **values)  # type: ignore[arg-type]

    return make


def candidate(variant: Variant) -> Candidate:
    means = "build" if variant.engine is None else "engine"
    return Candidate(variant=variant, means=means, why="")  # type: ignore[arg-type]


def prepare(preparer: Preparer, bundle: Bundle, variant: Variant) -> None:
    preparer.prepare(bundle, bundle.manifest.models[0], candidate(variant)).close()


def test_an_engine_is_built_tried_and_kept_and_the_next_start_does_neither(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes]
) -> None:
    steps: list[object] = []
    prepare(make(progress=lambda *step: steps.append(step) or True), bundle, RECIPE)
    assert len(tried) == 1
    assert len(tried[0]) > 1000
    assert len(steps) > 2
    steps.clear()
    prepare(make(progress=lambda *step: steps.append(step) or True), bundle, RECIPE)
    assert (len(tried), steps) == (1, [])


@pytest.mark.parametrize(
    "change", [{"driver": "590.1"}, {"sm_count": 34}, {"name": "another"}, {"cuda": "13.1"}]
)
def test_another_machine_or_driver_builds_anew(
    change: dict[str, object],
    make: Callable[..., Preparer],
    bundle: Bundle,
    tried: list[bytes],
) -> None:
    prepare(make(), bundle, RECIPE)
    prepare(make(replace(CARD, **change)), bundle, RECIPE)  # type: ignore[arg-type]
    assert len(tried) == 2


def test_an_engine_that_fails_its_self_test_is_not_kept(
    make: Callable[..., Preparer],
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> Report:
        raise AttemptError("self-test-failed", "off by 0.5")

    monkeypatch.setattr(edge.engine_process, "attempt", fail)
    for _ in range(2):
        with pytest.raises(AttemptError, match=r"off by 0\.5"):
            prepare(make(), bundle, RECIPE)
    assert list((tmp_path / "cache").glob("*.bin")) == []


def test_an_engine_whose_batch_1_profile_is_wrong_is_built_again_without_it(
    make: Callable[..., Preparer], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def attempt(request: TryRequest, **_: object) -> Report:
        sizes.append(os.fstat(request.engine).st_size)
        if len(sizes) == 1:
            raise AttemptError("self-test-failed", "off by 0.35")
        return PASSED

    monkeypatch.setattr(edge.engine_process, "attempt", attempt)
    prepare(make(), bundle, RECIPE)
    assert len(sizes) == 2
    assert sizes[1] < sizes[0]
    prepare(make(), bundle, RECIPE)
    assert len(sizes) == 2


def test_a_build_that_is_stopped_keeps_nothing(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes], tmp_path: Path
) -> None:
    with pytest.raises(AttemptError, match="cancelled"):
        prepare(make(progress=lambda phase, done, total: phase == "starting"), bundle, RECIPE)
    stop = threading.Event()
    stop.set()
    with pytest.raises(AttemptError, match="the agent stops"):
        prepare(make(stop=stop), bundle, RECIPE)
    assert tried == []
    assert list((tmp_path / "cache").glob("*.bin")) == []


def test_a_graph_that_tensorrt_refuses_is_a_failed_build(
    make: Callable[..., Preparer], bundle: Bundle
) -> None:
    broken = affine_model()
    broken.graph.node[0].op_type = "NoSuchOperator"
    graph = bundle.path("affine/fp32.onnx")
    graph.chmod(0o644)
    graph.write_bytes(broken.SerializeToString())
    with pytest.raises(AttemptError, match="NoSuchOperator") as caught:
        prepare(make(), bundle, RECIPE)
    assert caught.value.refusal == "build-failed"


def test_an_engine_of_the_bundle_is_tried_once_by_the_bytes_that_were_verified(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes]
) -> None:
    for _ in range(2):
        prepare(make(), bundle, ENGINE)
    assert tried == [b"an engine"]
    prepare(make(replace(CARD, driver="590.1")), bundle, ENGINE)
    assert tried == [b"an engine"] * 2


def test_an_altered_engine_is_refused_before_anybody_opens_it(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes]
) -> None:
    path = bundle.path("affine/engine")
    for content in (b"an enginf", b"an engin", b"an engine!", b""):
        path.write_bytes(content)
        with pytest.raises(AttemptError, match="does not match its digest") as caught:
            prepare(make(), bundle, ENGINE)
        assert caught.value.refusal == "digest-mismatch"
    path.unlink()
    with pytest.raises(AttemptError, match="no such file") as caught:
        prepare(make(), bundle, ENGINE)
    assert caught.value.refusal == "open-failed"
    assert tried == []


def test_a_cache_that_cannot_be_written_does_not_keep_an_engine_from_serving(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    prepare(make(), bundle, ENGINE)
    prepare(make(), bundle, RECIPE)
    assert len(tried) == 2


def test_an_altered_entry_of_the_cache_is_built_anew(
    make: Callable[..., Preparer], bundle: Bundle, tried: list[bytes], tmp_path: Path
) -> None:
    prepare(make(), bundle, RECIPE)
    for path in (tmp_path / "cache").glob("*.bin"):
        content = bytearray(path.read_bytes() or b"x")
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    prepare(make(), bundle, RECIPE)
    assert len(tried) == 2
