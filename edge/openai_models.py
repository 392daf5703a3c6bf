"""The list of models for OpenAI's clients: those that talk, and those that embed texts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from edge.errors import UnknownModelError
from edge.manifest import Model
from edge.serving import Serving


def model_list(serving: Serving) -> dict[str, Any]:
    """Return the chat models and encoders that are served, or could be."""
    models = [model for model in serving.models if _is_listed(model)]
    models.sort(key=lambda model: model.chat is None)  # a client may take the first
    return {"object": "list", "data": [_entry(serving, model) for model in models]}


def model_entry(serving: Serving, name: str) -> dict[str, Any]:
    """Return one of these models; raises UnknownModelError."""
    model = serving.model(name, None)
    if not _is_listed(model):
        raise UnknownModelError(
            f"model {name!r} neither talks nor embeds texts; see GET /v1/models"
        )
    return _entry(serving, model)


def _is_listed(model: Model) -> bool:
    return model.chat is not None or (model.embedding is not None and model.text is not None)


def _entry(serving: Serving, model: Model) -> dict[str, Any]:
    served = serving.served.get(model.name)
    manifest = (serving.bundle if served is None else served.bundle).manifest
    created = datetime.fromisoformat(manifest.created.replace("Z", "+00:00"))
    return {
        "id": model.name,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": manifest.name,
    }
