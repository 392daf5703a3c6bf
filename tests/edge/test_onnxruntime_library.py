"""What is known of the CPU before ONNX Runtime is asked."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from edge.onnxruntime_library import int8_saturates


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu sse avx avx2 fma", True),
        ("x86_64", "fpu sse avx avx2 avx_vnni", False),
        ("x86_64", "fpu sse avx avx2 avx512f avx512_vnni", False),
        ("aarch64", "fp asimd asimddp", False),
    ],
)
def test_only_x86_without_vnni_saturates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, saturates: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert int8_saturates(tmp_path / "cpuinfo") is saturates


def test_a_cpu_that_nobody_describes_may_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    assert int8_saturates(tmp_path / "none")
