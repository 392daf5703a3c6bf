"""ResNet-50 fp16 in torch on the same GPU: eager, compiled, and as a CUDA graph.

python -m tests.gpu.bench_torch FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tests.gpu.nets import IMAGE, ResNet50

WARM_UP, RUNS = 20, 200


def main(folder: Path) -> None:
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, ms by CUDA events")
    net = ResNet50()
    net.load_state_dict(torch.load(folder / "resnet50.pt", weights_only=True))
    net = net.eval().cuda().half()
    for layout in (torch.contiguous_format, torch.channels_last):
        net = net.to(memory_format=layout)
        compiled = torch.compile(net)
        for batch in (1, 32):
            x = torch.randn(batch, *IMAGE, device="cuda").half().to(memory_format=layout)
            with torch.no_grad():
                figures = {
                    "eager": _p50_ms(lambda x=x, net=net: net(x)),
                    "graph": _p50_ms(_graph(net, x)),
                    "compiled": _p50_ms(lambda x=x, compiled=compiled: compiled(x)),
                    "compiled graph": _p50_ms(_graph(compiled, x)),
                }
            shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            print(f"  {layout} batch {batch}: {shown}", flush=True)


def _graph(net: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            net(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        net(x)
    return graph.replay


def _p50_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(WARM_UP + RUNS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended))
    return float(np.median(times[WARM_UP:]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
