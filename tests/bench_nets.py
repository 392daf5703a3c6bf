"""Two more networks for the INT8 benchmark, trained on the digits: depthwise and a ViT.

python -m tests.bench_nets FOLDER      writes mobile.pt, vit.pt and their ONNX files
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from edge.agent_process import script
from host_tools.digits import IMAGE_SIZE, load_digits_split, train

EPOCHS = {"mobile": 40, "vit": 60}
PROFILE = "image=1x1x32x32:8x1x32x32:64x1x32x32"


class MobileNet(nn.Module):
    """Inverted residual blocks as in MobileNetV2, with ReLU6; images (n, 1, 32, 32) to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _conv(1, 24, 3, 2, 1), nn.ReLU6(),
            Inverted(24, 24, 1), Inverted(24, 40, 2), Inverted(40, 40, 1), Inverted(40, 80, 2),
            _conv(80, 160, 1, 1, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(160, 10),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


class Inverted(nn.Module):
    """Expand, depthwise, project; a skip where the shapes allow it."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels_in
        self.layers = nn.Sequential(
            _conv(channels_in, wide, 1, 1, 1), nn.ReLU6(),
            _conv(wide, wide, 3, stride, wide), nn.ReLU6(),
            _conv(wide, channels_out, 1, 1, 1),
        )  # fmt: skip
        self.has_skip = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_skip else self.layers(x)


class VisionTransformer(nn.Module):
    """Patches of 4x4, four pre-norm layers 96 wide; images (n, 1, 32, 32) to 10 logits."""

    WIDTH, LAYERS, HEADS, PATCH = 96, 4, 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, self.WIDTH, self.PATCH, self.PATCH)
        self.places = nn.Parameter(torch.randn(1, (IMAGE_SIZE // self.PATCH) ** 2, self.WIDTH) / 50)
        self.layers = nn.Sequential(*(Layer(self.WIDTH, self.HEADS) for _ in range(self.LAYERS)))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(tokens)).mean(dim=1))


class Layer(nn.Module):
    """Attention and MLP, written out so that every product is a node of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        y = self.before(x)

        def split(part: Tensor) -> Tensor:
            return part.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(y)), split(self.key(y)), split(self.value(y))
        weights = (query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.mix((weights @ value).transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.between(x))


NETS = {"mobile": MobileNet, "vit": VisionTransformer}


def mobile():
    """Factory for `edge-kit export`."""
    return _trained("mobile")


def vit():
    """Factory for `edge-kit export`."""
    return _trained("vit")


def _trained(name: str) -> tuple[nn.Module, dict[str, Tensor], tuple[str, ...]]:
    net = NETS[name]()
    net.load_state_dict(torch.load(f"{name}.pt", weights_only=True))
    images = load_digits_split()[0].images[:1]
    return net.eval(), {"image": torch.from_numpy(images)}, ("logits",)


def _conv(channels_in: int, channels_out: int, kernel: int, stride: int, groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(
            channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(channels_out),
    )


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    training, held_out = load_digits_split()
    for name, make in NETS.items():
        net = train(training, epochs=EPOCHS[name], tick=lambda *_: None, make=make)
        with torch.no_grad():
            answers = net(torch.from_numpy(held_out.images)).argmax(dim=1).numpy()
        print(f"{name}: {100 * (answers == held_out.labels).mean():.2f} % of the held-out digits")
        torch.save(net.state_dict(), folder / f"{name}.pt")
        words = ["export", f"tests.bench_nets:{name}", "--shape", PROFILE, "--out", f"{name}.onnx"]
        subprocess.run([script("edge-kit"), *words], cwd=folder, check=True, env=here)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
