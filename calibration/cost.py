"""What int8 should save: multiply-accumulates and weight bytes, against the same graph in fp16.

Tensor cores do two int8 multiply-accumulates in the time of one in fp16, on every NVIDIA GPU from
Turing on, and an int8 weight has half the bytes. Which of the two ratios a layer follows depends
on the batch; overheads and float operators in between come on top, so this is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx

from calibration.graph import compute_nodes

_INT8_SHARE_OF_FP16 = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """macs: of one run, in all. compute, traffic: int8 against fp16, from 0.5 to 1."""

    macs: int
    compute: float
    traffic: float


def predicted_cost(model: onnx.ModelProto, int8: Collection[str], macs: Mapping[str, int]) -> Cost:
    """Return the cost of a float model with some of its compute nodes in int8.

    macs: by compute node, as `graph.macs_by_node` counts them.
    """
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    weights = {
        node.name: sum(sizes.get(name, 0) for name in node.input[:2])
        for node in compute_nodes(model.graph)
    }
    return Cost(macs=sum(macs.values()), compute=_ratio(macs, int8), traffic=_ratio(weights, int8))


def _ratio(amounts: Mapping[str, int], int8: Collection[str]) -> float:
    total = sum(amounts.values())
    saved = sum(amount for name, amount in amounts.items() if name in int8)
    return 1.0 if total == 0 else round(1 - (1 - _INT8_SHARE_OF_FP16) * saved / total, 4)
