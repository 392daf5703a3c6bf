"""Export: from a source to one checked ONNX file that carries its Profile and provenance.

    torch source ─trace─► graph ─check─► onnxslim ─check─► compare with torch ─► file
    ONNX file ──────────────────check─► run at the same shapes ──────────────► file

Nothing is written unless everything before it held.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from calibration.model_file import (
    image_from_model,
    load_model,
    opset_of,
    provenance_from_model,
    save_model,
    specs_from_model,
)
from calibration.processing import processing_from_model
from edge.classes import Classes
from edge.errors import UsageError
from edge.images import ImagePreprocessing
from edge.manifest import Provenance
from edge.spec import Profile, TensorSpec, datatype_from_numpy, name_of_strings
from edge.text import TextPreprocessing
from host_tools.errors import ExportError
from host_tools.graph import GraphFacts, Say, finished, slimmed
from host_tools.hf_source import Task, source_from_folder
from host_tools.image_steps import image_steps, image_steps_beside, words_from_steps
from host_tools.onnx_source import dims_from_file, draw_from_file, profile_from_file
from host_tools.parity import DEFAULT_TOLERANCE, Case, Check, compare, run_with_ort
from host_tools.shapes import (
    complete_profile,
    dims_from_profile,
    fixed_profile,
    output_dims,
    points_from_dims,
    profile_from_flags,
    shapes_at,
    sizes_from_dims,
    trace_point,
)
from host_tools.sources import SourceKind, TorchSource, kind_of, require, source_from_factory
from host_tools.torch_export import exporter_for, graph_from_torch, quiet, run_torch
from host_tools.training import load_state
from host_tools.use_words import words_from_classes, words_from_text

TargetName = Literal["any", "jetpack5", "jetpack6", "jetpack7", "rtx", "cpu"]

TOOLS = ("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime")
MIN_OPSET, MAX_OPSET = 13, 20  # 13 is the first with a scale per channel
SEED = 0  # of the random inputs, so that a second export makes the same comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsetRule:
    """Which opset a target gets, and the highest it reads."""

    default: int
    highest: int


# TensorRT 8.5 of JetPack 5 has no LayerNormalization (opset 17), 8.6 of JetPack 6.0 ends at 17.
# onnxruntime quantizes up to opset 20. 18 is the dynamo exporter's own; higher ones it converts.
OPSET_RULES: Mapping[TargetName, OpsetRule] = {
    "any": OpsetRule(default=17, highest=MAX_OPSET),
    "jetpack5": OpsetRule(default=16, highest=16),
    "jetpack6": OpsetRule(default=17, highest=17),
    "jetpack7": OpsetRule(default=18, highest=MAX_OPSET),
    "rtx": OpsetRule(default=18, highest=MAX_OPSET),
    "cpu": OpsetRule(default=18, highest=MAX_OPSET),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """What to export and how.

    source: "package.module:factory", a Hugging Face folder, or an .onnx file; see `sources`.
    shapes: flags as `shapes.profile_from_flags` reads them.
    opset: None = what suits the target. task: for folders; None = as config.json declares.
    tolerance: largest relative L2 error of an output against torch; see `parity`.
    state: weights for the module of a factory, a state_dict that torch.save wrote.
    image: how images become the input, see `image_steps`; a folder may say so itself.
    """

    source: str
    out: Path
    shapes: tuple[str, ...] = ()
    target: TargetName = "any"
    opset: int | None = None
    task: Task | None = None
    tolerance: float = DEFAULT_TOLERANCE
    state: Path | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written, and the evidence for it.

    checks: one entry per tested shape and output; empty for an ONNX source, which has nothing to
    be compared with. worst: the largest relative error, None without checks.
    """

    path: Path
    size_bytes: int
    opset: int
    exporter: str
    slimmed: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profile: Profile
    image: ImagePreprocessing | None
    text: TextPreprocessing | None
    classes: Classes | None
    embedding: str | None
    checks: tuple[Check, ...]
    worst: float | None

    def summary(self) -> str:
        """What a person wants to see at the end, in a few lines."""
        graph = "slimmed" if self.slimmed else "not slimmed"
        return "\n".join(
            [
                f"wrote {self.path}: {self.size_bytes:,} bytes, opset {self.opset}, "
                f"{self.exporter}, {graph}",
                *(f"  in   {_spec_text(spec)}" for spec in self.inputs),
                *(f"  out  {_spec_text(spec)}" for spec in self.outputs),
                *([] if self.image is None else [f"  {words_from_steps(self.image)}"]),
                *([] if self.text is None else [f"  {words_from_text(self.text)}"]),
                *([] if self.classes is None else [f"  {words_from_classes(self.classes)}"]),
                *([] if self.embedding is None else [f"  vectors of texts: {self.embedding}"]),
            ]
        )


def export_model(request: ExportRequest, *, say: Say) -> ExportReport:
    """Write the model to request.out and return the report; say gets one line per step.

    Raises UsageError, ExportError, ParityError or GraphError; the file is untouched then.
    """
    kind = kind_of(request.source)
    _check_request(request, kind)
    if kind == "onnx":
        return _pass_on(request, say)
    require(*TOOLS)
    with quiet():
        if kind == "folder":
            source = source_from_folder(Path(request.source), task=request.task)
        else:
            source = source_from_factory(request.source)
        if request.state is not None:
            load_state(source.module, request.state)
    return _export(request, source, say)


def _export(request: ExportRequest, source: TorchSource, say: Say) -> ExportReport:
    _require_distinct(source)
    rule = OPSET_RULES[request.target]
    opset = rule.default if request.opset is None else request.opset
    defaults = fixed_profile({name: array.shape for name, array in source.examples.items()})
    given = profile_from_flags(request.shapes)
    profile = complete_profile(given, defaults, leader=source.leader)
    image = _image_steps(request, source, profile)
    dims = dims_from_profile(profile)
    sizes = sizes_from_dims(profile, dims)
    points = points_from_dims(sizes)
    rng = np.random.default_rng(SEED)
    cases = []
    for point in points:
        feeds = source.draw(rng, shapes_at(dims, point))
        cases.append(Case(feeds=feeds, expected=run_torch(source, feeds)))
    traced = source.draw(rng, shapes_at(dims, trace_point(sizes)))
    graph = graph_from_torch(source, traced, dims, opset=opset)
    say(f"traced {source.description}: {exporter_for(opset)}, opset {opset}")
    observed = [{n: array.shape for n, array in case.expected.items()} for case in cases]
    dims |= {
        name: output_dims(name, points, [shapes[name] for shapes in observed])
        for name in source.output_names
    }
    provenance = Provenance(
        source=source.description,
        opset=opset,
        exporter=exporter_for(opset),
        tools={name: importlib.metadata.version(name) for name in (*TOOLS, *source.libraries)},
    )
    facts = GraphFacts(
        dims=dims,
        profile=profile,
        provenance=provenance,
        image=image,
        processing=source.processing,
    )
    full = finished(graph, facts)
    slim = slimmed(full, facts, say=say)
    model, checks = _compared(full, slim, cases, request.tolerance, say)
    worst = max(check.relative_error for check in checks)
    say(f"compared with torch at {len(cases)} shapes: worst relative error {worst:.2g}")
    return _written(request, model, facts, checks, is_slim=model is slim)


def _image_steps(
    request: ExportRequest, source: TorchSource, profile: Profile
) -> ImagePreprocessing | None:
    inputs = tuple(
        TensorSpec(name=name, datatype=datatype_from_numpy(array.dtype), shape=array.shape)
        for name, array in source.examples.items()
    )
    if request.image is not None:
        return image_steps(request.image, inputs, profile)
    return image_steps_beside(Path(request.source), inputs, profile)


def _require_distinct(source: TorchSource) -> None:
    names = [*source.examples, *source.output_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(
            f"{source.description}: {', '.join(twice)} would name two tensors; return the outputs "
            "as a dict with other keys, or names for them as the factory's third value"
        )


def _pass_on(request: ExportRequest, say: Say) -> ExportReport:
    require("onnxruntime")
    model = load_model(Path(request.source))
    highest, opset = OPSET_RULES[request.target].highest, opset_of(model)
    if not MIN_OPSET <= opset <= highest:
        raise ExportError(
            f"{request.source} has opset {opset}, target {request.target} takes {MIN_OPSET} to "
            f"{highest}; export it again from its source, or try onnx.version_converter"
        )
    inputs, outputs = specs_from_model(model)
    text = name_of_strings(*inputs, *outputs)
    if text is not None and request.target not in {"any", "cpu"}:
        raise ExportError(
            f"{request.source}: tensor {text!r} is BYTES, and TensorRT on {request.target} has "
            "no strings; export without --target, ONNX Runtime serves it"
        )
    profile = profile_from_file(model, request.shapes)
    if request.image is None:
        image = image_from_model(model)
    else:
        image = image_steps(request.image, inputs, profile)
    dims = dims_from_file(model, profile)
    points = points_from_dims(sizes_from_dims(profile, dims))
    run, draw = run_with_ort(model), draw_from_file(model)
    rng = np.random.default_rng(SEED)
    results = [run(draw(rng, shapes_at(dims, point))) for point in points]
    dims |= {
        name: output_dims(name, points, [result[name].shape for result in results])
        for name in results[0]
    }
    facts = GraphFacts(
        dims=dims, profile=profile, provenance=provenance_from_model(model), image=image
    )
    passed = finished(model, facts)
    say(
        f"checked {request.source} and ran it at {len(points)} shapes; its numbers are not "
        "compared, because an ONNX file has no torch module to compare with"
    )
    return _written(request, passed, facts, (), is_slim=False)


def _check_request(request: ExportRequest, kind: SourceKind) -> None:
    if not (0.0 < request.tolerance < math.inf):
        raise UsageError(
            f"--tolerance {request.tolerance} is not a positive number; the default is "
            f"{DEFAULT_TOLERANCE}"
        )
    if not request.out.parent.is_dir():
        raise UsageError(f"no folder {request.out.parent} for the output; create it first")
    if request.out.is_dir():
        raise UsageError(f"output {request.out} is a folder; give a file name ending in .onnx")
    if kind != "folder" and request.task is not None:
        raise UsageError(f"--task {request.task}: only a Hugging Face folder has a task")
    if kind != "factory" and request.state is not None:
        raise UsageError(f"--state {request.state}: only a factory takes other weights")
    if kind == "onnx" and request.opset is not None:
        raise UsageError("--opset cannot change an existing .onnx file; export from its source")
    rule = OPSET_RULES.get(request.target)
    if rule is None:
        raise UsageError(f"--target {request.target} is not one of {', '.join(OPSET_RULES)}")
    if request.opset is not None and not MIN_OPSET <= request.opset <= rule.highest:
        raise UsageError(
            f"--opset {request.opset}: target {request.target} takes {MIN_OPSET}..{rule.highest}"
        )


def _compared(
    full: onnx.ModelProto,
    slim: onnx.ModelProto | None,
    cases: list[Case],
    tolerance: float,
    say: Say,
) -> tuple[onnx.ModelProto, tuple[Check, ...]]:
    problem = None
    if slim is not None:
        try:
            return slim, compare(run_with_ort(slim), cases, tolerance=tolerance)
        except ExportError as error:
            problem = error
    checks = compare(run_with_ort(full), cases, tolerance=tolerance)
    if problem is not None:
        say(f"onnxslim changed the model ({problem}); the graph stays as traced")
    return full, checks


def _written(
    request: ExportRequest,
    model: onnx.ModelProto,
    facts: GraphFacts,
    checks: tuple[Check, ...],
    *,
    is_slim: bool,
) -> ExportReport:
    known = processing_from_model(model)
    save_model(model, request.out)
    inputs, outputs = specs_from_model(model)
    return ExportReport(
        path=request.out,
        size_bytes=request.out.stat().st_size,
        opset=facts.provenance.opset,
        exporter=facts.provenance.exporter,
        slimmed=is_slim,
        inputs=inputs,
        outputs=outputs,
        profile=facts.profile,
        image=facts.image,
        text=known.text,
        classes=known.classes,
        embedding=known.embedding,
        checks=checks,
        worst=max((check.relative_error for check in checks), default=None),
    )


def _spec_text(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.datatype} {' x '.join(str(dim) for dim in spec.shape)}"
