"""Sign a bundle of the benchmark's engines, with torch's fp32 answers as golden set.

python -m tests.gpu.make_bundle FOLDER MODEL OUT PRECISION...

A PRECISION such as fp16-here packs no engine but the graph that the agent builds one from.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge import manifest as m
from edge.target import detect_target
from tests.bundles import affine_parts, golden_tensors, make_key, write_bundle
from tests.gpu.shapes import MODELS

ROWS = (1, 2)
# Relative error to torch in fp32, of models with random weights.
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "int8": 5e-2}


def main(folder: Path, name: str, out: Path, precisions: list[str]) -> None:
    target, interface = detect_target(), MODELS[name]
    arrays, files = np.load(folder / f"{name}.npz"), {}
    cases = []
    for number, rows in enumerate(ROWS):
        feeds = {spec.name: arrays[spec.name][:rows] for spec in interface.inputs}
        answers = {spec.name: arrays[spec.name][:rows] for spec in interface.outputs}
        cases.append(
            m.GoldenCase(
                inputs=golden_tensors(f"golden/{number}/in", feeds, files),
                outputs=golden_tensors(f"golden/{number}/out", answers, files),
            )
        )
    variants = []
    for variant_id in precisions:
        precision = variant_id.removesuffix("-here")
        if variant_id != precision:
            files[f"{name}.onnx"] = (folder / f"{name}.onnx").read_bytes()
            variants.append(
                m.Variant(
                    id=variant_id, backend="trt", precision=precision,  # type: ignore[arg-type]
                    files=(f"{name}.onnx",), typed=False,
                )
            )  # fmt: skip
            continue
        files[f"{precision}.engine"] = (folder / f"{name}.{precision}.engine").read_bytes()
        facts = m.EngineFacts(
            device=target.name, kind="desktop", arch=target.arch, runtime=str(target.tensorrt),
            sms=(str(target.sm),), portable=False, sm_count=target.sm_count,
        )  # fmt: skip
        variants.append(
            m.Variant(
                id=precision, backend="trt", precision=precision,  # type: ignore[arg-type]
                files=(f"{precision}.engine",), engine=facts,
            )
        )  # fmt: skip
    base = affine_parts()[0]
    batching = m.Batching()
    if name != "resnet50":
        batching = m.Batching(ragged="sequence", pads={s.name: 0 for s in interface.inputs})
    model = replace(
        base.models[0], name=name, inputs=interface.inputs, outputs=interface.outputs,
        batching=batching, profile=interface.profile, variants=tuple(variants), preferences=(),
        golden=m.Golden(cases=tuple(cases), tolerance=TOLERANCE),
    )  # fmt: skip
    key = make_key()
    write_bundle(out / "bundle", replace(base, name=name, models=(model,)), files, key)
    (out / "keys").mkdir()
    (out / "keys" / "bench.pub").write_bytes(key.public_pem)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
