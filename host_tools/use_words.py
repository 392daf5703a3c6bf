"""How a model is used, in words: what `/predict` and `/v1/embeddings` take and answer."""

from __future__ import annotations

from edge.classes import Classes
from edge.manifest import Model
from edge.text import TextPreprocessing
from host_tools.detection_steps import words_from_detection
from host_tools.image_steps import words_from_steps


def use_lines(model: Model) -> list[str]:
    """Return a line for each way to feed a model and to read it, none for tensors alone."""
    lines = []
    if model.image is not None:
        lines.append(words_from_steps(model.image))
    if model.text is not None:
        lines.append(words_from_text(model.text))
    if model.classes is not None:
        lines.append(words_from_classes(model.classes))
    if model.detection is not None:
        lines.append(words_from_detection(model.detection))
    takes = " or ".join(
        kind for kind, how in (("images", model.image), ("texts", model.text)) if how is not None
    )
    if takes:
        lines.append(f"POST /predict/{model.name} takes {takes}, answers with {_answer(model)}")
    if model.chat is not None:
        way = "/v1/chat/completions" if model.chat.template is not None else "/v1/completions"
        lines.append(f"POST {way} talks, and so does /chat")
    if model.embedding is not None and model.text is not None:
        lines.append(f"POST /v1/embeddings takes texts, answers with {model.embedding}")
    return lines


def words_from_text(text: TextPreprocessing) -> str:
    """Return what happens to a text, in a line."""
    end = {
        "end": "cut at the end",
        "start": "cut at the start",
        "refuse": "refused",
    }[text.truncation]
    return f"texts: at most {text.max_tokens} tokens, longer ones {end}, padded with {text.pad}"


def words_from_classes(classes: Classes) -> str:
    """Return what the scores mean, in a line."""
    return f"{len(classes.labels)} classes with names, from {classes.output}"


def _answer(model: Model) -> str:
    if model.detection is not None:
        return "boxes"
    if model.classes is not None:
        return f"the best {min(model.classes.top, len(model.classes.labels))} classes"
    return "tensors"
