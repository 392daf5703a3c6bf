"""Ten pairs of samples, made by whole-number arithmetic alone: the same with every numpy."""

from __future__ import annotations

import hashlib

import numpy as np

LEVEL = 0.05
CORRECTIONS = ("bonferroni", "fdr")


def data_sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (reference, window) by name, each of shape (rows, features), float32."""
    sets = {}
    for name, rows, columns, change in (
        ("equal", 200, 8, lambda x: x),
        ("equal, small", 40, 3, lambda x: x),
        ("equal, many features", 150, 64, lambda x: x),
        ("all shifted a little", 200, 8, lambda x: x + np.float32(0.1)),
        ("one shifted", 200, 8, _one(lambda x: x + np.float32(0.4))),
        ("one of many shifted", 150, 64, _one(lambda x: x + np.float32(0.35))),
        ("wider", 200, 4, lambda x: (x - np.float32(0.5)) * np.float32(1.8) + np.float32(0.5)),
        ("rounded", 300, 5, lambda x: np.round(x * 4) / 4),
        ("squared", 500, 2, lambda x: x**2),
        ("a tenth is zero", 200, 6, _tenth_zero),
    ):
        reference = uniform(name + " before", 500, columns)
        sets[name] = (reference, change(uniform(name + " now", rows, columns)).astype(np.float32))
    return sets


def uniform(seed: str, rows: int, columns: int) -> np.ndarray:
    """Return numbers in [0, 1) from SHAKE-256."""
    content = hashlib.shake_256(seed.encode()).digest(4 * rows * columns)
    words = np.frombuffer(content, "<u4").reshape(rows, columns) >> 8
    return (words / 2**24).astype(np.float32)


def _one(change):
    def changed(x: np.ndarray) -> np.ndarray:
        return np.concatenate([change(x[:, :1]), x[:, 1:]], axis=1)

    return changed


def _tenth_zero(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[::10] = 0
    return x
