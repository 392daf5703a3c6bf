"""What a bundle says of the use of its model: from the model's own metadata, and from flags."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import onnx

from calibration.model_file import image_from_model, profile_from_model, specs_from_model
from calibration.processing import processing_from_model
from edge.classes import Classes
from edge.detections import Detection
from edge.errors import UsageError
from edge.files import read_capped
from edge.images import ImagePreprocessing
from edge.text import (
    MAX_TOKENIZER_BYTES,
    TextPreprocessing,
    Tokenizer,
    problem_with,
    problem_with_vectors,
)
from host_tools.blobs import BlobStore
from host_tools.class_names import classes_from_file, labels_from_file
from host_tools.detection_steps import detection_from_flag
from host_tools.text import IDS, MASK, TYPES, tokenizer_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Fields of `manifest.Model`."""

    image: ImagePreprocessing | None
    text: TextPreprocessing | None
    classes: Classes | None
    detection: Detection | None
    embedding: str | None


def use_of_model(
    model: onnx.ModelProto,
    store: BlobStore,
    *,
    prefix: str,
    tokenizer: Path | None,
    class_names: Path | None,
    detection: str | None,
    embedding: str | None,
) -> Use:
    """Return how a model is used, and store its tokenizer.

    tokenizer: for a model that carries none. class_names, embedding: in place of what it says.
    Raises UsageError for what does not fit the model, GraphError for metadata that does not.
    """
    known = processing_from_model(model)
    image = image_from_model(model)
    text, content = known.text, known.tokenizer
    if text is None and tokenizer is not None:
        text, content = _text_from_file(tokenizer_file(tokenizer), model)
    if text is not None and content is not None:
        text = replace(text, tokenizer=f"{prefix}/tokenizer.json")
        Tokenizer.open(content, text)
        store.add(text.tokenizer, content)
    classes = known.classes
    if class_names is not None and detection is None:
        classes = classes_from_file(class_names, model)
    if embedding is not None:
        problem = problem_with_vectors(embedding, specs_from_model(model)[1])
        if problem is not None:
            raise UsageError(f"--embedding {embedding}: {problem}")
    boxes = None
    if detection is not None:
        labels = None if class_names is None else labels_from_file(class_names)
        boxes = detection_from_flag(detection, model, labels=labels, image=image)
    return Use(
        image=image,
        text=text,
        classes=classes,
        detection=boxes,
        embedding=embedding or known.embedding,
    )


def _text_from_file(
    path: Path, model: onnx.ModelProto
) -> tuple[TextPreprocessing, bytes] | tuple[None, None]:
    """Return the steps of a model with the inputs that encoders have; (None, None) for others."""
    inputs, profile = specs_from_model(model)[0], profile_from_model(model)
    names = {spec.name for spec in inputs}
    if IDS not in names:
        return None, None
    content = read_capped(path, max_bytes=MAX_TOKENIZER_BYTES, follow_links=True)
    text = TextPreprocessing(
        tokenizer=path.name,
        ids=IDS,
        mask=MASK if MASK in names else None,
        types=TYPES if TYPES in names else None,
        max_tokens=profile.ranges[IDS].max[-1],
        pad=_pad(content),
    )
    problem = problem_with(text, inputs, profile)
    if problem is not None:
        raise UsageError(f"--tokenizer {path}: {problem}")
    return text, content


def _pad(content: bytes) -> int:
    """Return the id that a tokenizer.json pads with: as it says, or that of its padding token."""
    try:
        said: dict[str, Any] = msgspec.json.decode(content)
        if said.get("padding"):
            return int(said["padding"]["pad_id"])
        added = said.get("added_tokens") or []
        return next((int(t["id"]) for t in added if "pad" in str(t["content"]).lower()), 0)
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
        return 0  # what is no tokenizer is told when it is opened
