from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import CalibrationError, GateError
from calibration.gate import Gate
from calibration.model_file import load_model, profile_from_model, save_model, specs_from_model
from calibration.table import load_table, ort_path, table_path
from calibration.trt_cache import ranges_from_cache
from edge.errors import UsageError
from edge.files import sha256_of
from edge.text import TextPreprocessing
from host_tools.calibrate import calibrate_file
from host_tools.coverage import coverage_of
from host_tools.text import TextSamples
from tests.calibration.nets import conv_net
from tests.host_tools.packing import calibrate_request

TEXT = "the cat sat on a mat and it saw many dogs"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.split()]


def test_the_table_names_both_models_and_the_data(tmp_path: Path) -> None:
    said: list[str] = []
    table, path = calibrate_file(calibrate_request(tmp_path), say=said.append)
    assert load_table(table_path(path)) == table
    assert table.model_sha256 == sha256_of(tmp_path / "model.onnx")[0]
    assert table.tensorrt.sha256 == sha256_of(path)[0]
    assert table.ort.sha256 == sha256_of(ort_path(path))[0]
    assert set(table.amax) == {"x", "r1", "c2", "r2"}
    assert said == ["warning: 60 samples; 1,000 or more are advised"]


def test_profile_survives_quantization(tmp_path: Path) -> None:
    _, path = calibrate_file(calibrate_request(tmp_path), say=lambda _: None)
    before, after = load_model(tmp_path / "model.onnx"), load_model(path)
    assert profile_from_model(after) == profile_from_model(before)
    assert specs_from_model(after) == specs_from_model(before)


def test_a_failed_gate_writes_nothing(tmp_path: Path) -> None:
    strict = Gate(min_cosine=1.1)
    with pytest.raises(GateError, match="nothing is written: for TensorRT: mean cosine"):
        calibrate_file(calibrate_request(tmp_path, gate=strict), say=lambda _: None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "samples.npz"]


def test_text_for_a_model_without_token_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("a\nb\n")
    request = calibrate_request(tmp_path, data=tmp_path / "lines.txt", tokenizer=tmp_path)
    with pytest.raises(UsageError, match="text needs a model that takes input_ids"):
        calibrate_file(request, say=lambda _: None)
    with pytest.raises(UsageError, match="give --tokenizer"):
        calibrate_file(calibrate_request(tmp_path, data=tmp_path / "lines.txt"), say=lambda _: None)


def test_any_function_can_give_the_samples(tmp_path: Path) -> None:
    data = Path("tests.host_tools.factories:batches")
    table, _ = calibrate_file(calibrate_request(tmp_path, data=data), say=lambda _: None)
    assert table.samples == 52  # of 64; the last fifth chooses the method
    again, _ = calibrate_file(calibrate_request(tmp_path, data=data), say=lambda _: None)
    assert again == table


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("failing_batches", CalibrationError, "failed at batch 1: RuntimeError: image 7.png is"),
        ("no_batches", CalibrationError, "gave no batch"),
        ("nothing", UsageError, "no callable 'nothing'"),
    ],
)
def test_a_function_that_fails_is_named_and_nothing_is_written(
    name: str, error: type, words: str, tmp_path: Path
) -> None:
    request = calibrate_request(tmp_path, data=Path(f"tests.host_tools.factories:{name}"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        calibrate_file(request, say=lambda _: None)
    assert sorted(tmp_path.iterdir()) == before


def test_a_calibration_cache_has_every_tensor_of_the_float_model(tmp_path: Path) -> None:
    cache = tmp_path / "net.cache"
    calibrate_file(calibrate_request(tmp_path, calibration_cache=cache), say=lambda _: None)
    graph = load_model(tmp_path / "model.onnx").graph
    made = {name for node in graph.node for name in node.output}
    assert set(ranges_from_cache(cache.read_bytes())) == {"x", *made}
    wrong = calibrate_request(tmp_path, calibration_cache=tmp_path / "no" / "net.cache")
    with pytest.raises(UsageError, match="--calibration-cache"):
        calibrate_file(wrong, say=lambda _: None)


@pytest.fixture
def text_samples(tmp_path: Path) -> TextSamples:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from edge.spec import Profile, ShapeRange, TensorSpec

    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    lines = ["the cat sat", "the cat sat on the mat and it saw", "", "dogs " * 40]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    bounds = ShapeRange(min=(1, 4), opt=(4, 16), max=(8, 32))
    profile = Profile(ranges=dict.fromkeys(("input_ids", "attention_mask"), bounds))
    inputs = tuple(
        TensorSpec(name=name, datatype="INT64", shape=("batch", "sequence"))
        for name in profile.ranges
    )
    return TextSamples(tmp_path / "lines.txt", tmp_path, inputs, profile)


@pytest.mark.parametrize(("truncation", "last"), [("end", "on"), ("start", "saw")])
def test_text_is_padded_and_cut_as_the_model_says(
    text_samples: TextSamples, tmp_path: Path, truncation: Any, last: str
) -> None:
    how = TextPreprocessing(
        tokenizer="t", ids="input_ids", mask="attention_mask", max_tokens=4, pad=2,
        truncation=truncation,
    )  # fmt: skip
    inputs, profile = text_samples._inputs, text_samples.profile
    samples = TextSamples(tmp_path / "lines.txt", tmp_path, inputs, profile, how)
    (feeds,) = samples.batches(2, 0, 2)
    assert WORDS[feeds["input_ids"][1, -1]] == last
    assert feeds["input_ids"].shape == (2, 4)
    assert feeds["input_ids"][0, 3] == 2


def test_text_is_padded_cut_and_masked(text_samples: TextSamples) -> None:
    assert text_samples.count == 3
    first, second = text_samples.batches(2, 0, 3)
    ids, mask = first["input_ids"], first["attention_mask"]
    assert ids.shape == mask.shape == (2, 9)
    assert [WORDS[i] for i in ids[0, :3]] == ["the", "cat", "sat"]
    assert mask.sum(axis=1).tolist() == [3, 9]
    assert not ids[0, 3:].any()
    assert second["input_ids"].shape == (1, 32)
    assert [b["input_ids"].shape for b in text_samples.batches(1, 0, 1)] == [(1, 4)]


def test_coverage_counts_lengths_and_vocabulary(text_samples: TextSamples) -> None:
    coverage = coverage_of(text_samples)
    assert (coverage.shortest, coverage.median, coverage.longest) == (3, 9, 32)
    assert coverage.tokens == 3 + 9 + 32
    seen = {"the", "cat", "sat", "on", "mat", "and", "it", "saw", "dogs"}
    assert coverage.distinct == len(seen)
    assert coverage.vocabulary == len(WORDS)
    assert coverage.seen_once == len(seen - {"the", "cat", "sat", "dogs"})
    assert coverage.warnings() == []


def test_coverage_warns_of_what_is_missing(text_samples: TextSamples) -> None:
    from dataclasses import replace

    poor = replace(
        coverage_of(text_samples),
        longest=10,
        shortest=9,
        distinct=40,
        vocabulary=30_000,
    )
    warnings = " ".join(poor.warnings())
    assert "no long text: the longest has 10 tokens, the profile allows 32" in warnings
    assert "no short text: the shortest has 9" in warnings
    assert "rare words are missing: 40 of 30,000" in warnings


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from calibration import checkpoint
from host_tools.cli import main

checkpoint.SAVE_EVERY_S = 0.0
LAST = int(os.environ["LAST"])

def batches():
    rng = np.random.default_rng(0)
    for number in range(40):
        if number == LAST and "digested" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"x": rng.normal(size=(16, 3, 8, 8)).astype(np.float32)}
    os.environ["digested"] = "1"  # the first reading takes the digest

sys.modules["killed"] = sys.modules["__main__"]
sys.argv[1:] = ["calibrate", "model.onnx", "--data", "killed:batches", "--min-cosine", "-1",
                "--min-agreement", "0"]
main()
"""


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    def run(last: int, folder: Path) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        save_model(conv_net(), folder / "model.onnx")
        return subprocess.run(
            [sys.executable, "-c", KILLED],
            cwd=folder,
            env={**os.environ, "LAST": str(last), "PYTHONPATH": str(Path.cwd())},
            capture_output=True,
            text=True,
        )

    assert run(20, tmp_path / "killed").returncode == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "killed").iterdir() if p.is_dir()] == [
        "model.int8.onnx.partial"
    ]
    resumed = run(99, tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"going on after [1-9]\d+ samples", resumed.stderr)
    whole = run(99, tmp_path / "whole")
    assert "going on" not in whole.stderr
    names = {p.name for p in (tmp_path / "whole").iterdir()}
    assert {p.name for p in (tmp_path / "killed").iterdir()} == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
