"""Chat models that the writer has no description of: torch traces what transformers runs.

The graph is of the form "concat", in FP32, for ONNX Runtime: whatever the architecture, its own
code decides what a token sees. One lane at a time, as `ConcatCache` runs it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from calibration.model_file import PROVENANCE_KEY, set_metadata
from edge.chat.spec import DECODER_KEY, DecoderSpec
from edge.errors import UsageError
from edge.files import atomic_write, storage_errors
from edge.manifest import Provenance
from host_tools.chat.llm_spec import ends_of_answers
from host_tools.chat.plan import Widths
from host_tools.chat.torch_model import torch_model
from host_tools.chat.weights import Checkpoint
from host_tools.chat.writer import DEFAULT_CONTEXT, WrittenDecoder, weights_path
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.torch_export import free_interface_names, quiet

if TYPE_CHECKING:
    import torch

# The dynamo exporter's own; its graph is the same for any number of tokens, new or past.
OPSET = 18
# In FP32 four bytes each, twice: in torch, and in the program that is saved.
MAX_PARAMETERS = 1_500_000_000
# Tokens that are traced with; sizes of 1 would become constants.
PAST, NEW = 7, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedDecoder:
    """A traced graph, and what the memory of a step is counted with."""

    written: WrittenDecoder
    widths: Widths


def write_traced(folder: Path, out: Path, *, context: int | None = None) -> TracedDecoder:
    """Write `out` and its weights beside it, from the module that transformers makes of a folder.

    context: positions of a conversation; None is what the model was made for, at most
    DEFAULT_CONTEXT. Nothing but safetensors is read, and no code that lies in the folder is run.
    Raises UsageError for a context that the model has not, ExportError if it cannot be traced.
    """
    parameters = Checkpoint.from_folder(folder).parameters
    if parameters > MAX_PARAMETERS:
        raise ExportError(
            f"{folder}: tracing {parameters / 1e9:.1f} billion parameters needs more memory than "
            "most hosts have; only the families of `edge-kit export-chat` are read in pieces"
        )
    model = torch_model(folder)
    # Of a mixture of experts all are computed as one product, which is what can be traced.
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")
    positions = _context(model.config, context, folder)
    try:
        with quiet():
            example = _example(model)
            spec, widths = _spec(example, positions, folder), _widths(model.config)
            program = _program(model, example)
    except FOREIGN_ERRORS as error:
        raise ExportError(
            f"{folder}: torch cannot trace {type(model).__name__}: {root_cause(error)}; "
            "the architecture needs a writer of its own"
        ) from error
    with storage_errors("write", out):
        program.save(str(out), external_data=True)
    graph = onnx.load(str(out), load_external_data=False)
    provenance = Provenance(
        source=folder.resolve().name,
        opset=OPSET,
        exporter="torch-dynamo",
        tools={name: version(name) for name in ("onnx", "torch", "transformers")},
    )
    set_metadata(graph, {DECODER_KEY: spec, PROVENANCE_KEY: provenance})
    atomic_write(out, graph.SerializeToString())
    onnx.checker.check_model(str(out))
    size = weights_path(out).stat().st_size
    written = WrittenDecoder(path=out, decoder=spec, weight_bytes=size)
    return TracedDecoder(written=written, widths=widths)


@dataclass(frozen=True, slots=True)
class _Example:
    """What is traced with: new tokens [1, S] behind past ones, whose caches are [1, K, past, D]."""

    tokens: torch.Tensor
    caches: tuple[torch.Tensor, ...]
    vocabulary: int


def _example(model: Any) -> _Example:
    import torch
    from transformers import DynamicCache

    tokens = torch.zeros((1, PAST + NEW), dtype=torch.int64)
    cache = DynamicCache()
    with torch.no_grad():
        logits = model(tokens[:, :PAST], past_key_values=cache, use_cache=True).logits
    return _Example(tokens[:, PAST:], _arrays(cache), logits.shape[-1])


def _program(model: Any, example: _Example) -> Any:
    import torch
    from transformers import DynamicCache

    picks_rows = "logits_to_keep" in inspect.signature(model.forward).parameters

    class OneLane(torch.nn.Module):
        """The interface of `edge.chat.spec` around a module of transformers."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, start: Any, rows: Any, *caches: Any) -> tuple[Any, ...]:
            cache = DynamicCache(list(zip(caches[::2], caches[1::2], strict=True)))
            logits = self.model(
                input_ids=input_ids,
                position_ids=start[:, None] + torch.arange(input_ids.shape[1])[None],
                past_key_values=cache,
                use_cache=True,
                **({"logits_to_keep": rows[0]} if picks_rows else {}),
            ).logits
            return (logits if picks_rows else logits[:, rows[0]], *_arrays(cache))

    names = [f"{kind}_{i}" for i in range(len(example.caches) // 2) for kind in ("key", "value")]
    varies: Any = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        OneLane(),
        (example.tokens, torch.tensor([PAST]), torch.tensor([[0, NEW - 1]]), *example.caches),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input_ids", "start", "rows", *names],
        output_names=["logits", *(f"{name}_out" for name in names)],
        dynamic_shapes=({1: varies}, {}, {1: varies}, tuple({2: varies} for _ in names)),
    )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    free_interface_names(program.model.graph)
    return program


def _arrays(cache: Any) -> tuple[torch.Tensor, ...]:
    return tuple(array for layer in cache.layers for array in (layer.keys, layer.values))


def _spec(example: _Example, context: int, folder: Path) -> DecoderSpec:
    if not example.caches:
        raise ExportError(f"{folder}: its layers keep no keys and values, which a device caches")
    shapes = {tuple(array.shape) for array in example.caches}
    if len(shapes) != 1 or len(first := shapes.pop()) != 4:
        raise ExportError(
            f"{folder}: its layers keep caches of several shapes, {sorted(shapes)}; a device has "
            "one shape for all"
        )
    return DecoderSpec(
        form="concat",
        layers=len(example.caches) // 2,
        kv_heads=first[1],
        head_dim=first[3],
        vocabulary=example.vocabulary,
        context=context,
        cache="FP32",
        eos=ends_of_answers(folder, example.vocabulary),
    )


def _context(config: Any, wanted: int | None, folder: Path) -> int:
    """Return the positions to serve; some models, of ALiBi say, have no bound of their own."""
    bound: int | None = getattr(config, "max_position_embeddings", None)
    if wanted is None:
        if bound is None:
            raise UsageError(f"{folder}: its config has no longest context; give --context")
        return min(bound, DEFAULT_CONTEXT)
    if bound is not None and wanted > bound:
        raise UsageError(f"--context {wanted}: the model was made for 1..{bound}")
    return wanted


def _widths(config: Any) -> Widths:
    hidden = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None)
    return Widths(
        hidden=hidden, intermediate=inner or 4 * hidden, heads=int(config.num_attention_heads)
    )
