from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from calibration.model_file import save_model
from edge.bundle import open_bundle
from edge.trust import trusted_keys_in
from host_tools.describe import read_manifest
from host_tools.keys import key_id
from tests.calibration.nets import IMAGE, conv_net, write_samples
from tests.host_tools.commands import invoke

HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "transformers", "flask", "rich", "cryptography"}
VERBS = [
    "export",
    "profile",
    "calibrate",
    "keygen",
    "pack",
    "combine",
    "sign",
    "verify",
    "inspect",
    "quickstart",
]


def run_script(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run edge-kit as a user does, in a process of its own."""
    command = [sys.executable, "-c", "from host_tools.cli import main; main()", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\n"
        "from host_tools.cli import cli\n"
        f"cli.main({words!r}, standalone_mode=False)\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every step was run once."""
    folder = tmp_path_factory.mktemp("work")
    save_model(conv_net(), folder / "net.onnx")
    rng = np.random.default_rng(0)
    write_samples(folder / "samples.npz", 100, labels=rng.integers(0, 5, 100))
    steps = [
        ["calibrate", "net.onnx", "--data", "samples.npz", "--max-top1-drop", "100"],
        ["keygen", "release", "--out", "keys"],
        ["pack", "net.onnx", "--int8", "net.int8.onnx", "--golden", "samples.npz",
         "--name", "net", "--key", "keys/release.key", "--out", "bundle"],
    ]  # fmt: skip
    for step in steps:
        result = run_script(*step, folder=folder)
        assert result.returncode == 0, result.stderr
    return folder


def test_the_commands_make_a_bundle_that_a_device_accepts(worked: Path) -> None:
    bundle = open_bundle(worked / "bundle", trusted_keys_in(worked / "keys"))
    accuracy = bundle.manifest.models[0].accuracy
    assert accuracy is not None
    assert accuracy.labelled
    result = invoke("verify", worked / "bundle", "--trusted-keys", worked / "keys", "--json")
    verdict = json.loads(result.stdout)
    assert (verdict["ok"], verdict["name"]) == (True, "net")
    flags = ["--trusted-keys", str(worked / "nobody"), "--json"]
    refused = run_script("verify", str(worked / "bundle"), *flags)
    assert refused.returncode == 1
    verdict = json.loads(refused.stdout)
    assert (verdict["ok"], verdict["code"]) == (False, "unknown-key")


def test_inspect_tells_what_the_manifest_says(worked: Path) -> None:
    content, manifest, _ = read_manifest(worked / "bundle")
    assert invoke("inspect", worked / "bundle", "--json").stdout.encode() == content
    text = invoke("inspect", worked / "bundle").stdout
    model = manifest.models[0]
    assert "net 1" in text
    for variant in model.variants:
        assert f"{variant.measurements[0].p50_ms:.3f}" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_sign_replaces_a_signature_that_verify_then_accepts(worked: Path, tmp_path: Path) -> None:
    made = run_script("keygen", "other", "--out", str(tmp_path), "--json")
    assert json.loads(made.stdout)["key_id"] == key_id(tmp_path / "other.pub")
    verify = ["verify", str(worked / "bundle"), "--trusted-keys", str(tmp_path)]
    before = run_script(*verify)
    assert before.returncode == 1
    assert "unknown key" in before.stderr
    assert invoke("sign", worked / "bundle", "--key", tmp_path / "other.key").exit_code == 0
    assert run_script(*verify).returncode == 0
    signed = invoke("sign", worked / "bundle", "--key", worked / "keys/release.key", "--json")
    assert json.loads(signed.stdout)["bundle"] == str(worked / "bundle")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["calibrate", "none.onnx", "--data", "x.npz"], 2, "no model at none.onnx"),
        (["calibrate", "net.onnx"], 2, "Missing option '--data'"),
        (["calibrate", "net.onnx", "--data", "none.npz"], 2, "no samples at none.npz"),
        (["calibrate", "net.onnx", "--data", "samples.npz", "--method", "kl"], 2, "unknown method"),
        (["calibrate", "samples.npz", "--data", "samples.npz"], 1, "not a valid ONNX model"),
        (["calibrate", "net.onnx", "--dta", "x"], 2, "No such option"),
        (["export", "nowhere:factory"], 2, "nowhere"),
        (["pack", "net.onnx", "--golden", "samples.npz", "--name", "a b", "--out", "b2"], 2, "a b"),
        (["pack", "net.onnx", "--golden", "samples.npz", "--name", "n", "--out", "bundle"], 1,
         "it exists"),
        (["verify", "none", "--trusted-keys", "keys"], 1, "no bundle at none"),
        (["inspect", "none"], 2, "no bundle at none"),
        (["sign", "bundle", "--key", "none.key"], 2, "no key at none.key"),
        (["keygen", "../up"], 2, "../up"),
        (["keygen", "release", "--out", "keys"], 1, "never overwritten"),
        (["nosuch"], 2, "No such command"),
    ],
)  # fmt: skip
def test_a_mistake_costs_one_line(
    worked: Path, words: list[str], status: int, message: str
) -> None:
    before = sorted(p.name for p in worked.iterdir())
    result = run_script(*words, folder=worked)
    assert result.returncode == status
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in worked.iterdir()) == before


def test_a_failed_gate_is_exit_code_1_and_no_file(worked: Path, tmp_path: Path) -> None:
    samples = np.load(worked / "samples.npz")["x"]
    np.savez(tmp_path / "unlabelled.npz", x=samples)
    flags = ["--data", str(tmp_path / "unlabelled.npz"), "--min-cosine", "1.1"]
    result = run_script("calibrate", "net.onnx", *flags, "--out", str(tmp_path / "q.onnx"),
                        folder=worked)  # fmt: skip
    assert result.returncode == 1
    assert "does not pass the accuracy gate" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["unlabelled.npz"]


def test_labels_may_come_from_a_file(worked: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((4, *IMAGE), np.float32))
    np.save(tmp_path / "l.npy", np.zeros(7, np.int64))
    flags = ["--data", "samples.npz", "--held-out", str(tmp_path / "x.npz")]
    result = run_script("calibrate", "net.onnx", *flags, "--labels", str(tmp_path / "l.npy"),
                        "--out", str(tmp_path / "q.onnx"), folder=worked)  # fmt: skip
    assert result.returncode == 1
    assert "7 labels for 4 samples" in result.stderr


def test_export_and_pack_report_in_json(worked: Path, tmp_path: Path) -> None:
    result = invoke("export", worked / "net.onnx", "--out", tmp_path / "again.onnx", "--json")
    report = json.loads(result.stdout)
    assert report["path"] == str(tmp_path / "again.onnx")
    assert report["opset"] == 17
    assert report["profile"]["ranges"]["x"]["max"] == [32, *IMAGE]
    result = invoke(
        "pack", worked / "net.onnx", "--golden", worked / "samples.npz", "--name", "net",
        "--out", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert json.loads(result.stdout) == json.loads((tmp_path / "bundle/manifest.json").read_bytes())
