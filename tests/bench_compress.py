"""Pruning and distillation on the digits' CNN: what they cost, and what they bring.

python -m tests.bench_compress FOLDER      FOLDER is what `edge-kit quickstart --out` wrote
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch

from host_tools.digits import load_digits_split, residual_cnn
from host_tools.distill import DistillRequest, distill
from host_tools.prune import PruneRequest, prune
from host_tools.training import Schedule

TEACHER, STUDENT = "host_tools.digits:trained", "tests.bench_compress:student"
SEEDS = (0, 1, 2)
FEW = 200  # labelled scans that the student learns from: with all 1,257 it needs no teacher


def student():
    """Factory: half as many channels everywhere, untrained."""
    torch.manual_seed(int(os.environ["STUDENT_SEED"]))
    images = load_digits_split()[0].images[:1]
    return residual_cnn(16), {"image": torch.from_numpy(images)}, ("logits",)


def main(folder: Path) -> None:
    os.chdir(folder)
    files = {"data": Path("train.npz"), "held_out": Path("heldout.npz")}
    training, held_out = load_digits_split()
    for path, split in (("train.npz", training), ("heldout.npz", held_out)):
        np.savez(path, image=split.images, labels=split.labels)
    np.savez("few.npz", image=training.images[:FEW], labels=training.labels[:FEW])
    for pattern, sparsity in (("magnitude", 0.7), ("2:4", 0.5)):
        out = Path(f"pruned-{pattern.replace(':', '-')}.pt")
        report = prune(
            PruneRequest(
                source=TEACHER, **files, out=out, pattern=pattern, sparsity=sparsity,  # type: ignore[arg-type]
                schedule=Schedule(epochs=10),
            )
        )  # fmt: skip
        print(
            f"{pattern}: {report.zero_percent:.1f} % zero in {report.layers} layers, top-1 "
            f"{report.before:.2f} -> {report.after:.2f} %, by epoch "
            f"{' '.join(f'{value:.2f}' for value in report.curve)}",
            flush=True,
        )
    for seed in SEEDS:
        os.environ["STUDENT_SEED"] = str(seed)
        reached = {}
        for share in (0.0, 0.7):
            report = distill(
                DistillRequest(
                    teacher=TEACHER, student=STUDENT, data=Path("few.npz"),
                    held_out=files["held_out"], out=Path("student.pt"), share=share,
                    schedule=Schedule(epochs=20, batch=32, rate=3e-3, seed=seed),
                )
            )  # fmt: skip
            reached[share] = report
        alone, taught = reached.values()
        print(
            f"seed {seed}: {taught.student_parameters:,} parameters of "
            f"{taught.teacher_parameters:,}; alone {alone.after:.2f} %, taught "
            f"{taught.after:.2f} % (last epoch {alone.curve[-1]:.2f} and {taught.curve[-1]:.2f}), "
            f"teacher {taught.teacher:.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
