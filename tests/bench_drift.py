"""What watching for drift costs: a request, and a window.

    python -m tests.bench_drift

A request pays for `take` in the event loop, and for `choose` where inputs are kept: at worst every
row may be kept, later nearly none. The rest happens in a thread of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge import manifest as m
from edge.drift.comparing import compare
from edge.drift.keeping import Keeper, KeepRules
from edge.drift.kept_folder import About
from edge.drift.reading import MAX_FEATURES, Reader
from edge.drift.reference import Reference
from edge.drift.watch import DriftRules, DriftWatch
from edge.images import ImagePreprocessing
from edge.spec import Feeds, Profile, ShapeRange, TensorSpec
from tests.edge.drift.populations import (
    model_of,
    reference_of,
    summary_of,
    text_model,
    window_of,
)

WINDOW = 200
RUNS = 4000


def wide_model() -> m.Model:
    """Four inputs of 16 columns: 64 features, all that there may be."""
    names = ("a", "b", "c", "d")
    specs = tuple(TensorSpec(name=n, datatype="FP32", shape=("batch", 16)) for n in names)
    return model_of(
        inputs=specs,
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=("batch", 10)),),
        profile=Profile(
            ranges={n: ShapeRange(min=(1, 16), opt=(1, 16), max=(16, 16)) for n in names}
        ),
    )


def photo_model() -> m.Model:
    return model_of(
        inputs=(TensorSpec(name="image", datatype="FP32", shape=("batch", 3, 224, 224)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=("batch", 1000)),),
        image=ImagePreprocessing(input="image", height=224, width=224),
    )


def feeds_of(model: m.Model, rows: int, rng: np.random.Generator) -> tuple[Feeds, Feeds]:
    """Return feeds and outputs of random rows."""
    if model.text is not None:
        ids = rng.integers(0, 2000, (rows, 32))
        return {"ids": ids, "mask": np.ones_like(ids)}, {"vector": _normal(rng, rows, 16)}
    feeds = {spec.name: _normal(rng, rows, *spec.shape[1:]) for spec in model.inputs}
    return feeds, {s.name: _normal(rng, rows, *s.shape[1:]) for s in model.outputs}


def _normal(rng: np.random.Generator, *shape: object) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)  # type: ignore[arg-type]


def median_us(step: Callable[[], object]) -> tuple[float, float]:
    """Return median and 99th percentile of a step, in microseconds."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        step()
        times.append(1e6 * (time.perf_counter() - begun))
    return float(np.median(times)), float(np.percentile(times, 99))


def observing(
    model: m.Model, reference: Reference, feeds: Feeds, outputs: Feeds, keeper: Keeper | None
) -> Callable[[], None]:
    """Return what one request pays for; with a keeper, the dearest: every row may be kept."""
    watch = DriftWatch("", reference, Reader(model), DriftRules(rows=1 << 30), keeper=keeper)

    def observe() -> None:
        watch.observe(feeds, outputs)
        if keeper is not None:
            keeper._taken_bytes = keeper._chosen_bytes
        watch._waiting.clear()

    return observe


def about(model: m.Model) -> About:
    return About(
        model=model.name,
        model_version="1",
        bundle_version="1",
        reference_sha256="",
        inputs=tuple(spec.name for spec in model.inputs),
        outputs=tuple(spec.name for spec in model.outputs),
        scores=None,
    )


def main() -> None:
    """Print a line for each kind of model."""
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    rng = np.random.default_rng(0)
    print(
        "model        features  request p50/p99 us  keeping p50/p99 us  summary us a row"
        "  window of 200, ms  of 200 kept rows, ms"
    )
    for name, model in (
        ("tensors", wide_model()),
        ("photo", photo_model()),
        ("text", text_model()),
    ):
        usual, answers = feeds_of(model, 100, rng)
        usual = {key: np.concatenate([value] * 5) for key, value in usual.items()}
        answers = {key: np.concatenate([value] * 5) for key, value in answers.items()}
        summary = summary_of(model, usual, answers)
        reference = reference_of(summary, np.arange(500), classes=1000)
        feeds, outputs = feeds_of(model, 1, rng)
        rules = KeepRules(folder=folder / name, rows=1000, bytes=1 << 30)
        keeper = Keeper.open(about(model), rules)
        request, keeping = (
            median_us(observing(model, reference, feeds, outputs, kept)) for kept in (None, keeper)
        )
        begun = time.perf_counter()
        for _ in range(WINDOW):
            chosen = keeper.choose(feeds, outputs, None)
            if chosen is not None:
                keeper.take(chosen)
        keeper.end_window(is_drifted=True)
        keeping_ms = 1e3 * (time.perf_counter() - begun)
        reader = Reader(model)
        taken = reader.take(feeds, outputs)
        row, _ = median_us(lambda: reader.summary_of(taken))  # noqa: B023
        window = window_of(summary, rng.permutation(500)[:WINDOW], reference)
        begun = time.perf_counter()
        compare(reference, window, level=0.001)
        window_ms = 1e3 * (time.perf_counter() - begun)
        print(
            f"{name:12} {len(summary.names):8} {request[0]:12.1f} /{request[1]:6.1f}"
            f" {keeping[0]:11.1f} /{keeping[1]:6.1f} {row:17.1f} {window_ms:18.1f}"
            f" {keeping_ms:21.1f}"
        )
        assert len(summary.names) <= MAX_FEATURES


if __name__ == "__main__":
    main()
