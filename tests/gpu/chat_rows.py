"""The feed-forward block of a Llama-3-8B layer (176 M weights) in TensorRT, fp16 and W8A8.

python -m tests.gpu.chat_rows build FOLDER NAME | time FOLDER; its torch rows: chat_peers.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from host_tools.chat.graph import Graph, WeightFile
from tests.gpu.chat_weights import CONFIG

HIDDEN, INNER = CONFIG["hidden_size"], CONFIG["intermediate_size"]
ROWS = (1, 512)
NAMES = tuple(f"{precision}.{rows}" for precision in ("fp16", "int8") for rows in ROWS)
WARM_UP, RUNS = 20, 200


def write_graphs(folder: Path) -> None:
    """Write the fp16 graphs, whose weights are inputs; `build` writes those of int8."""
    for rows in ROWS:
        _write(folder / f"fp16.{rows}.onnx", rows, quantized=False)


def _write(path: Path, rows: int, *, quantized: bool) -> None:
    graph = Graph(opset=17, half=True, weights=WeightFile(io.BytesIO(), ""))
    x = graph.input("x", TensorProto.FLOAT16, (1, rows, HIDDEN))
    rng = np.random.default_rng(0)

    def linear(x: str, name: str, inputs: int, outputs: int) -> str:
        if not quantized:
            weights = graph.input(name, TensorProto.FLOAT16, (inputs, outputs))
            return graph.add("MatMul", x, weights, name=f"{name}.product")
        x = graph.add("Cast", x, name=f"{name}.float", to=TensorProto.FLOAT)
        # Every consumer has scale tensors of its own: see the facts of W8A8 in ONNX Runtime.
        scale, zero = graph.constant(np.array(0.03, np.float32)), graph.constant(np.int8(0))
        x = graph.add("QuantizeLinear", x, scale, zero, name=f"{name}.quantized")
        x = graph.add("DequantizeLinear", x, scale, zero, name=f"{name}.dequantized")
        values = rng.integers(-127, 128, (inputs, outputs), dtype=np.int8)
        scales = np.full(outputs, 0.02 / 73, np.float32)  # 73: deviation of such integers
        zeros = graph.constant(np.zeros(outputs, np.int8))
        weights = graph.add(
            "DequantizeLinear", graph.constant(values), graph.constant(scales), zeros,
            name=f"{name}.weights", axis=1,
        )  # fmt: skip
        y = graph.add("MatMul", x, weights, name=f"{name}.product")
        return graph.add("Cast", y, name=f"{name}.half", to=TensorProto.FLOAT16)

    gate, up = (linear(x, name, HIDDEN, INNER) for name in ("w_gate", "w_up"))
    share = graph.add("Sigmoid", gate, name="sigmoid")
    gated = graph.add("Mul", graph.add("Mul", gate, share, name="silu"), up, name="gated")
    graph.add("Add", x, linear(gated, "w_down", INNER, HIDDEN), name="y")
    graph.output("y", TensorProto.FLOAT16, (1, rows, HIDDEN))
    model = graph.model(producer="edge-kit", version="0")
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def build(folder: Path, name: str) -> None:
    """Build one engine."""
    from edge.engine_builder import EngineRequest, engine_from_onnx
    from edge.tensorrt_library import load_tensorrt

    precision, rows = name.split(".")
    path = folder / f"{name}.onnx"
    if precision == "int8":
        _write(path, int(rows), quantized=True)
    request = EngineRequest(onnx=path, precision=precision, profiles=())  # type: ignore[arg-type]
    built = engine_from_onnx(request, load_tensorrt("trt"))
    path.with_suffix(".engine").write_bytes(built.plan)
    print(f"built {name}: {built.seconds:.1f} s, {len(built.plan) / 1e6:.1f} MB", flush=True)


def time(folder: Path) -> None:
    """Print latency, rate and memory of every engine that is there."""
    from edge.chat.trt_piece import TrtPiece
    from edge.cuda_graph import CudaGraph
    from edge.cuda_library import PrimaryContext, load_cuda
    from edge.tensorrt_library import load_tensorrt

    cuda, library = load_cuda(), load_tensorrt("trt")
    with PrimaryContext(cuda, 0):
        for name in NAMES:
            path = folder / f"{name}.engine"
            if not path.exists():
                print(f"TensorRT {name}: no engine")
                continue
            free, stream = cuda.mem_get_info()[0], cuda.Stream()
            piece = TrtPiece.open(path.read_bytes(), library)
            kept = [cuda.mem_alloc(max(1, piece.scratch_bytes))]
            piece.use(kept[0], cuda)
            rows, addresses = int(name.split(".")[1]), {}
            sizes = {"x": rows * HIDDEN, "y": rows * HIDDEN}
            if name.startswith("fp16"):
                sizes |= dict.fromkeys(("w_gate", "w_up", "w_down"), HIDDEN * INNER)
            for tensor, size in sizes.items():
                kept.append(cuda.mem_alloc(2 * size))
                noise = np.random.default_rng(1).standard_normal(size, np.float32)
                scale = 0.02 if tensor.startswith("w") else 1
                cuda.memcpy_htod(int(kept[-1]), (scale * noise).astype(np.float16))
                addresses[tensor] = int(kept[-1])
            piece.enqueue(addresses, stream)
            stream.synchronize()
            used = free - cuda.mem_get_info()[0]
            graph = CudaGraph.capture(
                stream.handle, lambda p=piece, a=addresses, s=stream: p.enqueue(a, s)
            )
            ends, times = [cuda.Event(), cuda.Event()], []
            for _ in range(WARM_UP + RUNS):
                ends[0].record(stream)
                graph.launch()
                ends[1].record(stream)
                ends[1].synchronize()
                times.append(ends[0].time_till(ends[1]))
            ms = float(np.median(times[WARM_UP:]))
            print(
                f"TensorRT {name}: {1e3 * ms:.1f} us, {1e3 / ms:.0f} requests/s, "
                f"{used / 1e6:.0f} MB of device memory",
                flush=True,
            )
            graph.close()
            piece.close()
            for memory in kept:
                memory.free()


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]), sys.argv[3])
    else:
        time(Path(sys.argv[2]))
