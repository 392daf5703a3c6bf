"""`edge-kit build`: engines for cards that are not here, graphs for Jetsons, builds elsewhere."""

from __future__ import annotations

import io
import os
import platform
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.model_file import load_model
from calibration.runtime import Runner
from edge.engine_job import EngineResult, Frame, write_frame
from edge.errors import BuildError, UsageError
from edge.installed import installed_backends
from edge.manifest import EngineFacts
from edge.self_test import SelfTest
from host_tools.build import BuildOptions, build_engines
from host_tools.calibrate import calibrate_file
from host_tools.describe import record_line
from host_tools.engine_record import records_in
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest, pack
from tests.host_tools.packing import calibrate_request

on_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="TensorRT-RTX is built for x86-64 only"
)
FACTS = EngineFacts(
    device="agx-orin-64gb", kind="jetson", arch="aarch64", runtime="10.3.0", sms=("8.7",),
    portable=False, sm_count=16, layers={"fp16": 3}, tried=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    calibrate_file(calibrate_request(folder), say=lambda _: None)
    return folder


def options(folder: Path, tmp_path: Path, **changes: object) -> BuildOptions:
    values: dict[str, object] = {
        "model": folder / "model.onnx",
        "int8": folder / "model.int8.onnx",
        "golden": folder / "samples.npz",
        "targets": ("rtx-4060",),
        "precisions": ("fp16",),
        "out": tmp_path / "engines",
    }
    return BuildOptions(**{**values, **changes})  # type: ignore[arg-type]


def _pack_request(folder: Path, tmp_path: Path, engines: Path) -> PackRequest:
    private, _ = generate_keys("release", tmp_path / "keys")
    return PackRequest(
        out=tmp_path / "bundle",
        name="net",
        version="1",
        fp32=folder / "model.onnx",
        int8=folder / "model.int8.onnx",
        engines=engines,
        golden=folder / "samples.npz",
        key=private,
        threads=1,
    )


def build(given: BuildOptions) -> list:
    return build_engines(given, say=lambda _: None)


@on_x86
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize(
    ("target", "sm"), [("rtx-3060", "8.6"), ("rtx-4060", "8.9"), ("rtx-5070", "12.0")]
)
def test_an_engine_for_a_card_that_is_not_here_names_what_it_needs(
    folder: Path, tmp_path: Path, target: str, sm: str, precision: str
) -> None:
    (record,) = build(options(folder, tmp_path, targets=(target,), precisions=(precision,)))
    assert (record.id, record.precision) == (f"{target}-{precision}", precision)
    assert record.engine.sms == (sm,)
    assert not record.engine.tried
    assert record_line(record).endswith("; built, not run here")
    assert record.engine.runtime == installed_backends()["tensorrt_rtx"]
    assert (tmp_path / "engines" / record.file).stat().st_size > 1000


def test_a_jetson_gets_graphs_in_both_forms_and_devices_add_up(
    folder: Path, tmp_path: Path
) -> None:
    build(options(folder, tmp_path, targets=("agx-orin-64gb",)))
    flags, typed = build(options(folder, tmp_path, targets=("orin-nano-8gb",)))
    assert (flags.id, flags.typed, typed.id, typed.typed) == (
        "trt-fp16", False, "trt-fp16-typed", True,
    )  # fmt: skip
    assert typed.build_for == flags.build_for == ("agx-orin-64gb", "orin-nano-8gb")
    halves = {t.data_type for t in load_model(tmp_path / "engines" / typed.file).graph.initializer}
    floats = {t.data_type for t in load_model(tmp_path / "engines" / flags.file).graph.initializer}
    assert 10 in halves
    assert 10 not in floats


@on_x86
def test_pack_takes_all_of_it_with_a_tolerance_for_fp16(folder: Path, tmp_path: Path) -> None:
    given = options(
        folder, tmp_path, targets=("rtx-4060", "agx-orin-64gb"), precisions=("fp16", "int8")
    )
    built = {record.id for record in build(given)}
    packed = pack(_pack_request(folder, tmp_path, engines=tmp_path / "engines"), say=lambda _: None)
    model = packed.manifest.models[0]
    assert {v.id for v in model.variants} == built | {"ort-fp32", "ort-int8"}
    assert 0.005 <= model.golden.tolerance["fp16"] < 0.05
    engine = next(v for v in model.variants if v.id == "rtx-4060-int8")
    assert engine.engine is not None
    assert packed.manifest.artifact(engine.files[0]).size > 1000


def test_engines_of_another_model_or_altered_ones_are_not_packed(
    folder: Path, tmp_path: Path
) -> None:
    build(options(folder, tmp_path, targets=("agx-orin-64gb",)))
    engines = tmp_path / "engines"
    other = tmp_path / "other.onnx"
    other.write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(UsageError, match="built from another model"):
        records_in(engines, other)
    with (engines / "trt-fp16.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UsageError, match=r"trt-fp16\.onnx is not the file"):
        records_in(engines, folder / "model.onnx")
    with pytest.raises(UsageError, match="no engines in"):
        records_in(tmp_path, folder / "model.onnx")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": ("rtx-4061",)}, "'rtx-4061' is not known"),
        ({"targets": ()}, "nothing to build for"),
        ({"model": Path("nowhere.onnx")}, "no model at nowhere.onnx"),
        ({"precisions": ("int8",), "int8": None}, "needs --int8"),
        ({"golden": Path("nowhere.npz")}, "nowhere.npz"),
    ],
)
def test_wrong_options_are_one_clear_error(
    folder: Path, tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        build(options(folder, tmp_path, **changes))
    assert not list((tmp_path / "engines").glob("*.record.json"))


@on_x86
def test_a_turing_card_is_told_to_take_fp16(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"rtx-2060.*--precision fp16"):
        build(options(folder, tmp_path, targets=("rtx-2060",), precisions=("fp32",)))


def ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a stand-in for ssh first on PATH; it is given the arguments that ssh would get."""
    folder.mkdir(exist_ok=True)
    script = folder / "ssh"
    script.write_text("#!/bin/sh\n" + body)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def answer(path: Path, *frames: Frame) -> Path:
    stream = io.BytesIO()
    for frame in frames:
        write_frame(stream, frame)
    path.write_bytes(stream.getvalue())
    return path


def test_a_remote_build_comes_home_with_its_facts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = EngineResult(
        plan=b"a plan", backend="trt", precision="fp16", typed=False, engine=FACTS,
        self_test=SelfTest(cases=1, output="y", relative_error=0.0, tolerance=0.02),
    )  # fmt: skip
    frames = answer(tmp_path / "answer", Frame(step=("Timing", 1, 2)), Frame(result=result))
    ssh(
        tmp_path / "bin",
        monkeypatch,
        f'echo "$@" > {tmp_path}/arguments\ncat > {tmp_path}/job\ncat {frames}\n',
    )
    given = options(folder, tmp_path, targets=(), on="nvidia@orin.local")
    (record,) = build(given)
    assert (record.id, record.engine) == ("agx-orin-64gb-fp16", FACTS)
    assert (tmp_path / "engines" / record.file).read_bytes() == b"a plan"
    arguments = (tmp_path / "arguments").read_text()
    assert arguments.endswith("-- nvidia@orin.local edge-agent build-engine\n")
    assert (tmp_path / "job").stat().st_size > (folder / "model.onnx").stat().st_size
    packed = pack(_pack_request(folder, tmp_path, engines=given.out), say=lambda _: None)
    assert packed.signed
    assert "agx-orin-64gb-fp16" in {v.id for v in packed.manifest.models[0].variants}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("cat > /dev/null; exit 0", "ended without an answer"),
        ("exit 255", "ended without an answer"),
        ("cat > /dev/null; echo 'bash: edge-agent: command not found'", "speak this protocol"),
        ("cat > /dev/null; printf 'EKIT\\000\\000\\000\\004abcd'", "sent something else"),
    ],
)
def test_a_remote_that_does_not_answer_is_an_error_and_leaves_no_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    ssh(tmp_path / "bin", monkeypatch, body)
    with pytest.raises(BuildError, match=words):
        build(options(folder, tmp_path, targets=(), on="nvidia@orin.local"))
    assert not list((tmp_path / "engines").glob("*.record.json"))


def test_an_error_of_the_remote_keeps_its_words(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = answer(tmp_path / "answer", Frame(error="Orin cannot build: no driver"))
    ssh(tmp_path / "bin", monkeypatch, f"cat > /dev/null; cat {frames}")
    with pytest.raises(BuildError, match=r"nvidia@orin\.local: Orin cannot build: no driver"):
        build(options(folder, tmp_path, targets=(), on="nvidia@orin.local"))


@pytest.mark.parametrize("host", ["-oProxyCommand=evil", "", " "])
def test_a_host_that_ssh_would_take_for_an_option_is_refused(
    folder: Path, tmp_path: Path, host: str
) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        build(options(folder, tmp_path, targets=(), on=host))


def test_random_values_stand_in_for_samples(folder: Path, tmp_path: Path) -> None:
    records = build(options(folder, tmp_path, targets=("agx-orin-64gb",), golden=None))
    assert len(records) == 2


def test_an_attention_mask_does_not_keep_softmax_in_fp32(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    low = numpy_helper.from_array(np.array(np.finfo(np.float32).min), "low")
    zero = numpy_helper.from_array(np.array(0, np.float32), "zero")
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["seen"], name="seen"),
        helper.make_node("Where", ["seen", "zero", "low"], ["mask"], name="mask"),
        helper.make_node("Add", ["x", "mask"], ["masked"], name="add"),
        helper.make_node("Softmax", ["masked"], ["y"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes, "net", [value("x", TensorProto.FLOAT, [4, 4])],
        [value("y", TensorProto.FLOAT, [4, 4])], [low, zero],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    said: list[str] = []
    given = BuildOptions(
        model=tmp_path / "m.onnx", targets=("agx-orin-64gb",), precisions=("fp16",),
        out=tmp_path / "engines",
    )  # fmt: skip
    build_engines(given, say=said.append)
    assert said == []
    x = np.array([[1, 2, -1, 3]] * 4, np.float32)
    half = Runner(load_model(tmp_path / "engines" / "trt-fp16-typed.onnx")).run({"x": x})["y"]
    np.testing.assert_allclose(half, Runner(model).run({"x": x})["y"], atol=2e-3)
