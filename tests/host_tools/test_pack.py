from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.errors import GraphError
from calibration.model_file import load_model, save_model
from calibration.runtime import Runner
from calibration.table import load_table, ort_path, save_table, table_path
from edge.bundle import blob_path, open_bundle
from edge.drift.reference import reference_from_bytes, reference_path
from edge.errors import ModelError, StorageError, UsageError
from edge.files import sha256_of
from edge.ort_session import OrtSession
from edge.spec import NUMPY_FROM_DATATYPE
from edge.trust import trusted_keys_in
from host_tools.blobs import BlobStore
from host_tools.golden import FLOAT_TOLERANCE, FLOOR, GoldenError
from host_tools.pack import pack
from tests.calibration.nets import IMAGE, conv_net, write_samples
from tests.host_tools.killing import killed_at_every_step
from tests.host_tools.packing import pack_request


def quiet(_: str) -> None:
    return None


def test_a_packed_bundle_opens_with_its_key_and_holds_what_was_asked(tmp_path: Path) -> None:
    packed = pack(pack_request(tmp_path), say=quiet)
    bundle = open_bundle(packed.out, trusted_keys_in(tmp_path / "keys"))
    model = bundle.manifest.models[0]
    assert (bundle.manifest.name, bundle.manifest.version) == ("net", "7")
    assert [v.id for v in model.variants] == ["ort-fp32", "ort-int8"]
    assert model.accuracy is not None
    assert model.calibration is not None
    assert model.calibration.method == "minmax"
    assert bundle.path(model.calibration.table).is_file()
    assert model.golden.tolerance["fp32"] == FLOAT_TOLERANCE
    assert model.golden.tolerance["int8"] >= FLOOR["int8"]
    listed = {artifact.sha256 for artifact in bundle.manifest.artifacts}
    assert listed == {path.name for path in (packed.out / "blobs" / "sha256").iterdir()}


def test_the_version_of_a_model_is_its_own_and_must_fit_a_url(tmp_path: Path) -> None:
    request = pack_request(tmp_path, model_version="2.1", int8=None)
    with pytest.raises(UsageError, match=r"--model-version '2/1': use letters"):
        pack(replace(request, model_version="2/1"), say=quiet)
    with pytest.raises(UsageError, match="--bundle-version has 201 characters"):
        pack(replace(request, version="x" * 201), say=quiet)
    manifest = pack(request, say=quiet).manifest
    assert (manifest.version, manifest.models[0].version) == ("7", "2.1")


def test_memory_is_measured_for_every_variant_of_onnx_runtime(tmp_path: Path) -> None:
    model = pack(pack_request(tmp_path), say=quiet).manifest.models[0]
    # 32 rows of float input alone are this much; the graphs hold a few kilobytes.
    feeds_bytes = 32 * 4 * int(np.prod(IMAGE))
    for variant in model.variants:
        assert feeds_bytes <= variant.memory_bytes <= 64 << 20


def test_memory_that_cannot_be_measured_here_is_said_and_left_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host_tools.memory_probe._CHILD", "import os; os.kill(os.getpid(), 9)")
    said: list[str] = []
    packed = pack(pack_request(tmp_path, int8=None), say=said.append)
    assert packed.manifest.models[0].variants[0].memory_bytes == 0
    assert any(line.startswith("memory of fp32 not measured: the process ") for line in said)


def test_a_model_that_fails_at_its_largest_shape_is_not_packed(tmp_path: Path) -> None:
    request = pack_request(tmp_path, int8=None)
    model = load_model(request.fp32)
    model.graph.node[-1].output[0] = "raw"
    # A position table, as transformers have: 16 rows fit, the profile promises 32.
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(17, np.float32), "table"))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Shape", ["raw"], ["rows"], name="rows", start=0, end=1),
            onnx.helper.make_node("Gather", ["table", "rows"], ["zero"], name="place"),
            onnx.helper.make_node("Add", ["raw", "zero"], ["logits"], name="sum"),
        ]
    )
    save_model(model, request.fp32)
    with pytest.raises(ModelError, match="does not keep what its profile promises: ONNX Runtime"):
        pack(request, say=quiet)
    assert not request.out.exists()


def test_the_preference_is_the_variant_with_the_lowest_measured_median(tmp_path: Path) -> None:
    lines: list[str] = []
    model = pack(pack_request(tmp_path), say=lines.append).manifest.models[0]
    medians = {v.id: v.measurements[0].p50_ms for v in model.variants}
    assert model.preferences[0].variant == min(medians, key=lambda name: medians[name])
    assert model.preferences[0].why in lines
    for variant in model.variants:
        assert [m.batch for m in variant.measurements] == [1, 8]


def test_golden_outputs_are_those_of_the_float_model(tmp_path: Path) -> None:
    packed = pack(pack_request(tmp_path), say=quiet)
    manifest = packed.manifest
    images = np.load(tmp_path / "samples.npz")["x"]
    for case in manifest.models[0].golden.cases:
        tensors = {}
        for tensor in (*case.inputs, *case.outputs):
            blob = blob_path(packed.out, manifest.artifact(tensor.artifact).sha256)
            values = np.frombuffer(blob.read_bytes(), NUMPY_FROM_DATATYPE[tensor.datatype])
            tensors[tensor.name] = values.reshape(tensor.shape)
        np.testing.assert_array_equal(tensors["x"], images[: len(tensors["x"])])
        expected = Runner(load_model(tmp_path / "model.onnx")).run({"x": tensors["x"]})
        np.testing.assert_allclose(tensors["logits"], expected["logits"], rtol=1e-5, atol=1e-6)


def test_a_stored_model_gives_the_same_numbers_and_keeps_weights_apart(tmp_path: Path) -> None:
    model = conv_net()
    rng = np.random.default_rng(0)
    model.graph.initializer.append(
        onnx.helper.make_tensor("w4", onnx.TensorProto.FLOAT, [8, 64], rng.random(512).tolist())
    )
    model.graph.node.append(onnx.helper.make_node("MatMul", ["f", "w4"], ["extra"], name="m"))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("extra", onnx.TensorProto.FLOAT, ["batch", 64])
    )
    store = BlobStore(tmp_path)
    graph, weights = store.add_model("net.onnx", model)
    assert (graph, weights) == ("net.onnx", "net.onnx.weights")
    places = {a.path: blob_path(tmp_path, a.sha256) for a in store.artifacts}
    lean = onnx.load(str(places["net.onnx"]), load_external_data=False)
    outside = [t for t in lean.graph.initializer if t.external_data]
    assert {t.name for t in outside} == {"w2", "w4"}
    assert {e.value for t in outside for e in t.external_data if e.key == "location"} == {
        places["net.onnx.weights"].name
    }
    whole = onnx.load(str(places["net.onnx"]))
    for tensor in model.graph.initializer:
        other = next(t for t in whole.graph.initializer if t.name == tensor.name)
        np.testing.assert_array_equal(numpy_helper.to_array(other), numpy_helper.to_array(tensor))
    feeds = {"x": rng.random((2, *IMAGE)).astype(np.float32)}
    from calibration.model_file import profile_from_model, specs_from_model

    inputs, outputs = specs_from_model(model)
    session = OrtSession.open(
        places["net.onnx"],
        inputs=inputs,
        outputs=outputs,
        profile=profile_from_model(model),
        intra_op_threads=1,
    )
    for name, value in Runner(model).run(feeds).items():
        np.testing.assert_allclose(session.run(feeds)[name], value, rtol=1e-5, atol=1e-6)
    session.close()


def test_an_int8_model_of_another_parent_is_refused(tmp_path: Path) -> None:
    request = pack_request(tmp_path)
    save_model(conv_net(seed=1), request.fp32)
    with pytest.raises(GraphError, match=r"model\.onnx is not the file that the calibration"):
        pack(request, say=quiet)
    assert not request.out.exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    request = pack_request(tmp_path)
    request.out.mkdir()
    with pytest.raises(StorageError, match="it exists"):
        pack(request, say=quiet)


def test_missing_inputs_are_usage_errors_and_leave_nothing(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for change in ({"key": gone}, {"golden": gone}, {"table": gone}, {"int8": gone}):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        with pytest.raises(UsageError, match="gone"):
            pack(pack_request(folder, **change), say=quiet)
        assert not (folder / "bundle").exists()
        assert not list(folder.glob(".bundle*"))


# The measurement of memory writes nothing, so it is left out: it takes a second, at every step.
PACK = """
    import host_tools.pack
    from host_tools.pack import PackRequest, pack

    host_tools.pack.peak_memory_bytes = lambda request: 1
    request = PackRequest(
        out=folder / "bundle", name="net", version="1", fp32=folder / "model.onnx",
        int8=folder / "model.int8.onnx", golden=folder / "samples.npz",
        key=folder / "keys" / "release.key", threads=1)

    def write():
        pack(request, say=lambda _: None)
"""


def test_kill_9_at_any_step_of_pack_leaves_no_half_bundle(tmp_path: Path) -> None:
    pack_request(tmp_path)
    # Files of the bundle, each opened to write and to sync.
    assert killed_at_every_step(PACK, tmp_path, tmp_path / "bundle") > 30
    open_bundle(tmp_path / "bundle", trusted_keys_in(tmp_path / "keys"))
    assert not list(tmp_path.glob(".bundle*"))  # what the killed ones left is gone as well


def test_of_two_packs_to_one_path_one_wins_whole(tmp_path: Path) -> None:
    request = pack_request(tmp_path)
    other: list[Exception] = []

    def pack_meanwhile(_: str) -> None:
        if not request.out.exists():
            pack(request, say=quiet)

    try:
        pack(request, say=pack_meanwhile)
    except StorageError as error:
        other.append(error)
    assert "directory not empty" in str(other)
    open_bundle(request.out, trusted_keys_in(tmp_path / "keys"))
    assert not list(tmp_path.glob(".bundle*"))


def test_an_output_that_is_not_finite_makes_no_golden_set(tmp_path: Path) -> None:
    request = pack_request(tmp_path, int8=None)
    model = load_model(request.fp32)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(numpy_helper.from_array(np.full(5, np.nan, np.float32), "b3"))
    save_model(model, request.fp32)
    with pytest.raises(GoldenError, match="'logits' of the fp32 model is not finite"):
        pack(request, say=quiet)
    assert not request.out.exists()


def test_an_int8_model_far_from_fp32_is_not_packed(tmp_path: Path) -> None:
    request = pack_request(tmp_path)
    assert request.int8 is not None
    model = load_model(ort_path(request.int8))
    for tensor in model.graph.initializer:
        if tensor.name == "r1_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(1e-3), "r1_scale"))
    save_model(model, ort_path(request.int8))
    table = load_table(table_path(request.int8))
    ort = replace(table.ort, sha256=sha256_of(ort_path(request.int8))[0])
    save_table(replace(table, ort=ort), table_path(request.int8))
    with pytest.raises(GoldenError, match="int8 is off by"):
        pack(request, say=quiet)
    assert not request.out.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system with 16 kB of space."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, small_disk: Path) -> None:
    request = pack_request(tmp_path, out=small_disk / "bundle")
    with pytest.raises(StorageError) as caught:
        pack(request, say=quiet)
    assert str(caught.value) == f"cannot write {request.out}: no space left on device"
    assert list(small_disk.iterdir()) == []


def test_a_hundred_samples_make_a_drift_reference(tmp_path: Path) -> None:
    others = write_samples(tmp_path / "others.npz", 120)
    request = pack_request(tmp_path, drift_data=others)
    manifest = pack(request, say=lambda _: None).manifest
    artifact = manifest.artifact(reference_path("net"))
    content = blob_path(request.out, artifact.sha256).read_bytes()
    reference = reference_from_bytes(content)
    assert reference.rows == 120
    with np.load(others) as arrays:
        wanted = np.sort(arrays["x"].reshape(120, -1).max(axis=1))
    largest = next(f for f in reference.features if f.name.endswith(" max") and f.kind == "input")
    np.testing.assert_array_equal(largest.array, wanted)


def test_too_few_samples_make_no_drift_reference(tmp_path: Path) -> None:
    manifest = pack(pack_request(tmp_path), say=lambda _: None).manifest
    assert reference_path("net") not in {artifact.path for artifact in manifest.artifacts}
