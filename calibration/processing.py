"""What a model's export knows of its use: texts as inputs, names or vectors as outputs.

It travels in the ONNX file's metadata, like the image steps, the tokenizer itself among it; `pack`
puts the tokenizer into the bundle and the rest into the Manifest.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass, replace

import onnx

from calibration.errors import GraphError
from calibration.model_file import (
    profile_from_model,
    set_metadata,
    specs_from_model,
    stored_metadata,
)
from edge import classes as class_names
from edge import text as texts
from edge.classes import Classes
from edge.text import MAX_TOKENIZER_BYTES, TextPreprocessing

TEXT_KEY = "edge_kit.text"
TOKENIZER_KEY = "edge_kit.tokenizer"
CLASSES_KEY = "edge_kit.classes"
EMBEDDING_KEY = "edge_kit.embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """See the fields of `manifest.Model`; None is what the export did not know.

    tokenizer: the bytes of a tokenizer.json. There is one exactly if there is `text`, whose
    `tokenizer` is a name without meaning until the bundle is packed, and whose `max_tokens` may be
    more than the profile allows until it is read by `processing_from_model`.
    """

    text: TextPreprocessing | None = None
    tokenizer: bytes | None = None
    classes: Classes | None = None
    embedding: str | None = None


def set_processing(model: onnx.ModelProto, processing: Processing) -> None:
    """Write the facts into the model's metadata; those that are None stay as they were."""
    facts: dict[str, object] = {
        TEXT_KEY: processing.text,
        CLASSES_KEY: processing.classes,
        EMBEDDING_KEY: processing.embedding,
    }
    if processing.tokenizer is not None:
        packed = base64.b64encode(zlib.compress(processing.tokenizer, 9))
        facts[TOKENIZER_KEY] = packed.decode("ascii")
    set_metadata(model, {key: fact for key, fact in facts.items() if fact is not None})


def processing_from_model(model: onnx.ModelProto) -> Processing:
    """Return what the export said; raises GraphError if it does not fit the graph."""
    inputs, outputs = specs_from_model(model)
    profile = profile_from_model(model)
    classes = stored_metadata(model, CLASSES_KEY, Classes)
    embedding = stored_metadata(model, EMBEDDING_KEY, str)
    text = stored_metadata(model, TEXT_KEY, TextPreprocessing)
    packed = stored_metadata(model, TOKENIZER_KEY, str)
    problems = []
    if (text is None) != (packed is None):
        problems.append((TEXT_KEY, "text steps and a tokenizer belong together"))
    elif text is not None:
        bounds = profile.ranges.get(text.ids)
        if bounds is not None and len(bounds.max) == 2:
            text = replace(text, max_tokens=min(text.max_tokens, bounds.max[1]))
        problems.append((TEXT_KEY, texts.problem_with(text, inputs, profile) or ""))
    if classes is not None:
        problems.append((CLASSES_KEY, class_names.problem_with(classes, outputs) or ""))
    if embedding is not None:
        problems.append((EMBEDDING_KEY, texts.problem_with_vectors(embedding, outputs) or ""))
    for key, problem in problems:
        if problem:
            raise GraphError(f"metadata {key}: {problem}; export again")
    return Processing(
        text=text,
        tokenizer=None if packed is None else _unpacked(packed),
        classes=classes,
        embedding=embedding,
    )


def drop_tokenizer(model: onnx.ModelProto) -> None:
    """Take the tokenizer out of the model's metadata: a bundle has it as a file of its own."""
    kept = [entry for entry in model.metadata_props if entry.key != TOKENIZER_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def _unpacked(packed: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(base64.b64decode(packed, validate=True), MAX_TOKENIZER_BYTES)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise GraphError(f"metadata {TOKENIZER_KEY} is malformed: {error}; export again") from error
    if not stream.eof:
        raise GraphError(
            f"metadata {TOKENIZER_KEY} ends early, or has more than {MAX_TOKENIZER_BYTES} bytes; "
            "export again"
        )
    return content
