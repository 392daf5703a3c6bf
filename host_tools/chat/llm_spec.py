"""What a causal language model is, from the config.json of its Hugging Face folder.

Families: llama, mistral, qwen2 (and 2.5), qwen3. A field that would change the computation in a
way that the writer does not know is an error that names it. Fields that no model of the family
reads are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from edge.chat.spec import MAX_LAYERS, MAX_SIZE
from edge.errors import UsageError
from edge.files import read_capped
from host_tools.chat.rope import Rope, Scaling, yarn_attention_factor
from host_tools.errors import ExportError

Family = Literal["llama", "mistral", "qwen2", "qwen3"]

MAX_CONFIG_BYTES = 1 << 20
ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
MSCALES = ("mscale", "mscale_all_dim")
ROPE_FIELDS: dict[Scaling, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    },
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        *MSCALES,
        "truncate",
    },
}
# The one value of a field that the writer knows; anything else changes the computation.
ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "auto_map": (None,),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pretraining_tp": (None, 0, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmSpec:
    """Sizes and switches of a decoder.

    context: positions that it was made for. windows: positions that a token sees, per layer; None
    is all. tied: whether the head's weights are those of the embedding. eos: tokens that end an
    answer.
    """

    family: Family
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    context: int
    windows: tuple[int | None, ...]
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    eos: tuple[int, ...]

    @property
    def window(self) -> int | None:
        """The window of all layers, None if one of them sees everything."""
        sizes = set(self.windows)
        return None if None in sizes else max(size for size in sizes if size is not None)


def llm_spec_from_folder(folder: Path) -> LlmSpec:
    """Return the spec; raises UsageError without a config.json, ExportError for what is in it."""
    return _spec(_fields_of(folder), _generation(folder))


def llm_spec_from_config(
    config: dict[str, Any], generation: dict[str, Any] | None = None, *, where: str = "config.json"
) -> LlmSpec:
    """Return the spec of a config.json, and of a generation_config.json beside it.

    Raises ExportError that names the field.
    """
    return _spec(_Fields(config, where), generation or {})


def _spec(fields: _Fields, generation: dict[str, Any]) -> LlmSpec:
    family = _family(fields)
    for name, values in ONLY_VALUES.items():
        if fields.get(name, values[0]) not in values:
            fields.refuse(name, f"the writer knows {values[0]!r} only")
    hidden, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    layers = fields.count("num_hidden_layers", highest=MAX_LAYERS)
    if hidden % heads and family != "qwen3" and not fields.get("head_dim"):
        fields.refuse("hidden_size", f"{heads} heads cannot share it evenly")
    head_dim = fields.count("head_dim", 128 if family == "qwen3" else hidden // heads)
    kv_heads = fields.count("num_key_value_heads", heads)
    if heads % kv_heads:
        fields.refuse("num_key_value_heads", f"{heads} query heads cannot share them evenly")
    if head_dim % 2:
        fields.refuse("head_dim", "rotary embeddings need an even one")
    rope = _rope(fields)
    context = max(fields.count("max_position_embeddings"), rope.scaled_context)
    vocabulary = fields.count("vocab_size")
    bias = fields.flag("attention_bias") if family in {"llama", "qwen3"} else False
    return LlmSpec(
        family=family,
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=fields.count("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=rope,
        context=context,
        windows=_windows(fields, family, layers),
        tied=fields.flag("tie_word_embeddings"),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias,
        mlp_bias=fields.flag("mlp_bias") if family == "llama" else False,
        qk_norm=family == "qwen3",
        eos=_eos(fields, generation, vocabulary),
    )


def has_writer(folder: Path) -> bool:
    """Return whether a folder's architecture is of a family here, whatever its other fields say.

    Raises as `llm_spec_from_folder` unless it is one causal language model.
    """
    fields = _fields_of(folder)
    name = _architecture(fields)
    return name in ARCHITECTURES or not name.endswith(("ForCausalLM", "LMHeadModel"))


def ends_of_answers(folder: Path, vocabulary: int) -> tuple[int, ...]:
    """Return the tokens that end an answer, of any architecture."""
    return _eos(_fields_of(folder), _generation(folder), vocabulary)


class _Fields:
    """Typed reading of a config; what is null counts as missing."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self._config = config
        self._where = where

    def get(self, name: str, default: Any = None) -> Any:
        value = self._config.get(name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        return name in self._config

    def is_null(self, name: str) -> bool:
        return self.has(name) and self._config[name] is None

    def names(self) -> set[str]:
        return set(self._config)

    def count(self, name: str, default: int | None = None, highest: int = MAX_SIZE) -> int:
        value = self.get(name, default)
        if value is None:
            self._miss(name)
        if type(value) is not int or not 1 <= value <= highest:
            self.refuse(name, f"it must be a whole number, 1..{highest}")
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            self._miss(name)
        if type(value) not in {int, float} or not 0 < value < math.inf:
            self.refuse(name, "it must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            self.refuse(name, "it must be true or false")
        return bool(value)

    def below(self, name: str) -> _Fields:
        value = self.get(name, {})
        if not isinstance(value, dict):
            self.refuse(name, "it must be an object")
        return _Fields(value, f"{self._where}: {name}")

    def _miss(self, name: str) -> NoReturn:
        raise ExportError(f"{self._where}: {name} is missing; the model cannot be written")

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise ExportError(f"{self._where}: {name} is {self.get(name)!r}; {reason}")


def _architecture(fields: _Fields) -> str:
    architectures = fields.get("architectures", [])
    if not isinstance(architectures, list) or len(architectures) != 1:
        fields.refuse("architectures", f"it must hold one of {', '.join(ARCHITECTURES)}")
    return str(architectures[0])


def _family(fields: _Fields) -> Family:
    architecture = _architecture(fields)
    family = ARCHITECTURES.get(architecture)
    if family is None:
        fields.refuse(
            "architectures",
            f"the writer knows {', '.join(ARCHITECTURES)}; `edge-kit export-chat` traces other "
            "causal language models, for the CPU",
        )
    if fields.get("model_type", family) != family:
        fields.refuse("model_type", f"{architecture} is of type {family}")
    return family


def _rope(fields: _Fields) -> Rope:
    """Read `rope_parameters` of transformers 5, or `rope_scaling` and `rope_theta` before it."""
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    rope = fields.below(name)
    scaling: Any = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in tuple(ROPE_FIELDS):
        rope.refuse(
            "rope_type" if rope.has("rope_type") else "type",
            f"the writer knows {', '.join(ROPE_FIELDS)}",
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *ROPE_FIELDS[scaling]}
    for unknown in sorted(rope.names() - known):
        rope.refuse(unknown, f"the writer does not know it for {scaling}")
    if rope.get("partial_rotary_factor", 1) != 1:
        rope.refuse("partial_rotary_factor", "the writer knows 1 only")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10_000.0))
    if scaling == "default":
        return Rope(theta=theta)
    context = fields.count("max_position_embeddings")
    original = rope.count("original_max_position_embeddings", context)
    factor = rope.number("factor", context / original if scaling == "yarn" else None)
    if scaling == "yarn":
        return Rope(
            theta=theta,
            scaling="yarn",
            factor=factor,
            original_context=original,
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            attention_factor=rope.number(
                "attention_factor",
                yarn_attention_factor(
                    factor, *(rope.number(n) if rope.get(n) else None for n in MSCALES)
                ),
            ),
            truncate=rope.flag("truncate", True),
        )
    return Rope(
        theta=theta,
        scaling=scaling,
        factor=factor,
        original_context=original,
        low_freq_factor=rope.number("low_freq_factor", 1.0 if scaling == "linear" else None),
        high_freq_factor=rope.number("high_freq_factor", 4.0 if scaling == "linear" else None),
    )


def _windows(fields: _Fields, family: Family, layers: int) -> tuple[int | None, ...]:
    if family == "llama":
        return (None,) * layers
    if family == "mistral":
        if fields.get("layer_types"):
            fields.refuse("layer_types", "a Mistral model has one kind of layers")
        if fields.is_null("sliding_window"):
            return (None,) * layers
        return (fields.count("sliding_window", 4096),) * layers
    if not fields.flag("use_sliding_window") or fields.is_null("sliding_window"):
        return (None,) * layers
    size = fields.count("sliding_window", 4096)
    first = fields.get("max_window_layers", 28)
    if type(first) is not int:
        fields.refuse("max_window_layers", "it must be a whole number")
    kinds = fields.get("layer_types")
    if kinds is None:
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        fields.refuse("layer_types", f"it must name {' or '.join(known)} for {layers} layers")
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def _eos(fields: _Fields, generation: dict[str, Any], vocabulary: int) -> tuple[int, ...]:
    """Return all tokens that end an answer: a chat model often has more than its config says."""
    found: set[int] = set()
    for value in (fields.get("eos_token_id"), generation.get("eos_token_id")):
        tokens = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
            fields.refuse("eos_token_id", f"tokens are 0..{vocabulary - 1}; generation: {value!r}")
        found.update(tokens)
    return tuple(sorted(found))


def _fields_of(folder: Path) -> _Fields:
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"no config.json in {folder}; give the folder of a Hugging Face model")
    return _Fields(_json_object(path), str(path))


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return _json_object(path) if path.is_file() else {}


def _json_object(path: Path) -> dict[str, Any]:
    content = read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True)
    try:
        value = msgspec.json.decode(content)
    except msgspec.MsgspecError as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object")
    return value
