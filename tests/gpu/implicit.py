"""INT8 from a calibration cache against INT8 from Q/DQ, on the quickstart's CNN.

python -m tests.gpu.implicit FOLDER, which holds digits.onnx, digits.int8.onnx, digits.cache (of
`edge-kit calibrate --calibration-cache`) and heldout.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edge.engine_builder import EngineRequest, engine_from_onnx
from edge.self_test import relative_error
from edge.spec import Profile, ShapeRange, TensorSpec
from edge.tensorrt_library import load_tensorrt
from edge.trt_session import TrtSession

BATCH = 60
SHAPE = (BATCH, 1, 32, 32)
PROFILE = Profile(ranges={"image": ShapeRange(min=SHAPE, opt=SHAPE, max=SHAPE)})
INPUTS = (TensorSpec(name="image", datatype="FP32", shape=("batch", 1, 32, 32)),)
OUTPUTS = (TensorSpec(name="logits", datatype="FP32", shape=("batch", 10)),)


def main(folder: Path) -> None:
    library = load_tensorrt("trt")
    held = np.load(folder / "heldout.npz")
    cache = (folder / "digits.cache").read_bytes()
    answers = {}
    for name, file, precision, ranges in (
        ("fp32", "digits.onnx", "fp32", b""),
        ("Q/DQ", "digits.int8.onnx", "int8", b""),
        ("cache", "digits.onnx", "int8", cache),
    ):
        request = EngineRequest(
            onnx=folder / file, precision=precision,  # type: ignore[arg-type]
            profiles=(PROFILE,), calibration_cache=ranges,
        )  # fmt: skip
        built = engine_from_onnx(request, library)  # raises if TensorRT asks for samples
        session = TrtSession.open(
            built.plan, library=library, inputs=INPUTS, outputs=OUTPUTS, profile=PROFILE
        )
        rows = [
            session.run({"image": held["image"][start : start + BATCH]})["logits"]
            for start in range(0, len(held["image"]), BATCH)
        ]
        answers[name] = np.concatenate(rows)
        accuracy = 100 * (answers[name].argmax(1) == held["labels"]).mean()
        print(
            f"{name}: built in {built.seconds:.1f} s, {accuracy:.2f} % of {len(held['labels'])}, "
            f"error to fp32 {relative_error(answers[name], answers['fp32']):.1e}, layers "
            f"{session.layers()}",
            flush=True,
        )
        session.close()
    off = relative_error(answers["cache"], answers["Q/DQ"])
    print(f"TensorRT {library.version}: cache against Q/DQ {off:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
