"""Sizes from a config.json against files that the writer wrote."""

from __future__ import annotations

import numpy as np
import pytest

from host_tools.chat.calibrate import calibrate_chat
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
    head = options.pop("head", "same")
    wanted = WriteOptions(**options, head=None if head == "same" else head)
    write_decoder(folder, out, wanted)
    half = options.get("half", options["weights"] == "fp16")
    spec = llm_spec_from_folder(folder)
    found = weight_bytes(
        spec,
        form=options["form"],
        precision=options["weights"],
        half=half,
        context=options.get("context", spec.context),
        head=head,
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


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_int8_head_of_int4_is_counted_as_written(tmp_path, form, tied, half):
    folder = make_folder(tmp_path / "m", "llama", tie_word_embeddings=tied)
    sizes = {}
    for head in ("int8", "same"):
        check(folder, tmp_path / "m.onnx", form=form, weights="int4", half=half, head=head)
        sizes[head] = weights_path(tmp_path / "m.onnx").stat().st_size
    assert sizes["int8"] > sizes["same"]


@pytest.mark.parametrize("half", [False, True])
def test_w8a8_is_counted_as_written(tmp_path, half):
    folder = make_folder(tmp_path / "m", "llama")
    windows = np.zeros((1, 16), np.int64)
    found = calibrate_chat(folder, windows, "w8a8")
    check(folder, tmp_path / "m.onnx", form="scatter", weights="w8a8", half=half, calibration=found)


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
