"""Two devices, one release: each stores its own engine and the graphs that both share."""

from dataclasses import replace
from pathlib import Path

import pytest

from edge import manifest as m
from edge.bundle import open_bundle
from edge.choice import rank
from edge.errors import BundleError
from edge.slots.needs import artifacts_for
from edge.slots.store import Store
from edge.target import Target
from tests.edge.slots.slot_bundles import AGX_ORIN, CPU, RTX_4060, TRUSTED, Packed, packed, stage

RTX_ENGINE = m.EngineFacts(
    device="rtx-4060", kind="desktop", arch="x86_64", runtime="1.2.0.54", sms=("8.9",),
    portable=False, sm_count=24,
)  # fmt: skip
ORIN_ENGINE = m.EngineFacts(
    device="agx-orin-64gb", kind="jetson", arch="aarch64", runtime="10.3.0", sms=("8.7",),
    portable=False, sm_count=16,
)  # fmt: skip
# What each engine and graph holds is never opened here.
FILES = {
    "affine/rtx.engine": b"engine for the RTX 4060" * 99,
    "affine/orin.engine": b"engine for the AGX Orin" * 77,
    "affine/flags.onnx": b"graph for a TensorRT that takes flags" * 55,
    "affine/flags.onnx.weights": b"its weights" * 999,
    "affine/typed.onnx": b"graph for a TensorRT that takes types" * 33,
}
VARIANTS = (
    m.Variant(id="rtx", backend="trt-rtx", precision="int8", files=("affine/rtx.engine",),
              engine=RTX_ENGINE),
    m.Variant(id="orin", backend="trt", precision="int8", files=("affine/orin.engine",),
              engine=ORIN_ENGINE),
    m.Variant(id="flags", backend="trt", precision="int8", typed=False,
              files=("affine/flags.onnx", "affine/flags.onnx.weights")),
    m.Variant(id="typed", backend="trt", precision="int8", typed=True,
              files=("affine/typed.onnx",)),
)  # fmt: skip


def with_engines(manifest: m.Manifest) -> m.Manifest:
    (model,) = manifest.models
    return replace(manifest, models=(replace(model, variants=(*model.variants, *VARIANTS)),))


@pytest.fixture
def bundle(tmp_path: Path) -> Packed:
    return packed(tmp_path / "release", "1", change=with_engines, files=FILES)


def stored(tmp_path: Path, bundle: Packed, target: Target) -> tuple[set[str], Path]:
    """Return the artifacts that a device keeps of a bundle, and its slot."""
    store = Store.open(tmp_path / target.kind, min_free_bytes=0)
    with store.changing("test"):
        stage(store, bundle, target=target)
    digests = {path.name for path in (store.root / "blobs/sha256").iterdir()}
    return {a.path for a in bundle.parsed.artifacts if a.sha256 in digests}, store.slot_path("a")


def test_each_device_stores_its_own_engine_and_what_all_share(
    tmp_path: Path, bundle: Packed
) -> None:
    paths = {a.path for a in bundle.parsed.artifacts}
    shared = paths - set(FILES)
    assert {"affine/int8.onnx", "affine/fp32.onnx", "affine/golden/0/in/x.bin"} <= shared
    assert stored(tmp_path, bundle, RTX_4060)[0] == shared | {"affine/rtx.engine"}
    assert stored(tmp_path, bundle, AGX_ORIN)[0] == shared | {
        "affine/orin.engine",
        "affine/flags.onnx",
        "affine/flags.onnx.weights",
    }
    assert stored(tmp_path, bundle, CPU)[0] == shared


@pytest.mark.parametrize(
    ("target", "served", "absent"),
    [
        (RTX_4060, "rtx", {"orin", "flags", "typed"}),
        (AGX_ORIN, "orin", {"rtx", "typed"}),
        (CPU, "int8", {"rtx", "orin", "flags", "typed"}),
    ],
)
def test_a_slot_opens_without_the_files_of_other_devices(
    tmp_path: Path, bundle: Packed, target: Target, served: str, absent: set[str]
) -> None:
    _, slot = stored(tmp_path, bundle, target)
    with pytest.raises(BundleError):
        open_bundle(slot, TRUSTED)
    opened = open_bundle(slot, TRUSTED, is_slot=True)
    (model,) = opened.manifest.models
    lacking = {v.id for v in model.variants if opened.absent.intersection(v.files)}
    assert lacking == absent
    ranking = rank(model, target, trusted=True, absent=opened.absent)
    assert ranking.candidates[0].variant.id == served


def test_a_variant_that_fits_only_later_is_refused_as_not_on_the_device(
    tmp_path: Path, bundle: Packed
) -> None:
    _, slot = stored(tmp_path, bundle, CPU)
    opened = open_bundle(slot, TRUSTED, is_slot=True)
    ranking = rank(opened.manifest.models[0], RTX_4060, trusted=True, absent=opened.absent)
    codes = {refusal.variant: refusal.code for refusal in ranking.refused}
    assert codes["rtx"] == "not-on-device"
    assert codes["orin"] == "platform-mismatch"
    assert {candidate.variant.id for candidate in ranking.candidates} == {"int8", "fp32"}


@pytest.mark.parametrize("lost", ["affine/golden/0/in/x.bin", "affine/fp32.onnx"])
def test_a_slot_without_what_every_device_needs_does_not_open(
    tmp_path: Path, bundle: Packed, lost: str
) -> None:
    _, slot = stored(tmp_path, bundle, CPU)
    digest = bundle.parsed.artifact(lost).sha256
    (slot / "blobs/sha256" / digest).unlink()
    with pytest.raises(BundleError, match="is missing in"):
        open_bundle(slot, TRUSTED, is_slot=True)


def test_a_damaged_file_of_a_slot_is_never_taken_for_one_that_is_absent(
    tmp_path: Path, bundle: Packed
) -> None:
    _, slot = stored(tmp_path, bundle, RTX_4060)
    blob = slot / "blobs/sha256" / bundle.parsed.artifact("affine/rtx.engine").sha256
    blob.chmod(0o644)
    blob.write_bytes(b"")
    with pytest.raises(BundleError, match="size differs"):
        open_bundle(slot, TRUSTED, is_slot=True)


def test_a_gpu_that_is_away_for_a_moment_is_no_reason_to_leave_its_files_behind(
    bundle: Packed,
) -> None:
    away = replace(AGX_ORIN, cuda=None, cuda_problem="the driver is not loaded")
    paths = {a.path for a in artifacts_for(bundle.parsed, away)}
    assert {"affine/orin.engine", "affine/flags.onnx", "affine/flags.onnx.weights"} <= paths


def test_a_bundle_that_cannot_run_here_at_all_is_refused_before_it_is_fetched(
    bundle: Packed,
) -> None:
    (model,) = bundle.parsed.models
    engines = replace(model, variants=VARIANTS[:1], preferences=())
    with pytest.raises(BundleError, match="no variant of model 'affine' can run on this device"):
        artifacts_for(replace(bundle.parsed, models=(engines,)), AGX_ORIN)


def test_equal_files_are_needed_once(tmp_path: Path) -> None:
    twice = packed(tmp_path / "twice", "1")
    paths = [a.sha256 for a in artifacts_for(twice.parsed, CPU)]
    assert len(paths) == len(set(paths)) < len(twice.parsed.artifacts)
