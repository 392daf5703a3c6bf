"""INT8 that keeps accuracy: ours, with and without a budget, against ModelOpt and onnxruntime.

    python -m tests.bench_int8 FOLDER [MODEL...]

FOLDER holds what `quickstart`, `tests.minilm` and `tests.bench_nets` wrote. ModelOpt runs in
.peers/modelopt (`make peers`). All calibrate on the same samples and are judged by us on the same
held-out ones. "float" counts the convolutions and matrix products that stay float.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from calibration.budget import budget_from_text
from calibration.calibrate import Calibrated, HeldOut, calibrate
from calibration.compare import Comparison
from calibration.graph import compute_nodes, int8_mac_percent, int8_nodes, macs_by_node, prepared
from calibration.kernels import integer_mac_percent
from calibration.lint import lint
from calibration.model_file import load_model
from calibration.runtime import Runner
from calibration.samples import open_samples
from host_tools.digits import load_digits_split
from tests.bench_calibration import feeds

SAMPLES, HELD_OUT, BATCH, ROUNDS = 1024, 384, 16, 30
BUDGETS = {"digits": "top1=0.5", "mobile": "top1=0.5", "vit": "top1=0.5", "minilm": "cosine=0.99"}
WITH_ATTENTION = {"vit", "minilm"}
MODELOPT = Path(".peers/modelopt/bin/python")
MODELOPT_CODE = """
import sys, numpy as np
from modelopt.onnx.quantization import quantize
model, data, method, out, mha = sys.argv[1:]
quantize(model, quantize_mode="int8", calibration_data=dict(np.load(data)), output_path=out,
         calibration_method=method, calibration_eps=["cpu"], high_precision_dtype="fp32",
         log_level="ERROR", disable_mha_qdq=mha == "float")
"""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Samples to calibrate on and to judge on, with labels where there are any."""

    train: dict[str, np.ndarray]
    held: dict[str, np.ndarray]
    labels: np.ndarray | None


def main(folder: Path, names: list[str]) -> None:
    for name in names or BUDGETS:
        path = folder / f"{name}.onnx"
        model, data = load_model(path), data_of(path)
        train, held = folder / f"{name}-train.npz", folder / f"{name}-held.npz"
        np.savez(train, **data.train)
        np.savez(held, **data.held)
        print(f"{name}: {len(next(iter(data.train.values())))} samples", flush=True)
        held_out = HeldOut(samples=open_samples(held), labels=data.labels)
        for text in (None, BUDGETS[name]):
            begun = time.perf_counter()
            result = calibrate(
                model, open_samples(train), batch=BATCH, held_out=held_out,
                budget=None if text is None else budget_from_text(text),
            )  # fmt: skip
            seconds = time.perf_counter() - begun
            kind = f"ours, {text or 'no budget'}"
            report(
                kind,
                model,
                result.tensorrt.model,
                data,
                seconds,
                f"{result.method} {result.gains_db}",
            )
        check(model, result, data)
        if name == "digits":
            outlier(folder, model, data, held_out)
        for method, attention in (("max", "int8"), ("entropy", "int8"), ("max", "float")):
            if attention == "float" and name not in WITH_ATTENTION:
                continue
            out = folder / f"{name}-modelopt-{method}-{attention}.onnx"
            words = [MODELOPT, "-c", MODELOPT_CODE, path, train, method, out, attention]
            begun = time.perf_counter()
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                said = done.stderr.strip().splitlines()[-1][:150]
                print(f"  ModelOpt {method} {attention}: failed: {said}")
                continue
            seconds = time.perf_counter() - begun
            kind = f"ModelOpt, {method}" + ", attention float" * (attention == "float")
            report(kind, model, onnx.load(out), data, seconds, "")


def data_of(path: Path) -> Data:
    if path.stem == "minilm":
        rows = feeds(onnx.load(path), path.parent, SAMPLES + HELD_OUT)
        train = {name: values[:SAMPLES] for name, values in rows.items()}
        return Data(train=train, held={n: v[SAMPLES:] for n, v in rows.items()}, labels=None)
    training, held_out = load_digits_split()
    return Data(
        train={"image": training.images[:SAMPLES]}, held={"image": held_out.images},
        labels=held_out.labels,
    )  # fmt: skip


def report(
    kind: str, model: onnx.ModelProto, quantized: onnx.ModelProto, data: Data, seconds: float,
    more: str,
) -> None:  # fmt: skip
    """Print one row: closeness to the float model, and how much of it is int8."""
    plain = prepared(model)
    macs = macs_by_node(plain, {name: rows[:8] for name, rows in data.train.items()})
    nodes = {node.name for node in compute_nodes(quantized.graph)}
    floats = nodes - int8_nodes(quantized.graph)
    share = int8_mac_percent(quantized, macs) if set(macs) >= int8_nodes(quantized.graph) else None
    reference, rival, compared = Runner(plain), Runner(quantized), Comparison()
    correct = {"fp32": 0, "int8": 0}
    rows = len(next(iter(data.held.values())))
    output = reference.output_names[0]
    for start in range(0, rows, BATCH):
        batch = {name: values[start : start + BATCH] for name, values in data.held.items()}
        wanted, got = reference.run(batch)[output], rival.run(batch)[output]
        compared.update(got, wanted, len(wanted))
        if data.labels is not None:
            truth = data.labels[start : start + BATCH]
            correct["fp32"] += int((wanted.argmax(1) == truth).sum())
            correct["int8"] += int((got.argmax(1) == truth).sum())
    task = f"cosine {compared.cosine_mean:.4f}"
    if data.labels is not None:
        task = " -> ".join(f"{100 * n / rows:.2f} %" for n in correct.values())
    shown = "?" if share is None else f"{share:.1f} %"
    print(
        f"  {kind:<30} {compared.sqnr_db:5.1f} dB, {task}, {len(floats)} float, MACs int8 {shown}, "
        f"{seconds:.0f} s {more}",
        flush=True,
    )


def check(model: onnx.ModelProto, result: Calibrated, data: Data) -> None:
    """Print lint, integer kernels, TensorRT-RTX builds and the speed on this CPU."""
    found = lint(result.tensorrt.model)
    built = {sm: builds(result.tensorrt.model, sm) for sm in ("SM86", "SM89", "SM120")}
    macs = macs_by_node(prepared(model), {name: rows[:8] for name, rows in data.train.items()})
    kernels = integer_mac_percent(result.ort.model, macs)
    quantized = 100 - 100 * sum(macs[name] for name in result.kept_float) / sum(macs.values())
    fp32, int8 = alternating(
        Runner(prepared(model), exact=False), Runner(result.ort.model, exact=False),
        {name: rows[:8] for name, rows in data.held.items()},
    )  # fmt: skip
    print(
        f"  lint: {len(found)} findings; TensorRT-RTX builds: {built}; MACs in ONNX Runtime's "
        f"integer kernels: {kernels:.1f} % of {quantized:.1f} % quantized; CPU batch 8: fp32 "
        f"{fp32:.2f} ms, int8 {int8:.2f} ms, {fp32 / int8:.2f}x",
        flush=True,
    )


def outlier(folder: Path, model: onnx.ModelProto, data: Data, held_out: HeldOut) -> None:
    """Print what one scan of 512 that is 15 times too bright costs."""
    clean = {name: rows[:512] for name, rows in data.train.items()}
    spoiled = {name: rows.copy() for name, rows in clean.items()}
    for rows in spoiled.values():
        rows[100] *= 15
    reached = {}
    for kind, arrays in (("clean", clean), ("spoiled", spoiled)):
        file = folder / f"digits-{kind}.npz"
        np.savez(file, **arrays)
        for method in ("auto", "minmax"):
            result = calibrate(model, open_samples(file), method=method, held_out=held_out)
            reached[kind, method] = result.tensorrt.accuracy.sqnr_db
    for method in ("auto", "minmax"):
        pair = [reached[kind, method] for kind in ("clean", "spoiled")]
        print(f"  one outlier in 512, {method}: {pair[0]:.1f} dB -> {pair[1]:.1f} dB", flush=True)


def alternating(reference: Runner, rival: Runner, batch: dict[str, np.ndarray]) -> list[float]:
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for runner, seen in zip((reference, rival), times, strict=True):
            begun = time.perf_counter()
            runner.run(batch)
            seen.append(1e3 * (time.perf_counter() - begun))
    return [float(np.median(seen[5:])) for seen in times]


def builds(model: onnx.ModelProto, architecture: str) -> bool:
    """Whether TensorRT-RTX makes an engine of it for an architecture."""
    import tempfile

    from calibration.model_file import profile_from_model
    from edge.engine_builder import EngineRequest, engine_from_onnx
    from edge.errors import BuildError
    from edge.tensorrt_library import load_tensorrt

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        request = EngineRequest(
            onnx=path, precision="int8", profiles=(profile_from_model(model),),
            compute_capabilities=(architecture,),
        )  # fmt: skip
        try:
            return bool(engine_from_onnx(request, load_tensorrt("trt-rtx")).plan)
        except BuildError as error:
            print(json.dumps(str(error)[:300]))
            return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
