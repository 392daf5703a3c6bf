"""Models from a registry into bundles, and bundles into it; MLflow's own client reads both."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.errors import BundleError, UsageError
from edge.manifest_reading import manifest_from_bytes
from host_tools.calibrate import calibrate_file
from host_tools.cli import cli
from host_tools.errors import RegistryError
from host_tools.registry.client import reference_from_text
from tests.host_tools.packing import calibrate_request
from tests.talking import make_talking_folder

REPOSITORY = Path(__file__).parents[3]


def run(*words: object) -> Any:
    return cli.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its int8 form, samples and keys."""
    folder = tmp_path_factory.mktemp("net")
    calibrate_file(calibrate_request(folder), say=lambda line: None)
    run("keygen", "release", "--out", folder / "keys")
    return folder


@pytest.fixture
def training_run(net: Path, log_model: Any) -> str:
    log_model("net", {"model.onnx": b"an older one"})
    found = log_model("net", {"model.onnx": (net / "model.onnx").read_bytes()}, "champion")
    assert isinstance(found, str)
    return found


def pack(net: Path, out: Path, registry: str, reference: str, *more: object) -> Path:
    run("pack", "--from-mlflow", reference, "--registry", registry, "--golden",
        net / "samples.npz", "--name", "net", "--threads", 1, "--out", out, *more)  # fmt: skip
    return out


@pytest.fixture
def bundle(net: Path, registry: str, training_run: str, tmp_path: Path) -> Path:
    return pack(
        net, tmp_path / "bundle", registry, "models:/net@champion",
        "--key", net / "keys" / "release.key", "--int8", net / "model.int8.onnx",
    )  # fmt: skip


def test_a_chat_model_is_packed_from_the_folder_of_its_export(
    registry: str, log_model: Any, tmp_path: Path
) -> None:
    folder = make_talking_folder(tmp_path / "hf")
    run("export-chat", folder, "--precision", "fp32", "--no-compare", "--out", tmp_path / "export")
    files = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    log_model("assistant", files, "champion")
    run("pack", "--from-mlflow", "models:/assistant/1", "--registry", registry, "--name", "talker",
        "--threads", 1, "--out", tmp_path / "bundle")  # fmt: skip
    (model,) = manifest_from_bytes((tmp_path / "bundle" / "manifest.json").read_bytes()).models
    assert model.chat is not None
    assert model.provenance.source == "models:/assistant/1"


def registered(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    run("register", *words, "--json")
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_a_bundle_says_which_version_of_the_registry_it_is(bundle: Path, net: Path) -> None:
    content = (bundle / "manifest.json").read_bytes()
    (model,) = manifest_from_bytes(content).models
    assert model.provenance.source == "models:/net/2"
    assert {variant.id for variant in model.variants} == {"ort-fp32", "ort-int8"}


def test_what_is_registered_can_be_read_with_mlflow(
    bundle: Path, net: Path, registry: str, training_run: str, client: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    content = (bundle / "manifest.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    words = (bundle, "--registry", registry, "--name", "net-edge", "--alias", "devices",
             "--trusted-keys", net / "keys")  # fmt: skip
    first = registered(capsys, *words)
    version = client.get_model_version_by_alias("net-edge", "devices")
    assert version.tags["edge_kit.bundle_sha256"] == digest == first["bundle_sha256"]
    assert version.tags["edge_kit.training_run"] == training_run
    noted = client.get_run(version.run_id)
    assert noted.info.status == "FINISHED"
    assert noted.data.tags["mlflow.parentRunId"] == training_run
    model = json.loads(content)["models"][0]
    data = model["calibration"]["data_sha256"]
    assert noted.data.params["net.calibration.data_sha256"] == data
    assert noted.data.params["net.source"] == "models:/net/2"
    assert noted.data.metrics["net.accuracy.sqnr_db"] == model["accuracy"]["sqnr_db"]
    (used,) = noted.inputs.dataset_inputs
    assert (used.dataset.digest, used.dataset.source) == (data[:36], data)
    stored = Path(client.download_artifacts(version.run_id, "bundle/manifest.json"))
    assert stored.read_bytes() == content
    again = registered(capsys, *words)
    assert (first["is_new"], again["is_new"]) == (True, False)
    assert again["version"] == first["version"] == "1"
    assert len(client.search_model_versions("name = 'net-edge'")) == 1
    experiment = client.get_experiment_by_name("edge-kit").experiment_id
    assert len(client.search_runs([experiment])) == 1


@pytest.mark.parametrize(
    "step", ["log_batch", "log_inputs", "log_artifact", "set_terminated", "create_model_version"]
)
def test_a_registration_that_was_cut_off_is_completed(
    bundle: Path, registry: str, client: Any, step: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from mlflow.tracking import MlflowClient

    def fails(*args: Any, **options: Any) -> None:
        raise OSError("the network went away")

    words = (bundle, "--registry", registry, "--name", "net-edge", "--allow-unsigned")
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, step, fails)
        with pytest.raises(RegistryError, match="network went away"):
            run("register", *words)
    found = registered(capsys, *words)
    assert (found["is_new"], found["version"]) == (True, "1")
    experiment = client.get_experiment_by_name("edge-kit").experiment_id
    (noted,) = client.search_runs([experiment])
    assert noted.info.run_id == found["run_id"]
    assert noted.data.metrics == found["metrics"]
    assert len(noted.inputs.dataset_inputs) == 1


def test_a_dry_run_writes_nothing(
    bundle: Path, registry: str, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (bundle, "--registry", registry, "--name", "net-edge", "--allow-unsigned", "--dry-run")
    found = registered(capsys, *words, "--alias", "devices")
    assert (found["version"], found["is_new"]) == (None, False)
    assert found["metrics"]
    assert client.get_experiment_by_name("edge-kit") is None
    assert [model.name for model in client.search_registered_models()] == ["net"]
    run("register", *words)
    assert "would register net-edge" in capsys.readouterr().out


@pytest.mark.parametrize(
    "uri", ["sqlite:///{}/new.db", "sqlite:///new.db", "file://{}/runs", "new"]
)
def test_a_dry_run_makes_no_registry_where_there_is_none(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    uri: str,
) -> None:  # fmt: skip
    run("pack", net / "model.onnx", "--golden", net / "samples.npz", "--name", "plain",
        "--threads", 1, "--out", tmp_path / "plain")  # fmt: skip
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    capsys.readouterr()
    words = (tmp_path / "plain", "--registry", uri.format(tmp_path / "work"), "--allow-unsigned",
             "--dry-run")  # fmt: skip
    found = registered(capsys, *words)
    assert (found["name"], found["version"], found["is_new"]) == ("plain", None, False)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("alias", ["", "a b", "a@b", "latest", "v1", "V12", "x" * 256])
def test_an_alias_that_mlflow_refuses_is_refused_before_anything_is_written(
    bundle: Path, registry: str, client: Any, alias: str
) -> None:
    with pytest.raises(UsageError, match="--alias"):
        run("register", bundle, "--registry", registry, "--allow-unsigned", "--alias", alias)
    assert client.get_experiment_by_name("edge-kit") is None


def test_a_bundle_that_nobody_trusted_signed_is_not_registered(bundle: Path, registry: str) -> None:
    with pytest.raises(BundleError):
        run("register", bundle, "--registry", registry)


@pytest.mark.usefixtures("training_run")
@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("models:/net@nobody", "net has the aliases champion and the versions 1, 2"),
        ("models:/net/7", "net has the aliases champion and the versions 1, 2"),
        ("models:/other@champion", "it has no model 'other'"),
        ("net@champion", "is no model; give models:/NAME@ALIAS"),
        ("runs:/1/model", "is no model; give models:/NAME@ALIAS"),
    ],
)
def test_a_model_that_is_not_there_is_an_error_that_says_what_is(
    net: Path, registry: str, tmp_path: Path, reference: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        pack(net, tmp_path / "bundle", registry, reference)
    assert not (tmp_path / "bundle").exists()


class Trap:
    """A pickle that leaves a trace if anybody opens it."""

    def __reduce__(self) -> Any:
        return exec, ("import pathlib; pathlib.Path('opened').write_text('')",)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data/model.pth": pickle.dumps(Trap())}, "data/model.pth, a pickle"),
        ({"python_model.pkl": pickle.dumps(Trap())}, "never run here; log the .onnx file"),
        ({"MLmodel": b"flavors: {}"}, "holds no model that can be packed"),
        ({"a.onnx": b"1", "b.onnx": b"2"}, "holds a.onnx, b.onnx; log the one"),
    ],
)
def test_what_holds_no_single_model_to_pack_is_refused_and_no_pickle_is_opened(
    net: Path, registry: str, log_model: Any, tmp_path: Path, files: Any, words: str
) -> None:
    log_model("thing", files, "champion")
    with pytest.raises(UsageError, match=words):
        pack(net, tmp_path / "bundle", registry, "models:/thing@champion")
    assert not (tmp_path / "opened").exists()


def test_a_registry_that_does_not_answer_is_named(net: Path, tmp_path: Path) -> None:
    for uri in ("http://127.0.0.1:9", f"sqlite:///{net}/model.onnx"):
        with pytest.raises(RegistryError, match="is --registry right, and does it answer"):
            pack(net, tmp_path / "bundle", uri, "models:/net@champion")


def test_without_a_registry_the_option_is_named(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match="give --registry"):
        run("pack", "--from-mlflow", "models:/net@champion", "--name", "x", "--out", tmp_path / "b")
    with pytest.raises(UsageError, match="give either MODEL or --from-mlflow"):
        run("pack", "--name", "x", "--out", tmp_path / "b")


@pytest.mark.parametrize("text", ["models:/a'; drop@x", "models:/a b/1"])
def test_names_are_taken_as_they_are(text: str) -> None:
    assert str(reference_from_text(text)) == text


TELL = """
import socket, sys
tried = []
def refuse(*args, **options):
    tried.append(args)
    raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refuse
if sys.argv[2] == "ours":
    from host_tools.registry.client import open_registry
    open_registry(sys.argv[1]).search_registered_models()
import mlflow.telemetry
client = mlflow.telemetry.get_telemetry_client()
print("on" if client else "off", len(tried))
"""


@pytest.mark.parametrize(("who", "state"), [("ours", "off 0"), ("theirs", "on")])
def test_mlflow_tells_nobody_that_it_is_used(tmp_path: Path, who: str, state: str) -> None:
    """In a process without the variables by which mlflow knows a test; alone, it would tell."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TELL, f"sqlite:///{tmp_path}/mlflow.db", who],
        env={"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1].startswith(state)
