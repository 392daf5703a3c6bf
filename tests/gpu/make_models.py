"""Write the benchmark's models: ONNX in fp32 and int8, inputs, and what torch answers in fp32.

python -m tests.gpu.make_models FOLDER [MODEL...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch

from calibration.graph import prepared
from calibration.placement import place
from calibration.qdq import quantize
from calibration.runtime import Runner, with_outputs
from tests.gpu.nets import IMAGE, TOKENS, VOCABULARY, embedder, encoder, resnet50

ROWS = 32
CALIBRATION_BATCH = 8


def main(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(7)
    images = torch.randn(ROWS, *IMAGE, generator=random)
    ids = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=random)
    mask = torch.ones_like(ids)
    for row in range(ROWS):
        mask[row, TOKENS - 3 * (row % 20) :] = 0
    text = {"input_ids": ids, "attention_mask": mask}
    if "resnet50" in names:
        net = resnet50()
        torch.save(net.state_dict(), folder / "resnet50.pt")
        _write(folder, "resnet50", net, {"image": images}, "logits")
    if "encoder" in names:
        _write(folder, "encoder", encoder(), text, "hidden")
    if "embedder" in names:
        _write(folder, "embedder", embedder(), text, "embedding")


def _write(
    folder: Path, name: str, net: torch.nn.Module, feeds: dict[str, torch.Tensor], output: str
) -> None:
    varying = {0: "batch"} if name == "resnet50" else {0: "batch", 1: "sequence"}
    axes = {**dict.fromkeys(feeds, varying), output: {0: "batch"}}
    if name == "encoder":
        axes[output] = varying
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        net, tuple(tensor[:2] for tensor in feeds.values()), str(path), input_names=list(feeds),
        output_names=[output], dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        answer = net.to(device)(*(tensor.to(device) for tensor in feeds.values())).cpu()
    arrays = {key: tensor.numpy() for key, tensor in feeds.items()}
    np.savez(folder / f"{name}.npz", **arrays, **{output: answer.numpy()})
    onnx.save(_quantized(onnx.load(path), arrays), folder / f"{name}.int8.onnx")


def _quantized(source: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Min-max ranges over the benchmark's own inputs: speed and numerics are measured here."""
    model = prepared(source)
    placement = place(model)
    runner = Runner(with_outputs(model, placement.activations))
    amax = dict.fromkeys(placement.activations, 0.0)
    for start in range(0, ROWS, CALIBRATION_BATCH):
        feeds = {key: rows[start : start + CALIBRATION_BATCH] for key, rows in arrays.items()}
        values = {**feeds, **runner.run(feeds)}
        for tensor in amax:
            amax[tensor] = max(amax[tensor], float(np.abs(values[tensor]).max()))
    return quantize(model, placement, amax)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["resnet50", "encoder", "embedder"])
