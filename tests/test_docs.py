"""Generated documents are fresh, and prose names nothing that does not exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from edge import openapi

REPOSITORY = Path(__file__).parents[1]


def generator() -> ModuleType:
    path = REPOSITORY / "docs" / "generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    module = generator()
    fresh = module.render()
    assert module.REFERENCE.read_text(encoding="utf-8") == fresh, "run `make docs`"


def test_the_openapi_document_is_what_the_code_says() -> None:
    module = generator()
    assert module.OPENAPI.read_bytes() == openapi.encoded(), "run `make docs`"


def test_architecture_names_only_modules_that_exist() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:edge|calibration|host_tools)/[\w/]+\.py)`", text))
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).is_file()] == []


def test_make_targets_named_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    for document in ("README.md", "ARCHITECTURE.md", "BENCHMARKS.md", "CHANGELOG.md"):
        text = (REPOSITORY / document).read_text(encoding="utf-8")
        named = set(re.findall(r"`make ([a-z0-9-]+)", text))
        assert named <= targets, (document, named - targets)
