"""`edge-agent drift export`, of an agent that was asked over HTTP."""

from __future__ import annotations

import base64
import json
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from calibration.samples import open_samples
from edge.cli import cli
from edge.drift.export import Kept
from edge.drift.kept import Row
from edge.drift.kept_folder import KeptRow
from edge.errors import EdgeError, StorageError, UsageError
from tests.agents import make_config, running_agent
from tests.edge.drift.test_keeping import Keeping, about
from tests.edge.drift.test_served import RNG, ask, content_of_reference, drift_of, parts_with
from tests.fakes import wait_until
from tests.models import affine


def export(folder: Path, out: Path, *words: str, model: str = "affine") -> Any:
    words = ("--drift-keep-folder", str(folder), "--model", model, "--out", str(out), *words)
    result = CliRunner().invoke(cli, ["drift", "export", *words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result


def kept_by_agent(
    tmp_path: Path, kept: int = 100, **changes: Any
) -> tuple[Path, np.ndarray, np.ndarray]:
    """Return a folder, and the usual and the shifted rows that an agent was asked."""
    folder = tmp_path / "kept"
    values = {"drift_window": 50, "drift_keep_inputs": 100, "drift_keep_folder": folder, **changes}
    config = make_config(tmp_path, parts_with(content_of_reference()), **values)
    usual = RNG.normal(size=(50, 4)).astype(np.float32)
    shifted = (RNG.normal(size=(50, 4)) + 3).astype(np.float32)
    with running_agent(config) as agent:
        for number, rows in enumerate((usual, shifted), 1):
            ask(agent.url, rows)
            wait_until(lambda n=number: drift_of(agent.url)["windows"] == n)
        assert drift_of(agent.url)["kept"] == kept
    return folder, usual, shifted


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def test_what_an_agent_was_asked_can_be_calibrated_on_and_says_when_it_drifted(tmp_path):
    folder, usual, shifted = kept_by_agent(tmp_path)
    out = tmp_path / "out"
    told = json.loads(export(folder, out, "--json").output)
    assert (told["rows"], told["drifted"], told["left_out"]) == (100, 50, 0)
    samples = open_samples(out / "inputs")
    (feeds,) = samples.batches(1000, 0, samples.count)
    answers = np.load(out / "answers" / "0001.npz")["y"]
    np.testing.assert_allclose(answers, affine(feeds["x"])["y"], rtol=1e-6)
    lines = lines_of(out)
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    for is_drifted, rows in ((False, usual), (True, shifted)):
        numbers = [line["row"] for line in lines if line["drifted"] == is_drifted]
        found = feeds["x"][numbers]
        np.testing.assert_array_equal(np.sort(found, axis=0), np.sort(rows, axis=0))
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*.*z")} == {0o600}
    assert out.stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_unless_the_configuration_says_so(tmp_path):
    folder, _, _ = kept_by_agent(tmp_path, drift_keep_inputs=0, kept=0)
    assert not folder.exists()
    with pytest.raises(UsageError, match="set drift_keep_inputs"):
        export(folder, tmp_path / "out")


def test_an_input_that_no_model_has_keeps_all_from_being_kept(tmp_path):
    config = make_config(
        tmp_path, parts_with(content_of_reference()), drift_window=50, drift_keep_inputs=9,
        drift_keep_folder=tmp_path / "kept", drift_keep_redact="X",
    )  # fmt: skip
    with running_agent(config) as agent:
        ask(agent.url, RNG.normal(size=(50, 4)))
        wait_until(lambda: drift_of(agent.url)["windows"] == 1)
        assert agent.serving.is_ready
    assert not (tmp_path / "kept").exists()


def test_no_failure_to_keep_keeps_a_model_from_being_served(tmp_path, monkeypatch, caplog):
    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edge.drift.opening.Keeper.open", fails)
    folder, _, _ = kept_by_agent(tmp_path, drift_keep_inputs=9, kept=0)
    assert not folder.exists()
    assert [r.message for r in caplog.records if "inputs are not kept" in r.message] == [
        "inputs are not kept model=affine: ZeroDivisionError"
    ]


def test_a_dry_run_writes_nothing_and_a_folder_that_is_there_is_not_touched(tmp_path):
    folder, _, _ = kept_by_agent(tmp_path)
    out = tmp_path / "out"
    assert "100 inputs, 50 of windows that drifted" in export(folder, out, "--dry-run").output
    assert not out.exists()
    out.mkdir()
    with pytest.raises(StorageError, match="exists already"):
        export(folder, out)
    assert list(out.iterdir()) == []


def test_a_redacted_export_holds_neither_contents_nor_answers(tmp_path):
    folder, _, _ = kept_by_agent(tmp_path)
    out = tmp_path / "out"
    export(folder, out, "--redact", "x")
    assert not np.load(out / "inputs" / "0001.npz")["x"].any()
    assert not (out / "answers").exists()
    assert len(lines_of(out)) == 100
    with pytest.raises(UsageError, match="no input 'z' to redact, only x"):
        export(folder, tmp_path / "other", "--redact", "z")


@pytest.mark.parametrize("model", ["..", "a/b", "", "other"])
def test_a_model_that_is_not_there_is_an_error(tmp_path, model):
    (tmp_path / "kept").mkdir()
    with pytest.raises(UsageError, match="model"):
        export(tmp_path / "kept", tmp_path / "out", model=model)


def test_the_reference_that_was_served_last_is_exported_or_the_one_that_is_asked_for(tmp_path):
    first, second = (Keeping(tmp_path, reference_sha256=letter * 64) for letter in "ab")
    first.window(1, 2)
    second.window(3)
    for words, rows, reference in (
        ((), 1, "b"), (("--reference", "a"), 2, "a"), (("--reference", "b" * 16), 1, "b"),
    ):  # fmt: skip
        result = export(first.rules.folder, tmp_path / reference, "--dry-run", *words, model="m")
        assert f"{rows} inputs" in result.output
        assert f"kept for reference {reference * 16} of bundle 1" in result.output
    with pytest.raises(UsageError, match=f"reference c, only for {'b' * 16}, {'a' * 16}"):
        export(first.rules.folder, tmp_path / "out", "--reference", "c", model="m")


def test_a_reference_without_inputs_yet_leads_to_the_one_that_has_some(tmp_path):
    first, second = (Keeping(tmp_path, reference_sha256=letter * 64) for letter in "ab")
    first.window(1)
    with pytest.raises(StorageError, match=f"no inputs yet; there is --reference {'a' * 16}"):
        export(second.rules.folder, tmp_path / "out", model="m")


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    folder, _, _ = kept_by_agent(tmp_path)

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge.drift.export._save", fails)
    with pytest.raises(EdgeError, match=r"(?i)no space left"):
        export(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def row(number: int, x: np.ndarray, text: str | None = None) -> KeptRow:
    logits = np.array([[0.0, 2.0]], np.float32)
    feeds = {} if text is not None else {"x": x, "note": np.array([[b"n"]], object)}
    return KeptRow(
        row=Row(when=float(number), feeds=feeds, outputs={"logits": logits}, text=text),
        is_drifted=bool(number % 2),
    )


def test_rows_of_other_shapes_are_in_other_files_and_lines_lead_to_them(tmp_path):
    widths = (3, 5, 3, 4, 5)
    rows = [row(n, np.full((1, width), n, np.float32)) for n, width in enumerate(widths)]
    kept = Kept(about(labels=("no", "yes")), rows[::-1], left_out=0)
    kept.write(tmp_path / "out", kept.summary(()))
    assert len(list((tmp_path / "out" / "inputs").iterdir())) == 3
    assert open_samples(tmp_path / "out" / "inputs").count == 5
    for number, (line, width) in enumerate(zip(lines_of(tmp_path / "out"), widths, strict=True)):
        x = np.load(tmp_path / "out" / line["file"])["x"]
        assert x.shape[1] == width
        assert (x[line["row"]] == number).all()
        assert (line["number"], line["label"]) == (1, "yes")
        assert line["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)


def test_texts_are_lines_of_a_text_file_and_whole_in_the_list(tmp_path):
    texts = ["erste\nZeile", "zweite"]
    kept = Kept(about(), [row(n, np.zeros(1), t) for n, t in enumerate(texts)], left_out=0)
    kept.write(tmp_path / "out", kept.summary(()))
    assert (tmp_path / "out/inputs/texts.txt").read_text() == "erste Zeile\nzweite\n"
    assert [line["text"] for line in lines_of(tmp_path / "out")] == texts
    assert np.load(tmp_path / "out/answers/texts.npz")["logits"].shape == (2, 2)


def bytes_row(number: int, *texts: bytes, answer: bytes = b"y") -> KeptRow:
    feeds = {"x": np.full((1, 2), number, np.float32), "note": np.array([texts], object)}
    return KeptRow(
        row=Row(when=float(number), feeds=feeds, outputs={"said": np.array([[answer]], object)}),
        is_drifted=False,
    )


def exported(tmp_path: Path, rows: list[KeptRow]) -> Path:
    kept = Kept(about(), rows, left_out=0)
    kept.write(tmp_path / "out", kept.summary(()))
    return tmp_path / "out"


def decoded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_long_text_does_not_stretch_the_array_of_short_ones(tmp_path):
    long = b"y" * 1_000_000
    rows = [bytes_row(n, b"x" * (n % 3)) for n in range(300)]
    out = exported(tmp_path, [*rows, bytes_row(300, long), bytes_row(301, b"a", answer=long)])
    sizes = [np.load(path)["note"].nbytes for path in (out / "inputs").iterdir()]
    assert sum(sizes) < 2 * (len(long) + 301 * 2)
    for number, line in enumerate(lines_of(out)[:301]):
        note = np.load(out / line["file"])["note"][line["row"], 0]
        assert note == (b"x" * (number % 3) if number < 300 else long)
    # One of these answers is long: they are lines, in the order of the inputs.
    last = lines_of(out)[301]
    said = decoded(out / "answers" / Path(last["file"]).with_suffix(".jsonl").name)
    assert base64.b64decode(said[last["row"]]["said"][0]) == long


@pytest.mark.parametrize("texts", [(b"end\0\0", b""), (b"y" * 300_000, b"")])
def test_texts_that_fit_no_array_are_lines_that_miss_no_byte(tmp_path, monkeypatch, texts):
    monkeypatch.setattr("edge.drift.export.MAX_PADDING", 1)
    out = exported(tmp_path, [bytes_row(1, b"a", b"b"), bytes_row(2, *texts)])
    first, second = lines_of(out)
    assert (first["file"], second["file"]) == ("inputs/0001.npz", "inputs/lines.jsonl")
    found = decoded(out / second["file"])[second["row"]]
    assert found["x"] == [2, 2]
    assert tuple(map(base64.b64decode, found["note"])) == texts
    assert np.load(out / "answers" / "lines.npz")["said"].tolist() == [[b"y"]]
    assert open_samples(out / "inputs").count == 1


def test_an_input_may_have_any_name(tmp_path):
    kept = Kept(about(inputs=("file",)), [
        KeptRow(row=Row(when=0.0, feeds={"file": np.ones((1, 2))}, outputs={}), is_drifted=False)
    ], left_out=0)  # fmt: skip
    kept.write(tmp_path / "out", kept.summary(()))
    with zipfile.ZipFile(tmp_path / "out/inputs/0001.npz") as archive:
        assert archive.namelist() == ["file.npy"]
    assert msgspec.json.decode((tmp_path / "out/export.json").read_bytes())["rows"] == 1
