"""A slot on a real disk: who may read it, and whether ONNX Runtime opens what lies there."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge.bundle import open_bundle
from edge.config import AgentConfig
from edge.errors import BundleError, SlotsError, StorageError
from edge.ort_session import OrtSession
from edge.slots.opening import open_configured
from edge.slots.store import Store
from edge.spec import Profile, TensorSpec
from tests.agents import running_agent
from tests.edge.slots.slot_bundles import CPU, KEY, TRUSTED, packed, stage

ROWS = 512
NOBODY = 65534


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def graph_beside_weights() -> tuple[bytes, bytes]:
    """Return a graph y = x + w whose w lies in a file beside it, named by its digest."""
    weights = np.arange(ROWS, dtype=np.float32)
    content = weights.tobytes()
    initializer = numpy_helper.from_array(weights, "w")
    initializer.ClearField("raw_data")
    initializer.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", hashlib.sha256(content).hexdigest()), ("offset", "0"),
        ("length", str(len(content))),
    ):  # fmt: skip
        entry = initializer.external_data.add()
        entry.key, entry.value = key, value
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS]) for name in ("x", "y"))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "beside", [x], [y], [initializer]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString(), content


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "edge", min_free_bytes=0)
    with store.changing("test"):
        yield store


def test_weights_beside_a_graph_are_found_through_the_slot(tmp_path: Path, store: Store) -> None:
    graph, weights = graph_beside_weights()
    files = {"beside.onnx": graph, "beside.onnx.weights": weights}
    stage(store, packed(tmp_path / "bundle", "1", files=files))
    opened = open_bundle(store.slot_path("a"), TRUSTED, is_slot=True)
    spec = {"datatype": "FP32", "shape": (ROWS,)}
    session = OrtSession.open(
        opened.path("beside.onnx"),
        inputs=(TensorSpec(name="x", **spec),),
        outputs=(TensorSpec(name="y", **spec),),
        profile=Profile(ranges={}),
        intra_op_threads=1,
    )
    x = np.ones(ROWS, np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 1 + np.arange(ROWS, dtype="f4"))
    session.close()


@pytest.mark.usefixtures("strict_umask")
def test_whoever_serves_may_read_all_but_hold_no_lock(tmp_path: Path) -> None:
    bundle = packed(tmp_path / "bundle", "1")
    store = Store.open(tmp_path / "edge", min_free_bytes=0)
    with store.changing("test"):
        stage(store, bundle)
    modes = {
        str(path.relative_to(store.root)): stat.S_IMODE(path.lstat().st_mode)
        for path in store.root.rglob("*")
        if not path.is_symlink()
    }
    for name, mode in modes.items():
        path = store.root / name
        if path.is_dir():
            assert mode == 0o755, name
        elif path.name.endswith("lock"):
            assert mode == 0o600, name
        else:
            assert mode == (0o444 if path.parent.name == "sha256" else 0o644), name
    assert {"lock", "state.lock", "state.json", "slots/a/manifest.json"} <= set(modes)


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_what_is_no_file_in_the_place_of_one_is_never_followed(
    tmp_path: Path, store: Store, kind: str
) -> None:
    bundle = packed(tmp_path / "bundle", "1")
    outside = tmp_path / "outside"
    outside.write_bytes(b"not to be touched")
    for digest in bundle.blobs:
        for place in (
            store.root / "incoming" / f"{digest}.part",
            store.root / "blobs/sha256" / digest,
        ):
            if kind == "link":
                place.symlink_to(outside)
            elif kind == "pipe":
                os.mkfifo(place)
            else:
                place.mkdir()
    with pytest.raises(StorageError):
        stage(store, bundle)
    assert outside.read_bytes() == b"not to be touched"
    assert store.state.serving is None


def test_the_status_can_be_told_by_whoever_may_only_read(tmp_path: Path) -> None:
    bundle = packed(tmp_path / "bundle", "1")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store = Store.open(Path(folder) / "edge", min_free_bytes=0)
        with store.changing("test"):
            (artifact, *_) = store.prepare(
                bundle.manifest, bundle.signature, keys=TRUSTED, target=CPU
            )
            with pytest.raises(BundleError, match="only 1 of"):
                store.receive(artifact, [b"x"], offset=0)
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:  # others cannot become somebody else, and need not
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                seen = Store.seen(store.root)
                seen.space_for(())
                os._exit(0 if seen.state.coming is not None else 2)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def configured(tmp_path: Path) -> AgentConfig:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "site.pub").write_bytes(KEY.public_pem)
    return AgentConfig(
        slots=tmp_path / "edge", trusted_keys=keys, port=0, intra_op_threads=1, warm_up=False,
        cache=tmp_path / "engines",
    )  # fmt: skip


def test_nothing_in_service_is_told_and_not_a_crash(tmp_path: Path, store: Store) -> None:
    stage(store, packed(tmp_path / "bundle", "1"))
    with pytest.raises(SlotsError, match="no bundle is in service"):
        open_configured(configured(tmp_path))


def test_an_agent_serves_the_trial_and_then_what_a_rollback_leaves(
    tmp_path: Path, store: Store
) -> None:
    config = configured(tmp_path)
    for name in ("old", "new"):
        stage(store, packed(tmp_path / name, name))
        state = store.begin_trial()
        with running_agent(config) as agent:
            assert agent.serving.served["affine"].bundle.manifest.version == name
        if name == "old":
            assert state.served is not None
            store.commit(state.served.id)
    store.roll_back("by hand")
    with running_agent(config) as agent:
        assert agent.serving.served["affine"].bundle.manifest.version == "old"
