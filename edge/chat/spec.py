"""What a chat graph is, and the names of its tensors.

Every form takes `input_ids` INT64 [lanes, tokens], `start` INT64 [lanes] (filled positions of each
lane's cache, the position of its first new token) and `rows` INT64 [lanes, wanted] (which of the
new tokens logits are wanted for), and gives `logits` FP32 [lanes, wanted, vocabulary]. New token s
of a lane sees cache position p if p <= start + s, and p > start + s - window where there is a
window. Forms differ in the caches alone, `key_i` and `value_i` of each layer i:

- "scatter", "scatter-primitive": [lanes, kv_heads, capacity, head_dim], outputs `key_i_out`,
  `value_i_out` of the same shape; bound to the same memory they are updated in place.
- "prefix": [prefix, lanes, kv_heads, head_dim] with prefix >= max(start), outputs `key_i_new`,
  `value_i_new` [tokens, lanes, kv_heads, head_dim], for the runner to put at start and behind.
- "layered" is no graph but many, see `layered`.
- "concat": [lanes, kv_heads, past, head_dim], past = start in every lane, outputs `key_i_out`,
  `value_i_out` [lanes, kv_heads, past + tokens, head_dim].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from edge.errors import ModelError

# Of the ONNX file's metadata; the value is a DecoderSpec as JSON.
DECODER_KEY = "edge_kit.decoder"
MAX_LAYERS = 1024
MAX_LANES = 1024
MAX_SIZE = 1 << 24  # of every other number: a vocabulary or a context, far beyond what exists
# Of a golden case: the last tokens of its prompt, whose logits are kept.
GOLDEN_ROWS = 4

Form = Literal["scatter", "scatter-primitive", "prefix", "concat", "layered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """What a chat graph is, as far as who runs it must know; part of the Manifest.

    context: positions that the rotary tables and the cache may hold at most. cache: datatype of
    keys and values. window: positions that a token sees, itself among them; None is all.
    eos: tokens that end an answer. lanes: rows that the cache has, where that is fixed; of a
    scattering graph it is then as long as the context, too.
    """

    form: Form
    layers: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    cache: Literal["FP32", "FP16"]
    window: int | None = None
    eos: tuple[int, ...] = ()
    lanes: int | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether the cache has one size alone, that of an engine which updates it in place."""
        return self.lanes is not None and self.form in {"scatter", "scatter-primitive"}

    @property
    def cache_dtype(self) -> np.dtype[np.float16] | np.dtype[np.float32]:
        """The numpy type of keys and values."""
        return np.dtype(np.float16) if self.cache == "FP16" else np.dtype(np.float32)

    @property
    def position_bytes(self) -> int:
        """Bytes of cache that one position of one lane takes, over all layers."""
        values = 2 * self.layers * self.kv_heads * self.head_dim
        return values * self.cache_dtype.itemsize


def cache_inputs(spec: DecoderSpec) -> tuple[str, ...]:
    """Return the names of the cache inputs, key and value of layer 0 first."""
    return tuple(f"{kind}_{i}" for i in range(spec.layers) for kind in ("key", "value"))


def cache_outputs(spec: DecoderSpec) -> tuple[str, ...]:
    """Return the names of the cache outputs, in the order of `cache_inputs`."""
    suffix = "new" if spec.form == "prefix" else "out"
    return tuple(f"{name}_{suffix}" for name in cache_inputs(spec))


def problem_with(spec: DecoderSpec) -> str | None:
    """Return what no chat graph can be in a spec that comes from a file, None if it can."""
    sizes = {
        "layers": (spec.layers, MAX_LAYERS),
        "kv_heads": (spec.kv_heads, MAX_SIZE),
        "head_dim": (spec.head_dim, MAX_SIZE),
        "vocabulary": (spec.vocabulary, MAX_SIZE),
        "context": (spec.context, MAX_SIZE),
        "lanes": (1 if spec.lanes is None else spec.lanes, MAX_LANES),
        "window": (1 if spec.window is None else spec.window, MAX_SIZE),
    }
    for name, (size, highest) in sizes.items():
        if not 1 <= size <= highest:
            return f"{name} is {size}, it must be 1..{highest}"
    for token in spec.eos:
        if not 0 <= token < spec.vocabulary:
            return f"eos {token} is no token of a vocabulary of {spec.vocabulary}"
    return None


def decoder_from_metadata(text: str) -> DecoderSpec:
    """Return the spec that a file's metadata hold under DECODER_KEY; raises ModelError."""
    try:
        spec = msgspec.json.decode(text, type=DecoderSpec)
    except msgspec.MsgspecError as error:
        raise ModelError(
            f"metadata {DECODER_KEY} is malformed: {error}; export the chat model again"
        ) from error
    problem = problem_with(spec)
    if problem is not None:
        raise ModelError(f"metadata {DECODER_KEY}: {problem}; export the chat model again")
    return spec
