"""Ranges as a TensorRT calibration cache: for DLA, and for INT8 without Q/DQ, up to TensorRT 10.

One line a tensor: its name and the bits of its float32 scale in hexadecimal, most significant
first; the header names the version and the calibrator, which TensorRT checks loosely.
Source: NVIDIA TensorRT documentation, "Calibration"; the form is that of caches it writes itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from calibration.errors import CalibrationError
from calibration.observers import SMALLEST_AMAX
from calibration.qdq import INT8_MAX

VERSION = "8600"
CALIBRATOR = "EntropyCalibration2"
_SCALE = struct.Struct(">f")


def cache_from_ranges(amax: Mapping[str, float], *, version: str = VERSION) -> bytes:
    """Return the cache of symmetric int8 ranges; tensors that were always zero are left out.

    Raises CalibrationError for a name that cannot stand in a line.
    """
    lines = [f"TRT-{version}-{CALIBRATOR}"]
    for name, largest in amax.items():
        if "\n" in name or ": " in name:
            raise CalibrationError(
                f"tensor {name!r} has a name that a calibration cache cannot hold; export again"
            )
        if largest >= SMALLEST_AMAX:
            lines.append(f"{name}: {_SCALE.pack(largest / INT8_MAX).hex()}")
    return ("\n".join(lines) + "\n").encode()


def ranges_from_cache(content: bytes) -> dict[str, float]:
    """Return amax by tensor; raises CalibrationError for what is no calibration cache."""
    try:
        header, *lines = content.decode().splitlines()
        if not header.startswith("TRT-"):
            raise ValueError(f"the first line is {header[:40]!r}")
        pairs = [line.rpartition(": ") for line in lines if line]
        scales = {name: _SCALE.unpack(bytes.fromhex(bits))[0] for name, _, bits in pairs}
    except (ValueError, struct.error) as error:
        raise CalibrationError(
            f"this is no TensorRT calibration cache: {error}; write it with `edge-kit calibrate "
            "--calibration-cache`"
        ) from error
    return {name: scale * INT8_MAX for name, scale in scales.items()}
