"""Reading safetensors a few rows at a time: values, shards, damage, and the memory it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.errors import EdgeError, UsageError
from host_tools.chat.weights import CHUNK_BYTES, Checkpoint, in_chunks, whole
from host_tools.chat.writer import WriteOptions, weights_path, write_decoder
from host_tools.errors import ExportError
from tests.chat_models import make_folder, make_sparse_folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("hf"), "llama")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "copy")


def save(path: Path, header: dict | bytes, values: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


def change(folder: Path, **tensors: object) -> None:
    """Replace tensors, named with __ for dots, or remove them where None is given."""
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        found.pop(name.replace("__", "."), None)
        if value is not None:
            found[name.replace("__", ".")] = value
    save_file(found, folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_values_of_every_type_are_those_of_torch(tmp_path: Path, kind: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    tensors = {"a": torch.randn(37, 5).to(getattr(torch, kind)), "b": torch.randn(9)}
    save_file(tensors, tmp_path / "m.safetensors")
    checkpoint = Checkpoint.from_file(tmp_path / "m.safetensors")
    assert checkpoint.shapes == {"a": (37, 5), "b": (9,)}
    expected = tensors["a"].to(torch.float32).numpy()
    np.testing.assert_array_equal(whole(checkpoint, "a"), expected)
    np.testing.assert_array_equal(checkpoint.rows("a", 11, 30), expected[11:30])


def test_chunks_begin_at_even_rows_and_follow_each_other(tmp_path: Path) -> None:
    columns = CHUNK_BYTES // 4 // 3  # three rows do not fit, so two are taken
    header = {"a": {"dtype": "F32", "shape": [7, columns], "data_offsets": [0, 28 * columns]}}
    path = save(tmp_path / "m.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 28 * columns)
    chunks = in_chunks(Checkpoint.from_file(path), "a")
    assert [(begin, len(rows)) for begin, rows in chunks] == [(0, 2), (2, 2), (4, 2), (6, 1)]


def test_shards_give_the_same_file_as_a_whole_checkpoint(original: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    whole_out, shards_out = tmp_path / "whole.onnx", tmp_path / "shards.onnx"
    write_decoder(original, whole_out, WriteOptions())
    write_decoder(tmp_path / "shards", shards_out, WriteOptions())
    assert weights_path(whole_out).read_bytes() == weights_path(shards_out).read_bytes()


def entry(**changes: object) -> dict:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"not json", "is no safetensors file"),
        (b"[1, 2]", "is no safetensors file"),
        ({"a": 3}, "is no safetensors file"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "is no safetensors file"),
        (entry(shape="2"), "is no safetensors file"),
        (entry(dtype="I8"), "a is I8, the writer reads F16, F32"),
        (entry(data_offsets=[0, 16]), "a lies outside the file"),
        (entry(data_offsets=[8, 0]), "a lies outside the file"),
        (entry(data_offsets=[-8, 0]), "a lies outside the file"),
        (entry(shape=[-2]), "a lies outside the file"),
        (entry(shape=[3]), r"a has 8 bytes for \[3\]"),
        (entry(shape=[2**62, 2**62]), "a has 8 bytes for"),
    ],
)
def test_a_damaged_header_is_an_error(tmp_path: Path, header: dict | bytes, words: str) -> None:
    path = save(tmp_path / "m.safetensors", header, b"\0" * 8)
    with pytest.raises(ExportError, match=words):
        Checkpoint.from_file(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 8, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_a_file_without_a_header_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match="is no safetensors file: its header has"):
        Checkpoint.from_file(tmp_path / "m.safetensors")


def test_a_file_that_was_cut_is_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(ExportError, match="lies outside the file; copy it again"):
        Checkpoint.from_folder(folder)


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ("{", ExportError, "is no index of shards"),
        ("{}", ExportError, "is no index of shards"),
        ('{"weight_map": {"a": 1}}', ExportError, "is no index of shards"),
        ('{"weight_map": {"a": "other.safetensors"}}', EdgeError, "other.safetensors"),
        ('{"weight_map": {"a": "../m.safetensors"}}', EdgeError, r"\.\./m\.safetensors"),
        ('{"weight_map": {"b": "m.safetensors"}}', ExportError, "lacks b, which model.safe"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_an_error(
    tmp_path: Path, index: str, error: type[Exception], words: str
) -> None:
    save(tmp_path / "m.safetensors", entry(), b"\0" * 8)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=words):
        Checkpoint.from_folder(tmp_path)


def test_a_folder_without_safetensors_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="safe_serialization=True"):
        Checkpoint.from_folder(tmp_path)


def zeros(*shape: int) -> object:
    import torch

    return torch.zeros(shape)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("model__norm__weight", None, r"no tensor model\.norm\.weight; the checkpoint is incom"),
        ("lm_head__weight", None, r"no tensor lm_head\.weight"),
        ("lm_head__weight", (255, 64), r"\[255, 64\], config\.json says \[256, 64\]"),
        ("model__layers__1__mlp__down_proj__weight", (128, 64), r"\[128, 64\].* says \[64, 128\]"),
        ("model__norm__weight", (64, 1), r"\[64, 1\], config\.json says \[64\]"),
        ("model__layers__1__self_attn__q_proj__bias", (64,), "has no use for tensor model.*bias"),
        ("model__layers__2__mlp__up_proj__weight", (128, 64), r"no use for tensor .*layers\.2"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, name: str, shape: tuple[int, ...] | None, words: str
) -> None:
    change(folder, **{name: None if shape is None else zeros(*shape)})
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    with pytest.raises(ExportError, match=words):
        write_decoder(folder, out, WriteOptions())
    assert not list(out.parent.iterdir())


def test_buffers_of_old_checkpoints_are_left_alone(folder: Path, tmp_path: Path) -> None:
    change(folder, model__layers__0__self_attn__rotary_emb__inv_freq=zeros(8))
    write_decoder(folder, tmp_path / "model.onnx", WriteOptions())


@pytest.mark.parametrize(
    ("value", "weights", "words"),
    [
        (float("nan"), "fp32", r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
        (float("-inf"), "int4", r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"),
        (70000.0, "fp16", r"layers\.1\.gate_up\.weight has values beyond those of float16"),
    ],
)
def test_values_that_no_graph_can_hold_are_an_error_and_what_was_there_stays(
    folder: Path, tmp_path: Path, value: float, weights: str, words: str
) -> None:
    import torch

    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    write_decoder(folder, out, WriteOptions(weights=weights))  # type: ignore[arg-type]
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    spoilt = torch.randn(128, 64)
    spoilt[127, 63] = value
    change(folder, model__layers__1__mlp__up_proj__weight=spoilt)
    with pytest.raises(ExportError, match=words):
        write_decoder(folder, out, WriteOptions(weights=weights))  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before


_PEAK = """
import sys
from pathlib import Path
from host_tools.chat.writer import WriteOptions, write_decoder

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

small, large, weights = sys.argv[1:]
options = WriteOptions(weights=weights)
write_decoder(Path(small), Path(small) / "model.onnx", options)
Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
before = resident("VmRSS")
write_decoder(Path(large), Path(large) / "model.onnx", options)
print(resident("VmHWM") - before)
"""


@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_memory_while_writing_grows_by_a_few_tensors_and_not_by_the_model(
    original: Path, tmp_path: Path, weights: str
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 24}
    parameters = make_sparse_folder(tmp_path / "large", **sizes)
    child = subprocess.run(
        [sys.executable, "-c", _PEAK, str(original), str(tmp_path / "large"), weights],
        capture_output=True,
        text=True,
        check=True,
    )
    largest = 4 * 2 * 1024 * 512  # gate and up of a layer, in float32
    assert parameters * 4 > 50 * largest
    # The joined matrix, the rows that were read and what they are made of, and packing them.
    assert int(child.stdout) < 5 * largest
