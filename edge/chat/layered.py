"""A chat model in pieces: one small graph that every layer runs through, and one for the logits.

No graph holds weights: they are inputs, which each layer binds to its own. So an engine is built
once for a layer and not once for each, in seconds, from a file of kilobytes; and the weights go
from their file to the device without passing through a builder. In shapes: B lanes, S new tokens,
T positions of the cache, N heads of queries, keys and values together, H of queries, K of keys,
D head_dim, E hidden, V vocabulary; a graph has fixed sizes.

- "layer": `hidden` [1, B * S, E], `cosines` and `sines` [B, 1, S, D], `mask` [B, 1, 1, T] (added to
  the scores of the cache), `key` and `value` [B, K, T, D], LAYER_WEIGHTS; gives `hidden_out`
  [1, B * S, E] and `heads` [B, N, S, D]: H of queries, K of new keys, K of new values.
- "tail": `hidden` [1, B, E], TAIL_WEIGHTS; gives `logits` FP32 [B, V], and `top` FP32 and `top_ids`
  [B, likeliest], the largest of them with their tokens.

What a token looks up is left to who runs it: rows of `embedding` [V, E], `cosines` and `sines`
[context, D], the latter with the signs of the rotation.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from edge.chat.spec import DecoderSpec, problem_with
from edge.errors import ModelError
from edge.files import read_capped, safe_join
from edge.spec import AnyArray

MODEL_FILE = "layered.json"
WEIGHTS_FILE = "weights.bin"
MAX_MODEL_BYTES = 4 << 20
LIKELIEST = 64  # logits that a tail picks out
LAYER_WEIGHTS = ("input_norm", "qkv", "output", "mlp_norm", "gate", "up", "down")
TAIL_WEIGHTS = ("norm", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One graph. tokens: S. capacity: T; None for a tail."""

    kind: Literal["layer", "tail"]
    lanes: int
    tokens: int = 1
    capacity: int | None = None

    @property
    def file(self) -> str:
        """The name of its ONNX file."""
        sizes = f"{self.lanes}x{self.tokens}"
        return f"{self.kind}.{sizes}{'' if self.capacity is None else f'.{self.capacity}'}.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in the weights file. Those of layer i are called `layers.i.NAME`."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayeredModel:
    """All that there is to know of a model in pieces; `decoder.cache` is the type of all floats.

    hidden: E. heads: H. layer_weights: LAYER_WEIGHTS, and the biases that there are.
    """

    decoder: DecoderSpec
    hidden: int
    heads: int
    layer_weights: tuple[str, ...]
    pieces: tuple[Piece, ...]
    tensors: tuple[StoredTensor, ...]

    @property
    def dtype(self) -> np.dtype[np.float16] | np.dtype[np.float32]:
        """The numpy type of activations and weights."""
        return self.decoder.cache_dtype

    @property
    def lanes(self) -> int:
        """Rows of the cache: those of the widest layer."""
        return max(piece.lanes for piece in self.pieces)

    @property
    def chunks(self) -> tuple[int, ...]:
        """S of the layers that take several tokens at once, smallest first."""
        return tuple(sorted({piece.tokens for piece in self.pieces if piece.tokens > 1}))

    @property
    def capacities(self) -> tuple[int, ...]:
        """The sizes that a cache may have, smallest first."""
        return tuple(sorted({p.capacity for p in self.pieces if p.capacity is not None}))


class WeightSource(Protocol):
    """Where the tensors of a model come from."""

    def tensor(self, name: str) -> AnyArray:
        """Return a tensor, which may be read-only and a view of a file."""


class WeightsFile:
    """Tensors of a file, mapped into memory."""

    def __init__(self, path: Path, model: LayeredModel) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        self._dtype = model.dtype
        self._stored = {tensor.name: tensor for tensor in model.tensors}

    def tensor(self, name: str) -> AnyArray:
        """Return a view of the file; raises ModelError if it has no such tensor."""
        stored = self._stored.get(name)
        if stored is None:
            raise ModelError(f"the model has no tensor {name!r}; export it again")
        size = prod(stored.shape) * self._dtype.itemsize
        view = self._bytes[stored.offset : stored.offset + size]
        if len(view) != size:
            raise ModelError(f"the weights end before {name!r} does; export the model again")
        return view.view(self._dtype).reshape(stored.shape)


def pieces_for(
    lanes: int, chunks: tuple[int, ...], capacities: tuple[int, ...]
) -> tuple[Piece, ...]:
    """Return what a decoder needs: a layer for one lane, all lanes and each chunk, and the tails.

    A step of several tokens costs as much as the smallest chunk that holds them.
    """
    widths = sorted({1, lanes})
    steps = [(width, 1) for width in widths] + [(1, chunk) for chunk in chunks]
    return (
        *(
            Piece(kind="layer", lanes=width, tokens=tokens, capacity=capacity)
            for capacity in capacities
            for width, tokens in steps
        ),
        *(Piece(kind="tail", lanes=width) for width in widths),
    )


def layered_model_from_folder(folder: Path) -> LayeredModel:
    """Return what a folder holds; raises StorageError or ModelError."""
    content = read_capped(safe_join(folder, MODEL_FILE), max_bytes=MAX_MODEL_BYTES)
    return layered_model_from_bytes(content, str(folder / MODEL_FILE))


def layered_model_from_bytes(content: bytes, name: str) -> LayeredModel:
    """Return the model that content spells; raises ModelError. name: of the file."""
    try:
        model = msgspec.json.decode(content, type=LayeredModel)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{name} is malformed: {error}; export it again") from error
    problem = problem_with(model.decoder)
    if problem is None and not (model.capacities and model.chunks):
        problem = "it has no layer for one token, or none for several"
    if problem is not None:
        raise ModelError(f"{name}: {problem}; export the model again")
    return model
