"""What `edge-kit build` takes for a chat model beside its targets: adapters and chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.chat.layered import layered_model_from_bytes
from edge.errors import UsageError
from host_tools.chat.build_engines import source_sha256
from host_tools.cli import cli
from tests.chat_models import make_folder
from tests.host_tools.chat.test_lora import DOWN, QUERY, merged_by_hand, pairs, save


def build(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    cli.main(
        ["build", *map(str, words), "--target", "agx-orin-64gb", "--precision", "fp32", "--json"],
        standalone_mode=False,
    )
    return json.loads(capsys.readouterr().out)


def test_an_adapter_is_merged_into_the_weights_of_the_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    folder = make_folder(tmp_path / "hf", "llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tensors = pairs(model, (QUERY, DOWN))
    adapter = save(tmp_path / "adapter", tensors)
    merged = merged_by_hand(folder, tensors, dict.fromkeys((QUERY, DOWN), 16 / 4))
    merged.save_pretrained(tmp_path / "merged")
    (ours,) = build(capsys, folder, "--adapter", adapter, "--out", tmp_path / "ours")
    (theirs,) = build(capsys, tmp_path / "merged", "--out", tmp_path / "theirs")
    (plain,) = build(capsys, folder, "--out", tmp_path / "plain")
    weights = {
        name: np.fromfile(tmp_path / name / record["pieces"][0], np.float32)
        for name, record in (("ours", ours), ("theirs", theirs), ("plain", plain))
    }
    np.testing.assert_allclose(weights["ours"], weights["theirs"], atol=1e-6)
    assert np.abs(weights["ours"] - weights["plain"]).max() > 0.01
    assert ours["source_sha256"] == source_sha256(folder, (adapter,)) != plain["source_sha256"]


def test_a_chunk_is_the_longest_step_of_the_pieces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "hf", "llama")
    for chunk in (64, None):
        more = () if chunk is None else ("--chunk", chunk)
        (record,) = build(capsys, folder, *more, "--out", tmp_path / f"{chunk}")
        file = record["file"]
        model = layered_model_from_bytes((tmp_path / f"{chunk}" / file).read_bytes(), file)
        assert max(piece.tokens for piece in model.pieces) == (chunk or 512)


@pytest.mark.parametrize("option", ["--adapter", "--chunk", "--lanes", "--context"])
def test_options_of_chat_models_are_refused_with_others(tmp_path: Path, option: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=f"{option} does not go with .* is no chat model"):
        cli.main(
            ["build", str(tmp_path / "model.onnx"), option, "4", "--target", "rtx-4060"],
            standalone_mode=False,
        )
