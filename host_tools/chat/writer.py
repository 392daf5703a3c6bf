"""From a Hugging Face folder to the ONNX file of a chat model: two files, graph and weights.

The weights are read, packed and written a few rows at a time: a model of 8 billion parameters
needs memory for its largest matrix, not for itself.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import onnx

from calibration.model_file import PROVENANCE_KEY, set_metadata
from edge import __version__
from edge.chat.spec import DECODER_KEY, DecoderSpec, Form
from edge.errors import UsageError
from edge.files import storage_errors, sync_directory
from edge.manifest import Provenance
from host_tools.chat.decoder import Plan, add_decoder
from host_tools.chat.graph import Graph, WeightFile
from host_tools.chat.layout import check_layout
from host_tools.chat.linear import Precision
from host_tools.chat.llm_spec import LlmSpec, llm_spec_from_folder
from host_tools.chat.lora import merge_adapters
from host_tools.chat.scaling import Calibration, ScaledWeights
from host_tools.chat.weights import Checkpoint, Weights
from host_tools.graph import Say

WeightType = Literal["fp32", "fp16", "int8", "int4", "w8a8"]

# Longer contexts have to be asked for: their caches would fill a small device.
DEFAULT_CONTEXT = 32768
# TensorRT 8.5 ends at opset 17; int4 came with 21, TensorScatter and Attention over it with 24.
OPSETS: dict[Form, int] = {"scatter": 24, "scatter-primitive": 24, "prefix": 17, "concat": 17}
INT4_OPSET = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a chat model is written.

    context: positions that the cache may hold; None is what the model was made for, at most
    DEFAULT_CONTEXT. half: whether activations and cache are FP16; None is so for "fp16" alone.
    adapters: folders of LoRA adapters, merged in this order. head: precision of the matrix that
    gives the logits, which int4 costs most; None is that of the other weights. calibration: from
    `calibrate.calibrate_chat`, for the same type of weights; "w8a8" needs one.
    """

    form: Form = "scatter-primitive"
    weights: WeightType = "fp32"
    context: int | None = None
    half: bool | None = None
    adapters: tuple[Path, ...] = ()
    head: Precision | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenDecoder:
    """What was written: the graph's path, its spec, and the bytes of weights beside it."""

    path: Path
    decoder: DecoderSpec
    weight_bytes: int


def write_decoder(
    folder: Path, out: Path, options: WriteOptions, *, say: Say = lambda line: None
) -> WrittenDecoder:
    """Write `out` and, beside it, its weights with the suffix .data; say gets a line per step.

    Raises UsageError, ExportError or StorageError; what was at `out` is untouched then.
    """
    spec = llm_spec_from_folder(folder)
    plan = _plan(spec, options)
    checkpoint = Checkpoint.from_folder(folder)
    check_layout(spec, checkpoint.shapes, folder)
    weights, spec = merge_adapters(checkpoint, spec, options.adapters)
    if options.calibration is not None:
        weights = ScaledWeights(weights, spec, options.calibration)
    say(_words(spec, checkpoint))
    with storage_errors("write", out):
        scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        model, weight_bytes = _model(spec, weights, plan, options, scratch, out.name)
        decoder = _decoder_spec(spec, plan, options)
        _describe(model, decoder, (folder, *options.adapters))
        with storage_errors("write", out):
            (scratch / out.name).write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(scratch / out.name), full_check=True)
        _put(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return WrittenDecoder(path=out, decoder=decoder, weight_bytes=weight_bytes)


def weights_path(out: Path) -> Path:
    """Return where the weights of a graph are."""
    return out.with_name(f"{out.name}.data")


def _plan(spec: LlmSpec, options: WriteOptions) -> Plan:
    context = min(spec.context, DEFAULT_CONTEXT) if options.context is None else options.context
    if not 1 <= context <= spec.context:
        raise UsageError(f"--context {context}: the model was made for 1..{spec.context}")
    if options.weights == "fp32" and options.half:
        raise UsageError("weights fp32 with activations fp16: give weights fp16")
    body: Precision = "float"
    if options.weights in {"int8", "int4", "w8a8"}:
        body = cast(Precision, options.weights)
    _check_calibration(options)
    return Plan(
        form=options.form,
        context=context,
        body=body,
        head=body if options.head is None else options.head,
        calibration=options.calibration,
        half_table=options.weights != "fp32",
    )


def _check_calibration(options: WriteOptions) -> None:
    if options.calibration is None:
        if "w8a8" in {options.weights, options.head}:
            raise UsageError("w8a8 needs the ranges of activations; calibrate the model with text")
    elif options.calibration.weights != options.weights:
        raise UsageError(
            f"the calibration is for {options.calibration.weights}, the weights are to be "
            f"{options.weights}; calibrate for these"
        )


def _model(
    spec: LlmSpec,
    weights: Weights,
    plan: Plan,
    options: WriteOptions,
    scratch: Path,
    name: str,
) -> tuple[onnx.ModelProto, int]:
    opset = OPSETS[plan.form]
    if "int4" in {plan.body, plan.head}:
        opset = max(opset, INT4_OPSET)
    half = options.weights == "fp16" if options.half is None else options.half
    data = weights_path(scratch / name)
    with storage_errors("write", data), data.open("wb") as file:
        stored = WeightFile(file, data.name)
        graph = Graph(opset=opset, half=half, weights=stored)
        add_decoder(graph, spec, weights, plan)
        file.flush()
        os.fsync(file.fileno())
    return graph.model(producer="edge-kit", version=__version__), stored.size_bytes


def _decoder_spec(spec: LlmSpec, plan: Plan, options: WriteOptions) -> DecoderSpec:
    half = options.weights == "fp16" if options.half is None else options.half
    return DecoderSpec(
        form=plan.form,
        layers=spec.layers,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocabulary=spec.vocabulary,
        context=plan.context,
        cache="FP16" if half else "FP32",
        window=spec.window,
        eos=spec.eos,
    )


def _describe(model: onnx.ModelProto, decoder: DecoderSpec, folders: tuple[Path, ...]) -> None:
    provenance = Provenance(
        source=" + ".join(folder.resolve().name for folder in folders),
        opset=model.opset_import[0].version,
        exporter="edge-kit chat",
        tools={"onnx": importlib.metadata.version("onnx")},
    )
    set_metadata(model, {DECODER_KEY: decoder, PROVENANCE_KEY: provenance})


def _put(scratch: Path, out: Path) -> None:
    """Move both files to their places; no graph is ever beside weights of another one."""
    with storage_errors("write", out):
        out.unlink(missing_ok=True)
        weights_path(scratch / out.name).replace(weights_path(out))
        sync_directory(out.parent)
        (scratch / out.name).replace(out)
        sync_directory(out.parent)


def _words(spec: LlmSpec, checkpoint: Checkpoint) -> str:
    return (
        f"{spec.family}: {checkpoint.parameters / 1e6:,.0f} M parameters, {spec.layers} layers, "
        f"{spec.heads} heads over {spec.kv_heads}, vocabulary {spec.vocabulary:,}"
    )
