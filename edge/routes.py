"""The paths that run a model; every other one is Flask's, see `api`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["infer", "predict", "embeddings"]

# Of a request that only tries a model, and says nothing of what it is asked: drift passes it by.
TEST_HEADER = "Edge-Test"

_INFER = re.compile(r"/v2/models/([\w.-]+)(?:/versions/([\w.-]+))?/infer/?", re.ASCII)
_EMBEDDINGS = re.compile(r"/v1/embeddings/?")
_PREDICT = re.compile(r"/predict/([\w.-]+)/?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """In what form a model is asked, and which; name is None where the body names it."""

    kind: Kind
    name: str | None = None
    version: str | None = None

    @classmethod
    @functools.lru_cache(maxsize=128)  # asked twice for every request
    def of(cls, path: str) -> Route | None:
        """Return where a path leads; None if it runs no model."""
        if match := _INFER.fullmatch(path):
            return cls(kind="infer", name=match[1], version=match[2])
        if match := _PREDICT.fullmatch(path):
            return cls(kind="predict", name=match[1])
        if _EMBEDDINGS.fullmatch(path):
            return cls(kind="embeddings")
        return None
