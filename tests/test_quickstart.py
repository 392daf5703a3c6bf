"""The quickstart as a user runs it, with --keep, up to the curl lines it prints."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge.agent_process import script
from edge.bundle import open_bundle
from edge.trust import trusted_keys_in
from tests.agents import unused_port

pytestmark = pytest.mark.slow
STOP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the quickstart printed, and the curl lines it ended with."""

    folder: Path
    text: str
    curls: list[str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("quick") / "out"
    port = unused_port()
    process = subprocess.Popen(
        [script("edge-kit"), "quickstart", "--out", str(folder), "--keep", "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        # Whatever started pytest in the background may have had SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    lines: list[str] = []
    curls: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if line.strip().startswith("curl "):
            curls.append(line.strip())
        if len(curls) == 3:
            break
    assert len(curls) == 3, "\n".join(lines)
    yield Kept(folder=folder, text="\n".join(lines), curls=curls)
    process.send_signal(signal.SIGINT)
    assert process.wait(STOP_S) == 0
    process.stdout.close()


def served_accuracy(kept: Kept) -> dict[str, float]:
    rows = re.findall(r"(ort-\w+)\s+│\s+([\d.]+) %", kept.text)
    return {variant: float(percent) for variant, percent in rows}


def test_both_variants_keep_the_promised_accuracy_over_http(kept: Kept) -> None:
    accuracy = served_accuracy(kept)
    assert set(accuracy) == {"ort-fp32", "ort-int8"}
    assert accuracy["ort-fp32"] > 97.0
    assert abs(accuracy["ort-fp32"] - accuracy["ort-int8"]) <= 0.5


def test_the_manifest_holds_the_evidence(kept: Kept) -> None:
    keys = trusted_keys_in(kept.folder / "keys")
    model = open_bundle(kept.folder / "bundle", keys).manifest.models[0]
    assert model.accuracy is not None
    assert model.accuracy.samples >= 540
    assert model.accuracy.int8_mac_percent >= 90.0
    faster = min(model.variants, key=lambda variant: variant.measurements[0].p50_ms)
    assert model.preferences[0].variant == faster.id


def test_the_printed_curl_lines_work(kept: Kept) -> None:
    def answer(line: str) -> dict:
        words = shlex.split(line)
        result = subprocess.run([*words[:1], "-sf", *words[1:]], check=True, capture_output=True)
        return json.loads(result.stdout)

    metadata, inference, telemetry = (answer(line) for line in kept.curls)
    assert metadata["inputs"][0]["shape"] == [-1, 1, 32, 32]
    label = int(np.load(kept.folder / "heldout.npz")["labels"][0])
    assert int(np.argmax(inference["outputs"][0]["data"])) == label
    assert telemetry["ready"]
    assert telemetry["models"][0]["requests"]["ok"] >= 1


def test_the_folder_of_someone_else_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "digits.pt").write_text("precious")
    command = [script("edge-kit"), "quickstart", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "holds other files" in result.stderr
    assert (tmp_path / "digits.pt").read_text() == "precious"
