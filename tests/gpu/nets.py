"""ResNet-50 and an encoder of BERT-base's size in torch, with random weights."""

from __future__ import annotations

import torch
from torch import nn

IMAGE = (3, 224, 224)
TOKENS = 128
VOCABULARY = 30_522


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; He et al. 2016, arXiv 1512.03385, but strided on the 3x3."""

    def __init__(self, channels: int, middle: int, stride: int) -> None:
        super().__init__()
        out = 4 * middle
        self.reduce = _convolution(channels, middle, 1)
        self.spatial = _convolution(middle, middle, 3, stride)
        self.expand = _convolution(middle, out, 1)
        changes = stride != 1 or channels != out
        self.shortcut = _convolution(channels, out, 1, stride) if changes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.expand(self.spatial(self.reduce(x).relu()).relu())
        return (y + self.shortcut(x)).relu()


class ResNet50(nn.Module):
    """Images to 1000 logits."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for position in range(count):
                blocks.append(Bottleneck(channels, middle, stride if position == 0 else 1))
                channels = 4 * middle
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(image).mean((2, 3)))


class Layer(nn.Module):
    """Self-attention and feed-forward, each with a norm behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        size = width // self.heads
        qkv = self.qkv(x).view(rows, length, 3, self.heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) / size**0.5 + bias, -1)
        mixed = (weights @ v).transpose(1, 2).reshape(rows, length, width)
        x = self.norm1(x + self.mix(mixed))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token ids and mask to hidden states; 12 layers of 768, as BERT-base."""

    def __init__(self, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        places = self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        x = self.norm(self.tokens(input_ids) + places)
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        return x


class Embedder(nn.Module):
    """The encoder's mean over the tokens that the mask leaves."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids, attention_mask)
        weights = attention_mask[:, :, None].to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def resnet50() -> ResNet50:
    """Return a net whose normalisation has seen random images: activations stay in range."""
    torch.manual_seed(0)
    net = ResNet50()
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(16, *IMAGE))
    return net.eval()


def encoder() -> Encoder:
    """Return an encoder with random weights."""
    torch.manual_seed(0)
    return Encoder().eval()


def embedder() -> Embedder:
    """Return the same encoder with a mean behind it."""
    return Embedder(encoder()).eval()


def _convolution(channels: int, out: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(channels, out, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))
