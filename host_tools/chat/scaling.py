"""Channels of activations scaled for quantization, and the weights that make up for it.

Dividing a channel of an activation by a factor and multiplying what reads it leaves a model as it
is, but not what rounding does to it. Every division is folded into weights that make the channel: a
norm, or the rows of the linear layer before it, where nothing but a product lies between. So a
graph of scaled weights has no node more than one without.

    norm -> q, k, v        v -> attention -> o        norm -> gate, up        up -> product -> down

Attention mixes positions, not channels; heads of queries that share values share their factors.
Sources: Lin et al. 2023, "AWQ", arXiv 2306.00978; Xiao et al. 2022, "SmoothQuant", arXiv
2211.10438.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from host_tools.chat.layerwise import HEAD, head_matrix
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.weights import FloatArray, Weights

Quantized = Literal["int8", "int4", "w8a8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Linear layers that read the same activations.

    readers: these layers; the first one's name is the site's. sources: tensors whose rows make the
    activations, and take the division. group: how many heads of the activations one head of the
    sources makes. head_dim: values of a head, where group is not 1.
    """

    readers: tuple[str, ...]
    sources: tuple[str, ...]
    group: int = 1
    head_dim: int = 1

    @property
    def name(self) -> str:
        """The name of the first of the layers."""
        return self.readers[0]

    def shared(self, channels: FloatArray) -> FloatArray:
        """Return numbers [inputs] as means over the channels that must have the same factor."""
        if self.group == 1:
            return channels
        heads = channels.reshape(-1, self.group, self.head_dim)
        means = np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape)
        return np.ascontiguousarray(means, np.float32).ravel()

    def of_sources(self, factors: FloatArray) -> FloatArray:
        """Return the factors of the sources' rows, given those of the activations."""
        if self.group == 1:
            return factors
        return np.ascontiguousarray(factors.reshape(-1, self.group, self.head_dim)[:, 0]).ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """What calibration found about the activations of a site, and decided.

    factors: [inputs], what each channel is divided by. importance: [inputs], mean square of each
    channel when divided: what an error of a weight costs. amax: their range for int8.
    """

    factors: FloatArray
    importance: FloatArray
    amax: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What a chat model's weights are quantized with.

    weights: the type of weights that it was searched for. sites: by name of the site.
    """

    weights: Quantized
    sites: Mapping[str, Activations]


def sites_of_layer(spec: LlmSpec, index: int) -> tuple[Site, ...]:
    """Return the sites of a layer in the order in which they are computed."""
    layer = f"model.layers.{index}"
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    value, up = f"{attention}.v_proj", f"{mlp}.up_proj"
    return (
        Site(
            readers=(f"{attention}.q_proj", f"{attention}.k_proj", value),
            sources=(f"{layer}.input_layernorm.weight",),
        ),
        Site(
            readers=(f"{attention}.o_proj",),
            sources=(f"{value}.weight", *((f"{value}.bias",) if spec.qkv_bias else ())),
            group=spec.heads // spec.kv_heads,
            head_dim=spec.head_dim,
        ),
        Site(
            readers=(f"{mlp}.gate_proj", up),
            sources=(f"{layer}.post_attention_layernorm.weight",),
        ),
        Site(
            readers=(f"{mlp}.down_proj",),
            sources=(f"{up}.weight", *((f"{up}.bias",) if spec.mlp_bias else ())),
        ),
    )


def site_of_head() -> Site:
    """Return the site whose only layer gives the logits."""
    return Site(readers=(HEAD,), sources=("model.norm.weight",))


class ScaledWeights:
    """The weights of a model whose channels are scaled; the head is `lm_head` even where tied."""

    def __init__(self, weights: Weights, spec: LlmSpec, calibration: Calibration) -> None:
        self._weights = weights
        self._head = head_matrix(spec)
        self._columns: dict[str, FloatArray] = {}
        self._rows: dict[str, FloatArray] = {}
        sites = [site for i in range(spec.layers) for site in sites_of_layer(spec, i)]
        for site in (*sites, site_of_head()):
            factors = calibration.sites[site.name].factors
            self._columns |= {f"{layer}.weight": factors for layer in site.readers}
            self._rows |= dict.fromkeys(site.sources, site.of_sources(factors))

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return self._weights.shape(self._origin(name))

    def rows(self, name: str, begin: int, end: int) -> FloatArray:
        """See Weights."""
        values = self._weights.rows(self._origin(name), begin, end)
        if name in self._columns:
            values *= self._columns[name]
        if name in self._rows:
            factors = self._rows[name][begin:end]
            values /= factors.reshape(-1, *[1] * (values.ndim - 1))
        return values

    def _origin(self, name: str) -> str:
        return self._head if name == f"{HEAD}.weight" else name
