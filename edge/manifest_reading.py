"""Reads a Manifest, and refuses what no `pack` has written.

The bytes of a Manifest are canonical (sorted keys, one-space indent, one newline at the end):
any other spelling is refused, so duplicate keys, unknown fields and trailing bytes cannot hide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from edge import classes as class_names
from edge import detections as boxes
from edge import images, text
from edge.chat import facts as chat_facts
from edge.chat.spec import GOLDEN_ROWS
from edge.chat.spec import problem_with as problem_with_decoder
from edge.errors import BundleError
from edge.manifest import (
    LOGITS,
    MAX_ARTIFACTS,
    MAX_COUNT,
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    TOKENS,
    Batching,
    Manifest,
    Model,
    bytes_from_manifest,
    is_plain_name,
    problem_with_version,
)

SMALLEST_LAYERED = 3  # files: what it is, its weights, and a graph
_SHA256 = re.compile(r"[0-9a-f]{64}")


def manifest_from_bytes(content: bytes) -> Manifest:
    """Return the Manifest that content spells.

    Raises BundleError if content is not canonical, has unknown, missing or ill-typed fields,
    refers to an artifact or variant that it does not list, or bounds an input it does not have.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        header = msgspec.json.decode(content, type=_Header)
        if header.schema != SCHEMA_VERSION:
            raise BundleError(
                f"manifest.json has schema {header.schema}, this agent reads {SCHEMA_VERSION}; "
                "install the edge-kit version that packed the bundle, or pack it again"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"manifest.json is malformed: {error}; pack the bundle again") from error
    if bytes_from_manifest(manifest) != content:
        raise BundleError(
            "manifest.json is not in canonical form, or has a field this agent does not know; "
            "pack the bundle again"
        )
    _check_references(manifest)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    schema: int


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise BundleError(f"manifest.json: {problem}; pack the bundle again")


def _check_references(manifest: Manifest) -> None:
    _require(is_plain_name(manifest.name), f"bundle name {manifest.name!r} is not plain")
    problem = problem_with_version(manifest.version)
    _require(problem is None, f"the bundle version {problem}")
    _require(len(manifest.artifacts) <= MAX_ARTIFACTS, f"more than {MAX_ARTIFACTS} artifacts")
    _require(len(manifest.models) > 0, "no model")
    paths = {artifact.path for artifact in manifest.artifacts}
    _require(len(paths) == len(manifest.artifacts), "two artifacts have the same path")
    for artifact in manifest.artifacts:
        parts = artifact.path.split("/")
        _require(parts[0] != "" and ".." not in parts, f"bad path {artifact.path!r}")
        _require(_SHA256.fullmatch(artifact.sha256) is not None, f"bad digest of {artifact.path!r}")
    names = [model.name for model in manifest.models]
    _require(len(set(names)) == len(names), "two models have the same name")
    for model in manifest.models:
        _require(is_plain_name(model.name), f"model name {model.name!r} is not plain")
        _require(is_plain_name(model.version), f"model version {model.version!r} is not plain")
        _check_interface(model)
        _check_variants(model, paths)


def _check_interface(model: Model) -> None:
    for specs in (model.inputs, model.outputs):
        names = {spec.name for spec in specs}
        _require(len(names) == len(specs), f"model {model.name!r}: tensor names repeat")
        _require("" not in names, f"model {model.name!r}: a tensor has no name")
        dims = [dim for spec in specs for dim in spec.shape if isinstance(dim, int)]
        _require(all(0 <= dim <= MAX_COUNT for dim in dims), f"model {model.name!r}: bad shape")
    ranks = {spec.name: len(spec.shape) for spec in model.inputs}
    for name, bounds in model.profile.ranges.items():
        _require(name in ranks, f"the profile names the unknown input {name!r}")
        sizes = (bounds.min, bounds.opt, bounds.max)
        _require({len(shape) for shape in sizes} == {ranks[name]}, f"profile rank of {name!r}")
        ordered = all(0 <= a <= b <= c <= MAX_COUNT for a, b, c in zip(*sizes, strict=True))
        _require(ordered, f"profile of {name!r} is not min <= opt <= max")
    if model.batching is not None:
        _check_batching(model, model.batching)
    for kind, problem in _interface_problems(model):
        _require(problem is None, f"model {model.name!r}: {kind}: {problem}")


def _interface_problems(model: Model) -> Iterator[tuple[str, str | None]]:
    """Yield what is wrong with each way to feed the model and to read its outputs."""
    if model.image is not None:
        yield "image", images.problem_with(model.image, model.inputs, model.profile)
    if model.text is not None:
        yield "text", text.problem_with(model.text, model.inputs, model.profile)
    if model.classes is not None:
        yield "classes", class_names.problem_with(model.classes, model.outputs)
    if model.detection is not None:
        yield "detection", boxes.problem_with(model.detection, model.image, model.outputs)
    if model.embedding is not None:
        yield "embedding", text.problem_with_vectors(model.embedding, model.outputs)
    if model.chat is not None:
        yield "chat", chat_facts.problem_with(model.chat) or _problem_with_chat(model)


def _problem_with_chat(model: Model) -> str | None:
    """Return what keeps a model from being talked to."""
    if model.inputs or model.outputs or model.batching or model.image or model.text:
        return "it has tensors of its own"
    for case in model.golden.cases:
        names = [tensor.name for tensor in (*case.inputs, *case.outputs)]
        if names != [TOKENS, LOGITS]:
            return f"a golden case of {names}"
        tokens, logits = case.inputs[0], case.outputs[0]
        is_long = len(tokens.shape) == 1 and tokens.shape[0] >= GOLDEN_ROWS
        if tokens.datatype != "INT64" or not is_long or logits.shape[:1] != (GOLDEN_ROWS,):
            return f"a golden case of {tokens.shape} tokens and {logits.shape} logits"
    for variant in model.variants:
        is_layered = variant.decoder is not None and variant.decoder.form == "layered"
        if is_layered and len(variant.files) < SMALLEST_LAYERED:
            return f"variant {variant.id!r} in pieces has no pieces"
    return None


def _check_batching(model: Model, batching: Batching) -> None:
    specs = (*model.inputs, *model.outputs)
    first = {spec.shape[0] if spec.shape else 0 for spec in specs}
    batch = next(iter(first))
    is_one = len(first) == 1 and isinstance(batch, str) and len(model.inputs) > 0
    _require(is_one, f"model {model.name!r}: batching without a first dimension that varies")
    _require(set(model.profile.ranges) == {s.name for s in model.inputs}, "batching: no profile")
    ragged = {spec.name for spec in model.inputs if batching.ragged in spec.shape}
    text = {spec.name for spec in model.inputs if spec.datatype == "BYTES"}
    _require(not ragged & text, f"model {model.name!r}: strings cannot be padded")
    _require(set(batching.pads) == ragged, f"model {model.name!r}: pads do not fit its inputs")
    twice = any(spec.shape.count(dim) > 1 for spec in specs for dim in (batch, batching.ragged))
    _require(not twice and batching.ragged != batch, f"model {model.name!r}: ragged dimension")


def _check_variants(model: Model, paths: set[str]) -> None:
    variants = {variant.id: variant for variant in model.variants}
    _require(len(variants) == len(model.variants), f"model {model.name!r}: variant ids repeat")
    _require(len(variants) > 0, f"model {model.name!r} has no variant")
    _require(len(model.golden.cases) > 0, f"model {model.name!r} has no golden case")
    used = [path for variant in model.variants for path in variant.files]
    for case in model.golden.cases:
        _require(len(case.outputs) > 0, f"model {model.name!r}: a golden case has no output")
        used += [tensor.artifact for tensor in (*case.inputs, *case.outputs)]
    if model.calibration is not None:
        used.append(model.calibration.table)
    if model.text is not None:
        used.append(model.text.tokenizer)
    if model.chat is not None:
        used.append(model.chat.tokenizer)
        used += [] if model.chat.template is None else [model.chat.template]
    for path in used:
        _require(path in paths, f"model {model.name!r} names the unlisted file {path!r}")
    for variant in model.variants:
        _require(variant.id != "", f"model {model.name!r}: a variant has no id")
        _require(len(variant.files) > 0, f"variant {variant.id!r} has no file")
        if variant.engine is not None:
            _require(variant.backend != "ort", f"variant {variant.id!r} is no engine for ort")
            _require(len(variant.engine.sms) > 0, f"engine {variant.id!r} names no SM")
        is_decoder = variant.decoder is not None
        _require(is_decoder == (model.chat is not None), f"variant {variant.id!r}: decoder")
        if variant.decoder is not None:
            problem = problem_with_decoder(variant.decoder)
            _require(problem is None, f"variant {variant.id!r}: {problem}")
        tolerance = model.golden.tolerance.get(variant.precision)
        _require(tolerance is not None, f"no golden tolerance for {variant.precision}")
    for preference in model.preferences:
        chosen = variants.get(preference.variant)
        _require(
            chosen is not None and chosen.backend == preference.backend,
            f"preference for {preference.backend} names no such variant",
        )
