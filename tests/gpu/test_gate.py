"""A trial of bundles with TensorRT engines on a real GPU, judged by the gate over HTTP.

Run where a GPU and TensorRT are: `make test-gpu`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge import manifest as m
from tests.bundles import affine_parts, write_bundle
from tests.edge.gate.test_trials import KEY, Device, expected, telemetry

pytestmark = pytest.mark.gpu
# The device builds the engine of a bundle in its trial.
INSTALL_S = 300.0


class GpuDevice(Device):
    """One whose bundles hold a graph that TensorRT builds an engine from, and nothing else."""

    def bundle(self, name: str, scale: float, *, golden_scale: float | None = None) -> Path:
        manifest, files = affine_parts(scale=scale)
        if golden_scale is not None:
            manifest, wrong = affine_parts(scale=golden_scale)
            files = wrong | {path: files[path] for path in files if path.endswith(".onnx")}
        variant = m.Variant(
            id="trt-fp32", backend="trt", precision="fp32", files=("affine/fp32.onnx",), typed=False
        )
        del files["affine/int8.onnx"]
        model = replace(manifest.models[0], variants=(variant,), preferences=())
        manifest = replace(manifest, version=name, models=(model,))
        return write_bundle(self.root / name, manifest, files, KEY)

    def run(self, *words: str) -> tuple[int, dict[str, Any]]:
        ended = subprocess.run(
            self.command(*words, "--json"), capture_output=True, timeout=INSTALL_S, check=False
        )
        print(ended.stderr.decode())
        return ended.returncode, json.loads(ended.stdout or b"{}")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[GpuDevice]:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "site.pub").write_bytes(KEY.public_pem)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.closing(GpuDevice(root=tmp_path, port=port)) as made:
        yield made


def test_engines_are_tried_committed_and_gone_back_from_and_the_gpu_is_seen(
    device: GpuDevice,
) -> None:
    device.start()
    for name, scale in (("one", 2.0), ("two", 3.0)):
        status, result = device.install(device.bundle(name, scale))
        assert (status, result["result"]) == (0, "committed"), result
        assert device.answer() == expected(scale)
        checks = {check["name"]: check for check in result["report"]["checks"]}
        print(checks)
        assert checks["affine GPU"]["passed"]
        assert checks["affine GPU"]["measured"].endswith("on the GPU")
        (model,) = telemetry(device)["models"]
        assert (model["variant"], model["means"]) == ("trt-fp32", "build")
    status, result = device.install(device.bundle("bad", 5.0, golden_scale=7.0))
    assert (status, result["result"]) == (1, "rolled-back"), result
    assert device.answer() == expected(3.0)
