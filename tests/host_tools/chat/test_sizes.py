"""Sizes from a config.json against files that the writer wrote."""

from __future__ import annotations

import pytest

from host_tools.chat.llm_spec import llm_spec_from_folder
from host_tools.chat.sizes import weight_bytes
from host_tools.chat.writer import WriteOptions, weights_path, write_decoder
from tests.chat_models import FAMILIES, make_folder

FORMS = ("scatter", "scatter-primitive", "prefix", "concat")
# Widths with every int4 block, and one that has none: 320 = 64 * 5, 96 = 32 * 3, 48.
WIDTHS = {
    "blocks of 128 and 64": {"hidden_size": 128, "intermediate_size": 320},
    "blocks of 32": {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 3,
                     "num_key_value_heads": 1},
    "no block": {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3,
                 "num_key_value_heads": 3},
    "odd vocabulary": {"vocab_size": 255},
}  # fmt: skip


def check(folder, out, **options):
    """The size that is foretold is that of the file."""
    write_decoder(folder, out, WriteOptions(**options))
    half = options.get("half", options["weights"] == "fp16")
    spec = llm_spec_from_folder(folder)
    found = weight_bytes(
        spec,
        form=options["form"],
        precision=options["weights"],
        half=half,
        context=options.get("context", spec.context),
    )
    assert found.file == weights_path(out).stat().st_size


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", ["fp32", "fp16", "int8", "int4"])
def test_the_size_is_that_of_the_written_file(tmp_path, form, weights):
    check(make_folder(tmp_path / "m", "llama"), tmp_path / "m.onnx", form=form, weights=weights)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_biases_norms_and_tied_heads_are_counted(tmp_path, family, tied):
    folder = make_folder(tmp_path / "m", family, tie_word_embeddings=tied)
    for weights in ("fp32", "int4"):
        check(folder, tmp_path / "m.onnx", form="scatter", weights=weights, context=100)


@pytest.mark.parametrize("widths", WIDTHS)
def test_layers_that_int4_blocks_do_not_divide_are_counted_as_written(tmp_path, widths):
    folder = make_folder(tmp_path / "m", "llama", **WIDTHS[widths])
    check(folder, tmp_path / "m.onnx", form="scatter", weights="int4", half=True)


def test_of_the_embedding_a_token_reads_a_row_unless_it_is_the_head(tmp_path):
    sizes = {}
    for tied in (True, False):
        folder = make_folder(tmp_path / str(tied), "llama", tie_word_embeddings=tied)
        spec = llm_spec_from_folder(folder)
        sizes[tied] = weight_bytes(
            spec, form="scatter", precision="fp16", half=True, context=spec.context
        )
    table = spec.vocabulary * spec.hidden * 2
    assert sizes[False].file - sizes[True].file == pytest.approx(table, abs=8192)
    assert sizes[True].per_token == sizes[False].per_token
