"""A chat model in float32 on numpy, one layer in memory at a time.

What calibration looks into, and what the quality of quantized graphs is measured against: for both
a model may be larger than memory. What is held is one layer (0.9 GB for 8 billion parameters), the
hidden states of all windows (16 KB a token there) and, at the end, the head (2.1 GB).

In shapes: N windows of S tokens, E hidden, H query heads, K heads of keys and values, G = H / K,
D head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.rope import rotary_tables
from host_tools.chat.weights import FloatArray, Weights, whole

IntArray = npt.NDArray[np.int64]
# Gets the name of the first of the linear layers that read activations, and these: [S, inputs].
Seen = Callable[[str, FloatArray], None]

HEAD = "lm_head"


def embedded(weights: Weights, windows: IntArray) -> FloatArray:
    """Return the embeddings of token windows: [N, S, E]."""
    name = "model.embed_tokens.weight"
    wanted, places = np.unique(windows, return_inverse=True)
    rows = np.concatenate([weights.rows(name, int(row), int(row) + 1) for row in wanted])
    return rows[places.reshape(windows.shape)]


def head_matrix(spec: LlmSpec) -> str:
    """Return the name of the matrix that gives the logits."""
    return "model.embed_tokens.weight" if spec.tied else f"{HEAD}.weight"


class Layer:
    """One layer of a decoder, whole in memory."""

    def __init__(self, spec: LlmSpec, weights: Weights, index: int) -> None:
        self._spec = spec
        self._window = spec.windows[index]
        self.name = f"model.layers.{index}"
        attention, mlp = f"{self.name}.self_attn", f"{self.name}.mlp"
        self.projections = tuple(f"{attention}.{part}_proj" for part in "qkvo")
        self.mlps = tuple(f"{mlp}.{part}_proj" for part in ("gate", "up", "down"))
        names = [f"{layer}.weight" for layer in self.projections + self.mlps]
        names += [f"{self.name}.{norm}.weight" for norm in _NORMS]
        if spec.qkv_bias:
            names += [f"{layer}.bias" for layer in self.projections[:3]]
        if spec.output_bias:
            names.append(f"{self.projections[3]}.bias")
        if spec.mlp_bias:
            names += [f"{layer}.bias" for layer in self.mlps]
        if spec.qk_norm:
            names += [f"{attention}.{part}_norm.weight" for part in "qk"]
        self._tensors = {name: whole(weights, name) for name in names}

    def matrix(self, layer: str) -> FloatArray:
        """Return the weights [outputs, inputs] of one of its linear layers."""
        return self._tensors[f"{layer}.weight"]

    def run(self, hidden: FloatArray, seen: Seen | None = None) -> None:
        """Replace the hidden states [N, S, E] by those behind this layer, window by window."""
        spec = self._spec
        tables = rotary_tables(spec.rope, spec.head_dim, hidden.shape[1])
        mask = causal_mask(hidden.shape[1], self._window)
        for states in hidden:
            x = self._norm(states, "input_layernorm")
            mixed = self._attention(x, tables, mask, seen)
            states += self._linear(mixed, self.projections[3], seen)
            x = self._norm(states, "post_attention_layernorm")
            gate, up, down = self.mlps
            inner = self._linear(x, gate, seen)
            with np.errstate(over="ignore"):  # of a number so low that its share is 0
                inner /= 1 + np.exp(-inner)
            inner *= self._linear(x, up)
            states += self._linear(inner, down, seen)

    def _norm(self, x: FloatArray, name: str) -> FloatArray:
        return rms_norm(x, self._tensors[f"{self.name}.{name}.weight"], self._spec.norm_eps)

    def _linear(self, x: FloatArray, layer: str, seen: Seen | None = None) -> FloatArray:
        if seen is not None:
            seen(layer, x)
        y: FloatArray = x @ self.matrix(layer).T
        bias = self._tensors.get(f"{layer}.bias")
        return y if bias is None else y + bias

    def _attention(
        self,
        x: FloatArray,
        tables: tuple[FloatArray, FloatArray],
        mask: FloatArray,
        seen: Seen | None,
    ) -> FloatArray:
        """Return the heads' results side by side, [S, H * D]."""
        spec, (q_layer, k_layer, v_layer, _) = self._spec, self.projections
        q = _heads(self._linear(x, q_layer, seen), spec.head_dim)
        k = _heads(self._linear(x, k_layer), spec.head_dim)
        v = _heads(self._linear(x, v_layer), spec.head_dim)
        if spec.qk_norm:
            name = f"{self.name}.self_attn"
            q = rms_norm(q, self._tensors[f"{name}.q_norm.weight"], spec.norm_eps)
            k = rms_norm(k, self._tensors[f"{name}.k_norm.weight"], spec.norm_eps)
        q, k = _rotated(q, *tables), _rotated(k, *tables)
        q *= np.float32(spec.head_dim**-0.5)
        group = spec.heads // spec.kv_heads
        mixed = np.empty_like(q)
        for head in range(spec.heads):
            scores = q[head] @ k[head // group].T
            scores += mask
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            mixed[head] = scores @ v[head // group]
        return np.ascontiguousarray(mixed.transpose(1, 0, 2)).reshape(len(x), -1)


def final_states(
    spec: LlmSpec, weights: Weights, windows: IntArray, seen: Seen | None = None
) -> FloatArray:
    """Return what the head reads, [N, S, E], having read every layer once."""
    hidden = embedded(weights, windows)
    for index in range(spec.layers):
        Layer(spec, weights, index).run(hidden, seen)
    return final_norm(spec, weights, hidden, seen)


def final_norm(
    spec: LlmSpec, weights: Weights, hidden: FloatArray, seen: Seen | None = None
) -> FloatArray:
    """Return hidden states normed for the head, in place of these."""
    scale = whole(weights, "model.norm.weight")
    for states in hidden:
        states[:] = rms_norm(states, scale, spec.norm_eps)
        if seen is not None:
            seen(HEAD, states)
    return hidden


def layerwise_logits(
    spec: LlmSpec, weights: Weights, windows: IntArray, *, chunk: int
) -> Iterator[FloatArray]:
    """Yield logits [chunk or fewer, V] of each window in turn, float32, position by position."""
    states = final_states(spec, weights, windows)
    head = whole(weights, head_matrix(spec))
    for window in states:
        for begin in range(0, len(window), chunk):
            yield window[begin : begin + chunk] @ head.T


def rms_norm(x: FloatArray, scale: FloatArray, epsilon: float) -> FloatArray:
    """Return RMSNorm over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: FloatArray = x / np.sqrt(mean + np.float32(epsilon)) * scale
    return normed


def causal_mask(length: int, window: int | None) -> FloatArray:
    """Return what is added to scores [S, S]: 0 where a token may look, else very little."""
    distance = np.arange(length)[:, None] - np.arange(length)
    visible = (distance >= 0) & (distance < (length if window is None else window))
    mask: FloatArray = np.where(visible, np.float32(0), np.finfo(np.float32).min)
    return mask


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _heads(x: FloatArray, dim: int) -> FloatArray:
    """Return [heads, S, D] of [S, heads * D]."""
    return np.ascontiguousarray(x.reshape(len(x), -1, dim).transpose(1, 0, 2))


def _rotated(heads: FloatArray, cosines: FloatArray, sines: FloatArray) -> FloatArray:
    first, second = np.split(heads, 2, axis=-1)
    return np.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
