"""Packers: weights as small integers with scales, symmetric, without zero points.

All take weights as Hugging Face keeps them, [outputs, inputs]; a graph wants [inputs, outputs].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]

BLOCKS = (128, 64, 32)  # of inputs that share a scale; the first is what runtimes run fastest
INT4_MAX, INT8_MAX = 7, 127
# Shares of a block's largest value that are tried as the end of the int4 range.
CLIPS = (1.0, 0.95, 0.9, 0.85)
CALIBRATED_CLIPS = (*CLIPS, 0.8, 0.75, 0.7, 0.65, 0.6)


def block_size(inputs: int) -> int | None:
    """Return the largest block that divides the inputs of a layer, None if none does."""
    return next((block for block in BLOCKS if inputs % block == 0), None)


def int4_blocks(
    weights: FloatArray, block: int, importance: FloatArray | None = None
) -> tuple[Int8Array, FloatArray]:
    """Return (values in -7..7 [outputs, inputs], scales [outputs, inputs / block]).

    Of several ranges, each block gets the one with the least sum of squared errors, each times the
    importance [inputs] of its input; with these, more ranges are tried.
    """
    outputs, inputs = weights.shape
    blocks = weights.reshape(outputs, inputs // block, block)
    costs = np.ones((inputs // block, block), np.float32)
    if importance is not None:
        costs = importance.reshape(costs.shape)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    best_error = np.full(largest.shape, np.inf, np.float32)
    scales = np.zeros_like(largest)
    for clip in CLIPS if importance is None else CALIBRATED_CLIPS:
        tried = _nonzero(largest * np.float32(clip / INT4_MAX))
        values = np.rint(blocks / tried)
        np.clip(values, -INT4_MAX, INT4_MAX, out=values)
        values *= tried
        values -= blocks
        error = np.einsum("nbk,nbk,bk->nb", values, values, costs)[:, :, None]
        is_better = error < best_error
        np.copyto(scales, tried, where=is_better)
        np.copyto(best_error, error, where=is_better)
    values = np.clip(np.rint(blocks / scales), -INT4_MAX, INT4_MAX)
    return values.astype(np.int8).reshape(outputs, inputs), scales[:, :, 0]


def rounded_int4(weights: FloatArray, importance: FloatArray | None = None) -> FloatArray:
    """Return weights as int4 keeps them, or int8 where no block fits."""
    block = block_size(weights.shape[1])
    if block is None:
        return rounded_int8(weights)
    values, scales = int4_blocks(weights, block, importance)
    rounded: FloatArray = values.astype(np.float32) * np.repeat(scales, block, axis=1)
    return rounded


def int8_channels(weights: FloatArray) -> tuple[Int8Array, FloatArray]:
    """Return (values in -127..127 [outputs, inputs], scales [outputs])."""
    scales = _nonzero(np.abs(weights).max(axis=1, keepdims=True) / np.float32(INT8_MAX))
    return np.rint(weights / scales).astype(np.int8), scales[:, 0]


def rounded_int8(weights: FloatArray) -> FloatArray:
    """Return weights as int8 keeps them."""
    values, scales = int8_channels(weights)
    rounded: FloatArray = values * scales[:, None]
    return rounded


def rounded_activations(x: FloatArray, amax: float) -> FloatArray:
    """Return activations as int8 of one range keeps them."""
    scale = np.float32(amax / INT8_MAX if amax > 0 else 1)
    values: FloatArray = np.rint(x / scale)
    np.clip(values, -INT8_MAX - 1, INT8_MAX, out=values)
    values *= scale
    return values


def packed_pairs(values: Int8Array) -> npt.NDArray[np.uint8]:
    """Return int4 values, an even number along the last axis, two a byte, the first one low."""
    low, high = values[..., 0::2], values[..., 1::2]
    return ((low & 0xF) | (high << 4)).view(np.uint8)


def _nonzero(scales: FloatArray) -> FloatArray:
    """Return scales in which those of nothing but zeros are 1."""
    return np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
