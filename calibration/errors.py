"""Errors of calibration; the tree's root is edge.errors.EdgeError."""

from __future__ import annotations

from edge.errors import EdgeError


class CalibrationError(EdgeError):
    """Samples, labels or ranges cannot be used for calibration."""

    code = "calibration"


class GraphError(EdgeError):
    """An ONNX file cannot be read, is invalid, or has a form that the kit cannot handle."""

    code = "graph"


class GateError(EdgeError):
    """The int8 model is further from the fp32 model than the gate allows."""

    code = "gate"
