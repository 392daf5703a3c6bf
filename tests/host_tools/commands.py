"""`edge-kit` in this process, and the files that it writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from click.testing import CliRunner, Result

from host_tools.cli import cli


def invoke(*words: str | Path) -> Result:
    """Run a command; its errors are raised as they are."""
    return CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def run_file(path: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    """Return the outputs of an ONNX file on ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)
