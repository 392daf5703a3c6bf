"""The quickstart's model: a small residual CNN on real scans of handwritten digits.

The data are the 1,797 scans that ship inside scikit-learn (UCI "Optical Recognition of
Handwritten Digits"), 8x8 pixels, here scaled up to 32x32. The split is fixed: 1,257 to train and
calibrate on, 540 held out, every class in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from host_tools.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

HELD_OUT = 540
IMAGE_SIZE = 32
SEED = 20
STATE_FILE = Path("digits.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images of shape (n, 1, 32, 32) in [0, 1], float32, and their labels 0..9 of shape (n,)."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


def load_digits_split() -> tuple[Split, Split]:
    """Return (training, held-out) splits; the same on every machine."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    small = digits.images.astype(np.float32) / 16.0
    factor = IMAGE_SIZE // small.shape[1]
    images = small.repeat(factor, axis=1).repeat(factor, axis=2)[:, None]
    parts = train_test_split(
        images, digits.target, test_size=HELD_OUT, random_state=SEED, stratify=digits.target
    )
    train, held_out, train_labels, held_out_labels = parts
    return (
        Split(images=train, labels=train_labels.astype(np.int64)),
        Split(images=held_out, labels=held_out_labels.astype(np.int64)),
    )


def residual_cnn(width: int = 32) -> nn.Module:
    """Return the untrained network: images (n, 1, 32, 32) to logits (n, 10).

    width: channels of the first layers, four times as many in the last; 32 makes 12 M MAC an image.
    """
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
            super().__init__()
            self.first = _conv(channels_in, channels_out, 3, stride)
            self.second = _conv(channels_out, channels_out, 3, 1)
            same = stride == 1 and channels_in == channels_out
            self.shortcut = nn.Identity() if same else _conv(channels_in, channels_out, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x).relu()) + self.shortcut(x)
            return y.relu()

    class ResidualCnn(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            logits: Tensor = super().forward(image)  # type: ignore[no-untyped-call]  # of torch
            return logits

    return ResidualCnn(
        _conv(1, width, 3, 2),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, 10),
    )


def train(
    split: Split,
    *,
    epochs: int,
    tick: Callable[[int, float], None],
    make: Callable[[], nn.Module] = residual_cnn,
) -> nn.Module:
    """Return a network trained on a split; deterministic for one thread count.

    tick: called after every epoch with (epoch, mean loss). make: gives the untrained network.
    Images are shifted by up to two pixels, so that the net does not learn positions.
    """
    import torch

    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    net = make().train()
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for epoch in range(1, epochs + 1):
        total = 0.0
        order = torch.randperm(len(labels), generator=generator)
        for rows in torch.split(order, 64):
            shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
            batch = torch.roll(images[rows], shift, dims=(2, 3))
            loss = torch.nn.functional.cross_entropy(net(batch), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        tick(epoch, total / len(labels))
    return net.eval()


def trained() -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    """The factory that `edge-kit export host_tools.digits:trained` calls.

    Returns the network with the weights of ./digits.pt and one scan named "image", and the
    name of the output, "logits".
    Raises ExportError if the quickstart has not trained it here.
    """
    import torch

    if not STATE_FILE.is_file():
        raise ExportError(f"no {STATE_FILE} in {Path.cwd()}: run `edge-kit quickstart` first")
    net = residual_cnn()
    net.load_state_dict(torch.load(STATE_FILE, weights_only=True))
    training, _ = load_digits_split()
    return net.eval(), {"image": torch.from_numpy(training.images[:1])}, ("logits",)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    )
