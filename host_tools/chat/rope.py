"""Rotary position embeddings: every scaling becomes a table of cosines and sines.

A pair of values of a head, i and i + head_dim / 2, is rotated by position * inverse frequency i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Scaling = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """How far a position rotates; names are those of `rope_scaling` in a config.json.

    original_context: positions before scaling, for "llama3" and "yarn". attention_factor: of
    "yarn", what cosines and sines are multiplied with. truncate: of "yarn", whether the range of
    pairs that are interpolated in part begins and ends at whole numbers.
    """

    theta: float
    scaling: Scaling = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    @property
    def scaled_context(self) -> int:
        """Positions that a model is meant for with "yarn", which is often asked for without them.

        Its users add it to a config.json whose max_position_embeddings stays what it was.
        """
        return round(self.original_context * self.factor) if self.scaling == "yarn" else 0


def inverse_frequencies(rope: Rope, head_dim: int) -> FloatArray:
    """Return the rotation per position of each pair, shape (head_dim / 2,), in radians.

    Source: Hugging Face transformers, modeling_rope_utils; in float32 like there.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    plain: FloatArray = np.float32(1) / np.float32(rope.theta) ** exponents
    factor = np.float32(rope.factor)
    if rope.scaling == "linear":
        slower: FloatArray = plain / factor
        return slower
    if rope.scaling == "llama3":
        return _llama3(rope, plain)
    if rope.scaling == "yarn":
        kept = _yarn_kept(rope, head_dim)
        mixed: FloatArray = plain / factor * (1 - kept) + plain * kept
        return mixed
    return plain


def rotary_tables(rope: Rope, head_dim: int, context: int) -> tuple[FloatArray, FloatArray]:
    """Return (cosines, sines), each of shape (context, head_dim / 2)."""
    positions = np.arange(context, dtype=np.float32)
    angles = np.outer(positions, inverse_frequencies(rope, head_dim)).astype(np.float64)
    scale = np.float32(rope.attention_factor)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return cosines * scale, sines * scale


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Return what YaRN multiplies cosines and sines with; Peng et al. 2023, arXiv 2309.00071."""
    if mscale and mscale_all_dim:
        return _mscale(factor, mscale) / _mscale(factor, mscale_all_dim)
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama3(rope: Rope, plain: FloatArray) -> FloatArray:
    """Divide long wavelengths by the factor, keep short ones, go smoothly from one to the other."""
    wavelengths = np.float32(2 * math.pi) / plain
    longest = rope.original_context / rope.low_freq_factor
    shortest = rope.original_context / rope.high_freq_factor
    scaled = np.where(wavelengths > longest, plain / np.float32(rope.factor), plain)
    smooth = (rope.original_context / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * scaled / np.float32(rope.factor) + smooth * scaled
    is_between = (wavelengths >= shortest) & (wavelengths <= longest)
    return np.where(is_between, between, scaled).astype(np.float32)


def _yarn_kept(rope: Rope, head_dim: int) -> FloatArray:
    """Return which share of each pair's frequency stays as it was, 1 for the fastest pairs."""

    def pair_with(rotations: float) -> float:
        turns = rope.original_context / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept: FloatArray = np.float32(1) - np.clip(ramp, 0, 1)
    return kept
