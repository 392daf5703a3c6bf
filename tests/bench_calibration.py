"""Calibration against onnxruntime.quantization: time, peak memory, and what the result is worth.

    python -m tests.bench_calibration FOLDER       FOLDER holds what quickstart and minilm wrote

Each measurement is a process of its own. "ours" is the time until the ranges are known and the Q/DQ
form is made, as in quantize_static; "with judging" is a whole calibration by one method, with the
second form and the gate. "onnxruntime": quantize_static with options for TensorRT.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

OURS = {"percentile": "percentile-99.999", "entropy": "entropy"}
SPEED_SAMPLES, FEW, MANY = 512, 64, 2048
BATCH = 16
RUNS = 5
TIMEOUT_S = 1800


def main(folder: Path) -> None:
    for name in ("digits", "minilm"):
        model = folder / f"{name}.onnx"
        for method in OURS:
            figures = medians(model, method)
            ratio = figures["theirs"]["seconds"] / figures["ours"]["seconds"]
            print(
                f"{name} {method}, {SPEED_SAMPLES} samples: ours {words(figures['ours'])}, "
                f"onnxruntime {words(figures['theirs'])}: {ratio:.1f}x the time",
                flush=True,
            )
        for who in ("ours", "theirs"):
            few = run(who, model, "percentile", FEW)["peak_mb"]
            try:
                many = run(who, model, "percentile", MANY)["peak_mb"]
                end = f"{many:.0f} MB at {MANY}: {100 * (many / few - 1):+.0f} %"
            except subprocess.CalledProcessError as error:
                end = f"ended with status {error.returncode} at {MANY} (-9: out of memory)"
            print(f"{name} {who}: peak {few:.0f} MB at {FEW} samples, {end}", flush=True)


def medians(model: Path, method: str) -> dict[str, dict[str, float]]:
    """Return the median run by time of each, taken in turns."""
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(RUNS):
        for who, so_far in runs.items():
            so_far.append(run(who, model, method, SPEED_SAMPLES))
    return {who: sorted(r, key=lambda f: f["seconds"])[RUNS // 2] for who, r in runs.items()}


def words(figures: dict[str, float]) -> str:
    sqnr = "" if figures["sqnr_db"] is None else f", {figures['sqnr_db']:.1f} dB"
    more = f" ({figures['whole']:.1f} s with judging)" if figures["whole"] else ""
    return f"{figures['seconds']:.2f} s{more}, {figures['peak_mb']:.0f} MB{sqnr}"


def run(who: str, model: Path, method: str, samples: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench_calibration", who, str(model), method]
    done = subprocess.run(
        [*command, str(samples)], stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def feeds(model: onnx.ModelProto, folder: Path, count: int) -> dict[str, np.ndarray]:
    """Return samples of the model's own data, repeated where there are too few."""
    names = [i.name for i in model.graph.input]
    if names == ["image"]:
        images = np.load(folder / "train.npz")["image"]
        return {"image": np.resize(images, (count, *images.shape[1:]))}
    from tokenizers import Tokenizer

    from tests.minilm import sentences, weights_folder

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    lines = (sentences() * 2)[:count]
    encoded = tokenizer.encode_batch(lines)
    ids = np.array([e.ids for e in encoded], np.int64)
    return {"input_ids": ids, "attention_mask": np.array([e.attention_mask for e in encoded])}


def ours(path: Path, method: str, count: int) -> tuple[float, float, onnx.ModelProto]:
    from calibration.calibrate import calibrate
    from calibration.collect import observe
    from calibration.graph import prepared
    from calibration.methods import METHODS
    from calibration.model_file import load_model
    from calibration.ort_form import ort_activations
    from calibration.parts import reader_for
    from calibration.placement import place
    from calibration.qdq import quantize
    from calibration.samples import open_samples
    from edge.onnxruntime_library import load_onnxruntime

    load_onnxruntime()  # their import below is not timed either
    model = load_model(path)
    file = path.parent / f"bench-{path.stem}-{count}.npz"
    np.savez(file, **feeds(model, path.parent, count))
    begun = time.perf_counter()
    ready = prepared(model)
    placement = place(ready)
    tensors = tuple(dict.fromkeys((*placement.activations, *ort_activations(ready, placement))))
    part = reader_for(ready, BATCH).part(open_samples(file), 0, count)
    ranges = observe(ready, tensors, part, lambda *_: None)
    amax = {name: METHODS[OURS[method]](seen) for name, seen in ranges.items()}
    quantized = quantize(ready, placement, amax)
    seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    calibrate(model, open_samples(file), method=OURS[method], batch=BATCH, improve=False)
    return seconds, time.perf_counter() - begun, quantized


def theirs(path: Path, method: str, count: int) -> tuple[float, float, onnx.ModelProto]:
    from onnxruntime import quantization as q

    arrays = feeds(onnx.load(path), path.parent, count)

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = self._batches()

        def _batches(self) -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, count, BATCH):
                yield {name: rows[start : start + BATCH] for name, rows in arrays.items()}

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    kind = {"percentile": q.CalibrationMethod.Percentile, "entropy": q.CalibrationMethod.Entropy}
    out = path.parent / f"bench-{method}.onnx"
    begun = time.perf_counter()
    q.quantize_static(
        str(path), str(out), Reader(), quant_format=q.QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True,
        activation_type=q.QuantType.QInt8, weight_type=q.QuantType.QInt8,
        calibrate_method=kind[method],
        extra_options={
            "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
            "AddQDQPairToWeight": True, "MatMulConstBOnly": True,
            "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm"],
            "CalibPercentile": 99.999,
        },
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    return seconds, 0.0, onnx.load(out)


def sqnr(path: Path, quantized: onnx.ModelProto) -> float | None:
    """Return the SQNR of the first output on samples that come after the calibration's."""
    from calibration.compare import Comparison
    from calibration.runtime import Runner

    model = onnx.load(path)
    if [i.name for i in model.graph.input] == ["image"]:
        held = {"image": np.load(path.parent / "heldout.npz")["image"][:256]}
    else:
        held = {name: rows[-64:] for name, rows in feeds(model, path.parent, 900).items()}
    reference, rival, compared = Runner(model), Runner(quantized), Comparison()
    name = reference.output_names[0]
    compared.update(
        rival.run(held)[name], reference.run(held)[name], len(next(iter(held.values())))
    )
    return compared.sqnr_db


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        path, wanted, number = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
        seconds, whole, result = (ours if sys.argv[1] == "ours" else theirs)(path, wanted, number)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        quality = sqnr(path, result)
        print(json.dumps({"seconds": seconds, "whole": whole, "peak_mb": peak, "sqnr_db": quality}))
