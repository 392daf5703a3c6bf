"""LoRA adapters of PEFT, merged into a model's weights while these are read.

A layer W [outputs, inputs] becomes W + scale B A, with A [r, inputs] and B [outputs, r] from the
adapter's file. Modules that were trained whole take the place of the model's own.
Source: Hu et al. 2021, "LoRA", arXiv 2106.09685; scale alpha / r, or alpha / sqrt(r) for
Kalajdzievski 2023, "rsLoRA", arXiv 2312.03732.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import UsageError
from edge.files import read_capped
from host_tools.chat.layout import EMBEDDING, HEAD
from host_tools.chat.llm_spec import LlmSpec
from host_tools.chat.weights import Checkpoint, FloatArray, Weights, whole
from host_tools.errors import ExportError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
# What is left of other initial values takes the model's own weights as they are.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
# Fields that do not change what a trained adapter computes, or that are read below.
HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
    "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
_PREFIX = "base_model.model."
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save(\.default)?)\.")
_PART = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """What an adapter does to one tensor: it adds scale * up @ down, or it takes its place.

    Both are names of tensors in the adapter's file.
    """

    down: str | None = None
    up: str
    scale: float = 1.0


class Merged:
    """Weights with an adapter in them; see Weights."""

    def __init__(
        self, base: Weights, adapter: Weights, changes: dict[str, _Change], *, untied: bool
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._changes = changes
        self._untied = untied

    def shape(self, name: str) -> tuple[int, ...]:
        """See Weights."""
        return self._base.shape(self._origin(name))

    def rows(self, name: str, begin: int, end: int) -> FloatArray:
        """See Weights."""
        change = self._changes.get(name)
        if change is None:
            return self._base.rows(self._origin(name), begin, end)
        if change.down is None:
            return self._adapter.rows(change.up, begin, end)
        merged = self._adapter.rows(change.up, begin, end) @ whole(self._adapter, change.down)
        merged *= change.scale
        merged += self._base.rows(self._origin(name), begin, end)
        return merged

    def _origin(self, name: str) -> str:
        """A head that was that of the embedding begins as a copy of it."""
        return EMBEDDING if self._untied and name == HEAD else name


def merge_adapters(
    base: Weights, spec: LlmSpec, folders: Iterable[Path]
) -> tuple[Weights, LlmSpec]:
    """Return the weights with all adapters merged, and the spec of what they are now.

    Raises UsageError for a folder that is none of PEFT, ExportError for an adapter that cannot be
    merged or was not made for this model.
    """
    changed: set[str] = set()
    for folder in folders:
        config, adapter = _config(folder), _tensors(folder)
        changes = _changes(config, adapter, folder)
        untied = spec.tied and HEAD in changes
        if spec.tied and EMBEDDING in changes and not untied:
            raise ExportError(
                f"{folder} changes the embedding of a model whose head is tied to it, and does not "
                "say what becomes of the head; merge it with PEFT and give the merged model"
            )
        merged = Merged(base, adapter, changes, untied=untied)
        _check_shapes(merged, adapter, changes, folder)
        again = sorted(n for n, c in changes.items() if c.down is None and n in changed)
        if again:
            raise ExportError(f"{folder} replaces {again[0]}, which another adapter changed")
        changed |= set(changes)
        base, spec = merged, replace(spec, tied=spec.tied and not untied)
    return base, spec


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UsageError(f"no {CONFIG} in {folder}; give the folder of a PEFT adapter")
    try:
        config = msgspec.json.decode(
            read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True), type=dict[str, Any]
        )
    except msgspec.MsgspecError as error:
        raise ExportError(f"{path} is no adapter config: {error}") from error
    if config.get("peft_type") != "LORA":
        raise ExportError(f"{path}: peft_type is {config.get('peft_type')!r}; LORA can be merged")
    if config.get("use_dora"):
        raise ExportError(
            f"{path}: use_dora; DoRA scales whole columns of the merged weights, which is not done "
            "here: merge it with PEFT (merge_and_unload) and give the merged model"
        )
    if config.get("fan_in_fan_out"):
        raise ExportError(f"{path}: fan_in_fan_out; no layer of these models is stored so")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        raise ExportError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r}, which changed the "
            "model's own weights too; convert it to plain LoRA when saving"
        )
    for name in sorted(set(config) - HARMLESS):
        if config[name]:
            raise ExportError(f"{path}: {name} is {config[name]!r}; the writer does not know it")
    return config


def _tensors(folder: Path) -> Checkpoint:
    path = folder / TENSORS
    if not path.is_file():
        raise UsageError(
            f"no {TENSORS} in {folder}; save the adapter again with safe_serialization=True"
        )
    return Checkpoint.from_file(path)


def _changes(config: dict[str, Any], adapter: Checkpoint, folder: Path) -> dict[str, _Change]:
    """Return what the adapter does to each tensor of the model."""
    parts: dict[str, dict[str, str]] = {}
    changes: dict[str, _Change] = {}
    for name in adapter.shapes:
        plain = name.removeprefix(_PREFIX)
        part = _PART.fullmatch(plain)
        if part is not None:
            parts.setdefault(part[1], {})[part[2]] = name
        elif "lora_" in plain:
            raise ExportError(
                f"{folder}: the writer cannot merge {plain}; adapters of linear layers alone"
            )
        else:  # trained whole: a bias, or one of modules_to_save
            changes[_WRAPPER.sub(".", plain)] = _Change(up=name)
    for module, pair in parts.items():
        if set(pair) != {"A", "B"}:
            raise ExportError(f"{folder}: of {module} it has lora_{next(iter(pair))} alone")
        rank = adapter.shapes[pair["A"]][0]
        scale = _scale(config, module, rank, folder)
        changes[f"{module}.weight"] = _Change(down=pair["A"], up=pair["B"], scale=scale)
    if not changes:
        raise ExportError(f"{folder / TENSORS} is empty")
    return changes


def _scale(config: dict[str, Any], module: str, rank: int, folder: Path) -> float:
    wanted = _of_module(config, "rank_pattern", "r", module, folder)
    alpha = _of_module(config, "alpha_pattern", "lora_alpha", module, folder)
    if wanted != rank:
        raise ExportError(f"{folder}: {module} has rank {rank}, {CONFIG} says {wanted:g}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of_module(
    config: dict[str, Any], patterns: str, default: str, module: str, folder: Path
) -> float:
    """Return a number that may be another for modules whose names match a pattern."""
    value: Any = config.get(default)
    try:
        for pattern, special in (config.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                value = special
                break
    except (AttributeError, re.error) as error:
        raise ExportError(f"{folder / CONFIG}: {patterns} is malformed: {error}") from error
    if type(value) not in {int, float} or not 0 < value < math.inf:
        raise ExportError(f"{folder / CONFIG}: {default} is {value!r}; it must be positive")
    return float(value)


def _check_shapes(
    merged: Merged, adapter: Checkpoint, changes: dict[str, _Change], folder: Path
) -> None:
    for name, change in changes.items():
        try:
            expected = merged.shape(name)
        except ExportError as error:
            raise ExportError(f"{folder} adapts {name}, which the model does not have") from error
        found = up = adapter.shape(change.up)
        if change.down is not None:
            down = adapter.shape(change.down)
            found = (up[0], down[1]) if len(up) == len(down) == 2 and up[1] == down[0] else ()
        if found != expected:
            raise ExportError(
                f"{folder} was made for another model: its {name} is {list(found)}, the model's "
                f"{list(expected)}"
            )
