"""A Manifest of a chat model that no `pack` has written is refused before anything is opened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge.errors import BundleError
from edge.manifest import Artifact, bytes_from_manifest
from edge.manifest_reading import manifest_from_bytes
from tests.edge.chat.bundles import chat_parts


def read(**changes: Any) -> None:
    manifest, files = chat_parts(**changes)
    artifacts = tuple(Artifact(path=path, size=1, sha256="0" * 64) for path in sorted(files))
    manifest_from_bytes(bytes_from_manifest(replace(manifest, artifacts=artifacts)))


def test_what_the_tests_serve_can_be_read() -> None:
    read()


@pytest.mark.parametrize("shape", [(3,), (0,), (1, 8), ()])
def test_a_golden_prompt_of_too_few_tokens_is_refused(shape: tuple[int, ...]) -> None:
    model = chat_parts()[0].models[0]
    (case,) = model.golden.cases
    short = replace(case, inputs=(replace(case.inputs[0], shape=shape),))
    with pytest.raises(BundleError, match="golden case"):
        read(golden=replace(model.golden, cases=(short,)))


def test_a_model_in_pieces_without_pieces_is_refused() -> None:
    (variant,) = chat_parts()[0].models[0].variants
    assert variant.decoder is not None
    bare = replace(variant, decoder=replace(variant.decoder, form="layered"))
    with pytest.raises(BundleError, match="no pieces"):
        read(variants=(bare,))
