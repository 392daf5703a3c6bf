"""What an update moves: a new INT8 head on the same backbone, packed as users pack it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.model_file import save_model, set_facts
from edge.bundle import blob_path
from edge.manifest import Provenance
from edge.manifest_reading import manifest_from_bytes
from edge.spec import Profile, ShapeRange
from host_tools.calibrate import calibrate_file
from host_tools.pack import PackRequest, pack
from tests.channel.sites import Device, Site
from tests.edge.update.file_server import serving
from tests.host_tools.packing import calibrate_request
from tests.models import model_from_nodes

WIDTH = 768
MAX_RATIO = 1.2


def classifier(head_seed: int) -> onnx.ModelProto:
    """Return a backbone and a head of three layers each; the seed draws the head alone.

    Calibration makes all int8 but the very last, which is small.
    """
    rng, head = np.random.default_rng(0), np.random.default_rng(head_seed)
    weights = {
        f"w{n}": (rng.standard_normal((WIDTH, WIDTH)) / 20).astype(np.float32) for n in range(3)
    }
    for name, shape in {"h0": (WIDTH, WIDTH), "h1": (WIDTH, WIDTH), "head": (WIDTH, 16)}.items():
        weights[name] = (head.standard_normal(shape) / 20).astype(np.float32)
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("MatMul", [last, name], [f"{name}.y"], name=name))
        last = f"{name}.y"
        if name != "head":
            nodes.append(helper.make_node("Relu", [last], [f"{name}.r"], name=f"{name}.relu"))
            last = f"{name}.r"
    model = model_from_nodes(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", 16])],
        weights,
    )
    rows = ShapeRange(min=(1, WIDTH), opt=(4, WIDTH), max=(8, WIDTH))
    set_facts(
        model,
        profile=Profile(ranges={"x": rows}),
        provenance=Provenance(source="tests", opset=17, exporter="tests", tools={}),
    )
    return model


def packed(folder: Path, key: Path, version: str, head_seed: int) -> Path:
    """Calibrate and pack, and return the bundle."""
    folder.mkdir()
    samples = np.random.default_rng(1).standard_normal((40, WIDTH)).astype(np.float32)
    request = calibrate_request(folder)
    np.savez(folder / "samples.npz", x=samples)
    save_model(classifier(head_seed), folder / "model.onnx")
    _, int8 = calibrate_file(request, say=lambda _: None)
    wanted = PackRequest(
        out=folder / "bundle", name="affine-bundle", version=version, fp32=folder / "model.onnx",
        int8=int8, golden=folder / "samples.npz", key=key, threads=1,
    )  # fmt: skip
    return pack(wanted, say=lambda _: None).out


def tensors_of(bundle: Path) -> dict[str, bytes]:
    """Return the values of all initializers of all graphs in a bundle, read by onnx itself."""
    manifest = manifest_from_bytes((bundle / "manifest.json").read_bytes())
    found = {}
    for artifact in manifest.artifacts:
        if artifact.path.endswith(".onnx"):
            model = onnx.load(str(blob_path(bundle, artifact.sha256)))
            for tensor in model.graph.initializer:
                values = numpy_helper.to_array(tensor)
                found[f"{artifact.path}/{tensor.name}"] = values.tobytes()
    return found


@pytest.mark.slow
def test_a_new_head_on_the_same_backbone_moves_little_more_than_the_head(tmp_path: Path) -> None:
    site = Site(tmp_path)
    key = tmp_path / "release.key"
    key.write_bytes(site.release_key.private_pem)
    bundles = [packed(tmp_path / f"v{n}", key, str(n), head_seed=n) for n in (1, 2)]
    before, after = (tensors_of(bundle) for bundle in bundles)
    assert before.keys() == after.keys()
    values = set(after.values())  # equal ones are stored and moved once
    changed, total = sum(map(len, values - set(before.values()))), sum(map(len, values))
    int8_head = [n for n, value in after.items() if len(value) == WIDTH**2 and value != before[n]]
    assert len(int8_head) == 2
    with serving(site.channel) as server:
        follower = Device(tmp_path / "device", site.anchor, server.url)
        for bundle in bundles:
            release = site.change("publish", bundle).said["release"]
            site.change("promote", release)
            begun = server.sent_bytes
            assert follower.install().said["verdict"] == "staged"
            moved = server.sent_bytes - begun  # metadata and all
    assert follower.served == "2"
    assert changed < total * 0.6
    assert moved <= MAX_RATIO * changed, f"moved {moved}, changed {changed}, whole {total}"
