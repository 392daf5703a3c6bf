"""What no memory of its targets holds is refused before it is exported or packed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import GateError
from edge.config import AgentConfig
from edge.devices import DEVICES, Device, device_named
from edge.errors import UsageError
from host_tools.chat.chat_export import read_export
from host_tools.chat.fitting import check_export
from host_tools.chat.llm_spec import llm_spec_from_config, llm_spec_from_folder
from host_tools.chat.plan import JETSON_SYSTEM_BYTES, RUNTIME_BYTES, Widths, demand_of, widths_of
from host_tools.cli import cli
from host_tools.engine_record import EngineRecord, read_record
from tests.host_tools.chat.test_plan import LLAMA_3_8B
from tests.talking import make_talking_folder

LANES, CONTEXT = 2, 1024
SMALLEST = 512


def run(*words: object) -> Any:
    return cli.main([str(word) for word in words], standalone_mode=False)


def fake(monkeypatch: pytest.MonkeyPatch, usable: int) -> Device:
    """Add a Jetson to the table that has so many bytes for a model, and return it."""
    kept = AgentConfig().memory_reserve_bytes + JETSON_SYSTEM_BYTES
    memory = round((usable + kept) / (1 - 0.075))
    device = replace(
        device_named("agx-orin-64gb") or DEVICES[0], name="tiny-orin", memory_bytes=memory
    )
    monkeypatch.setattr("edge.devices.DEVICES", (*DEVICES, device))
    return device


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its export, and what `build` writes for a Jetson: the model in pieces."""
    root = tmp_path_factory.mktemp("fitting")
    make_talking_folder(root / "hf", max_position_embeddings=CONTEXT)
    run("export-chat", root / "hf", "--precision", "fp32", "--no-compare", "--out", root / "export")
    run("build", root / "hf", "--target", "agx-orin-64gb", "--precision", "fp32",
        "--lanes", LANES, "--context", CONTEXT, "--out", root / "engines")  # fmt: skip
    return root


@pytest.fixture
def record(made: Path) -> EngineRecord:
    found = read_record(made / "engines" / "trt-fp32-pieces.record.json")
    assert found is not None
    return found


def needed(made: Path, record: EngineRecord) -> int:
    """Return what the pieces take with the smallest useful cache, from the files themselves."""
    assert record.decoder is not None
    assert record.decoder.lanes == LANES
    weights = (made / "engines" / record.pieces[0]).stat().st_size
    config = json.loads((made / "hf" / "config.json").read_text())
    cache = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * 16 * 4
    demand = demand_of(
        record.decoder, widths_of(llm_spec_from_folder(made / "hf")),
        weights=weights, context=SMALLEST, lanes=LANES,
    )  # fmt: skip
    assert demand.cache == cache * SMALLEST * LANES
    return weights + demand.cache + demand.workspace + RUNTIME_BYTES


def pack(made: Path, out: Path, record: EngineRecord, target: str, *more: str) -> Any:
    """Pack engines that were built for a target."""
    engines = out.parent / f"{out.name}-engines"
    if not engines.exists():
        engines.mkdir()
        (engines / "trt-fp32-pieces").symlink_to(made / "engines" / "trt-fp32-pieces")
        content = json.loads((made / "engines" / "trt-fp32-pieces.record.json").read_text())
        content["build_for"] = [target]
        (engines / "trt-fp32-pieces.record.json").write_text(json.dumps(content))
    return run(
        "pack", made / "export", "--engines", engines, "--name", "tiny", "--threads", 1,
        "--out", out, *more,
    )  # fmt: skip


def test_pack_refuses_what_its_target_cannot_hold_unless_forced(
    made: Path,
    record: EngineRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need = needed(made, record)
    device = fake(monkeypatch, need - 1000)
    with pytest.raises(GateError) as refused:
        pack(made, tmp_path / "bundle", record, device.name)
    words = str(refused.value)
    weights = (made / "engines" / record.pieces[0]).stat().st_size
    assert words.startswith("trt-fp32-pieces cannot run on tiny-orin: it takes ")
    assert f"{need:,} bytes with {LANES} lanes of {SMALLEST} positions" in words
    assert f"weights {weights:,}" in words
    usable = int(re.search(r"has ([\d,]+) for it", words)[1].replace(",", ""))  # type: ignore[index]
    assert abs(usable - (need - 1000)) <= 2
    for way in ("fewer --lanes", "lower --precision", "another --target, such as nano", "--force"):
        assert way in words
    assert not (tmp_path / "bundle").exists()
    pack(made, tmp_path / "bundle", record, device.name, "--force")
    assert (tmp_path / "bundle" / "manifest.json").is_file()
    assert "written all the same" in capsys.readouterr().err


def test_pack_takes_what_just_fits(
    made: Path, record: EngineRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = fake(monkeypatch, needed(made, record) + 10)
    pack(made, tmp_path / "bundle", record, device.name)
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def test_force_is_refused_with_what_is_no_chat_model(tmp_path: Path) -> None:
    from calibration.model_file import save_model
    from tests.calibration.nets import conv_net

    save_model(conv_net(), tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="--force is for chat models"):
        run("pack", tmp_path / "model.onnx", "--force", "--name", "x", "--out", tmp_path / "b")


def test_an_export_says_early_that_a_target_cannot_hold_it(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = fake(monkeypatch, RUNTIME_BYTES)
    words = ("export-chat", made / "hf", "--precision", "int8", "--no-compare", "--out",
             tmp_path / "out", "--target", device.name)  # fmt: skip
    with pytest.raises(GateError, match="int8 cannot run on tiny-orin: it takes 6"):
        run(*words)
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    run(*words, "--force")
    assert "int8 cannot run on tiny-orin" in capsys.readouterr().err
    with pytest.raises(UsageError, match="'moon' is not known; give one of"):
        run(*words[:-1], "moon")


def test_the_record_of_an_export_has_the_widths_of_the_model(made: Path) -> None:
    config = json.loads((made / "hf" / "config.json").read_text())
    assert read_export(made / "export").widths == Widths(
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
    )


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ("rtx-4060", {"fp32", "fp16", "int8"}),
        ("agx-orin-64gb", set()),
        ("agx-xavier-32gb", {"fp32"}),
        ("orin-nano-8gb", {"fp32", "fp16", "int8"}),
    ],
)
def test_which_exports_of_an_8b_model_no_memory_holds(target: str, refused: set[str]) -> None:
    """8.03 billion parameters of 4, 2, 1 and 0.5 bytes beside a table of 0.53 billion."""
    device = device_named(target)
    assert device is not None
    spec = llm_spec_from_config(LLAMA_3_8B)
    said: list[str] = []
    for precision in ("fp32", "fp16", "int8", "int4"):
        check_export(
            spec, target, precision, form="scatter-primitive", head="int8", context=8192,
            force=True, say=said.append,
        )  # fmt: skip
    assert {line.split()[0] for line in said} == refused
    assert all(f"but {device.title} has" in line for line in said)
