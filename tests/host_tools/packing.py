"""A small calibrated model on disk, and a request that packs it."""

from __future__ import annotations

from pathlib import Path

from calibration.gate import Gate
from calibration.model_file import save_model
from host_tools.calibrate import CalibrateRequest, calibrate_file
from host_tools.keys import generate_keys
from host_tools.pack import PackRequest
from tests.calibration.nets import conv_net, write_samples

FREE_GATE = Gate(max_top1_drop=100.0, min_cosine=-1.0, min_agreement_percent=0.0)


def calibrate_request(folder: Path, **changes: object) -> CalibrateRequest:
    """Write model.onnx and samples.npz into folder and return the request to calibrate them."""
    save_model(conv_net(), folder / "model.onnx")
    values: dict[str, object] = {
        "model": folder / "model.onnx",
        "data": write_samples(folder / "samples.npz", 60),
        "held_out": None,
        "labels": None,
        "tokenizer": None,
        "method": "minmax",
        "keep_float": (),
        "batch": 16,
        "gate": FREE_GATE,
        "budget": None,
        "report": None,
        "out": None,
    }
    return CalibrateRequest(**{**values, **changes})  # type: ignore[arg-type]


def pack_request(folder: Path, **changes: object) -> PackRequest:
    """Calibrate a small net in folder, make a key, and return the request that packs both."""
    _, int8 = calibrate_file(calibrate_request(folder), say=lambda _: None)
    private, _ = generate_keys("release", folder / "keys")
    values: dict[str, object] = {
        "out": folder / "bundle",
        "name": "net",
        "version": "7",
        "fp32": folder / "model.onnx",
        "int8": int8,
        "golden": folder / "samples.npz",
        "key": private,
        "threads": 1,
    }
    return PackRequest(**{**values, **changes})  # type: ignore[arg-type]
