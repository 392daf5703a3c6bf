"""Hugging Face model folders: config.json and safetensors, read from disk only.

Tasks and their outputs: image-classification and text-classification give "logits",
feature-extraction gives "last_hidden_state", or "embedding" for a sentence-transformers folder
(modules.json), pooled and normalised as it declares. Text models take input_ids and
attention_mask; token_type_ids only for text-classification, where sentence pairs need them.
No network, no code from the folder, no pickle.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import numpy as np

from calibration.processing import Processing
from edge.errors import UsageError
from edge.files import read_capped
from edge.spec import AnyArray
from host_tools.errors import FOREIGN_ERRORS, ExportError, root_cause
from host_tools.hf_processing import classes_from_config, text_processing
from host_tools.shapes import Shapes
from host_tools.sources import TorchSource, draw_like, flat_outputs, positional, require
from host_tools.torch_export import quiet

if TYPE_CHECKING:
    import torch

Task = Literal["image-classification", "text-classification", "feature-extraction"]
Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens"]

AUTO_CLASSES: dict[Task, str] = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "feature-extraction": "AutoModel",
}
TASK_ENDINGS: dict[str, Task] = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "Model": "feature-extraction",
}
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
# In the order that sentence-transformers concatenates them.
POOLING_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
OTHER_POOLING_FLAGS = ("pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken")
DEFAULT_TOKENS = 128
DEFAULT_IMAGE_SIZE = 224
MAX_CONFIG_BYTES = 8 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceHead:
    """What a sentence-transformers folder does with the hidden states; where its encoder lies."""

    encoder: Path
    pooling: tuple[Pooling, ...]
    normalize: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    type: str
    path: str


def source_from_folder(folder: Path, *, task: Task | None = None) -> TorchSource:
    """Return the model of a Hugging Face folder; task None = as config.json declares.

    Raises UsageError if the folder holds no model, ExportError if its model is not supported.
    """
    require("torch", "transformers", "safetensors")
    head = _sentence_head(folder) if (folder / "modules.json").is_file() else None
    root = folder if head is None else head.encoder
    config = _json(root / "config.json")
    if head is not None and task not in {None, "feature-extraction"}:
        raise UsageError(
            f"{folder} is a sentence-transformers folder; its task is feature-extraction"
        )
    if task is not None and task not in AUTO_CLASSES:
        raise UsageError(f"--task {task} is not one of {', '.join(AUTO_CLASSES)}")
    chosen = _task(folder, config, task) if head is None else "feature-extraction"
    if config.get("is_encoder_decoder"):
        raise ExportError(f"{folder} is an encoder-decoder model, which export does not support")
    if not any(root.glob("*.safetensors")):
        raise ExportError(
            f"{root} has no *.safetensors weights, and pickle files are not loaded; convert it "
            "with transformers: model.save_pretrained(folder, safe_serialization=True)"
        )
    model = _loaded(root, chosen)
    if model.main_input_name == "input_ids":
        return _text_source(folder, root, model, chosen, head)
    if model.main_input_name == "pixel_values":
        return _image_source(folder, model, chosen)
    raise ExportError(
        f"{folder}: its main input is {model.main_input_name!r}; export reads text models "
        "(input_ids) and image models (pixel_values); use a package.module:factory"
    )


def _task(folder: Path, config: dict[str, Any], task: Task | None) -> Task:
    architecture = next(iter(config.get("architectures") or [""]))
    if task is not None:
        return task
    if architecture.endswith(CAUSAL_ENDINGS):
        raise ExportError(
            f"{folder} is a text generator ({architecture}); generation comes with the chat "
            "path, not with export; for its hidden states give --task feature-extraction"
        )
    for ending, known in TASK_ENDINGS.items():
        if architecture.endswith(ending):
            return known
    raise ExportError(
        f"{folder}: no task follows from the architecture {architecture!r}; give --task "
        f"{', '.join(AUTO_CLASSES)}"
    )


def _loaded(root: Path, task: Task) -> Any:
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    progress: Any = logging
    bars = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        with quiet():
            model, report = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(
                root,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except (*FOREIGN_ERRORS, SafetensorError) as error:
        raise ExportError(f"{root} does not load as {task}: {root_cause(error)}") from error
    finally:
        if bars:
            progress.enable_progress_bar()
    # A pooler does not reach last_hidden_state; any other missing weight would be random.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ExportError(
            f"{root} has no weights for {', '.join(missing[:3])} ({len(missing)} missing), which "
            f"{task} needs; give the --task it was trained for"
        )
    # A decoder's key-value cache is no output here, and cannot be traced.
    model.config.use_cache = False
    return model.float().eval()


def _text_source(
    folder: Path, root: Path, model: Any, task: Task, head: SentenceHead | None
) -> TorchSource:
    config = model.config
    accepted = inspect.signature(model.forward).parameters
    names = ["input_ids", "attention_mask"]
    pairs = task == "text-classification" and getattr(config, "type_vocab_size", 0) > 1
    if pairs and "token_type_ids" in accepted:
        names.append("token_type_ids")
    draw = _draw_text(config)
    tokens = min(getattr(config, "max_position_embeddings", DEFAULT_TOKENS), DEFAULT_TOKENS)
    sentence = root / "sentence_bert_config.json"
    declared = None
    if head is not None and sentence.is_file():
        declared = _json(sentence).get("max_seq_length") or None
        tokens = min(declared or tokens, tokens)
    examples = draw(np.random.default_rng(0), {name: (1, tokens) for name in names})
    if head is not None:
        module, output = positional(_with_head(model, head), None, flat_outputs), "embedding"
    else:
        output = _output_of(task)
        module = positional(model, tuple(names), _attribute(output))
    return TorchSource(
        module=module,
        examples=examples,
        output_names=(output,),
        description=_description(folder, model, task),
        draw=draw,
        libraries=("transformers",),
        leader="input_ids",
        processing=text_processing(
            root,
            tuple(names),
            config,
            declared_tokens=declared,
            classes=classes_from_config(config, output) if output == "logits" else None,
            embedding=None if head is None else output,
        ),
    )


def _image_source(folder: Path, model: Any, task: Task) -> TorchSource:
    height, width = _image_size(folder, model.config)
    shape = (1, getattr(model.config, "num_channels", 3), height, width)
    # Constant: draw_like makes it normal.
    examples: dict[str, AnyArray] = {"pixel_values": np.zeros(shape, np.float32)}
    output = _output_of(task)
    return TorchSource(
        module=positional(model, ("pixel_values",), _attribute(output)),
        examples=examples,
        output_names=(output,),
        description=_description(folder, model, task),
        draw=draw_like(examples),
        libraries=("transformers",),
        processing=Processing(
            classes=classes_from_config(model.config, output) if output == "logits" else None
        ),
    )


def _image_size(folder: Path, config: Any) -> tuple[int, int]:
    size: Any = getattr(config, "image_size", None)
    path = folder / "preprocessor_config.json"
    if size is None and path.is_file():
        processor = _json(path)
        size = processor.get("crop_size") or processor.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge", DEFAULT_IMAGE_SIZE)
        size = (size.get("height", edge), size.get("width", edge))
    if size is None or isinstance(size, int):
        return size or DEFAULT_IMAGE_SIZE, size or DEFAULT_IMAGE_SIZE
    height, width = size
    return height, width


def _draw_text(config: Any) -> Callable[[np.random.Generator, Shapes], dict[str, AnyArray]]:
    vocabulary, pad = config.vocab_size, getattr(config, "pad_token_id", None) or 0
    types = max(getattr(config, "type_vocab_size", 1), 1)

    def draw(rng: np.random.Generator, shapes: Shapes) -> dict[str, AnyArray]:
        rows, tokens = shapes["input_ids"]
        if set(shapes.values()) != {(rows, tokens)}:
            raise UsageError(
                "the inputs of a text model have one shape; give --shape input_ids only"
            )
        # The first row is full, the others are padded on the right.
        lengths = rng.integers(1, tokens, size=rows, endpoint=True)
        lengths[:1] = tokens
        mask = np.arange(tokens) < lengths[:, None]
        ids = np.where(mask, rng.integers(0, vocabulary, (rows, tokens)), pad)
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if "token_type_ids" in shapes:
            feeds["token_type_ids"] = rng.integers(0, types, (rows, tokens))
        return feeds

    return draw


def _with_head(model: Any, head: SentenceHead) -> torch.nn.Module:
    import torch

    class SentenceEncoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor]:
            hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(hidden.dtype)
            total, count = (hidden * weights).sum(1), weights.sum(1).clamp(min=1e-9)
            pooled: dict[Pooling, Callable[[], torch.Tensor]] = {
                "cls": lambda: hidden[:, 0],
                "max": lambda: hidden.masked_fill(weights == 0, -1e9).amax(1),
                "mean": lambda: total / count,
                "mean_sqrt_len_tokens": lambda: total / count.sqrt(),
            }
            embedding = torch.cat([pooled[mode]() for mode in head.pooling], dim=-1)
            if head.normalize:
                embedding = torch.nn.functional.normalize(embedding, p=2.0, dim=1)
            return (embedding,)

    return SentenceEncoder()


def _sentence_head(folder: Path) -> SentenceHead:
    steps = _decoded(folder / "modules.json", list[_Step])
    kinds = [step.type.rpartition(".")[2] for step in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ExportError(
            f"{folder}/modules.json declares {' > '.join(kinds)}; export reads Transformer > "
            "Pooling, with or without Normalize; use a package.module:factory"
        )
    return SentenceHead(
        encoder=folder / steps[0].path,
        pooling=_pooling(folder / steps[1].path / "config.json"),
        normalize=kinds[-1] == "Normalize",
    )


def _pooling(path: Path) -> tuple[Pooling, ...]:
    config = _json(path)
    declared = config.get("pooling_mode")
    if declared is None:
        flags = (*POOLING_FLAGS, *OTHER_POOLING_FLAGS)
        declared = [POOLING_FLAGS.get(flag, flag) for flag in flags if config.get(flag)]
    wanted = [declared] if isinstance(declared, str) else list(declared) or ["mean"]
    modes = tuple(mode for mode in POOLING_FLAGS.values() if mode in wanted)
    unknown = [mode for mode in wanted if mode not in modes]
    if unknown:
        raise ExportError(
            f"{path}: pooling {unknown[0]!r} is not one of {', '.join(POOLING_FLAGS.values())}"
        )
    return modes


def _output_of(task: Task) -> str:
    return "last_hidden_state" if task == "feature-extraction" else "logits"


def _attribute(name: str) -> Callable[[Any], tuple[torch.Tensor, ...]]:
    return lambda result: (getattr(result, name),)


def _description(folder: Path, model: Any, task: Task) -> str:
    return f"{folder.resolve().name} ({type(model).__name__}, {task})"


def _json(path: Path) -> dict[str, Any]:
    return _decoded(path, dict[str, Any])


def _decoded(path: Path, kind: type[_T]) -> _T:
    if not path.is_file():
        raise UsageError(f"{path.parent} is no Hugging Face model folder: {path.name} is missing")
    try:
        # Resolved, because the files of a download cache are links.
        return msgspec.json.decode(
            read_capped(path, max_bytes=MAX_CONFIG_BYTES, follow_links=True), type=kind
        )
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is malformed: {error}") from error
